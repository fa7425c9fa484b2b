//! The driver of one MDT: runs operations for clients.
//!
//! Owns the clock, the locks, the commit, and the talk with other MDTs. Does not own what an operation means (`crate::ops`).
//!
//! A request is tried under the locks that its plan names. Three things can come out:
//! - it is done: effect and reply are one batch;
//! - it concerns other MDTs, too: it is run as a transaction (`crate::txn`);
//! - a transaction holds what it is about: the request waits until one gives something back, and is tried again. So two `mkdir`
//!   of one name, whose directories live elsewhere, make one directory and one EEXIST.
//!
//! Opens are known in memory only. After a restart it is unknown what the clients of before have open: a file of before the
//! restart that loses its last name is kept until each of those clients has been replaced by a newer incarnation, however many
//! closes arrive. With one node that is when its daemon, which has the MDT in it, comes back.
//!
//! Concurrency: any number of threads. A call that needs no other MDT completes without waiting, except for a copy of a
//! request that is running and for what a transaction holds. Nothing is locked across an await.
//!
//! Failure: an error of the store is logged here, once, and the caller gets its errno; nothing of the request was applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use burstfs_proto::Class;
use burstfs_proto::mds::{Habit, MdsReply, MdsRequest, MdtStatfs};
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::{ClientId, Errno, Ino, LayoutPolicy, MdtIndex, MetadataPolicy, Name, NodeIndex, Timestamp};

use crate::changes::Changes;
use crate::clients::{Begin, Client, Clients, Running};
use crate::clock::Clock;
use crate::destroy::Destroys;
use crate::file_locks::FileLocks;
use crate::habits::Habits;
use crate::inos::Inos;
use crate::leases::{Conflicts, Leases};
use crate::locks::{Locked, Locks, Needs, Stripe};
use crate::namespace::{Effects, Namespace, OpError, OpenFiles};
use crate::ops::{self, Plan};
use crate::peers::Peers;
use crate::record::{Dentry, decode, key};
use crate::root::make_root;
use crate::split::Splits;
use crate::store::{Engine, Overlay, StoreError, Transaction, for_each};
use crate::txn::Txns;

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
    /// The layout that the job asks for.
    pub layout: LayoutPolicy,
    /// Whether an MDT 0 that is made anew has the [ready-made directories](burstfs_types::ReadyMade).
    pub has_ready_made: bool,
    /// When its directories are split.
    pub policy: MetadataPolicy,
    /// Whether it is recorded which files have changed since they were drained.
    pub tracks_changes: bool,
}

/// One metadata target.
pub struct Mdt {
    pub(crate) config: MdtConfig,
    pub(crate) engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) locks: Locks,
    clients: Clients,
    pub(crate) inos: Inos,
    pub(crate) inode_count: AtomicI64,
    pub(crate) destroys: Destroys,
    habits: Habits,
    pub(crate) txns: Txns,
    pub(crate) splits: Splits,
    pub(crate) file_locks: FileLocks,
    pub(crate) changes: Changes,
    pub(crate) leases: Leases,
}

/// What came of trying a request.
enum Tried {
    Done(MdsReply),
    Busy,
    Several,
    Leased(Conflicts),
}

