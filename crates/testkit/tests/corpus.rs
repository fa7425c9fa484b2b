//! The fuzz targets' corpus, and damaged copies of it, on stable: what the targets of `tests/fuzz` do with more time.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

use std::fs;
use std::path::{Path, PathBuf};

use burstfs_proto::batch::BatchRequest;
use burstfs_proto::frame::{Header, Kind};
use burstfs_proto::hello::{Challenge, MAGIC, Opening, Proof, Refusal, Role, Verdict};
use burstfs_proto::leases::{LeaseReply, LeaseRequest};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::mgs::{MgsReply, MgsRequest};
use burstfs_proto::oss::{OssReply, OssRequest};
use burstfs_proto::stage::{StageReply, StageRequest};
use burstfs_proto::{PROTOCOL_VERSION, encode};
use burstfs_testkit::decoding::TARGETS;
use burstfs_types::{InstanceId, Xid};

/// Damaged copies of each file.
const COPIES: u64 = 200;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A copy with a few bytes changed, cut off, or doubled.
fn damaged(bytes: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random(state) % 3 {
        let at = random(state) as usize % bytes.len().max(1);
        match random(state) % 5 {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at.min(bytes.len())..),
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(state) as usize % 5],
            3 if at < bytes.len() => bytes[at] ^= 1 << (random(state) % 8),
            _ => bytes.insert(at.min(bytes.len()), random(state) as u8),
        }
    }
    bytes
}

#[test]
fn the_corpus_and_damaged_copies_of_it_hold() {
    for (target, check) in TARGETS {
        let files = files(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        for (number, (path, bytes)) in files.iter().enumerate() {
            println!("{}", path.display());
            check(bytes);
            let mut state = number as u64;
            (0..COPIES).for_each(|_| check(&damaged(bytes, &mut state)));
        }
    }
}

/// Bodies of one repeated byte, cut where they are a message: any message of numbers, lists and texts is found so.
fn filled(decodes: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let fill = |byte: u8| (0..300).map(move |len| vec![byte; len]);
    [1, 2, 0, 3].into_iter().flat_map(fill).find(|body| decodes(body))
}

macro_rules! samples {
    ($($request:ident, $reply:ident);*) => {{
        let mut samples = Vec::new();
        $(for (opcode, name, _) in $request::TABLE {
            samples.push(Sample {
                opcode: *opcode,
                name: *name,
                request: filled(|body| $request::decode(*opcode, body).is_ok()),
                reply: filled(|body| $reply::decode(*opcode, body).is_ok()),
            });
        })*
        samples
    }};
}

/// Bodies of one RPC's messages, as far as they can be made.
struct Sample {
    opcode: u16,
    name: &'static str,
    request: Option<Vec<u8>>,
    reply: Option<Vec<u8>>,
}

/// Of each RPC a request and a reply.
fn samples() -> Vec<Sample> {
    use burstfs_proto::batch::BatchReply;
    samples!(MdsRequest, MdsReply; OssRequest, OssReply; MgsRequest, MgsReply; StageRequest, StageReply; BatchRequest, BatchReply;
        LeaseRequest, LeaseReply)
}

/// Writes the corpus anew. To be run when messages have changed.
#[test]
#[ignore = "writes tests/fuzz/corpus"]
fn write_corpus() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    };
    for Sample { opcode, name, request, reply } in samples() {
        for (target, body) in [("requests", request), ("replies", reply)] {
            match body {
                Some(body) => write(target, name, &[&opcode.to_le_bytes()[..], &body].concat()),
                None => println!("{target} has no {name}"),
            }
        }
    }
    let header = Header {
        xid: Xid(7),
        opcode: 0x0101,
        kind: Kind::Reply,
        status: 2,
        body_len: 100,
        bulk_len: 0,
        bulk_space: 0,
        bulk_crc: 0,
    };
    write("frames", "reply", &header.encode());
    write("frames", "request", &Header { kind: Kind::Request, bulk_len: 4_096, bulk_crc: 9, ..header }.encode());
    let instance = InstanceId::new("vc", 1, 0).unwrap();
    let opening = Opening { magic: MAGIC, version: PROTOCOL_VERSION, instance, role: Role::Command, nonce: [7; 16] };
    write("hello", "opening", &encode(&opening));
    write("hello", "challenge", &encode(&Challenge::Accepted { nonce: [3; 16], credential: "MUNGE:AwQD:".into() }));
    write("hello", "refused", &encode(&Challenge::Refused(Refusal::Uid(1_000))));
    write("hello", "proof", &encode(&Proof { credential: "MUNGE:AwQD:".into() }));
    write("hello", "verdict", &encode(&Verdict::Welcome));
    for (name, value) in [("name", "file.txt"), ("layout", "striped:count=4,size=1MiB"), ("hosts", "n[01-03,7],x2")] {
        write("values", name, value.as_bytes());
    }
    let entry =
        |tag: u16, bits: u16, id: u32| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat();
    let nobody = u32::MAX;
    let entries =
        [entry(1, 7, nobody), entry(2, 6, 5), entry(4, 5, nobody), entry(16, 4, nobody), entry(32, 1, nobody)];
    write("values", "acl", &[&[2, 0, 0, 0][..], &entries.concat()].concat());
}

/// Whoever adds a message adds it to the corpus, too.
#[test]
fn every_rpc_is_in_the_corpus() {
    for Sample { name, request, reply, .. } in samples() {
        for (target, sample) in [("requests", request), ("replies", reply)] {
            assert!(sample.is_none() || corpus(target).join(name).exists(), "{target} has no {name}: run write_corpus");
        }
    }
}
