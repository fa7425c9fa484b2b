//! Records of an MDT that are not what was written: they are refused, or looked at without harm. The corpus of the fuzz target `records`
//! (`tests/fuzz`), and damaged copies of it.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use burstfs_mds::{Checker, MemoryEngine};
use burstfs_proto::mds::*;
use burstfs_types::*;

use support::{Bench, Medium, name};

/// Damaged copies of each file.
const COPIES: u64 = 300;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/records")
}

/// Records one after the other: the lengths of key and value, 16 bits each, little-endian, then both.
fn decoded(mut bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    while let Some(([k0, k1, v0, v1], rest)) = bytes.split_first_chunk() {
        let (key, value) = (usize::from(u16::from_le_bytes([*k0, *k1])), usize::from(u16::from_le_bytes([*v0, *v1])));
        let Some((pair, rest)) = rest.split_at_checked(key + value) else { break };
        pairs.push((pair[..key].to_vec(), pair[key..].to_vec()));
        bytes = rest;
    }
    pairs
}

fn encoded(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let pair = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let lengths = [(key.len() as u16).to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
        [lengths, key.clone(), value.clone()].concat()
    };
    pairs.iter().flat_map(pair).collect()
}

/// The checker reads every kind of record. What it finds is not asked.
fn look_at(bytes: &[u8]) {
    for mdts in [1, 3] {
        let mut checker = Checker::new(mdts);
        let records = Records { pairs: decoded(bytes), next: None, limit: 1_000, inodes: 3 };
        if checker.add_records(MdtIndex::new(0), &records).is_ok() {
            checker.finish();
        }
    }
}

#[test]
fn records_that_are_not_what_was_written_harm_nobody() {
    let files: Vec<_> = fs::read_dir(corpus()).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!files.is_empty());
    for bytes in files {
        look_at(&bytes);
        let mut state = 7_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below.max(1)
        };
        for _ in 0..COPIES {
            let mut copy = bytes.clone();
            for _ in 0..=random(4) {
                let at = random(copy.len());
                copy[at] = if random(2) == 0 { random(256) as u8 } else { 0xff };
            }
            copy.truncate(copy.len() - random(8).min(copy.len() - 1));
            look_at(&copy);
        }
    }
}

/// Writes the corpus anew. To be run when records have changed.
#[test]
#[ignore = "writes tests/fuzz/corpus/records"]
fn write_corpus() {
    let mut bench = Bench::new(Medium::Memory(MemoryEngine::new()));
    let dir = bench.mkdir(Ino::ROOT, "dir").unwrap().ino;
    let file = bench.file(dir, "file");
    bench.link(file, Ino::ROOT, "link").unwrap();
    bench.call(Symlink { parent: dir, name: name("s"), target: b"file".to_vec(), uid: 1, gid: 2 }).unwrap();
    let value = b"1".to_vec();
    bench
        .call(SetXattr { ino: file, name: b"user.a".to_vec(), value, mode: XattrMode::Any, kill_set_gid: false })
        .unwrap();
    let Ok(MdsReply::PeerRecords(records)) = bench.call(PeerRecords { from: Vec::new() }) else { panic!("no records") };
    fs::create_dir_all(corpus()).unwrap();
    fs::write(corpus().join("all"), encoded(&records.pairs)).unwrap();
    for pair in &records.pairs {
        let table = char::from(pair.0[0]);
        fs::write(corpus().join(format!("{table}")), encoded(std::slice::from_ref(pair))).unwrap();
    }
}
