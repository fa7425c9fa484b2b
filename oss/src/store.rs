//! The object files, and a bounded cache of those that are open.
//!
//! A shard's lock is held while a file of it is opened, made or removed, so that an object that is open here is the one
//! that its name means. Objects that an operation works on are not evicted: two open files of one object, each with its
//! own lock, cannot come to be.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use burstfs_types::{Errno, ObjectId};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timestamps, fstat, futimens, openat, seek, statat, unlinkat,
    utimensat,
};
use rustix::io::Errno as SysErrno;

use crate::device::errno;
use crate::name::{SUBDIRS, path_of, subdir_of};
use crate::space::{Reservation, Space};
use crate::subdirs::Subdirs;

const SHARDS: usize = SUBDIRS;

/// An object whose file is open.
pub(crate) struct Object {
    pub(crate) file: OwnedFd,
    /// Shared by writes; alone for what needs the size to stand still.
    pub(crate) content: RwLock<()>,
    charge: Mutex<Charge>,
}

/// What the space counter holds for an object.
#[derive(Clone, Copy)]
enum Charge {
    Bytes(u64),
    /// Removed under an operation: nothing is charged any more, and its blocks go with the last open file.
    Removed,
}

impl Object {
    /// Charges what is allocated for the object now, in place of what was charged before and of `reservation`.
    pub(crate) fn settle(&self, space: &Space, reservation: Option<Reservation<'_>>) -> Result<Stat, Errno> {
        let mut charge = lock(&self.charge);
        let Charge::Bytes(before) = *charge else { return fstat(&self.file).map_err(errno) };
        let stat = stat_settled(&self.file, before).map_err(errno)?;
        let after = allocated(&stat);
        space.settle(before, after, reservation);
        *charge = Charge::Bytes(after);
        Ok(stat)
    }

    fn discharge(&self, space: &Space) {
        if let Charge::Bytes(before) = std::mem::replace(&mut *lock(&self.charge), Charge::Removed) {
            space.settle(before, 0, None);
        }
    }
}

/// Whether fewer bytes are allocated than before, or none for a file that has some: so it is after a truncation, and so it looks for
/// a moment while ext4 gives a file the blocks that it has promised it (`ext4_da_update_reserve_space` takes them off the
/// promised ones before it counts them as the file's).
fn seems_to_shrink(stat: &Stat, before: u64) -> bool {
    let after = allocated(stat);
    after < before || (after == 0 && stat.st_size > 0)
}

/// The attributes of a file with blocks that can be charged; `before` is what was charged. Waits, where it has to, until no
/// blocks are being allocated: looking for data takes the lock under which they are.
fn stat_settled(file: impl AsFd, before: u64) -> Result<Stat, SysErrno> {
    let stat = fstat(&file)?;
    if !seems_to_shrink(&stat, before) {
        return Ok(stat);
    }
    // What is read and written does not depend on the position. A file of holes has no data, and nothing to wait for.
    let _ = seek(&file, SeekFrom::Data(0));
    fstat(&file)
}

/// Bytes that the device has allocated for a file, metadata of its own included.
pub(crate) fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is consistent at every instruction that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open files, least recently used first.
#[derive(Default)]
struct Shard {
    entries: HashMap<ObjectId, (Arc<Object>, u64)>,
    order: BTreeMap<u64, ObjectId>,
    clock: u64,
}

impl Shard {
    fn touch(&mut self, id: ObjectId) -> Option<Arc<Object>> {
        self.clock += 1;
        let (object, used) = self.entries.get_mut(&id)?;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, id);
        Some(object.clone())
    }

    fn insert(&mut self, id: ObjectId, object: Arc<Object>) {
        self.clock += 1;
        self.entries.insert(id, (object, self.clock));
        self.order.insert(self.clock, id);
    }

    fn take(&mut self, id: ObjectId) -> Option<Arc<Object>> {
        let (object, used) = self.entries.remove(&id)?;
        self.order.remove(&used);
        Some(object)
    }

    /// Nobody else has it, and nobody gets it while the shard is locked.
    fn is_idle(&self, id: ObjectId) -> bool {
        self.entries.get(&id).is_some_and(|(object, _)| Arc::strong_count(object) == 1)
    }

    /// Takes out the longest unused objects that are idle, until at most `keep` are left.
    fn evict(&mut self, keep: usize) -> Vec<(ObjectId, Arc<Object>)> {
        let excess = self.entries.len().saturating_sub(keep);
        let idle = self.order.values().copied().filter(|id| self.is_idle(*id)).take(excess);
        let evicted: Vec<ObjectId> = idle.collect();
        evicted.into_iter().filter_map(|id| Some((id, self.take(id)?))).collect()
    }
}

/// The object files of an OST.
pub(crate) struct Store {
    root: OwnedFd,
    pub(crate) space: Space,
    subdirs: Subdirs,
    shards: Vec<Mutex<Shard>>,
    open_per_shard: usize,
    objects: AtomicU64,
}

