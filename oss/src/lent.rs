//! Object files that are lent to the node's kernel, which reads and writes them itself (FUSE passthrough).
//!
//! Owns: which objects are lent, how many open files write each, and when what they wrote is charged. The kernel's writes
//! pass the OST by, so the share cannot be enforced on them while they happen:
//! - a file is lent for writing only while the share has plenty of room for each open file that is written so
//!   ([`Lent::begin_writing`]); nearer to the end all writes go through the OST, which refuses them at the share;
//! - whoever reserves space, or asks how much there is, charges first what the kernel wrote meanwhile;
//! - a file that has grown past the share all the same is told so at its next `fsync` or `close` ([`Lent::settle`]).
//!
//! What is written through a mapping whose file was closed is charged when the object is used again.
//!
//! Concurrency: the tables' locks are held for a look or an insertion; files are looked at without them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use burstfs_proto::service::{LentFile, ObjectFiles};
use burstfs_types::{Errno, ObjectId, Timestamp};
use rustix::fs::{Timestamps, futimens};

use crate::name;
use crate::operations::timespec;
use crate::ost::Ost;
use crate::space::Space;
use crate::store::{Object, allocated, lock};

/// What is charged for lent objects is at most so old when an operation reserves space.
const CHARGE_INTERVAL: Duration = Duration::from_millis(10);
/// The room that the share must have for each writer. A share that is smaller than this is never written by the kernel.
const ROOM_PER_WRITER_BYTES: u64 = 256 << 20;

type OnRemoval = Box<dyn Fn(ObjectId) + Send + Sync>;

/// The objects of an OST that are lent.
#[derive(Default)]
pub(crate) struct Lending {
    lent: Mutex<HashMap<ObjectId, Weak<Lent>>>,
    /// Those of them that the kernel writes.
    written: Mutex<HashMap<ObjectId, Weak<Lent>>>,
    /// Open files that the kernel writes.
    writers: AtomicU64,
    charged: Mutex<Option<Instant>>,
    on_removal: OnceLock<OnRemoval>,
}

/// An object that is lent.
pub(crate) struct Lent {
    own: Weak<Lent>,
    ost: Arc<Ost>,
    id: ObjectId,
    object: Arc<Object>,
    writing: Mutex<Writing>,
}

#[derive(Default)]
struct Writing {
    opens: u32,
    /// Bytes allocated when the first of them began.
    allocated_before: u64,
}

impl Lending {
    /// Whether the kernel may be writing the object.
    pub(crate) fn is_written(&self, id: ObjectId) -> bool {
        lock(&self.written).contains_key(&id)
    }

    /// Charges what the kernel has written.
    pub(crate) fn charge_all(&self, space: &Space) {
        let written: Vec<Arc<Lent>> = lock(&self.written).values().filter_map(Weak::upgrade).collect();
        for lent in written {
            // A file that cannot be asked for its size is charged as before.
            if let Err(error) = lent.object.settle(space, None) {
                tracing::warn!(object = %lent.id, %error, "an object's size cannot be had");
            }
        }
    }

    /// The same, unless nobody writes or it was just done.
    pub(crate) fn charge_if_due(&self, space: &Space) {
        if self.writers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut charged = lock(&self.charged);
        if charged.is_none_or(|charged| charged.elapsed() >= CHARGE_INTERVAL) {
            *charged = Some(Instant::now());
            drop(charged);
            self.charge_all(space);
        }
    }

    /// Says that an object is gone.
    pub(crate) fn removed(&self, id: ObjectId) {
        let is_lent = lock(&self.lent).contains_key(&id);
        if let Some(tell) = self.on_removal.get().filter(|_| is_lent) {
            tell(id);
        }
    }

    fn get(&self, id: ObjectId) -> Option<Arc<Lent>> {
        lock(&self.lent).get(&id).and_then(Weak::upgrade)
    }

    /// Whether the share has room for what all writers and one more may add.
    fn has_room(&self, space: &Space) -> bool {
        let writers = self.writers.load(Ordering::Relaxed).saturating_add(1);
        space.capacity().saturating_sub(space.used()) >= ROOM_PER_WRITER_BYTES.saturating_mul(writers)
    }
}

impl ObjectFiles for Ost {
    fn lend(self: Arc<Self>, id: ObjectId, times: (Timestamp, Timestamp)) -> Result<Arc<dyn LentFile>, Errno> {
        name::check(id)?;
        if let Some(lent) = self.lending.get(id) {
            return Ok(lent);
        }
        let times = Timestamps { last_access: timespec(Some(times.0))?, last_modification: timespec(Some(times.1))? };
        let object = self.change(|| self.store.get_or_make_with(id, |file| futimens(file, &times)))?;
        let mut lent = lock(&self.lending.lent);
        if let Some(lent) = lent.get(&id).and_then(Weak::upgrade) {
            return Ok(lent);
        }
        let ost = Arc::clone(&self);
        let new = Arc::new_cyclic(|own| Lent { own: own.clone(), ost, id, object, writing: Mutex::default() });
        lent.insert(id, Arc::downgrade(&new));
        Ok(new)
    }

    fn on_removal(&self, tell: OnRemoval) {
        if self.lending.on_removal.set(tell).is_err() {
            tracing::error!("a second client of the OST's files is not told of removals");
        }
    }
}

impl LentFile for Lent {
    fn file(&self) -> BorrowedFd<'_> {
        self.object.file.as_fd()
    }

    fn begin_writing(&self) -> bool {
        // An append that is under way relies on being alone.
        let _shared = self.object.content.read().unwrap_or_else(PoisonError::into_inner);
        let (space, lending) = (&self.ost.store.space, &self.ost.lending);
        lending.charge_if_due(space);
        let mut writing = lock(&self.writing);
        let Ok(stat) = self.object.settle(space, None) else { return false };
        if self.ost.fatal_error().is_some() || !lending.has_room(space) {
            return false;
        }
        if writing.opens == 0 {
            writing.allocated_before = allocated(&stat);
            lock(&lending.written).insert(self.id, self.own.clone());
        }
        writing.opens += 1;
        lending.writers.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn end_writing(&self) {
        {
            let mut writing = lock(&self.writing);
            writing.opens = writing.opens.saturating_sub(1);
            if writing.opens == 0 {
                lock(&self.ost.lending.written).remove(&self.id);
            }
        }
        self.ost.lending.writers.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = self.object.settle(&self.ost.store.space, None) {
            tracing::warn!(object = %self.id, %error, "an object's size cannot be had");
        }
    }

    fn settle(&self) -> Result<(), Errno> {
        let space = &self.ost.store.space;
        let stat = self.object.settle(space, None)?;
        let has_grown = allocated(&stat) > lock(&self.writing).allocated_before;
        if has_grown {
            self.ost.lending.charge_all(space);
        }
        if has_grown && space.used() > space.capacity() { Err(Errno::ENOSPC) } else { Ok(()) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut lent = lock(&self.ost.lending.lent);
        // The same object may have been lent anew since the last reference to this went.
        if lent.get(&self.id).is_some_and(|entry| entry.strong_count() == 0) {
            lent.remove(&self.id);
        }
        drop(lent);
        let _ = self.object.settle(&self.ost.store.space, None);
    }
}