/// A request with what belongs to it.
pub(crate) struct Job<'r> {
    pub(crate) client: &'r Client,
    pub(crate) running: Option<&'r Running<'r>>,
    pub(crate) request: &'r MdsRequest,
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
        make_root(&config, &*engine, clock.now())?;
        let mut inodes = 0;
        for_each(&*engine, &[key::INODE], |_, _| {
            inodes += 1;
            Ok(())
        })?;
        // Shards are parts of directories, and nobody counts them.
        for_each(&*engine, &[key::SHARD], |_, _| {
            inodes -= 1;
            Ok(())
        })?;
        let clients = Clients::load(&*engine)?;
        let mdt = Mdt {
            config,
            clock,
            peers,
            locks: Locks::new(),
            file_locks: FileLocks::load(&*engine, &clients)?,
            changes: Changes::load(&*engine, config.tracks_changes)?,
            leases: Leases::new(clients.known()),
            clients,
            inos: Inos::load(&*engine, config.mdt)?,
            inode_count: AtomicI64::new(inodes),
            destroys: Destroys::load(&*engine)?,
            habits: Habits::default(),
            txns: Txns::load(&*engine)?,
            splits: Splits::load(&*engine)?,
            engine,
        };
        mdt.hold_promises()?;
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

    /// Whether this is a client that may have something still.
    pub(crate) fn is_client(&self, id: ClientId) -> bool {
        matches!(self.clients.get(id), Ok(Some(client)) if !client.is_evicted())
    }

    /// A node will not come back: its client has nothing open and no locks any more.
    pub fn lose_node(&self, node: NodeIndex) {
        if let Some(client) = self.clients.lose(node)
            && let Err(error) = self.evict(&client)
        {
            logged(&error);
        }
    }

    /// Forgets what a client that is no more had open and locked.
    fn evict(&self, client: &Client) -> Result<(), StoreError> {
        tracing::info!(client = %client.id, "evicted: its node has a newer one, or none");
        self.file_locks.forget(&*self.engine, client.id);
        self.leases.forget(client.id);
        for mut locked in self.locks.each() {
            for forgotten in locked.forget_opens(client.id) {
                if forgotten.was_written {
                    self.leases.bar(forgotten.ino);
                }
                self.release_orphan(&locked, forgotten.ino)?;
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
            Err(OpError::Errno(_) | OpError::Several) => return Ok(()),
        }
        let effects = ns.effects;
        tx.commit()?;
        self.count(&effects);
        Ok(())
    }

    fn namespace<'t>(&self, tx: &'t mut dyn Transaction, opens: &'t dyn OpenFiles) -> Namespace<'t> {
        Namespace::new(tx, opens, &self.config, self.clock.now(), self.changes.next())
    }

    /// Whether somebody may have `ino` open whose registration a restart has lost.
    pub(crate) fn has_unknown_opens(&self, ino: Ino) -> bool {
        self.inos.is_from_before(ino) && self.clients.has_survivors()
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reads.
    pub(crate) fn with_namespace<T>(
        &self,
        read: impl FnOnce(&mut Namespace<'_>) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let mut tx = Overlay::new(&*self.engine);
        read(&mut self.namespace(&mut tx, &NotAsked))
    }

    /// Runs what belongs to a transaction over several MDTs, whose time is `now`, in `tx`.
    pub(crate) fn with_steps<T>(
        &self,
        locked: &Locked<'_>,
        tx: &mut Overlay<'_>,
        now: Timestamp,
        run: impl FnOnce(&mut Namespace<'_>) -> Result<T, OpError>,
    ) -> Result<(T, Effects), OpError> {
        let opens = Opens { locked, mdt: self };
        let mut ns = self.namespace(tx, &opens);
        ns.now = now;
        ns.is_transaction = true;
        let result = run(&mut ns)?;
        Ok((result, ns.effects))
    }

    pub(crate) fn count(&self, effects: &Effects) {
        self.inode_count.fetch_add(effects.inodes, Ordering::Relaxed);
        self.destroys.add(&effects.destroyed);
    }

    async fn read(&self, client: &Client, request: &MdsRequest) -> Result<MdsReply, Errno> {
        loop {
            let released = self.locks.released();
            if let Some(result) = self.try_read(client, request) {
                return result;
            }
            released.await;
        }
    }

    /// `None` while another MDT decides what the answer is.
    fn try_read(&self, client: &Client, request: &MdsRequest) -> Option<Result<MdsReply, Errno>> {
        let answer = match request {
            MdsRequest::LeasedLookup(it) => self.leased_lookup(client, it)?.map(MdsReply::LeasedLookup),
            MdsRequest::LeasedGetAttr(it) => self.leased_get_attr(client, it)?.map(MdsReply::LeasedGetAttr),
            _ => return self.try_plain_read(request),
        };
        Some(answer.map_err(|error| errno_of(&error)))
    }

    fn try_plain_read(&self, request: &MdsRequest) -> Option<Result<MdsReply, Errno>> {
        let held = ops::plan(request).inos.first().map(|ino| self.locks.read(*ino));
        if held.as_ref().is_some_and(|stripe| is_undecided(stripe, request)) {
            return None;
        }
        // Under the lock, so that an entry and its inode are of one moment.
        let result = self.with_namespace(|ns| ops::run(ns, request)).map_err(|error| errno_of(&error));
        let is_promised = |ino: &Ino| held.as_ref().is_some_and(|stripe| stripe.is_promised(*ino));
        if matches!(result, Err(Errno::EREMCHG)) && ops::plan(request).inos.first().is_some_and(is_promised) {
            // The name may be on its way here.
            return None;
        }
        Some(result)
    }

    fn statfs(&self) -> MdsReply {
        let inodes_used = self.inode_count.load(Ordering::Relaxed).try_into().unwrap_or(0);
        MdsReply::Statfs(MdtStatfs { inodes_used })
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
        if let Some(changed) = self.change_locks(client, running, request) {
            return changed;
        }
        let fresh = ops::needs_ino(request).then(|| self.inos.take(&*self.engine)).transpose();
        let job = Job { client, running, request, fresh: fresh.map_err(|error| errno_of(&error))? };
        loop {
            let released = self.locks.released();
            match self.attempt(&job).map_err(|error| errno_of(&error))? {
                Tried::Done(reply) => return Ok(reply),
                Tried::Busy => released.await,
                Tried::Several => return self.transact(&job).await,
                Tried::Leased(conflicts) => self.recall(conflicts).await,
            }
        }
    }

    /// Tries a request under its locks.
    fn attempt(&self, job: &Job<'_>) -> Result<Tried, OpError> {
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
            if locked.is_held_by_other(&needs(&plan, &targets), None) {
                return Ok(Tried::Busy);
            }
            return match self.run(job, &locked, &mut tx) {
                Ok((reply, effects)) => {
                    if let Some(conflicts) = self.leases.conflicts(&effects.changed, Some(job.client.id)) {
                        return Ok(Tried::Leased(conflicts));
                    }
                    if let Some(running) = job.running.filter(|_| has_durable_effect(job.request)) {
                        running.store(&mut tx, job.request, &reply);
                    }
                    tx.commit()?;
                    self.count(&effects);
                    self.note_growth(&effects, Some(job.client.id.node));
                    self.apply_opens(&mut locked, &effects, job.client.id);
                    Ok(Tried::Done(reply))
                }
                Err(OpError::Several) => Ok(Tried::Several),
                Err(error) => Err(error),
            };
        }
    }

    fn apply_opens(&self, locked: &mut Locked<'_>, effects: &Effects, client: ClientId) {
        let opened = effects.opened.and_then(|opened| locked.add_open(opened, client));
        let closed = effects.closed.and_then(|ino| locked.remove_open(ino, client));
        for lesson in [opened, closed].into_iter().flatten() {
            self.habits.learn(lesson.directory, lesson.by_several);
        }
    }

    fn run(&self, job: &Job<'_>, locked: &Locked<'_>, tx: &mut Overlay<'_>) -> Result<(MdsReply, Effects), OpError> {
        let opens = Opens { locked, mdt: self };
        let mut ns = self.namespace(tx, &opens);
        ns.fresh = job.fresh;
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
        if let MdsRequest::Statfs(_) = request {
            return Ok(self.statfs());
        }
        if is_peers(&request) {
            return self.answer_peer(&request).await;
        }
        if request.class() != Class::ReadOnly {
            self.leases_recovered().await;
        }
        if let Some(answer) = self.answer_changes(&request) {
            return answer;
        }
        match request.class() {
            Class::ReadOnly => match self.ask_locks(&client, &request).await {
                Some(answer) => answer,
                None => self.read(&client, &request).await,
            },
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
        self.mdt.has_unknown_opens(ino)
    }

    fn writers(&self, ino: Ino) -> u32 {
        self.locked.writers(ino)
    }

    fn habit(&self, directory: Ino) -> Habit {
        self.mdt.habits.of(directory)
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

    fn writers(&self, _ino: Ino) -> u32 {
        0
    }

    fn habit(&self, _directory: Ino) -> Habit {
        Habit::default()
    }
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

fn needs<'p>(plan: &Plan<'p>, targets: &[Option<Ino>]) -> Needs<'p> {
    let whole = targets.iter().copied().flatten().collect();
    Needs { names: plan.entries.clone(), whole, inodes: plan.inos.clone() }
}

/// Whether another MDT decides what the answer to `request` is.
fn is_undecided(stripe: &Stripe, request: &MdsRequest) -> bool {
    match request {
        MdsRequest::Lookup(it) => stripe.is_name_promised(it.parent, &it.name),
        other => ops::plan(other).inos.iter().any(|ino| stripe.is_promised(*ino)),
    }
}

/// Requests that belong to transactions.
fn is_peers(request: &MdsRequest) -> bool {
    matches!(
        request,
        MdsRequest::PeerPrepare(_)
            | MdsRequest::PeerDecide(_)
            | MdsRequest::PeerOutcome(_)
            | MdsRequest::PeerLook(_)
            | MdsRequest::PeerParent(_)
            | MdsRequest::PeerRecords(_)
    )
}

/// An open and a close change what is in memory; their replies need not outlive it.
fn has_durable_effect(request: &MdsRequest) -> bool {
    !matches!(request, MdsRequest::Open(_) | MdsRequest::Close(_))
}

pub(crate) fn errno_of(error: &OpError) -> Errno {
    match error {
        OpError::Errno(errno) => *errno,
        OpError::Store(error) => logged(error),
        // Only modifying operations say so, and that is heard before this.
        OpError::Several => Errno::EIO,
    }
}

pub(crate) fn logged(error: &StoreError) -> Errno {
    tracing::error!(%error, "the MDT's store failed");
    error.errno()
}
