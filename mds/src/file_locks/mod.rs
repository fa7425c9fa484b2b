//! Locks that programs put on files of this MDT: whose they are, who waits, and what of it is stored.
//!
//! ```text
//!   SetLock --> free ------------------------------------------------------> Granted
//!          '--> taken --> queue (ticket) --> the holder unlocks, dies ------> the lock is the waiter's; its AwaitLocks answers,
//!                            |                                               it asks again: Granted
//!                            |--> LeaveQueue: its process got a signal
//!                            '--> this MDT is restarted: AwaitLocks answers, it asks again and waits in a new queue
//! ```
//!
//! Owns the table ([`table`]) and the records of what is held, one for each file. Does not own the processes behind the locks:
//! the client gives up what a process leaves behind when it ends or closes the file, and eviction what a client does.
//!
//! Invariants: the record of a file is what the table has of it; a lock is granted, and stored, in the batch of what made
//! room for it. Locks outlive a restart of the MDT, queues do not.
//!
//! Concurrency: one mutex for all of it, held for a commit. Programs that lock are few beside those that make files, and no
//! other request takes it. Nothing is locked across an await.
//!
//! Failure: if the store fails the table goes back to what it was, and the caller gets the store's errno.

mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burstfs_proto::locks::{AwaitLocks, GetLock, LockAnswer, LockHolder, LockRange, SetLock, Unlock};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_types::{ClientId, Errno, Ino};
use tokio::sync::Notify;

use self::table::{Held, Owner, Table};
use crate::clients::{Client, Clients, Running};
use crate::mdt::{Mdt, logged};
use crate::record::{decode, encode, key};
use crate::store::{Engine, Overlay, StoreError, Transaction, for_each};

/// How long a client's long poll is kept: its replies from all MDTs are kept for as long.
const POLL: Duration = Duration::from_secs(1);

/// The locks of one MDT.
pub(crate) struct FileLocks {
    table: Mutex<Table>,
    changed: Notify,
}

