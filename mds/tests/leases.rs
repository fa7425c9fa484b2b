//! Leases as an MDT gives and recalls them. Clients are nodes 0 and 1; node 1's recalls are answered when the test lets them.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use burstfs_mds::{MemoryEngine, Peers};
use burstfs_proto::leases::{Leased, LeasedAttr, LeasedEntry, LeasedGetAttr, LeasedLookup, Part, Recall, Recalled};
use burstfs_proto::mds::*;
use burstfs_proto::service::MetadataService;
use burstfs_types::*;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use support::{Bench, Medium, config, name};

/// Answers a recall when there is a permit, and remembers it.
struct Clients {
    permits: Semaphore,
    recalled: Mutex<Vec<Recall>>,
}

#[async_trait]
impl Peers for Clients {
    async fn call(&self, _mdt: MdtIndex, _request: MdsRequest) -> Result<MdsReply, Errno> {
        Err(Errno::ENXIO)
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }

    async fn recall(&self, recall: Recall) -> Result<(), Errno> {
        self.recalled.lock().unwrap().push(recall);
        self.permits.acquire().await.unwrap().forget();
        Ok(())
    }
}

struct Stage {
    bench: Bench,
    clients: Arc<Clients>,
}

impl Stage {
    fn new() -> Stage {
        let clients = Arc::new(Clients { permits: Semaphore::new(0), recalled: Mutex::default() });
        let peers: Arc<dyn Peers> = Arc::<Clients>::clone(&clients);
        Stage { bench: Bench::with_peers(Medium::Memory(MemoryEngine::new()), config(0, 1), peers), clients }
    }

