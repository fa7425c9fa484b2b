//! Leases: which clients keep what this MDT told them, and what has to happen before it changes.
//!
//! Owns the table of leases ([`table`], pure) and the recalls. Does not own what a client does with a lease (`burstfs_client`), nor the
//! answers that it comes with ([`reads`] asks the operations for them).
//!
//! One lease is of one part of one inode, for one client:
//!
//! ```text
//!             an answer to a LeasedLookup, a LeasedGetAttr
//!   (none) ---------------------------------------------------> [held until t] <--. another such answer: t moves
//!     ^  ^                                                        |   |   |   '---'
//!     |  |   t has come, the client is evicted, restarted         |   |   | this client changes it itself: it knows
//!     |  '--------------------------------------------------------'   |   '--> [held until t]
//!     |                                                               | another one wants to change it: Recall
//!     |      its answer; t; eviction                                  v
//!     '---------------------------------------------------------- [recalled]    nobody gets a lease of this part;
//!                                                                               the change waits, and is tried again
//! ```
//!
//! Leased are attributes (`Part::Attributes`) and what the names of a directory stand for or do not (`Part::Entries`). What a change
//! concerns is collected by the namespace as it writes (`Effects::changed`), so that no operation can forget it.
//!
//! Invariants:
//! - No batch that changes a part is committed while another client has a lease of it. A lease is given under the stripe lock
//!   under which the answer is read; who changes looks for leases under the same lock, held for writing, until his batch is committed.
//! - No lease is given of what a transaction holds, so that what was free of leases when it was promised is so when it is done.
//! - The attributes of a file that somebody has open for writing are not leased (its objects change without a word to this MDT);
//!   nor those of a file that was open so when its client vanished (the kernel may go on writing it), nor of files from before
//!   a restart of this MDT (who has them open is unknown).
//! - After a restart nothing is changed before every client has dropped what it may have of before, or its term is over.
//! - What several nodes change is not leased: after a recall nobody gets the lease for a while, longer with each that follows.
//!
//! Concurrency: shards by inode, each with a mutex that is held for a look at the table. Nothing is locked across an await. A
//! request that waits for a recall holds no lock; one of a transaction that waits is bounded by the terms of the leases.
//!
//! Failure: a client that does not answer keeps others waiting until its term is over, at most [`TERM`](burstfs_proto::leases::TERM)
//! and a second; its kernel has forgotten everything by then, by its own clock.

mod reads;
mod table;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burstfs_proto::leases::{Leased, Part, Recall, Recalled};
use burstfs_types::{ClientId, Ino};
use futures_util::future::join_all;
use tokio::sync::OnceCell;

use self::table::{Conflict, TERM_MS, Table};
use crate::locks::Needs;
use crate::mdt::Mdt;

const SHARDS: usize = 64;
/// Parts of inodes that clients keep at a time, in all shards: some 100 bytes each.
const LEASES_MAX: usize = 1 << 19;
/// Between two attempts to reach a client.
const PAUSE: Duration = Duration::from_millis(50);

/// The leases of one MDT.
pub(crate) struct Leases {
    shards: Box<[Mutex<Table>]>,
    began: Instant,
    /// Clients of before this MDT was opened, which may have leases that are not in the table.
    survivors: Vec<ClientId>,
    recovery: OnceCell<()>,
    is_recovered: AtomicBool,
}

/// What keeps a change from being done now.
#[derive(Debug)]
#[must_use]
pub(crate) struct Conflicts(Vec<Conflict>);

