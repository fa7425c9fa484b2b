//! Which files have changed since they were last drained.
//!
//! Owns the numbers of changes and their records: a file or symbolic link that has one (`M`) differs, or may differ, from what
//! was drained of it last; what was drained and not changed since has none. The record is written in the batch of whatever
//! changes the inode, and of every open for writing, so that it survives what the change survives. Bytes do not pass the MDT:
//! of a file that somebody has open for writing nothing is known but that, and [`Mdt::end_change`] keeps its record. What a
//! mapping writes after the last close the MDT never hears: whoever copies an object looks at the object's times, too.
//!
//! Invariants: a number is given once in an instance's life (the epoch, which each start of the MDT raises, is its upper
//! part), so that a record that was replaced is never taken for the one that somebody has seen; a record belongs to an inode
//! that is there.
//!
//! Concurrency: records change under the stripe of their inode, as the inode does.

use std::sync::atomic::{AtomicU64, Ordering};

use burstfs_proto::mds::{ChangeState, EndChange, MdsReply, MdsRequest};
use burstfs_types::{Errno, Ino};

use crate::mdt::{Mdt, logged};
use crate::record::{decode, encode, key};
use crate::store::{Engine, StoreError};

/// Numbers of one epoch.
const EPOCH_BITS: u32 = 40;

/// Gives out the numbers of changes.
pub(crate) struct Changes(Option<AtomicU64>);

impl Changes {
    /// A new epoch; without `is_tracked` nothing is recorded, and every file counts as changed.
    pub(crate) fn load(engine: &dyn Engine, is_tracked: bool) -> Result<Changes, StoreError> {
        if !is_tracked {
            return Ok(Changes(None));
        }
        let stored = engine.get(key::EPOCH)?;
        let epoch = stored.map(|value| decode::<u64>(key::EPOCH, &value)).transpose()?.unwrap_or(0) + 1;
        engine.commit(vec![(key::EPOCH.to_vec(), Some(encode(&epoch)))])?;
        Ok(Changes(Some(AtomicU64::new(epoch << EPOCH_BITS))))
    }

    /// The number of the next change; `None` where none are recorded.
    pub(crate) fn next(&self) -> Option<u64> {
        self.0.as_ref().map(|next| next.fetch_add(1, Ordering::Relaxed))
    }

    fn is_tracked(&self) -> bool {
        self.0.is_some()
    }
}

impl Mdt {
    /// Answers what is about changes; `None` for any other request.
    pub(crate) fn answer_changes(&self, request: &MdsRequest) -> Option<Result<MdsReply, Errno>> {
        let answered = match request {
            MdsRequest::GetChange(it) => self.change_of(it.ino).map(MdsReply::GetChange),
            MdsRequest::EndChange(it) => self.end_change(it).map(MdsReply::EndChange),
            _ => return None,
        };
        Some(answered.map_err(|error| logged(&error)))
    }

    fn change_of(&self, ino: Ino) -> Result<ChangeState, StoreError> {
        let stripe = self.locks.read(ino);
        let is_writable = stripe.is_open_for_writing(ino) || self.has_unknown_opens(ino);
        Ok(ChangeState { number: self.stored_change(ino)?, is_writable, is_tracked: self.changes.is_tracked() })
    }

    /// The file was drained as it was when its change had this number: forgets the change, unless there was another since or
    /// somebody can write. Whether the file counts as drained now.
    fn end_change(&self, request: &EndChange) -> Result<bool, StoreError> {
        let EndChange { ino, number } = *request;
        let locked = self.locks.write([ino]);
        if locked.is_open_for_writing(ino) || self.has_unknown_opens(ino) {
            return Ok(false);
        }
        match self.stored_change(ino)? {
            None => Ok(self.changes.is_tracked()),
            Some(stored) if Some(stored) == number => {
                self.engine.commit(vec![(key::change(ino), None)])?;
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    fn stored_change(&self, ino: Ino) -> Result<Option<u64>, StoreError> {
        let key = key::change(ino);
        let stored = self.engine.get(&key)?;
        stored.map(|value| decode(&key, &value)).transpose()
    }
}
