//! Several MDTs in one process, each of which can die at any of its commits and be started again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use async_trait::async_trait;
use burstfs_mds::{Change, Engine, Mdt, Pair, Peers, StoreError, check};
use burstfs_proto::leases::Recall;
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_testkit::namespace_model::Target;
use burstfs_types::*;
use tokio::runtime::Runtime;

use super::{Medium, StandingClock, config};

/// Whether and when an MDT's process ends.
#[derive(Default)]
struct Life {
    is_dead: AtomicBool,
    is_dying: AtomicBool,
    commits_left: AtomicU64,
    is_committed: AtomicBool,
}

/// An engine whose process ends at a commit: what is committed then is there, or not, and nothing comes after it.
struct Mortal {
    engine: Arc<dyn Engine>,
    life: Arc<Life>,
}

impl Mortal {
    fn check(&self) -> Result<(), StoreError> {
        if self.life.is_dead.load(Ordering::SeqCst) { Err(StoreError::Injected) } else { Ok(()) }
    }
}

impl Engine for Mortal {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        self.engine.get(key)
    }

    fn scan(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.check()?;
        self.engine.scan(from, until, limit)
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        self.check()?;
        if !self.life.is_dying.load(Ordering::SeqCst) || self.life.commits_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return self.engine.commit(batch);
        }
        if self.life.is_committed.load(Ordering::SeqCst) {
            self.engine.commit(batch)?;
        }
        self.life.is_dead.store(true, Ordering::SeqCst);
        Err(StoreError::Injected)
    }
}

/// The way between the MDTs: nothing goes to or from one that is dead.
#[derive(Default)]
struct Wire {
    mdts: OnceLock<Vec<RwLock<Weak<Mdt>>>>,
    lives: Vec<Arc<Life>>,
    incarnation: AtomicU64,
    /// Yields at each message, so that others get in between.
    yields: bool,
}

/// One MDT's end of it.
struct End {
    own: usize,
    wire: Arc<Wire>,
}

#[async_trait]
impl Peers for End {
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno> {
        let other = usize::from(mdt.get());
        if self.wire.yields {
            tokio::task::yield_now().await;
        }
        let is_cut = || [self.own, other].iter().any(|end| self.wire.lives[*end].is_dead.load(Ordering::SeqCst));
        if is_cut() {
            return Err(Errno::ETIMEDOUT);
        }
        let target = self.wire.mdts.get().unwrap()[other].read().unwrap().upgrade().ok_or(Errno::ETIMEDOUT)?;
        let incarnation = self.wire.incarnation.load(Ordering::SeqCst);
        let client = ClientId { node: NodeIndex::new(0), incarnation };
        let reply = target.call(Caller { client, xid: Xid(0), oldest_unanswered: Xid(0) }, request).await;
        if self.wire.yields {
            tokio::task::yield_now().await;
        }
        if is_cut() { Err(Errno::ETIMEDOUT) } else { reply }
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }

    async fn recall(&self, _recall: Recall) -> Result<(), Errno> {
        Ok(())
    }
}

/// The MDTs of an instance.
pub struct Instance {
    pub clock: Arc<StandingClock>,
    media: Vec<Medium>,
    wire: Arc<Wire>,
    mdts: Vec<Option<Arc<Mdt>>>,
    runtime: Mutex<Runtime>,
}

impl Instance {
    /// On these media, which are empty. With `yields`, messages between the MDTs let others run.
    pub fn new(media: Vec<Medium>, yields: bool) -> Instance {
        let lives = media.iter().map(|_| Arc::default()).collect();
        let wire = Arc::new(Wire { lives, yields, incarnation: AtomicU64::new(1), ..Wire::default() });
        let slots = media.iter().map(|_| RwLock::default()).collect();
        assert!(wire.mdts.set(slots).is_ok());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mdts = media.iter().map(|_| None).collect();
        let mut instance = Instance { clock: Arc::default(), media, wire, mdts, runtime: Mutex::new(runtime) };
        (0..instance.media.len()).for_each(|mdt| instance.open(mdt));
        instance
    }

