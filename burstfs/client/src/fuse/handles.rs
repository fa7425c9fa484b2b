//! Open files by the handle that the kernel has for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use burstfs_types::Errno;
use fuser::FileHandle;

use crate::fs::OpenFile;

/// The table. A handle is never used twice.
#[derive(Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
}

impl Handles {
    pub(super) fn insert(&self, file: OpenFile) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    /// The open file; EBADF for a handle that the kernel cannot have.
    pub(super) fn get(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn remove(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0).ok_or(Errno::EBADF)
    }

    /// Takes all that are left.
    pub(super) fn drain(&self) -> Vec<Arc<OpenFile>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, file)| file).collect()
    }
}
