//! Locks of this node's processes on files: at the file's MDT, where those of all nodes meet.
//!
//! Owns what the kernel does not tell: which owners have locks, so that a close costs nothing where there are none, and the
//! tickets that wait. For each MDT with waiting tickets there is one task with one long poll at a time, whatever their number:
//! a waiting lock takes no place of a request, and keeps no reply at an MDT for longer than a poll.
//!
//! Invariants: a lock that an MDT has granted is given up when its owner closes the file, when the open file description through
//! which it came is closed, when who waited for it has gone, or with this client. An owner is written down before he can have a
//! lock.
//!
//! Failure: a poll that fails is an answer, too: each of its tickets asks for itself, and has the error. What could not be given
//! up, since the MDT did not answer, stays until the MDT evicts this client.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_proto::locks::{AwaitLocks, GetLock, LeaveQueue, Lock, LockAnswer, LockHolder, LockRange, SetLock, Unlock};
use burstfs_types::{Errno, Ino, MdtIndex};
use tokio::sync::oneshot;
use tracing::warn;

use super::ClientFs;
use super::error::FsError;
use super::file::OpenFile;
use super::targets::Targets;

/// What is known here of locks.
#[derive(Default)]
pub(super) struct LockState {
    owners: Mutex<HashSet<(Ino, u64)>>,
    next_ticket: AtomicU64,
    /// The MDTs that a task polls, with the tickets that wait there.
    polled: Mutex<HashMap<MdtIndex, Tickets>>,
}

/// Tickets with those who wait for them.
type Tickets = HashMap<u64, oneshot::Sender<()>>;

impl LockState {
    fn owners(&self) -> MutexGuard<'_, HashSet<(Ino, u64)>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn polled(&self) -> MutexGuard<'_, HashMap<MdtIndex, Tickets>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientFs {
    /// A lock, at once or not at all: EAGAIN while somebody else has it.
    pub async fn try_lock(&self, file: &OpenFile, lock: Lock) -> Result<(), FsError> {
        self.note_owner(file, &lock);
        match self.set_lock(lock, None).await? {
            LockAnswer::Granted => Ok(()),
            LockAnswer::Waits => Err(refused(Errno::EIO)),
        }
    }

    /// A lock, as soon as it can be had. EINTR when `interrupted` comes first, EDEADLK where it would never be.
    pub async fn lock(
        &self,
        file: &OpenFile,
        lock: Lock,
        interrupted: impl Future<Output = ()> + Send,
    ) -> Result<(), FsError> {
        self.note_owner(file, &lock);
        let ticket = self.locks.next_ticket.fetch_add(1, Ordering::Relaxed);
        let mut interrupted = std::pin::pin!(interrupted);
        loop {
            if self.set_lock(lock, Some(ticket)).await? == LockAnswer::Granted {
                return Ok(());
            }
            let settled = self.settled(lock.ino.mdt(), ticket);
            tokio::select! {
                () = settled => {}
                () = &mut interrupted => {
                    self.forget_ticket(lock.ino.mdt(), ticket);
                    if self.targets.mds(lock.ino.mdt(), LeaveQueue { ticket }).await? {
                        return Err(refused(Errno::EINTR));
                    }
                    // It was granted a moment before: then it is the caller's. A queue that an MDT lost is not waited in again.
                    return match self.set_lock(lock, None).await {
                        Err(error) if error.errno() == Errno::EAGAIN => Err(refused(Errno::EINTR)),
                        other => other.map(drop),
                    };
                }
            }
        }
    }

    /// Gives up a range.
    pub async fn unlock(&self, ino: Ino, owner: u64, range: LockRange) -> Result<(), FsError> {
        if !self.locks.owners().contains(&(ino, owner)) {
            return Ok(());
        }
        self.targets.mds(ino.mdt(), Unlock { ino, owner, range }).await
    }

    /// Who keeps `lock` from being granted.
    pub async fn lock_holder(&self, lock: Lock) -> Result<Option<LockHolder>, FsError> {
        self.targets.mds(lock.ino.mdt(), GetLock { lock }).await
    }

    /// Whether an owner may have locks on a file.
    pub fn may_have_locks(&self, ino: Ino, owner: u64) -> bool {
        self.locks.owners().contains(&(ino, owner))
    }

    /// Gives up all that an owner has on a file: what a process's `close(2)` of any of its descriptors of the file does.
    pub async fn unlock_all(&self, ino: Ino, owner: u64) -> Result<(), FsError> {
        if !self.locks.owners().remove(&(ino, owner)) {
            return Ok(());
        }
        self.targets.mds(ino.mdt(), Unlock { ino, owner, range: LockRange::ALL }).await
    }

    /// Gives up what came through an open file description that is closed.
    pub(super) async fn unlock_description(&self, file: &OpenFile) {
        for owner in file.take_lock_owners() {
            if let Err(error) = self.unlock_all(file.ino(), owner).await {
                warn!(ino = %file.ino(), %error, "locks of a closed file stay until this client is evicted");
            }
        }
    }

    fn note_owner(&self, file: &OpenFile, lock: &Lock) {
        file.add_lock_owner(lock.owner);
        self.locks.owners().insert((lock.ino, lock.owner));
    }

    async fn set_lock(&self, lock: Lock, ticket: Option<u64>) -> Result<LockAnswer, FsError> {
        self.targets.mds(lock.ino.mdt(), SetLock { lock, ticket }).await
    }

    /// Completes when the ticket may wait no longer.
    async fn settled(&self, mdt: MdtIndex, ticket: u64) {
        let (tell, told) = oneshot::channel();
        let is_polled = {
            let mut polled = self.locks.polled();
            let is_polled = polled.contains_key(&mdt);
            polled.entry(mdt).or_default().insert(ticket, tell);
            is_polled
        };
        if !is_polled {
            tokio::spawn(poll(Arc::clone(&self.targets), Arc::clone(&self.locks), mdt));
        }
        // Fails only if the poll's task is gone, with the runtime.
        let _ = told.await;
    }

    fn forget_ticket(&self, mdt: MdtIndex, ticket: u64) {
        if let Some(tickets) = self.locks.polled().get_mut(&mdt) {
            tickets.remove(&ticket);
        }
    }
}

/// Polls one MDT for as long as tickets wait there.
async fn poll(targets: Arc<Targets>, locks: Arc<LockState>, mdt: MdtIndex) {
    loop {
        let tickets: Vec<u64> = {
            let mut polled = locks.polled();
            match polled.get(&mdt) {
                Some(tickets) if !tickets.is_empty() => tickets.keys().copied().collect(),
                _ => {
                    polled.remove(&mdt);
                    return;
                }
            }
        };
        let settled = targets.mds(mdt, AwaitLocks { tickets: tickets.clone() }).await.unwrap_or(tickets);
        if let Some(tickets) = locks.polled().get_mut(&mdt) {
            for tell in settled.iter().filter_map(|ticket| tickets.remove(ticket)) {
                // Who waited may have gone.
                let _ = tell.send(());
            }
        }
    }
}

fn refused(errno: Errno) -> FsError {
    FsError::Refused { rpc: "SetLock", errno }
}
