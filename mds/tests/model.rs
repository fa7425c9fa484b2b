//! Random sequences of operations against the model, on both engines.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::collections::BTreeSet;

use burstfs_mds::MemoryEngine;
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::service::Caller;
use burstfs_testkit::namespace_model::{self, Target};
use burstfs_types::{Errno, Ino, Timestamp};
use proptest::prelude::*;

use support::{Bench, Medium};

struct UnderTest(Bench);

impl Target for UnderTest {
    fn set_now(&mut self, now: Timestamp) {
        self.0.clock.set_to(now);
    }

    fn call(&mut self, caller: Caller, request: MdsRequest) -> Result<MdsReply, Errno> {
        self.0.call_as(caller, request)
    }

    fn reopen(&mut self) {
        self.0.reopen();
    }

    fn destroyed(&self) -> BTreeSet<Ino> {
        self.0.mdt().orphans(None, usize::MAX).unwrap().iter().map(|orphan| orphan.ino).collect()
    }

    fn violations(&self) -> Vec<String> {
        self.0.mdt().check().unwrap().iter().map(ToString::to_string).collect()
    }
}

fn compare(ops: &[namespace_model::Op], medium: Medium) -> Result<(), TestCaseError> {
    let mut target = UnderTest(Bench::new(medium));
    namespace_model::run(ops, &mut target).map_err(|difference| TestCaseError::fail(difference.to_string()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]
    #[test]
    fn in_memory_it_is_as_the_model(ops in namespace_model::ops(120)) {
        compare(&ops, Medium::Memory(MemoryEngine::new()))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn on_rocksdb_it_is_as_the_model(ops in namespace_model::ops(120)) {
        compare(&ops, Medium::rocks())?;
    }
}
