//! The OST's sub-directories: made when needed, and synced when an object whose name is new is.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, fsync, mkdirat, openat};
use rustix::io::{Errno, Result};

use crate::name::{SUBDIRS, subdir_name};

/// What is known about the durability of a directory's entries.
struct Entries {
    /// Rises with each entry that was made or removed. Begins above `synced`: what an earlier process left may not be
    /// durable.
    changes: AtomicU64,
    /// All changes up to this one are durable. Locked over the sync, so that nobody relies on one that has not ended.
    synced: Mutex<u64>,
}

impl Entries {
    fn new() -> Entries {
        Entries { changes: AtomicU64::new(1), synced: Mutex::new(0) }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn sync(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.load(Ordering::Acquire);
        if *synced < changes {
            sync()?;
            *synced = changes;
        }
        Ok(())
    }
}

/// All sub-directories, and the directory that holds them.
pub(crate) struct Subdirs {
    root: Entries,
    subdirs: Vec<Entries>,
}

impl Subdirs {
    pub(crate) fn new() -> Subdirs {
        Subdirs { root: Entries::new(), subdirs: (0..SUBDIRS).map(|_| Entries::new()).collect() }
    }

    /// Makes a sub-directory, unless it is there.
    pub(crate) fn make(&self, root: BorrowedFd<'_>, subdir: usize) -> Result<()> {
        match mkdirat(root, subdir_name(subdir), Mode::RWXU) {
            Ok(()) => self.root.changed(),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says that an object was made in the sub-directory.
    pub(crate) fn changed(&self, subdir: usize) {
        if let Some(entries) = self.subdirs.get(subdir) {
            entries.changed();
        }
    }

    /// Makes the names of the objects durable that the sub-directory had when this was called.
    pub(crate) fn sync(&self, root: BorrowedFd<'_>, subdir: usize) -> Result<()> {
        let Some(entries) = self.subdirs.get(subdir) else { return Ok(()) };
        entries.sync(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fsync(openat(root, subdir_name(subdir), flags, Mode::empty())?)
        })?;
        self.root.sync(|| fsync(root))
    }
}
