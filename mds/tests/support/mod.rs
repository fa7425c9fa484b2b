//! What the tests of an MDT share: a clock that stands, engines that can be restarted, calls that must not wait.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this module")]

pub mod instance;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use burstfs_mds::{Clock, Engine, Mdt, MdtConfig, MemoryEngine, NoPeers, Peers, RocksEngine};
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::*;
use tempfile::TempDir;

/// Shows the time that it was set to.
#[derive(Default)]
pub struct StandingClock(Mutex<Timestamp>);

impl StandingClock {
    pub fn set(&self, secs: i64) {
        self.set_to(Timestamp { secs, nanos: 0 });
    }

    pub fn set_to(&self, now: Timestamp) {
        *self.0.lock().unwrap() = now;
    }
}

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// Where an MDT's records stay over its restart.
pub enum Medium {
    Memory(MemoryEngine),
    Rocks(TempDir),
}

impl Medium {
    pub fn rocks() -> Medium {
        Medium::Rocks(tempfile::tempdir().unwrap())
    }

    pub fn open(&self) -> Arc<dyn Engine> {
        match self {
            Medium::Memory(engine) => Arc::new(engine.clone()),
            Medium::Rocks(dir) => Arc::new(RocksEngine::open(dir.path()).unwrap()),
        }
    }
}

/// So that whatever has a few names is split.
pub fn split_early() -> MetadataPolicy {
    MetadataPolicy { split_names: 2, split_contended_names: 1, split_shards: 3 }
}

pub fn config(mdt: u16, mdts: u16) -> MdtConfig {
    MdtConfig {
        tracks_changes: true,
        mdt: MdtIndex::new(mdt),
        mdts,
        root_uid: 0,
        root_gid: 0,
        root_mode: 0o700,
        // With `auto` a file's layout depends on what other files were written by: that is for the tests of layouts.
        layout: LayoutPolicy::Local,
        has_ready_made: false,
        policy: split_early(),
    }
}

/// The answer of a call that must not wait.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the call waits"),
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn layout() -> Layout {
    Layout::on_one(OstIndex::new(0))
}

/// One MDT with clients that number their requests.
pub struct Bench {
    pub medium: Medium,
    pub clock: Arc<StandingClock>,
    pub peers: Arc<dyn Peers>,
    pub config: MdtConfig,
    mdt: Option<Arc<Mdt>>,
    xid: u64,
}

impl Bench {
    pub fn new(medium: Medium) -> Bench {
        Bench::with_peers(medium, config(0, 1), Arc::new(NoPeers))
    }

    pub fn with_peers(medium: Medium, config: MdtConfig, peers: Arc<dyn Peers>) -> Bench {
        let clock = Arc::new(StandingClock::default());
        let mut bench = Bench { medium, clock, peers, config, mdt: None, xid: 0 };
        bench.reopen();
        bench
    }

    pub fn mdt(&self) -> &Arc<Mdt> {
        self.mdt.as_ref().unwrap()
    }

    pub fn reopen(&mut self) {
        // The directory of a database can be opened once at a time.
        self.mdt = None;
        let (peers, clock) = (Arc::clone(&self.peers), Arc::clone(&self.clock));
        self.mdt = Some(Arc::new(Mdt::open(self.config, self.medium.open(), peers, clock).unwrap()));
    }

    /// The next request of node 0's client. It acknowledges nothing: it may wait for several at a time.
    pub fn caller(&mut self) -> Caller {
        self.caller_of(0, 1)
    }

    pub fn caller_of(&mut self, node: u16, incarnation: u64) -> Caller {
        self.xid += 1;
        let client = ClientId { node: NodeIndex::new(node), incarnation };
        Caller { client, xid: Xid(self.xid), oldest_unanswered: Xid(0) }
    }

    pub fn call(&mut self, request: impl Into<MdsRequest>) -> Result<MdsReply, Errno> {
        let caller = self.caller();
        self.call_as(caller, request)
    }

    pub fn call_as(&self, caller: Caller, request: impl Into<MdsRequest>) -> Result<MdsReply, Errno> {
        now(self.mdt().call(caller, request.into()))
    }

    pub fn create(&mut self, parent: Ino, text: &str) -> Result<Attr, Errno> {
        match self.call(create(parent, text))? {
            MdsReply::Create(created) => Ok(created.attr),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a file and closes it.
    pub fn file(&mut self, parent: Ino, text: &str) -> Ino {
        let ino = self.create(parent, text).unwrap().ino;
        self.call(Close { ino }).unwrap();
        ino
    }

    pub fn mkdir(&mut self, parent: Ino, text: &str) -> Result<Attr, Errno> {
        match self.call(mkdir(parent, text))? {
            MdsReply::Mkdir(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn attr(&mut self, ino: Ino) -> Result<Attr, Errno> {
        match self.call(GetAttr { ino })? {
            MdsReply::GetAttr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn lookup(&mut self, parent: Ino, text: &str) -> Result<Entry, Errno> {
        match self.call(Lookup { parent, name: name(text) })? {
            MdsReply::Lookup(entry) => Ok(entry),
            other => panic!("{other:?}"),
        }
    }

    pub fn unlink(&mut self, parent: Ino, text: &str) -> Result<(), Errno> {
        self.call(Unlink { parent, name: name(text) }).map(drop)
    }

    pub fn rmdir(&mut self, parent: Ino, text: &str) -> Result<(), Errno> {
        self.call(Rmdir { parent, name: name(text) }).map(drop)
    }

    pub fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Result<(), Errno> {
        let ((parent, old), (new_parent, new)) = (from, to);
        self.call(Rename { parent, name: name(old), new_parent, new_name: name(new), mode }).map(drop)
    }

    pub fn link(&mut self, ino: Ino, parent: Ino, text: &str) -> Result<Attr, Errno> {
        match self.call(Link { ino, new_parent: parent, new_name: name(text) })? {
            MdsReply::Link(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    /// The names of a listing, from the beginning.
    pub fn names(&mut self, ino: Ino) -> Vec<String> {
        match self.call(Readdir { ino, cookie: 0, entries_max: 1_000, with_attrs: false }) {
            Ok(MdsReply::Readdir(listing)) => listing.entries.iter().map(|entry| entry.name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub fn destroyed(&self) -> Vec<Ino> {
        self.mdt().orphans(None, 1_000).unwrap().iter().map(|orphan| orphan.ino).collect()
    }

    pub fn check(&self) {
        assert_eq!(self.mdt().check().unwrap(), []);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

pub fn create(parent: Ino, text: &str) -> Create {
    let near = OstIndex::new(0);
    Create { parent, name: name(text), mode: 0o644, umask: None, uid: 7, gid: 8, exclusive: false, near, policy: None }
}

pub fn mkdir(parent: Ino, text: &str) -> Mkdir {
    Mkdir { parent, name: name(text), mode: 0o755, umask: None, uid: 7, gid: 8 }
}
