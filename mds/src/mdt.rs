//! The driver of one MDT: runs operations for clients.
//!
//! Owns the clock, the locks, the commit, and the talk with other MDTs. Does not own what an operation means (`crate::ops`).
//!
//! A request is tried under the locks that its plan names. Three things can come out:
//! - it is done: effect and reply are one batch;
//! - another MDT must do something first: the entries are reserved, the locks given back, the peer asked, and the request is
//!   tried again with the peer's answer;
//! - an entry is reserved by somebody else: the request waits until a reservation ends, and is tried again. So two `mkdir`
//!   of one name, whose directories live elsewhere, make one directory and one EEXIST.
//!
//! Over two MDTs the inode comes first and goes first: mkdir makes the inode, then the entry; rmdir and rename over a directory
//! remove the inode, which fails if it has entries and refuses new ones, then the entry. A crash between the two leaves an empty
//! directory that nobody can reach, or a name whose directory is gone and whose rmdir, repeated, succeeds; the client's
//! resend does either. There is no intent to clean up, and nothing that a user made can be lost.
//!
//! Opens are known in memory only. After a restart it is unknown what the clients of before have open: a file of before the
//! restart that loses its last name is kept until each of those clients has been replaced by a newer incarnation, however many
//! closes arrive. With one node that is when its daemon, which has the MDT in it, comes back.
//!
//! Concurrency: any number of threads. A call that needs no other MDT completes without waiting, except for a copy of a
//! request that is running and for a reserved entry. Nothing is locked across an await.
//!
//! Failure: an error of the store is logged here, once, and the caller gets its errno; nothing of the request was applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use burstfs_proto::mds::{MdsReply, MdsRequest, MdtStatfs, PeerRemoveDir};
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_proto::{Answer, Class};
use burstfs_types::{ClientId, Errno, Ino, MdtIndex, Name};

use crate::clients::{Begin, Client, Clients, Running};
use crate::clock::Clock;
use crate::destroy::Destroys;
use crate::inos::Inos;
use crate::locks::{Locked, Locks, Reservation};
use crate::namespace::{Effects, Namespace, OpError, OpenFiles, PeerDone, PeerWork};
use crate::ops::{self, Plan};
use crate::peers::Peers;
use crate::record::{Dentry, Inode, decode, encode, key};
use crate::store::{Engine, Overlay, StoreError, Transaction, for_each};

/// What an MDT is told at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MdtConfig {
    /// Which one it is.
    pub mdt: MdtIndex,
    /// How many there are.
    pub mdts: u16,
    /// Owner of the root directory, which MDT 0 makes.
    pub root_uid: u32,
    /// Its group.
    pub root_gid: u32,
    /// Its permission bits.
    pub root_mode: u16,
}

/// One metadata target.
pub struct Mdt {
    pub(crate) config: MdtConfig,
    pub(crate) engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    peers: Arc<dyn Peers>,
    locks: Locks,
    clients: Clients,
    pub(crate) inos: Inos,
    pub(crate) inode_count: AtomicI64,
    pub(crate) destroys: Destroys,
}

/// What came of trying a request.
enum Step<'m> {
    Done(MdsReply),
    Busy,
    Peer(Reservation<'m>, PeerWork),
}

/// A request with what belongs to it.
struct Job<'r> {
    client: &'r Client,
    running: Option<&'r Running<'r>>,
    request: &'r MdsRequest,
    fresh: Option<Ino>,
}

