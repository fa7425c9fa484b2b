//! Open files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burstfs_types::{Attr, FileKind, Ino, Layout, ObjectId, StripeIndex};

use super::error::FsError;
use super::targets::Targets;

/// A regular file that is registered as open at its MDT: its inode lives at least until [`super::ClientFs::close`].
/// Dropping one without closing it leaves the registration to the MDT, which drops it with the client.
pub struct OpenFile {
    ino: Ino,
    place: OnceLock<Place>,
    has_set_id: Arc<AtomicBool>,
    watch: Arc<SetIdWatch>,
    lock_owners: Mutex<Vec<u64>>,
}

/// Where a file's bytes live.
struct Place {
    layout: Layout,
    is_local: bool,
}

impl OpenFile {
    /// The open file with these attributes, as the MDT's `Open` or `Create` gave them.
    pub(super) fn new(attr: &Attr, targets: &Targets, watch: &Arc<SetIdWatch>) -> Result<OpenFile, FsError> {
        let layout = layout_of(attr)?.cloned();
        let has_set_id = watch.enter(attr.ino, has_set_id(attr.mode));
        let file = OpenFile {
            ino: attr.ino,
            place: OnceLock::new(),
            has_set_id,
            watch: Arc::clone(watch),
            lock_owners: Mutex::default(),
        };
        if let Some(layout) = layout {
            file.place(layout, targets);
        }
        Ok(file)
    }

    /// The inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Where its bytes live; never changes. `None` as long as this node has not heard that it is decided.
    pub fn layout(&self) -> Option<&Layout> {
        self.place.get().map(|place| &place.layout)
    }

    /// Takes note of the layout that the MDT has decided.
    pub(super) fn place(&self, layout: Layout, targets: &Targets) -> &Layout {
        let place = || {
            let is_local = layout.osts().iter().all(|ost| targets.is_local_ost(*ost));
            Place { layout, is_local }
        };
        &self.place.get_or_init(place).layout
    }

    /// Whether all its bytes are known to live in this process, so that reading them needs no other node.
    pub fn is_local(&self) -> bool {
        self.place.get().is_some_and(|place| place.is_local)
    }

    /// The one object that has all its bytes, if there is just one and it is in this process.
    pub fn sole_local_object(&self) -> Option<ObjectId> {
        let is_sole = self.place.get().is_some_and(|place| place.is_local && place.layout.osts().len() == 1);
        is_sole.then(|| self.first_object())
    }

    /// The object of its first byte.
    pub fn first_object(&self) -> ObjectId {
        ObjectId { ino: self.ino, stripe: StripeIndex::new(0) }
    }

    /// Whether a write by a process that may not keep set-id bits has to ask the MDT to clear them.
    pub fn has_set_id(&self) -> bool {
        self.has_set_id.load(Ordering::Acquire)
    }

    /// Remembers that `owner` may get locks through this open file.
    pub(super) fn add_lock_owner(&self, owner: u64) {
        let mut owners = self.lock_owners.lock().unwrap_or_else(PoisonError::into_inner);
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    /// Who may have got locks through this open file, once.
    pub(super) fn take_lock_owners(&self) -> Vec<u64> {
        std::mem::take(&mut *self.lock_owners.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_id_cleared(&self) {
        self.has_set_id.store(false, Ordering::Release);
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.watch.leave(self.ino);
    }
}

/// The layout of a regular file, if it is decided; the error that a system call on bytes gives for anything else.
pub(super) fn layout_of(attr: &Attr) -> Result<Option<&Layout>, FsError> {
    match attr.kind {
        FileKind::Regular => Ok(attr.layout.as_ref()),
        FileKind::Directory => Err(FsError::IsDirectory { ino: attr.ino }),
        _ => Err(FsError::NotRegular { ino: attr.ino }),
    }
}

/// Whether a mode has bits that a write clears.
pub(super) fn has_set_id(mode: u16) -> bool {
    mode & 0o6000 != 0
}

/// Which files that this node has open have set-id bits. A hint, so that not every write of an ordinary user asks the
/// MDT: bits set on another node after the open are missed until the next open. The mount is nosuid, so they give
/// nobody anything.
#[derive(Default)]
pub(super) struct SetIdWatch {
    open: Mutex<HashMap<Ino, Watched>>,
}

struct Watched {
    opens: usize,
    has_set_id: Arc<AtomicBool>,
}

impl SetIdWatch {
    fn enter(&self, ino: Ino, has_set_id: bool) -> Arc<AtomicBool> {
        let mut open = self.lock();
        let watched = open.entry(ino).or_insert_with(|| Watched { opens: 0, has_set_id: Arc::default() });
        watched.opens += 1;
        if has_set_id {
            watched.has_set_id.store(true, Ordering::Release);
        }
        Arc::clone(&watched.has_set_id)
    }

    fn leave(&self, ino: Ino) {
        let mut open = self.lock();
        if let Some(watched) = open.get_mut(&ino) {
            watched.opens -= 1;
            if watched.opens == 0 {
                open.remove(&ino);
            }
        }
    }

    /// Says that this node has just given the file a mode with set-id bits.
    pub(super) fn set(&self, ino: Ino) {
        if let Some(watched) = self.lock().get(&ino) {
            watched.has_set_id.store(true, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Watched>> {
        // A panic between two statements could at worst leave a count too high: the hint stays longer than needed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_lives_as_long_as_somebody_has_the_file_open() {
        let watch = SetIdWatch::default();
        let first = watch.enter(Ino::ROOT, false);
        let second = watch.enter(Ino::ROOT, true);
        assert!(first.load(Ordering::Acquire) && second.load(Ordering::Acquire));
        watch.leave(Ino::ROOT);
        assert_eq!(watch.lock().len(), 1);
        watch.leave(Ino::ROOT);
        assert!(watch.lock().is_empty());
    }
}