impl Store {
    /// The files below `root`: `objects` of them, which `space` has counted. About `open_files_max` are kept open.
    pub(crate) fn new(root: OwnedFd, space: Space, objects: u64, open_files_max: usize) -> Store {
        Store {
            root,
            space,
            subdirs: Subdirs::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            open_per_shard: (open_files_max / SHARDS).max(1),
            objects: AtomicU64::new(objects),
        }
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// How many objects there are.
    pub(crate) fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    /// The object, open; `None` when it is not there.
    pub(crate) fn get(&self, id: ObjectId) -> Result<Option<Arc<Object>>, Errno> {
        let mut shard = self.shard(id);
        if let Some(object) = shard.touch(id) {
            return Ok(Some(object));
        }
        match self.open(&mut shard, id, OFlags::empty()) {
            Ok(file) => self.keep(&mut shard, id, file).map(Some),
            Err(SysErrno::NOENT) => Ok(None),
            Err(error) => Err(errno(error)),
        }
    }

    /// The object, open; made when it is not there.
    pub(crate) fn get_or_make(&self, id: ObjectId) -> Result<Arc<Object>, Errno> {
        self.get_or_make_with(id, |_| Ok(()))
    }

    /// The same; `prepare` is called with a file that was just made, before anybody else can have it.
    pub(crate) fn get_or_make_with(
        &self,
        id: ObjectId,
        prepare: impl FnOnce(BorrowedFd<'_>) -> Result<(), SysErrno>,
    ) -> Result<Arc<Object>, Errno> {
        if let Some(object) = self.get(id)? {
            return Ok(object);
        }
        let mut shard = self.shard(id);
        if let Some(object) = shard.touch(id) {
            return Ok(object);
        }
        let (file, is_new) = self.make(&mut shard, id).map_err(errno)?;
        if is_new {
            self.objects.fetch_add(1, Ordering::Relaxed);
            self.subdirs.changed(subdir_of(id));
            prepare(file.as_fd()).map_err(errno)?;
        }
        self.keep(&mut shard, id, file)
    }

    /// The object's attributes, without opening it; `None` when it is not there.
    pub(crate) fn stat(&self, id: ObjectId) -> Result<Option<Stat>, Errno> {
        match self.opened(id) {
            Some(object) => fstat(&object.file).map(Some).map_err(errno),
            None => found(statat(&self.root, path_of(id), AtFlags::SYMLINK_NOFOLLOW)),
        }
    }

    /// Sets the object's times, if it is there.
    pub(crate) fn set_times(&self, id: ObjectId, times: &Timestamps) -> Result<(), Errno> {
        let done = match self.opened(id) {
            Some(object) => futimens(&object.file, times),
            None => utimensat(&self.root, path_of(id), times, AtFlags::SYMLINK_NOFOLLOW),
        };
        found(done).map(|_| ())
    }

    /// Removes the object, if it is there. Operations on it that are under way end as if they had come before.
    pub(crate) fn remove(&self, id: ObjectId) -> Result<(), Errno> {
        let mut shard = self.shard(id);
        let path = path_of(id);
        let charged = match shard.touch(id) {
            Some(_) => 0,
            None => match found(self.stat_closed(&path, 0))? {
                Some(stat) => allocated(&stat),
                None => return Ok(()),
            },
        };
        found(unlinkat(&self.root, &path, AtFlags::empty()))?;
        self.objects.fetch_sub(1, Ordering::Relaxed);
        let Some(object) = shard.take(id) else {
            self.space.settle(charged, 0, None);
            return Ok(());
        };
        object.discharge(&self.space);
        // The last close of a large file frees its blocks, which takes a while.
        drop(shard);
        drop(object);
        Ok(())
    }

    /// Makes the name of an object durable.
    pub(crate) fn sync_name(&self, id: ObjectId) -> Result<(), Errno> {
        self.subdirs.sync(self.root(), subdir_of(id)).map_err(errno)
    }

    fn shard(&self, id: ObjectId) -> MutexGuard<'_, Shard> {
        lock(&self.shards[subdir_of(id) % SHARDS])
    }

    fn opened(&self, id: ObjectId) -> Option<Arc<Object>> {
        self.shard(id).entries.get(&id).map(|(object, _)| object.clone())
    }

    /// As [`stat_settled`], of an object whose file is not open.
    fn stat_closed(&self, path: &str, before: u64) -> Result<Stat, SysErrno> {
        let stat = statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?;
        if !seems_to_shrink(&stat, before) {
            return Ok(stat);
        }
        let file = openat(&self.root, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        stat_settled(&file, before)
    }

    /// Opens an object's file. When the process has too many files open, those of the shard that are idle go first.
    fn open(&self, shard: &mut Shard, id: ObjectId, flags: OFlags) -> Result<OwnedFd, SysErrno> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&self.root, path_of(id), flags, Mode::RUSR | Mode::WUSR);
        match open() {
            Err(SysErrno::MFILE | SysErrno::NFILE) if self.evict(shard, 0) > 0 => open(),
            result => result,
        }
    }

