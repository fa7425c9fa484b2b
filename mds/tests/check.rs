//! The checker finds what is broken.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::Arc;

use burstfs_mds::{Checker, Engine, Mdt, MemoryEngine, NoPeers};
use burstfs_proto::mds::*;
use burstfs_proto::oss::OstStatfs;
use burstfs_types::*;

use support::{Bench, Medium, config, layout};

/// An MDT with one of everything.
fn populated() -> MemoryEngine {
    let engine = MemoryEngine::new();
    let mut bench = Bench::new(Medium::Memory(engine.clone()));
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    let file = bench.file(dir, "f");
    bench.link(file, Ino::ROOT, "g").unwrap();
    let (name, value) = (b"user.a".to_vec(), b"1".to_vec());
    bench.call(SetXattr { ino: file, name, value, mode: XattrMode::Any, kill_set_gid: false }).unwrap();
    bench.create(dir, "open").unwrap();
    bench.unlink(dir, "open").unwrap();
    bench.check();
    // A copy keeps the orphan, which the bench's end would release.
    engine.snapshot()
}

fn found(engine: MemoryEngine) -> Vec<String> {
    let clock = Arc::new(support::StandingClock::default());
    let mdt = Mdt::open(config(0, 1), Arc::new(engine), Arc::new(NoPeers), clock).unwrap();
    mdt.check().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn whatever_record_is_lost_is_missed() {
    let healthy = populated();
    assert_eq!(found(healthy.snapshot()), Vec::<String>::new());
    let mut tables = Vec::new();
    for (key, _) in healthy.scan(&[0], &[0xff], usize::MAX).unwrap() {
        let table = char::from(key[0]);
        if !"IDCXO".contains(table) || key[1..] == Ino::ROOT.get().to_be_bytes() {
            continue;
        }
        tables.push(table);
        let broken = healthy.snapshot();
        broken.commit(vec![(key.clone(), None)]).unwrap();
        assert!(!found(broken).is_empty(), "{}", key.escape_ascii());
    }
    tables.sort_unstable();
    assert_eq!(tables.into_iter().collect::<String>(), "CCCDDDIIIOX");
}

#[test]
fn objects_are_matched_with_layouts() {
    let mut bench = Bench::new(Medium::Memory(MemoryEngine::new()));
    let file = bench.file(Ino::ROOT, "f");
    let gone = bench.file(Ino::ROOT, "gone");
    bench.unlink(Ino::ROOT, "gone").unwrap();
    let object = |ino, stripe| ObjectId { ino, stripe: StripeIndex::new(stripe) };
    let ost = layout().osts()[0];
    let counts = |objects, used| OstStatfs { capacity: 0, used, available: 0, objects };
    let check = |ost, objects: &[(ObjectId, u64)], counts: &OstStatfs| {
        let mut checker = Checker::new(1);
        checker.add_mdt(bench.mdt()).unwrap();
        checker.add_ost(ost, objects, counts);
        checker.finish().iter().map(|violation| violation.invariant).collect::<Vec<_>>()
    };
    assert_eq!(check(ost, &[(object(file, 0), 512), (object(gone, 0), 0)], &counts(2, 512)), []);
    assert_eq!(check(ost, &[(object(file, 1), 512)], &counts(1, 512)), [15]);
    assert_eq!(check(OstIndex::new(5), &[(object(file, 0), 512)], &counts(1, 512)), [15]);
    let unknown = Ino::new(MdtIndex::new(0), 1 << 20).unwrap();
    assert_eq!(check(ost, &[(object(unknown, 0), 512)], &counts(1, 512)), [15]);
    assert_eq!(check(ost, &[(object(file, 0), 512)], &counts(1, 1_024)), [16]);
    // What another MDT holds is believed where that one is not told.
    let elsewhere = Ino::new(MdtIndex::new(1), 5).unwrap();
    assert_eq!(check(ost, &[(object(elsewhere, 0), 0)], &counts(1, 0)), []);
}

#[test]
fn a_directory_of_many_pages_is_walked_whole() {
    let mut bench = Bench::new(Medium::Memory(MemoryEngine::new()));
    for n in 0..3_000 {
        bench.file(Ino::ROOT, &n.to_string());
    }
    let mut checker = Checker::new(1);
    checker.add_mdt(bench.mdt()).unwrap();
    assert_eq!(checker.inodes(), 3_001);
    assert_eq!(checker.finish(), []);
}
