//! The objects of files that are gone.
//!
//! A file's removal and the record that its objects are to be removed are one batch; the record stays until the OSTs have
//! removed them, over restarts. Removing an object that is not there is no error, so that it may be asked for twice.
//!
//! Owns the records and the loop that works them off. Does not own the way to the OSTs ([`ObjectRemover`]).

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_proto::mds::Orphan;
use burstfs_types::{Errno, Ino};
use tokio::sync::Notify;

use crate::mdt::{Mdt, logged};
use crate::record::{decode, key};
use crate::store::{Engine, StoreError, for_each};

const BATCH: usize = 64;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Removes objects from the OSTs.
#[async_trait]
pub trait ObjectRemover: Send + Sync {
    /// Removes the objects of `orphans`. Gives the files whose objects are all gone; it is asked for the others again later.
    async fn remove(&self, orphans: &[Orphan]) -> Vec<Ino>;
}

/// The files whose objects are still there.
pub(crate) struct Destroys {
    pending: Mutex<BTreeSet<Ino>>,
    added: Notify,
}

impl Destroys {
    pub(crate) fn load(engine: &dyn Engine) -> Result<Destroys, StoreError> {
        let mut pending = BTreeSet::new();
        for_each(engine, &[key::DESTROY], |key, _| {
            pending.extend(key::ino_of(key));
            Ok(())
        })?;
        Ok(Destroys { pending: Mutex::new(pending), added: Notify::new() })
    }

    pub(crate) fn add(&self, inos: &[Ino]) {
        if !inos.is_empty() {
            self.pending().extend(inos);
            self.added.notify_one();
        }
    }

    fn pending(&self) -> MutexGuard<'_, BTreeSet<Ino>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self, last: Option<Ino>, limit: usize) -> Vec<Ino> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.pending().range((from, Bound::Unbounded)).take(limit).copied().collect()
    }
}

impl Mdt {
    /// At most `limit` files, with numbers above `last`, whose objects are to be removed.
    pub fn orphans(&self, last: Option<Ino>, limit: usize) -> Result<Vec<Orphan>, StoreError> {
        let mut orphans = Vec::new();
        for ino in self.destroys.behind(last, limit) {
            let key = key::destroy(ino);
            if let Some(value) = self.engine.get(&key)? {
                orphans.push(Orphan { ino, layout: decode(&key, &value)? });
            }
        }
        Ok(orphans)
    }

    /// Says that the objects of `inos` are gone.
    pub fn confirm(&self, inos: &[Ino]) -> Result<(), StoreError> {
        if inos.is_empty() {
            return Ok(());
        }
        self.engine.commit(inos.iter().map(|ino| (key::destroy(*ino), None)).collect())?;
        let mut pending = self.destroys.pending();
        for ino in inos {
            pending.remove(ino);
        }
        Ok(())
    }

    /// Removes objects as files go, for ever. Sleeps without a timer while there is nothing to remove; where an OST does not
    /// answer, goes on with the others and tries again with pauses of up to ten seconds. Run it once for each MDT.
    pub async fn run_destroyer(&self, remover: &dyn ObjectRemover) {
        let mut pause = RETRY_FIRST;
        loop {
            match self.destroy_round(remover).await {
                Ok(0) => {
                    pause = RETRY_FIRST;
                    self.destroys.added.notified().await;
                }
                Ok(_) | Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                }
            }
        }
    }

    /// Asks once for each file; gives the number of those that remain of them.
    async fn destroy_round(&self, remover: &dyn ObjectRemover) -> Result<usize, Errno> {
        let (mut last, mut remaining) = (None, 0);
        loop {
            let orphans = self.orphans(last, BATCH).map_err(|error| logged(&error))?;
            let Some(end) = orphans.last() else { return Ok(remaining) };
            last = Some(end.ino);
            let removed = remover.remove(&orphans).await;
            remaining += orphans.len().saturating_sub(removed.len());
            self.confirm(&removed).map_err(|error| logged(&error))?;
        }
    }
}