impl Mdt {
    /// Goes on with what `engine` has; an empty one becomes a new MDT.
    pub fn open(
        config: MdtConfig,
        engine: Arc<dyn Engine>,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Mdt, StoreError> {
        make_root(&config, &*engine, &*clock)?;
        let mut inodes = 0;
        for_each(&*engine, &[key::INODE], |_, _| {
            inodes += 1;
            Ok(())
        })?;
        let mdt = Mdt {
            config,
            clock,
            peers,
            locks: Locks::new(),
            clients: Clients::load(&*engine)?,
            inos: Inos::load(&*engine, config.mdt)?,
            inode_count: AtomicI64::new(inodes),
            destroys: Destroys::load(&*engine)?,
            engine,
        };
        if !mdt.clients.has_survivors() {
            mdt.release_all_orphans()?;
        }
        Ok(mdt)
    }

    /// Which MDT this is.
    pub fn index(&self) -> MdtIndex {
        self.config.mdt
    }

    /// The client `id`, and whatever its arrival means for the one before it.
    fn client(&self, id: ClientId) -> Result<Arc<Client>, Errno> {
        if let Some(client) = self.clients.get(id)? {
            return Ok(client);
        }
        let arrival = self.clients.arrive(&*self.engine, id).map_err(|error| logged(&error))??;
        if let Some(replaced) = arrival.replaced {
            self.evict(&replaced).map_err(|error| logged(&error))?;
        }
        Ok(arrival.client)
    }

    /// Forgets what a client that is no more had open.
    fn evict(&self, client: &Client) -> Result<(), StoreError> {
        tracing::info!(client = %client.id, "evicted: its node has a newer one");
        for mut locked in self.locks.each() {
            for ino in locked.forget_opens(client.id) {
                self.release_orphan(&locked, ino)?;
            }
        }
        if self.clients.end_survivor(client.id.node) { self.release_all_orphans() } else { Ok(()) }
    }

    fn release_all_orphans(&self) -> Result<(), StoreError> {
        let mut orphans = Vec::new();
        for_each(&*self.engine, &[key::ORPHAN], |key, _| {
            orphans.extend(key::ino_of(key));
            Ok(())
        })?;
        orphans.into_iter().try_for_each(|ino| self.release_orphan(&self.locks.write([ino]), ino))
    }

    /// Removes the orphan `ino`, whose stripe is held, if nobody has it open.
    fn release_orphan(&self, locked: &Locked<'_>, ino: Ino) -> Result<(), StoreError> {
        let mut tx = Overlay::new(&*self.engine);
        let opens = Opens { locked, mdt: self };
        let mut ns = self.namespace(&mut tx, &opens);
        match ns.release_orphan(ino, 0) {
            Ok(()) => {}
            Err(OpError::Store(error)) => return Err(error),
            // Neither comes from there; an orphan that stays is put right at the next start.
            Err(OpError::Errno(_) | OpError::NeedsPeer(_)) => return Ok(()),
        }
        let effects = ns.effects;
        tx.commit()?;
        self.count(&effects);
        Ok(())
    }

    fn namespace<'t>(&self, tx: &'t mut dyn Transaction, opens: &'t dyn OpenFiles) -> Namespace<'t> {
        Namespace::new(tx, opens, (self.config.mdt, self.config.mdts), self.clock.now())
    }

    fn count(&self, effects: &Effects) {
        self.inode_count.fetch_add(effects.inodes, Ordering::Relaxed);
        self.destroys.add(&effects.destroyed);
    }

    fn read(&self, request: &MdsRequest) -> Result<MdsReply, Errno> {
        if matches!(request, MdsRequest::Statfs(_)) {
            let inodes_used = self.inode_count.load(Ordering::Relaxed).try_into().unwrap_or(0);
            return Ok(MdsReply::Statfs(MdtStatfs { inodes_used }));
        }
        let _held = ops::plan(request).inos.first().map(|ino| self.locks.read(*ino));
        let mut tx = Overlay::new(&*self.engine);
        let mut ns = self.namespace(&mut tx, &NotAsked);
        ops::run(&mut ns, request).map_err(|error| errno_of(&error))
    }

    async fn replayable(&self, client: &Client, caller: Caller, request: &MdsRequest) -> Result<MdsReply, Errno> {
        loop {
            let finished = client.finished();
            match client.begin(caller) {
                Begin::Run(running) => {
                    let result = self.modify(client, Some(&running), request).await;
                    return running.finish(result);
                }
                Begin::Answer(result) => return result,
                Begin::Wait => finished.await,
            }
        }
    }

    async fn modify(
        &self,
        client: &Client,
        running: Option<&Running<'_>>,
        request: &MdsRequest,
    ) -> Result<MdsReply, Errno> {
        let fresh = ops::needs_ino(request).then(|| self.inos.take(&*self.engine)).transpose();
        let job = Job { client, running, request, fresh: fresh.map_err(|error| errno_of(&error))? };
        let mut held = None;
        loop {
            let released = self.locks.released();
            match self.attempt(&job, held.as_ref()) {
                Ok(Step::Done(reply)) => return Ok(reply),
                Ok(Step::Busy) => released.await,
                Ok(Step::Peer(reservation, work)) => held = Some((reservation, self.ask(work).await?)),
                Err(error) => {
                    if let Some((_reservation, PeerDone::Made(attr))) = held {
                        self.unmake(attr.ino).await;
                    }
                    return Err(errno_of(&error));
                }
            }
        }
    }

    /// Has another MDT do its part.
    async fn ask(&self, work: PeerWork) -> Result<PeerDone, Errno> {
        match work {
            PeerWork::Make(mdt, make) => {
                let reply = self.peers.call(mdt, make.into()).await?;
                let Answer(attr) =
                    Answer::<burstfs_proto::mds::PeerMakeDir>::try_from(reply).map_err(|_| Errno::EPROTO)?;
                Ok(PeerDone::Made(attr))
            }
            PeerWork::Remove(ino) => {
                self.peers.call(ino.mdt(), PeerRemoveDir { ino }.into()).await?;
                Ok(PeerDone::Removed(ino))
            }
        }
    }

    /// Takes back a directory that got no name.
    async fn unmake(&self, ino: Ino) {
        if let Err(errno) = self.peers.call(ino.mdt(), PeerRemoveDir { ino }.into()).await {
            tracing::warn!(%ino, %errno, "an empty directory without a name stays on its MDT");
        }
    }

    /// Tries a request under its locks.
    fn attempt(&self, job: &Job<'_>, held: Option<&(Reservation<'_>, PeerDone)>) -> Result<Step<'_>, OpError> {
        let plan = ops::plan(job.request);
        loop {
            let targets = targets(&plan, |key| self.engine.get(key))?;
            let mut locked = self.locks.write(lock_set(&plan, &targets, job.fresh));
            let mut tx = Overlay::new(&*self.engine);
            if targets != self::targets(&plan, |key| tx.get(key))? {
                continue;
            }
            if job.client.is_evicted() {
                return Err(Errno::ESTALE.into());
            }
            // What holds a reservation is what the others wait for.
            if held.is_none() && is_reserved(&locked, &plan, &targets) {
                return Ok(Step::Busy);
            }
            let outcome = self.run(job, &locked, &mut tx, held.map(|(_, done)| done));
            return match outcome {
                Ok((reply, effects)) => {
                    if let Some(running) = job.running.filter(|_| has_durable_effect(job.request)) {
                        running.store(&mut tx, job.request, &reply);
                    }
                    tx.commit()?;
                    self.count(&effects);
                    apply_opens(&mut locked, &effects, job.client.id);
                    Ok(Step::Done(reply))
                }
                Err(OpError::NeedsPeer(_)) if held.is_some() => Err(Errno::EIO.into()),
                Err(OpError::NeedsPeer(work)) => Ok(Step::Peer(self.locks.reserve(&mut locked, &plan.entries), work)),
                Err(error) => Err(error),
            };
        }
    }

    fn run(
        &self,
        job: &Job<'_>,
        locked: &Locked<'_>,
        tx: &mut Overlay<'_>,
        done: Option<&PeerDone>,
    ) -> Result<(MdsReply, Effects), OpError> {
        let opens = Opens { locked, mdt: self };
        let mut ns = self.namespace(tx, &opens);
        ns.fresh = job.fresh;
        ns.peer = done.cloned();
        if let MdsRequest::Close(close) = job.request {
            ns.caller_opens = locked.opens_by(close.ino, job.client.id);
        }
        let reply = ops::run(&mut ns, job.request)?;
        Ok((reply, ns.effects))
    }
}