    fn make(&self, shard: &mut Shard, id: ObjectId) -> Result<(OwnedFd, bool), SysErrno> {
        let exclusive = OFlags::CREATE | OFlags::EXCL;
        let made = match self.open(shard, id, exclusive) {
            Err(SysErrno::NOENT) => {
                self.subdirs.make(self.root(), subdir_of(id))?;
                self.open(shard, id, exclusive)
            }
            result => result,
        };
        match made {
            Ok(file) => Ok((file, true)),
            Err(SysErrno::EXIST) => Ok((self.open(shard, id, OFlags::empty())?, false)),
            Err(error) => Err(error),
        }
    }

    fn keep(&self, shard: &mut Shard, id: ObjectId, file: OwnedFd) -> Result<Arc<Object>, Errno> {
        let stat = stat_settled(&file, 0).map_err(errno)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(Errno::EBADF);
        }
        let charge = Mutex::new(Charge::Bytes(allocated(&stat)));
        let object = Arc::new(Object { file, content: RwLock::default(), charge });
        shard.insert(id, object.clone());
        self.evict(shard, self.open_per_shard);
        Ok(object)
    }

    /// Closes idle files of the shard. Some file systems free what they had allocated ahead when a file is closed (XFS),
    /// so that the charge is settled once more behind it.
    fn evict(&self, shard: &mut Shard, keep: usize) -> usize {
        let evicted = shard.evict(keep);
        let count = evicted.len();
        for (id, object) in evicted {
            let charge = *lock(&object.charge);
            drop(object);
            if let Charge::Bytes(before) = charge
                && let Ok(stat) = self.stat_closed(&path_of(id), before)
            {
                self.space.settle(before, allocated(&stat), None);
            }
        }
        count
    }
}

/// `None` for what is not there.
fn found<T>(result: Result<T, SysErrno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(SysErrno::NOENT) => Ok(None),
        Err(error) => Err(errno(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::AtomicBool;

    use burstfs_types::{Ino, StripeIndex};
    use rustix::io::pwrite;

    use super::*;

    fn store(directory: &std::path::Path, open_files_max: usize) -> Store {
        let root = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Store::new(root, Space::new(1 << 30, 0), 0, open_files_max)
    }

    fn id(counter: u64) -> ObjectId {
        ObjectId { ino: Ino::from_raw(counter).unwrap(), stripe: StripeIndex::new(0) }
    }

    #[test]
    fn open_files_are_bounded_and_busy_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 0);
        let busy = store.get_or_make(id(1)).unwrap();
        for n in 2..2_000 {
            store.get_or_make(id(n)).unwrap();
        }
        let open: usize = store.shards.iter().map(|shard| lock(shard).entries.len()).sum();
        assert!(open <= SHARDS + 1, "{open}");
        assert!(Arc::ptr_eq(&busy, &store.get(id(1)).unwrap().unwrap()));
        assert_eq!(store.objects(), 1_999);
    }

    #[test]
    fn what_is_evicted_stays_charged_and_what_is_removed_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 0);
        for n in 1..=200 {
            let object = store.get_or_make(id(n)).unwrap();
            pwrite(&object.file, &[7; 4096], 0).unwrap();
            object.settle(&store.space, None).unwrap();
        }
        assert_eq!(store.space.used(), 200 * 4096);
        (1..=200).for_each(|n| store.remove(id(n)).unwrap());
        assert_eq!((store.space.used(), store.objects()), (0, 0));
    }

    /// What `look` finds of an object that has one block, while that is allocated again and again.
    fn seen_while_allocated(object: &Object, look: impl Fn() -> u64) -> Vec<u64> {
        let is_over = AtomicBool::new(false);
        let mut seen = BTreeSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // SAFETY: a call on a descriptor that is open; no memory is touched.
                    unsafe { libc::sync_file_range(object.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
                }
            });
            for _ in 0..10_000 {
                pwrite(&object.file, &[7; 4096], 0).unwrap();
                seen.extend((0..20).map(|_| look()));
                rustix::fs::ftruncate(&object.file, 0).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        seen.into_iter().collect()
    }

    #[test]
    fn blocks_that_are_being_allocated_are_charged() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 64);
        let object = store.get_or_make(id(1)).unwrap();
        let look = || {
            object.settle(&store.space, None).unwrap();
            store.space.used()
        };
        assert_eq!(seen_while_allocated(&object, look), [4096]);
    }

    #[test]
    fn so_are_those_of_an_object_that_is_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 64);
        let object = store.get_or_make(id(1)).unwrap();
        let look = || allocated(&store.stat_closed(&path_of(id(1)), 0).unwrap());
        assert_eq!(seen_while_allocated(&object, look), [4096]);
    }

    #[test]
    fn an_operation_on_a_removed_object_ends_and_costs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 64);
        let object = store.get_or_make(id(1)).unwrap();
        let reservation = store.space.reserve(4096);
        store.remove(id(1)).unwrap();
        pwrite(&object.file, &[7; 4096], 0).unwrap();
        object.settle(&store.space, reservation).unwrap();
        assert_eq!(store.space.used(), 0);
        assert!(store.get(id(1)).unwrap().is_none());
    }
}
