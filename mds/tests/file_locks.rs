//! Locks on files, at the MDT: what is stored, who is woken, what a client's end gives free.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::Arc;

use burstfs_proto::locks::*;
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::*;

use support::{Bench, Medium, now};

fn lock(ino: Ino, owner: u64, (first, last): (u64, u64)) -> Lock {
    Lock { ino, owner, pid: 100, range: LockRange { first, last }, kind: LockKind::Exclusive }
}

/// What the client of `node` gets.
fn set(bench: &mut Bench, node: u16, lock: Lock, ticket: Option<u64>) -> Result<LockAnswer, Errno> {
    let caller = bench.caller_of(node, 1);
    match bench.call_as(caller, SetLock { lock, ticket })? {
        MdsReply::SetLock(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

fn holder(bench: &mut Bench, node: u16, lock: Lock) -> Option<LockHolder> {
    let caller = bench.caller_of(node, 1);
    match bench.call_as(caller, GetLock { lock }) {
        Ok(MdsReply::GetLock(holder)) => holder,
        other => panic!("{other:?}"),
    }
}

fn awaited(bench: &mut Bench, node: u16, tickets: &[u64]) -> Vec<u64> {
    let caller = bench.caller_of(node, 1);
    match bench.call_as(caller, AwaitLocks { tickets: tickets.to_vec() }) {
        Ok(MdsReply::AwaitLocks(settled)) => settled,
        other => panic!("{other:?}"),
    }
}

fn bench() -> (Bench, Ino) {
    let mut bench = Bench::new(Medium::rocks());
    let ino = bench.file(Ino::ROOT, "f");
    (bench, ino)
}

#[test]
fn locks_outlive_a_restart_and_queues_do_not() {
    let (mut bench, ino) = bench();
    let (mine, theirs) = (lock(ino, 1, (0, 9)), lock(ino, 1, (5, 20)));
    assert_eq!(set(&mut bench, 1, mine, None), Ok(LockAnswer::Granted));
    assert_eq!(set(&mut bench, 2, theirs, None), Err(Errno::EAGAIN));
    assert_eq!(set(&mut bench, 2, theirs, Some(7)), Ok(LockAnswer::Waits));
    bench.reopen();
    let expected = LockHolder { range: mine.range, kind: mine.kind, node: NodeIndex::new(1), pid: 100 };
    assert_eq!(holder(&mut bench, 2, theirs), Some(expected));
    assert_eq!(awaited(&mut bench, 2, &[7]), [7]);
    assert_eq!(set(&mut bench, 2, theirs, Some(7)), Ok(LockAnswer::Waits));
    let caller = bench.caller_of(1, 1);
    bench.call_as(caller, Unlock { ino, owner: 1, range: LockRange { first: 0, last: 6 } }).unwrap();
    assert_eq!(set(&mut bench, 2, theirs, Some(7)), Ok(LockAnswer::Waits), "a part is not enough");
    let caller = bench.caller_of(1, 1);
    bench.call_as(caller, Unlock { ino, owner: 1, range: LockRange::ALL }).unwrap();
    // Granted with the unlock, whether or not its client has heard of it.
    bench.reopen();
    assert_eq!(holder(&mut bench, 1, mine).unwrap().node, NodeIndex::new(2));
    assert_eq!(set(&mut bench, 2, theirs, Some(7)), Ok(LockAnswer::Granted));
    bench.check();
}

#[test]
fn an_unlock_that_comes_again_takes_no_newer_lock() {
    let (mut bench, ino) = bench();
    let mine = lock(ino, 1, (0, 9));
    set(&mut bench, 1, mine, None).unwrap();
    let unlock = Unlock { ino, owner: 1, range: LockRange::ALL };
    let caller = bench.caller_of(1, 1);
    bench.call_as(caller, unlock.clone()).unwrap();
    set(&mut bench, 1, mine, None).unwrap();
    for _ in 0..2 {
        bench.call_as(caller, unlock.clone()).unwrap();
        assert!(holder(&mut bench, 2, mine).is_some());
        bench.reopen();
    }
}

#[test]
fn a_client_that_is_replaced_has_no_locks() {
    let (mut bench, ino) = bench();
    let (mine, theirs) = (lock(ino, 1, (0, 9)), lock(ino, 2, (0, 9)));
    set(&mut bench, 1, mine, None).unwrap();
    assert_eq!(set(&mut bench, 2, theirs, Some(1)), Ok(LockAnswer::Waits));
    let newer = bench.caller_of(1, 2);
    bench.call_as(newer, GetAttr { ino }).unwrap();
    assert_eq!(awaited(&mut bench, 2, &[1]), [1]);
    assert_eq!(set(&mut bench, 2, theirs, Some(1)), Ok(LockAnswer::Granted));
    assert_eq!(set(&mut bench, 1, mine, None), Err(Errno::ESTALE));
}

#[test]
fn a_node_that_is_lost_has_no_locks() {
    let (mut bench, ino) = bench();
    let mine = lock(ino, 1, (0, 9));
    set(&mut bench, 1, mine, None).unwrap();
    bench.mdt().lose_node(NodeIndex::new(1));
    bench.mdt().lose_node(NodeIndex::new(3));
    assert_eq!(set(&mut bench, 2, mine, None), Ok(LockAnswer::Granted));
    assert_eq!(set(&mut bench, 1, mine, None), Err(Errno::ESTALE));
}

#[test]
fn who_leaves_the_queue_gets_nothing() {
    let (mut bench, ino) = bench();
    let (mine, theirs) = (lock(ino, 1, (0, 9)), lock(ino, 1, (0, 9)));
    set(&mut bench, 1, mine, None).unwrap();
    assert_eq!(set(&mut bench, 2, theirs, Some(1)), Ok(LockAnswer::Waits));
    for was_waiting in [true, false] {
        let caller = bench.caller_of(2, 1);
        assert_eq!(bench.call_as(caller, LeaveQueue { ticket: 1 }), Ok(MdsReply::LeaveQueue(was_waiting)));
    }
    let caller = bench.caller_of(1, 1);
    bench.call_as(caller, Unlock { ino, owner: 1, range: LockRange::ALL }).unwrap();
    assert_eq!(holder(&mut bench, 1, mine), None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (mut bench, ino) = bench();
    assert_eq!(set(&mut bench, 1, lock(ino, 1, (5, 4)), None), Err(Errno::EINVAL));
    let gone = Ino::from_raw(ino.get() + 1).unwrap();
    assert_eq!(set(&mut bench, 1, lock(gone, 1, (0, 4)), None), Err(Errno::ESTALE));
}

#[tokio::test]
async fn a_poll_hears_of_a_lock_and_of_a_ticket_that_it_does_not_name() {
    let (mut bench, ino) = bench();
    let (mine, theirs) = (lock(ino, 1, (0, 9)), lock(ino, 1, (0, 9)));
    set(&mut bench, 1, mine, None).unwrap();
    set(&mut bench, 2, theirs, Some(1)).unwrap();
    let mdt = Arc::clone(bench.mdt());
    let mut poll = |tickets: &[u64]| {
        let (mdt, caller) = (Arc::clone(&mdt), bench.caller_of(2, 1));
        let request = AwaitLocks { tickets: tickets.to_vec() };
        tokio::spawn(async move { mdt.call(caller, request.into()).await })
    };
    let (first, second) = (poll(&[1]), poll(&[1, 2]));
    // The second names a ticket that does not wait.
    assert_eq!(second.await.unwrap(), Ok(MdsReply::AwaitLocks(vec![2])));
    let caller = |xid| Caller {
        client: ClientId { node: NodeIndex::new(2), incarnation: 1 },
        xid: Xid(xid),
        oldest_unanswered: Xid(0),
    };
    let other = SetLock { lock: lock(ino, 2, (3, 3)), ticket: Some(2) };
    now(mdt.call(caller(1_000), other.into())).unwrap();
    assert_eq!(first.await.unwrap(), Ok(MdsReply::AwaitLocks(vec![])));
    let third = poll(&[1, 2]);
    let unlock = Unlock { ino, owner: 1, range: LockRange::ALL };
    let holder = Caller { client: ClientId { node: NodeIndex::new(1), incarnation: 1 }, ..caller(1_001) };
    now(mdt.call(holder, unlock.into())).unwrap();
    assert_eq!(third.await.unwrap(), Ok(MdsReply::AwaitLocks(vec![1])));
}