    pub fn mdt(&self, mdt: usize) -> &Arc<Mdt> {
        self.mdts[mdt].as_ref().unwrap()
    }

    fn open(&mut self, mdt: usize) {
        // The directory of a database can be opened once at a time.
        self.mdts[mdt] = None;
        let life = &self.wire.lives[mdt];
        life.is_dead.store(false, Ordering::SeqCst);
        life.is_dying.store(false, Ordering::SeqCst);
        let engine = Arc::new(Mortal { engine: self.media[mdt].open(), life: Arc::clone(life) });
        let peers = Arc::new(End { own: mdt, wire: Arc::clone(&self.wire) });
        let config = config(mdt as u16, self.media.len() as u16);
        let opened = Arc::new(Mdt::open(config, engine, peers, Arc::<StandingClock>::clone(&self.clock)).unwrap());
        *self.wire.mdts.get().unwrap()[mdt].write().unwrap() = Arc::downgrade(&opened);
        self.mdts[mdt] = Some(opened);
    }

    /// Ends what is unfinished between the MDTs.
    pub fn resolve(&self) {
        let all = 0..self.mdts.len();
        let pairs = all.clone().flat_map(|a| all.clone().map(move |b| (a, b))).filter(|(a, b)| a != b);
        let runtime = self.runtime.lock().unwrap();
        for (own, peer) in pairs {
            assert_eq!(runtime.block_on(self.mdt(own).resolve_all(MdtIndex::new(peer as u16))), 0);
        }
    }

    /// What the checker finds over all MDTs.
    pub fn found(&self) -> Vec<String> {
        let mdts: Vec<&Mdt> = self.mdts.iter().flatten().map(Arc::as_ref).collect();
        check(&mdts).unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Target for Instance {
    fn mdts(&self) -> u16 {
        self.media.len() as u16
    }

    fn set_now(&mut self, now: Timestamp) {
        self.clock.set_to(now);
    }

    fn call(&mut self, mdt: MdtIndex, caller: Caller, request: MdsRequest) -> Result<MdsReply, Errno> {
        self.wire.incarnation.fetch_max(caller.client.incarnation, Ordering::SeqCst);
        let runtime = self.runtime.lock().unwrap();
        runtime.block_on(self.mdt(usize::from(mdt.get())).call(caller, request))
    }

    fn reopen(&mut self, mdt: MdtIndex) {
        self.open(usize::from(mdt.get()));
    }

    fn crash(&mut self, mdt: MdtIndex, commits: u64, is_committed: bool) {
        let life = &self.wire.lives[usize::from(mdt.get())];
        life.commits_left.store(commits, Ordering::SeqCst);
        life.is_committed.store(is_committed, Ordering::SeqCst);
        life.is_dying.store(true, Ordering::SeqCst);
    }

    fn recover(&mut self) -> Vec<MdtIndex> {
        let dead: Vec<usize> =
            (0..self.mdts.len()).filter(|mdt| self.wire.lives[*mdt].is_dead.load(Ordering::SeqCst)).collect();
        if dead.is_empty() {
            return Vec::new();
        }
        for mdt in &dead {
            self.open(*mdt);
        }
        // What ends now shall not die of an older wish.
        self.wire.lives.iter().for_each(|life| life.is_dying.store(false, Ordering::SeqCst));
        self.resolve();
        dead.into_iter().map(|mdt| MdtIndex::new(mdt as u16)).collect()
    }

    fn split(&mut self, mdt: MdtIndex, steps: usize) {
        let runtime = self.runtime.lock().unwrap();
        runtime.block_on(self.mdt(usize::from(mdt.get())).split_pending(steps));
    }

    fn destroyed(&self) -> BTreeSet<Ino> {
        let orphans = self.mdts.iter().flatten().flat_map(|mdt| mdt.orphans(None, usize::MAX).unwrap());
        orphans.map(|orphan| orphan.ino).collect()
    }

    fn violations(&self) -> Vec<String> {
        self.found()
    }
}
