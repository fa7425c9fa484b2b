//! Many threads on few names: whatever the order, the invariants hold and the counts of successes fit together.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use burstfs_mds::{Mdt, MemoryEngine};
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::*;
use proptest::test_runner::RngSeed;

use support::{Bench, Medium, create, mkdir, name, now};

const THREADS: u16 = 8;
const STEPS: u64 = 3_000;

/// What one thread does: its client's requests, one after the other.
fn work(mdt: &Mdt, node: u16, seed: u64, dirs: &[Ino], names_made: &AtomicI64) {
    let mut state = seed.wrapping_add(u64::from(node));
    let mut open = Vec::new();
    for xid in 1..=STEPS {
        let client = ClientId { node: NodeIndex::new(node), incarnation: 1 };
        let caller = Caller { client, xid: Xid(xid), oldest_unanswered: Xid(xid) };
        let call = |request: MdsRequest| now(mdt.call(caller, request));
        let mut pick = |n: usize| (next(&mut state) % n as u64) as usize;
        let (dir, other) = (dirs[pick(dirs.len())], dirs[pick(dirs.len())]);
        let (text, new) = (pick(5).to_string(), pick(5).to_string());
        match pick(8) {
            0 | 1 => {
                let Ok(MdsReply::Create(created)) = call(create(dir, &text).into()) else { continue };
                open.push(created.attr.ino);
                names_made.fetch_add(i64::from(created.is_new), Ordering::Relaxed);
            }
            2 => {
                if call(Unlink { parent: dir, name: name(&text) }.into()).is_ok() {
                    names_made.fetch_sub(1, Ordering::Relaxed);
                }
            }
            3 => {
                let mode = if pick(2) == 0 { RenameMode::NoReplace } else { RenameMode::Exchange };
                let (name, new_name) = (name(&text), name(&new));
                drop(call(Rename { parent: dir, name, new_parent: other, new_name, mode }.into()));
            }
            4 => {
                if let Some(ino) = open.pop() {
                    call(Close { ino }.into()).unwrap();
                }
            }
            5 => {
                let Ok(MdsReply::Lookup(entry)) = call(Lookup { parent: dir, name: name(&text) }.into()) else {
                    continue;
                };
                // Found under the directory's lock: the inode is there.
                assert!(entry.attr.is_some());
            }
            6 => {
                if call(mkdir(dir, &text).into()).is_ok() {
                    names_made.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => {
                if call(Rmdir { parent: dir, name: name(&text) }.into()).is_ok() {
                    names_made.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn stress(medium: Medium) {
    let seed = match proptest::test_runner::Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    println!("seed: PROPTEST_RNG_SEED={seed}");
    let mut bench = Bench::new(medium);
    let dirs: Vec<Ino> = (0..3).map(|n| bench.mkdir(Ino::ROOT, &format!("dir{n}")).unwrap().ino).collect();
    let (mdt, names_made) = (Arc::clone(bench.mdt()), AtomicI64::new(0));
    std::thread::scope(|scope| {
        for node in 1..=THREADS {
            let (mdt, dirs, names_made) = (&mdt, &dirs, &names_made);
            scope.spawn(move || work(mdt, node, seed, dirs, names_made));
        }
    });
    let names: usize = dirs.iter().map(|dir| bench.names(*dir).len()).sum();
    assert_eq!(i64::try_from(names), Ok(names_made.into_inner()));
    drop(mdt);
    bench.check();
    bench.reopen();
}

#[test]
fn threads_in_memory() {
    stress(Medium::Memory(MemoryEngine::new()));
}

#[test]
fn threads_on_rocksdb() {
    stress(Medium::rocks());
}