    /// What node 1 is told of a name.
    fn look(&mut self, text: &str) -> LeasedEntry {
        let caller = self.bench.caller_of(1, 1);
        match self.bench.call_as(caller, LeasedLookup { directory: Ino::ROOT, parent: Ino::ROOT, name: name(text) }) {
            Ok(MdsReply::LeasedLookup(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    /// What node 1 is told of an inode.
    fn attr(&mut self, ino: Ino) -> LeasedAttr {
        let caller = self.bench.caller_of(1, 1);
        match self.bench.call_as(caller, LeasedGetAttr { ino }) {
            Ok(MdsReply::LeasedGetAttr(leased)) => leased,
            other => panic!("{other:?}"),
        }
    }

    /// Begins a change by node 0.
    fn begin(&mut self, request: impl Into<MdsRequest>) -> JoinHandle<Result<MdsReply, Errno>> {
        let (mdt, caller, request) = (Arc::clone(self.bench.mdt()), self.bench.caller(), request.into());
        tokio::spawn(async move { mdt.call(caller, request).await })
    }

    /// What was recalled of node 1 until now, once something was.
    async fn recalled(&self) -> Vec<Leased> {
        loop {
            let recalled = std::mem::take(&mut *self.clients.recalled.lock().unwrap());
            if !recalled.is_empty() {
                return recalled.into_iter().flat_map(|recall| these(recall.what)).collect();
            }
            tokio::task::yield_now().await;
        }
    }
}

fn these(what: Recalled) -> Vec<Leased> {
    match what {
        Recalled::These(leases) => leases,
        Recalled::AllOf(mdt) => panic!("all of {mdt}"),
    }
}

fn chmod(ino: Ino) -> SetAttr {
    let (mode, uid, gid, atime, mtime) = (Some(0o600), None, None, None, None);
    SetAttr { ino, mode, uid, gid, atime, mtime, kill_set_id: false, opens: false }
}

fn part(ino: Ino, part: Part) -> Leased {
    Leased { ino, part }
}

#[tokio::test]
async fn a_change_waits_until_others_keep_nothing_of_it() {
    let mut stage = Stage::new();
    let ino = stage.bench.file(Ino::ROOT, "f");
    let found = stage.look("f");
    assert!(found.has_entries && found.has_attributes);
    let change = stage.begin(chmod(ino));
    assert_eq!(stage.recalled().await, [part(ino, Part::Attributes)]);
    assert!(!change.is_finished());
    // What is recalled is read, and not leased.
    let again = stage.attr(ino);
    assert_eq!((again.attr.mode, again.has_attributes), (0o644, false));
    stage.clients.permits.add_permits(1);
    change.await.unwrap().unwrap();
    let after = stage.attr(ino);
    assert_eq!((after.attr.mode, after.has_attributes), (0o600, false));
}

#[tokio::test]
async fn who_changes_keeps_his_own_leases() {
    let mut stage = Stage::new();
    let ino = stage.bench.file(Ino::ROOT, "f");
    assert!(stage.look("f").has_attributes);
    let caller = stage.bench.caller_of(1, 1);
    stage.bench.call_as(caller, chmod(ino)).unwrap();
    assert!(stage.attr(ino).has_attributes);
    assert_eq!(*stage.clients.recalled.lock().unwrap(), []);
}

#[tokio::test]
async fn names_that_are_not_there_are_leased_with_those_that_are() {
    let mut stage = Stage::new();
    let found = stage.look("f");
    assert_eq!((found.entry, found.has_entries), (None, true));
    let create = stage.begin(support::create(Ino::ROOT, "f"));
    assert_eq!(stage.recalled().await, [part(Ino::ROOT, Part::Entries)]);
    stage.clients.permits.add_permits(1);
    create.await.unwrap().unwrap();
    assert!(stage.look("f").entry.is_some());
}

#[tokio::test]
async fn what_somebody_may_be_writing_is_not_leased() {
    let mut stage = Stage::new();
    let ino = stage.bench.create(Ino::ROOT, "f").unwrap().ino;
    assert!(!stage.attr(ino).has_attributes);
    stage.bench.call(Close { ino }).unwrap();
    assert!(stage.attr(ino).has_attributes);
    stage.bench.call(Open { ino, writes: false }).unwrap();
    assert!(stage.attr(ino).has_attributes);
    let open = stage.begin(Open { ino, writes: true });
    assert_eq!(stage.recalled().await, [part(ino, Part::Attributes)]);
    stage.clients.permits.add_permits(1);
    open.await.unwrap().unwrap();
    assert!(!stage.attr(ino).has_attributes);
}

#[tokio::test]
async fn a_client_that_is_gone_keeps_nobody_waiting_and_its_files_are_never_leased() {
    let mut stage = Stage::new();
    let (ino, written) = (stage.bench.file(Ino::ROOT, "f"), stage.bench.file(Ino::ROOT, "g"));
    assert!(stage.look("f").has_attributes);
    let caller = stage.bench.caller_of(1, 1);
    stage.bench.call_as(caller, Open { ino: written, writes: true }).unwrap();
    stage.bench.mdt().lose_node(NodeIndex::new(1));
    stage.bench.call(chmod(ino)).unwrap();
    assert_eq!(*stage.clients.recalled.lock().unwrap(), []);
    let caller = stage.bench.caller_of(2, 1);
    let reply = stage.bench.call_as(caller, LeasedGetAttr { ino: written });
    assert!(matches!(reply, Ok(MdsReply::LeasedGetAttr(LeasedAttr { has_attributes: false, .. }))));
}

#[tokio::test]
async fn after_a_restart_nothing_is_changed_before_all_have_dropped_what_they_have() {
    let mut stage = Stage::new();
    let ino = stage.bench.file(Ino::ROOT, "f");
    assert!(stage.look("f").has_attributes);
    stage.bench.reopen();
    // Reading goes on; a file of before may be open somewhere for writing.
    assert!(!stage.attr(ino).has_attributes);
    let change = stage.begin(chmod(ino));
    let asked = loop {
        let asked = stage.clients.recalled.lock().unwrap().clone();
        if asked.len() == 2 {
            break asked;
        }
        tokio::task::yield_now().await;
    };
    assert!(asked.iter().all(|recall| recall.what == Recalled::AllOf(MdtIndex::new(0))));
    assert!(!change.is_finished());
    stage.clients.permits.add_permits(2);
    change.await.unwrap().unwrap();
}
