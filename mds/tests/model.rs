//! Random sequences of operations against the model, over one MDT and several, on both engines, with deaths of MDTs.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use burstfs_mds::MemoryEngine;
use burstfs_testkit::namespace_model::{self, Op};
use proptest::prelude::*;

use support::Medium;
use support::instance::Instance;

fn in_memory(mdts: usize) -> Vec<Medium> {
    (0..mdts).map(|_| Medium::Memory(MemoryEngine::new())).collect()
}

fn on_rocksdb(mdts: usize) -> Vec<Medium> {
    (0..mdts).map(|_| Medium::rocks()).collect()
}

fn compare(ops: &[Op], media: Vec<Medium>) -> Result<(), TestCaseError> {
    let mut target = Instance::new(media, false);
    namespace_model::run(ops, &mut target).map_err(|difference| TestCaseError::fail(difference.to_string()))
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1_000))]
    #[test]
    fn in_memory_it_is_as_the_model(ops in namespace_model::ops(120)) {
        compare(&ops, in_memory(1))?;
    }

    #[test]
    fn three_in_memory_are_as_the_model(ops in namespace_model::ops(120)) {
        compare(&ops, in_memory(3))?;
    }
}

proptest! {
    #![proptest_config(cases(3_000))]
    #[test]
    fn whichever_dies_when_it_is_as_the_model(ops in namespace_model::ops_with_crashes(100), mdts in 1..4_usize) {
        compare(&ops, in_memory(mdts))?;
    }
}

proptest! {
    #![proptest_config(cases(48))]
    #[test]
    fn on_rocksdb_it_is_as_the_model(ops in namespace_model::ops(120)) {
        compare(&ops, on_rocksdb(1))?;
    }

    #[test]
    fn on_rocksdb_whichever_dies_it_is_as_the_model(ops in namespace_model::ops_with_crashes(60)) {
        compare(&ops, on_rocksdb(3))?;
    }
}