impl FileLocks {
    /// What the store has of clients that are still there.
    pub(crate) fn load(engine: &dyn Engine, clients: &Clients) -> Result<FileLocks, StoreError> {
        let mut table = Table::default();
        for_each(engine, &[key::FILE_LOCKS], |key, value| {
            let mut held: Vec<Held> = decode(key, value)?;
            held.retain(|held| matches!(clients.get(held.owner.client), Ok(Some(_))));
            if let Some(ino) = key::ino_of(key) {
                table.restore(ino, held);
            }
            Ok(())
        })?;
        Ok(FileLocks { table: Mutex::new(table), changed: Notify::new() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of `ino`, and stores it with what `and_store` adds.
    fn change<T>(
        &self,
        engine: &dyn Engine,
        ino: Ino,
        change: impl FnOnce(&mut Table) -> Result<T, Errno>,
        and_store: impl FnOnce(&mut dyn Transaction, &T),
    ) -> Result<T, Errno> {
        let mut table = self.table();
        let before = table.before(ino);
        let outcome = change(&mut table)?;
        let mut tx = Overlay::new(engine);
        match table.held(ino) {
            [] => tx.delete(key::file_locks(ino)),
            held => tx.put(key::file_locks(ino), encode(&held)),
        }
        and_store(&mut tx, &outcome);
        if let Err(error) = tx.commit() {
            table.undo(before);
            return Err(logged(&error));
        }
        drop(table);
        self.changed.notify_waiters();
        Ok(outcome)
    }

    /// Takes everything from a client that is no more.
    pub(crate) fn forget(&self, engine: &dyn Engine, client: ClientId) {
        let files = self.table().files_of(client);
        for ino in files {
            let forget = |table: &mut Table| {
                table.forget(ino, client);
                Ok(())
            };
            // The error is logged. What stays in the table goes with the next change of the file, or the next restart.
            let _ = self.change(engine, ino, forget, |_, ()| {});
        }
    }

    fn holder(&self, client: ClientId, request: &GetLock) -> Result<Option<LockHolder>, Errno> {
        check(request.lock.range)?;
        let GetLock { lock } = request;
        let owner = Owner { client, id: lock.owner };
        let want = Held { owner, pid: lock.pid, range: lock.range, kind: lock.kind };
        Ok(self.table().holder(lock.ino, &want))
    }

    /// Waits until some of the client's tickets wait no longer, or more wait than it asks for, or for [`POLL`]; which wait no
    /// longer.
    async fn settled(&self, client: ClientId, request: &AwaitLocks) -> Result<Vec<u64>, Errno> {
        if request.tickets.len() > AwaitLocks::TICKETS_MAX {
            return Err(Errno::EINVAL);
        }
        if let Some(settled) = self.settled_now(client, request) {
            return Ok(settled);
        }
        let until_some = async {
            loop {
                let changed = self.changed.notified();
                if let Some(settled) = self.settled_now(client, request) {
                    return settled;
                }
                changed.await;
            }
        };
        Ok(tokio::time::timeout(POLL, until_some).await.unwrap_or_default())
    }

    fn settled_now(&self, client: ClientId, request: &AwaitLocks) -> Option<Vec<u64>> {
        let table = self.table();
        let settled: Vec<u64> =
            request.tickets.iter().copied().filter(|ticket| !table.is_waiting(client, *ticket)).collect();
        let is_all = table.waiting(client) <= request.tickets.len();
        if settled.is_empty() && is_all { None } else { Some(settled) }
    }
}

impl Mdt {
    /// Answers a request about locks that changes nothing; `None` for any other request.
    pub(crate) async fn ask_locks(&self, client: &Client, request: &MdsRequest) -> Option<Result<MdsReply, Errno>> {
        match request {
            MdsRequest::GetLock(it) => Some(self.file_locks.holder(client.id, it).map(MdsReply::GetLock)),
            MdsRequest::AwaitLocks(it) => Some(self.file_locks.settled(client.id, it).await.map(MdsReply::AwaitLocks)),
            _ => None,
        }
    }

    /// Runs a request that changes locks; `None` for any other request.
    pub(crate) fn change_locks(
        &self,
        client: &Client,
        running: Option<&Running<'_>>,
        request: &MdsRequest,
    ) -> Option<Result<MdsReply, Errno>> {
        match request {
            MdsRequest::SetLock(it) => Some(self.set_lock(client, running, it).map(MdsReply::SetLock)),
            MdsRequest::Unlock(it) => Some(self.unlock(client, running, it).map(MdsReply::Unlock)),
            MdsRequest::LeaveQueue(it) => {
                Some(Ok(MdsReply::LeaveQueue(self.file_locks.table().leave(client.id, it.ticket))))
            }
            _ => None,
        }
    }

    fn set_lock(&self, client: &Client, running: Option<&Running<'_>>, request: &SetLock) -> Result<LockAnswer, Errno> {
        let SetLock { lock, ticket } = *request;
        check(lock.range)?;
        if self.engine.get(&key::inode(lock.ino)).map_err(|error| logged(&error))?.is_none() {
            return Err(Errno::ESTALE);
        }
        let owner = Owner { client: client.id, id: lock.owner };
        let want = Held { owner, pid: lock.pid, range: lock.range, kind: lock.kind };
        let set = |table: &mut Table| {
            // Under the table's mutex, so that eviction takes what is granted before it.
            if client.is_evicted() { Err(Errno::ESTALE) } else { table.set(lock.ino, want, ticket) }
        };
        let store = |tx: &mut dyn Transaction, answer: &LockAnswer| {
            // A place in a queue is lost with the MDT's memory, so the word of it must be, too.
            if let (LockAnswer::Granted, Some(running)) = (answer, running) {
                running.store(tx, &MdsRequest::SetLock(request.clone()), &MdsReply::SetLock(*answer));
            }
        };
        self.file_locks.change(&*self.engine, lock.ino, set, store)
    }

    fn unlock(&self, client: &Client, running: Option<&Running<'_>>, request: &Unlock) -> Result<(), Errno> {
        let Unlock { ino, owner, range } = *request;
        check(range)?;
        let clear = |table: &mut Table| {
            table.clear(ino, Owner { client: client.id, id: owner }, range);
            Ok(())
        };
        let store = |tx: &mut dyn Transaction, (): &()| {
            if let Some(running) = running {
                running.store(tx, &MdsRequest::Unlock(request.clone()), &MdsReply::Unlock(()));
            }
        };
        self.file_locks.change(&*self.engine, ino, clear, store)
    }
}

fn check(range: LockRange) -> Result<(), Errno> {
    if range.first <= range.last { Ok(()) } else { Err(Errno::EINVAL) }
}