#[async_trait]
impl MetadataService for Mdt {
    async fn call(&self, caller: Caller, request: MdsRequest) -> Result<MdsReply, Errno> {
        let client = self.client(caller.client)?;
        match request.class() {
            Class::ReadOnly => self.read(&request),
            Class::Idempotent => self.modify(&client, None, &request).await,
            Class::Replayable => self.replayable(&client, caller, &request).await,
        }
    }
}

/// The opens that the locks held make stable.
struct Opens<'m> {
    locked: &'m Locked<'m>,
    mdt: &'m Mdt,
}

impl OpenFiles for Opens<'_> {
    fn registered(&self, ino: Ino) -> u32 {
        self.locked.opens_by_all(ino)
    }

    fn is_unknown(&self, ino: Ino) -> bool {
        self.mdt.inos.is_from_before(ino) && self.mdt.clients.has_survivors()
    }
}

/// For operations that read: they never ask.
struct NotAsked;

impl OpenFiles for NotAsked {
    fn registered(&self, _ino: Ino) -> u32 {
        u32::MAX
    }

    fn is_unknown(&self, _ino: Ino) -> bool {
        true
    }
}

fn make_root(config: &MdtConfig, engine: &dyn Engine, clock: &dyn Clock) -> Result<(), StoreError> {
    let key = key::inode(Ino::ROOT);
    if config.mdt != Ino::ROOT.mdt() || engine.get(&key)?.is_some() {
        return Ok(());
    }
    let body = Inode::directory(Ino::ROOT);
    let root = Inode::new(config.root_mode, config.root_uid, config.root_gid, body, clock.now());
    engine.commit(vec![(key, Some(encode(&root)))])
}

