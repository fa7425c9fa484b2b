//! Appends are atomic, and happen once.

use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;

use burstfs_oss::Ost;
use burstfs_proto::service::Caller;
use burstfs_types::{ClientId, NodeIndex, Xid};

use crate::support::{append, caller, glimpse, object, open, read, remove, write};

/// A record that tells where it comes from and how long it is: writer, number, length, then filling.
fn record(writer: u8, number: u8) -> Vec<u8> {
    let len = 3 + usize::from(writer) * 7 + usize::from(number) * 13 % 200;
    let mut bytes = vec![0xaa; len];
    bytes[0] = writer;
    bytes[1] = number;
    bytes[2] = len as u8;
    bytes
}

fn node(node: u8, xid: u64) -> Caller {
    let client = ClientId { node: NodeIndex::new(node.into()), incarnation: 1 };
    Caller { client, xid: Xid(xid), oldest_unanswered: Xid(xid) }
}

fn records_of(ost: &Ost, n: u64) -> HashSet<(u8, u8)> {
    let size = glimpse(ost, object(n)).unwrap().size as usize;
    let bytes = read(ost, object(n), 0, size);
    let (mut rest, mut seen) = (&bytes[..], HashSet::new());
    while let [writer, number, len, ..] = rest {
        assert_eq!(&rest[..usize::from(*len)], record(*writer, *number));
        assert!(seen.insert((*writer, *number)), "record {number} of {writer} is there twice");
        rest = &rest[usize::from(*len)..];
    }
    assert!(rest.is_empty());
    seen
}

#[test]
fn concurrent_appends_lose_and_mix_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    thread::scope(|scope| {
        for writer in 0..8 {
            let ost = &ost;
            scope.spawn(move || {
                for number in 0..200 {
                    // Each request is sent twice, as after a lost connection.
                    for _ in 0..2 {
                        append(ost, node(writer, number.into()), object(1), &record(writer, number)).unwrap();
                    }
                    // Other objects push this one out of the cache of open files.
                    write(ost, object(u64::from(writer) * 1_000 + u64::from(number) + 2), 0, b"x").unwrap();
                }
            });
        }
    });
    assert_eq!(records_of(&ost, 1).len(), 8 * 200);
}

#[test]
fn the_same_request_from_two_connections_at_once_runs_once() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    for number in 0..200 {
        let both = Barrier::new(2);
        let send = || {
            both.wait();
            append(&ost, node(1, number.into()), object(1), &record(1, number)).unwrap()
        };
        let (here, there) = thread::scope(|scope| {
            let there = scope.spawn(send);
            (send(), there.join().unwrap())
        });
        assert_eq!(here, there);
    }
    assert_eq!(records_of(&ost, 1).len(), 200);
}

#[test]
fn an_append_that_is_sent_again_after_a_restart_runs_once() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    assert_eq!(append(&ost, caller(5), object(1), b"first"), Ok(5));
    assert_eq!(append(&ost, caller(6), object(1), b"second"), Ok(11));
    drop(ost);
    let ost = open(directory.path(), 1 << 30);
    assert_eq!(append(&ost, caller(5), object(1), b"first"), Ok(5));
    assert_eq!(append(&ost, caller(7), object(1), b"third"), Ok(16));
    assert_eq!(read(&ost, object(1), 0, 100), b"firstsecondthird");
}

#[test]
fn an_append_that_is_sent_again_does_not_bring_a_removed_object_back() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    append(&ost, caller(5), object(1), b"first").unwrap();
    remove(&ost, object(1));
    assert_eq!(append(&ost, caller(5), object(1), b"first"), Ok(5));
    assert_eq!(glimpse(&ost, object(1)), None);
}