impl Leases {
    /// None are known. `survivors` were told things by this MDT before it was restarted.
    pub(crate) fn new(survivors: Vec<ClientId>) -> Leases {
        Leases {
            shards: (0..SHARDS).map(|_| Mutex::new(Table::new(LEASES_MAX / SHARDS))).collect(),
            began: Instant::now(),
            is_recovered: AtomicBool::new(survivors.is_empty()),
            survivors,
            recovery: OnceCell::new(),
        }
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Table> {
        // Neighbours in number go to different shards.
        let index = (ino.get() % SHARDS as u64) as usize;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn grant(&self, lease: Leased, client: ClientId) -> bool {
        self.shard(lease.ino).grant(lease, client, self.now())
    }

    fn end(&self, lease: Leased, client: ClientId) {
        self.shard(lease.ino).end(lease, client);
    }

    /// The leases that have to end before `by`, or with `None` the MDT of its own accord, changes these parts; `None`: it may. The stripes of what is changed are locked
    /// for writing, and stay so until it is done.
    pub(crate) fn conflicts(&self, changed: &[Leased], by: Option<ClientId>) -> Option<Conflicts> {
        let mut conflicts = Vec::new();
        for lease in changed {
            self.shard(lease.ino).recall(*lease, by, self.now(), &mut conflicts);
        }
        if conflicts.is_empty() { None } else { Some(Conflicts(conflicts)) }
    }

    /// The same for what a transaction holds.
    pub(crate) fn conflicts_of(&self, needs: &Needs<'_>, by: Option<ClientId>) -> Option<Conflicts> {
        let parents = needs.names.iter().map(|(parent, _)| *parent);
        let both = parents.chain(needs.whole.iter().copied()).flat_map(|ino| [attributes(ino), entries(ino)]);
        self.conflicts(&both.collect::<Vec<_>>(), by)
    }

    /// A client is no more: nobody waits for it, and it gets nothing any more.
    pub(crate) fn forget(&self, client: ClientId) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).forget(client);
        }
    }

    /// Says that a file's attributes change without anybody's word from now on.
    pub(crate) fn bar(&self, ino: Ino) {
        self.shard(ino).bar(attributes(ino));
    }
}

/// The lease of an inode's attributes.
pub(crate) fn attributes(ino: Ino) -> Leased {
    Leased { ino, part: Part::Attributes }
}

/// The lease of a directory's entries.
pub(crate) fn entries(ino: Ino) -> Leased {
    Leased { ino, part: Part::Entries }
}

impl Mdt {
    /// Ends the leases that are in the way of a change.
    pub(crate) async fn recall(&self, Conflicts(conflicts): Conflicts) {
        let mut by_client: BTreeMap<ClientId, Vec<Conflict>> = BTreeMap::new();
        for conflict in conflicts {
            by_client.entry(conflict.client).or_default().push(conflict);
        }
        join_all(by_client.into_iter().map(|(client, conflicts)| self.recall_from(client, conflicts))).await;
    }

    async fn recall_from(&self, client: ClientId, mut conflicts: Vec<Conflict>) {
        loop {
            let now = self.leases.now();
            conflicts.retain(|conflict| self.leases.shard(conflict.lease.ino).has(conflict, now));
            if conflicts.is_empty() {
                return;
            }
            let these = conflicts.iter().map(|conflict| conflict.lease).collect();
            match self.peers.recall(Recall { client, what: Recalled::These(these) }).await {
                Ok(()) => {
                    conflicts.iter().for_each(|of| self.leases.shard(of.lease.ino).end_recalled(of));
                    return;
                }
                Err(errno) => tracing::debug!(%client, %errno, "a recall was not answered; it is sent again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until nobody has leases of before this MDT was opened.
    pub(crate) async fn leases_recovered(&self) {
        if self.leases.is_recovered.load(Ordering::Acquire) {
            return;
        }
        let recovery = async {
            join_all(self.leases.survivors.iter().map(|client| self.recover_from(*client))).await;
            self.leases.is_recovered.store(true, Ordering::Release);
        };
        self.leases.recovery.get_or_init(|| recovery).await;
    }

    async fn recover_from(&self, client: ClientId) {
        let recall = Recall { client, what: Recalled::AllOf(self.index()) };
        while self.is_client(client) && self.leases.now() < TERM_MS {
            match self.peers.recall(recall.clone()).await {
                Ok(()) => return,
                Err(errno) => tracing::debug!(%client, %errno, "a client of before is asked again to drop its leases"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