/// The inodes that the plan's entries name.
fn targets(
    plan: &Plan<'_>,
    mut get: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Vec<Option<Ino>>, StoreError> {
    let target = |(parent, name): &(Ino, &Name)| {
        let key = key::dentry(*parent, name);
        let dentry = get(&key)?.map(|value| decode::<Dentry>(&key, &value)).transpose()?;
        Ok(dentry.map(|dentry| dentry.ino))
    };
    plan.entries.iter().map(target).collect()
}

fn lock_set(plan: &Plan<'_>, targets: &[Option<Ino>], fresh: Option<Ino>) -> impl Iterator<Item = Ino> {
    let parents = plan.entries.iter().map(|(parent, _)| *parent);
    plan.inos.iter().copied().chain(parents).chain(targets.iter().copied().flatten()).chain(fresh)
}

/// Whether the request changes an entry that is reserved, or may remove a directory that has one.
fn is_reserved(locked: &Locked<'_>, plan: &Plan<'_>, targets: &[Option<Ino>]) -> bool {
    let mut directories = targets.iter().copied().flatten().chain(plan.removes);
    plan.entries.iter().any(|(parent, name)| locked.is_reserved(*parent, name))
        || directories.any(|directory| locked.has_reserved(directory))
}

/// An open and a close change what is in memory; their replies need not outlive it.
fn has_durable_effect(request: &MdsRequest) -> bool {
    !matches!(request, MdsRequest::Open(_) | MdsRequest::Close(_))
}

fn apply_opens(locked: &mut Locked<'_>, effects: &Effects, client: ClientId) {
    if let Some(ino) = effects.opened {
        locked.add_open(ino, client);
    }
    if let Some(ino) = effects.closed {
        locked.remove_open(ino, client);
    }
}

fn errno_of(error: &OpError) -> Errno {
    match error {
        OpError::Errno(errno) => *errno,
        OpError::Store(error) => logged(error),
        // Only modifying operations need peers, and those are asked before this.
        OpError::NeedsPeer(_) => Errno::EIO,
    }
}

pub(crate) fn logged(error: &StoreError) -> Errno {
    tracing::error!(%error, "the MDT's store failed");
    error.errno()
}
