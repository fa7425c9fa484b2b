//! Open files by the handle that the kernel has for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use burstfs_types::Errno;
use fuser::FileHandle;

use super::passthrough::Use;
use crate::fs::OpenFile;

/// The table. A handle is never used twice.
#[derive(Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Handle>>,
}

/// What a handle stands for.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) file: Arc<OpenFile>,
    /// Its part in passthrough, where there is any.
    pub(super) passed: Option<Arc<Use>>,
}

impl Handles {
    pub(super) fn insert(&self, file: OpenFile, passed: Option<Use>) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Handle { file: Arc::new(file), passed: passed.map(Arc::new) };
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, entry);
        FileHandle(handle)
    }

    /// The open file; EBADF for a handle that the kernel cannot have.
    pub(super) fn get(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        self.look(handle, |entry| Arc::clone(&entry.file))
    }

    /// All of it.
    pub(super) fn entry(&self, handle: FileHandle) -> Result<Handle, Errno> {
        self.look(handle, Handle::clone)
    }

    fn look<T>(&self, handle: FileHandle, look: impl FnOnce(&Handle) -> T) -> Result<T, Errno> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).map(look).ok_or(Errno::EBADF)
    }

    pub(super) fn remove(&self, handle: FileHandle) -> Result<Handle, Errno> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0).ok_or(Errno::EBADF)
    }

    /// Takes all that are left.
    pub(super) fn drain(&self) -> Vec<Handle> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, entry)| entry).collect()
    }
}
