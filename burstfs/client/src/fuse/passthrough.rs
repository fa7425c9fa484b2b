//! Passthrough: the kernel reads and writes a file that lives on this node by itself.
//!
//! Owns: which inodes have a backing id, and how each open file does its I/O. Does not own: the object's file (the OST lends
//! it), nor the privilege to register it with the kernel ([`BackingIds`]).
//!
//! ```text
//!              first open                      last release
//!   (unknown) -------------> BACKED(id)      ----------------> kept with its id, the longest unused ones go
//!                    `-----> BY_DAEMON       ----------------> (unknown)
//!                  no id to be had, or nobody knows yet where the file lives
//! ```
//!
//! Invariants:
//! 1. The kernel refuses, with EIO, an open that does not agree with the others of its inode. So what an inode is is decided
//!    by the first open, before it is answered, and holds until the last release was received; all opens of a BACKED inode
//!    name its one id. An open that must not pass through (it appends, or the share is nearly used up) names the id too, and
//!    asks for direct I/O: its reads and writes come here, its mappings are of the object's file all the same.
//! 2. An id is given back only when no open file has it, and at the latest when the object is removed: it keeps the
//!    object's space.
//!
//! Concurrency: the table's lock is held for a look; who asks for an id holds nothing but the inode's own cell, and others
//! who open the same inode wait for it there.
//!
//! Failure: a broker that is gone or says no makes inodes BY_DAEMON, which is slower and has no shared mappings. That is said
//! once in the log.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use burstfs_proto::service::{LentFile, ObjectFiles};
use burstfs_types::{Attr, Errno, ObjectId};
use tokio::sync::OnceCell;
use tracing::{info, warn};

/// Ids that are kept for inodes that nobody has open.
const KEPT_MAX: usize = 512;

/// Who registers files with the kernel, on the connection of the mount.
#[async_trait]
pub trait BackingIds: Send + Sync + 'static {
    /// Registers a file that is open for reading and writing; its id.
    async fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Gives an id back. Does not wait.
    fn close(&self, id: u32);
}

/// What a session needs to pass files through.
#[derive(Clone)]
pub struct Passthrough {
    /// The files of this node's OST.
    pub files: Arc<dyn ObjectFiles>,
    /// Who registers them.
    pub ids: Arc<dyn BackingIds>,
}

/// How an open file does its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Io {
    /// All of it comes here.
    Daemon,
    /// Reads and writes come here, mappings are of the file with this id.
    DaemonMapped(u32),
    /// The kernel does it on the file with this id.
    Kernel(u32),
}

/// What an open asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    pub(super) writes: bool,
    pub(super) appends: bool,
}

impl Wish {
    /// From the flags of `open(2)`.
    pub(super) fn of(flags: i32) -> Wish {
        Wish { writes: flags & libc::O_ACCMODE != libc::O_RDONLY, appends: flags & libc::O_APPEND != 0 }
    }
}

/// The inodes of a session that may be passed through.
pub(super) struct Table {
    passthrough: Passthrough,
    /// Whether the kernel passes files through at all.
    is_on: AtomicBool,
    has_complained: AtomicBool,
    inodes: Mutex<Inodes>,
}

#[derive(Default)]
struct Inodes {
    by_object: HashMap<ObjectId, Entry>,
    /// Unused ones, the longest unused first.
    unused: BTreeMap<u64, ObjectId>,
    clock: u64,
}

struct Entry {
    inode: Arc<Inode>,
    opens: usize,
    /// Its place among the unused ones.
    unused_since: Option<u64>,
    is_removed: bool,
}

#[derive(Default)]
struct Inode {
    backing: OnceCell<Option<Backing>>,
}

struct Backing {
    file: Arc<dyn LentFile>,
    id: u32,
}

/// One open file's part in its inode. Dropped when the kernel has released it.
pub(super) struct Use {
    table: Arc<Table>,
    object: ObjectId,
    inode: Arc<Inode>,
    io: Io,
    /// Whether the OST knows that the kernel writes for it.
    writes: bool,
}

impl Table {
    pub(super) fn new(passthrough: Passthrough) -> Arc<Table> {
        let table = Arc::new(Table {
            passthrough,
            is_on: AtomicBool::new(false),
            has_complained: AtomicBool::new(false),
            inodes: Mutex::default(),
        });
        let weak: Weak<Table> = Arc::downgrade(&table);
        table.passthrough.files.on_removal(Box::new(move |object| {
            if let Some(table) = weak.upgrade() {
                table.removed(object);
            }
        }));
        table
    }

    /// Says that the kernel has agreed to pass files through.
    pub(super) fn turn_on(&self) {
        self.is_on.store(true, Ordering::Release);
    }

    /// Enters an open of the file with this one object, and these attributes.
    pub(super) async fn open(self: &Arc<Self>, object: ObjectId, attr: &Attr, wish: Wish) -> Option<Use> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        let mut entered = self.enter(object);
        let backing = entered.inode.backing.get_or_init(|| self.back(object, attr)).await;
        if let Some(Backing { file, id }) = backing {
            let may_write = || !wish.writes || file.begin_writing();
            let io = if !wish.appends && may_write() { Io::Kernel(*id) } else { Io::DaemonMapped(*id) };
            (entered.io, entered.writes) = (io, wish.writes && io == Io::Kernel(*id));
        }
        Some(entered)
    }

    /// Enters an open of a file whose place is not decided yet, and may become this one object. It is served here, and so
    /// are all opens of it as long as this one lasts: the kernel could be told of them in any order.
    pub(super) async fn open_undecided(self: &Arc<Self>, object: ObjectId) -> Option<Use> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        let mut entered = self.enter(object);
        if let Some(Backing { id, .. }) = entered.inode.backing.get_or_init(|| async { None }).await {
            entered.io = Io::DaemonMapped(*id);
        }
        Some(entered)
    }

    /// A backing for the object; `None` when there is none to be had.
    async fn back(&self, object: ObjectId, attr: &Attr) -> Option<Backing> {
        let lent = Arc::clone(&self.passthrough.files).lend(object, (attr.atime, attr.mtime));
        let file = lent.inspect_err(|error| info!(%object, %error, "an object is not lent to the kernel")).ok()?;
        match self.passthrough.ids.open(file.file()).await {
            Ok(id) => Some(Backing { file, id }),
            Err(error) => {
                if !self.has_complained.swap(true, Ordering::Relaxed) {
                    warn!(%object, %error, "a file cannot be passed through to the kernel; it, and others like it, are slower");
                }
                None
            }
        }
    }

    fn enter(self: &Arc<Self>, object: ObjectId) -> Use {
        let mut inodes = self.lock();
        let entry = inodes.by_object.entry(object).or_insert_with(|| Entry {
            inode: Arc::default(),
            opens: 0,
            unused_since: None,
            is_removed: false,
        });
        entry.opens += 1;
        let (inode, unused_since) = (Arc::clone(&entry.inode), entry.unused_since.take());
        if let Some(since) = unused_since {
            inodes.unused.remove(&since);
        }
        Use { table: Arc::clone(self), object, inode, io: Io::Daemon, writes: false }
    }

    fn leave(&self, object: ObjectId) {
        let mut inodes = self.lock();
        inodes.clock += 1;
        let now = inodes.clock;
        let Some(entry) = inodes.by_object.get_mut(&object) else { return };
        entry.opens = entry.opens.saturating_sub(1);
        if entry.opens > 0 {
            return;
        }
        let is_backed = matches!(entry.inode.backing.get(), Some(Some(_)));
        let mut gone = Vec::new();
        if is_backed && !entry.is_removed {
            entry.unused_since = Some(now);
            inodes.unused.insert(now, object);
            while inodes.unused.len() > KEPT_MAX {
                let Some((_, oldest)) = inodes.unused.pop_first() else { break };
                gone.extend(inodes.by_object.remove(&oldest));
            }
        } else {
            gone.extend(inodes.by_object.remove(&object));
        }
        drop(inodes);
        self.give_back(gone);
    }

    fn removed(&self, object: ObjectId) {
        let mut inodes = self.lock();
        let Some(entry) = inodes.by_object.get_mut(&object) else { return };
        entry.is_removed = true;
        let Some(since) = entry.unused_since else { return };
        inodes.unused.remove(&since);
        let gone = inodes.by_object.remove(&object);
        drop(inodes);
        self.give_back(gone);
    }

    /// Closes the ids of inodes that nobody has open.
    fn give_back(&self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if let Some(Some(backing)) = entry.inode.backing.get() {
                self.passthrough.ids.close(backing.id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inodes> {
        // What it guards is consistent at every instruction that could panic.
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    /// How the open file does its I/O.
    pub(super) fn io(&self) -> Io {
        self.io
    }

    /// Accounts for what the kernel has written. ENOSPC when that was more than there was room for.
    pub(super) fn settle(&self) -> Result<(), Errno> {
        match self.inode.backing.get() {
            Some(Some(backing)) if self.writes => backing.file.settle(),
            _ => Ok(()),
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let (true, Some(Some(backing))) = (self.writes, self.inode.backing.get()) {
            backing.file.end_writing();
        }
        self.table.leave(self.object);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, AtomicUsize};

    use burstfs_types::{FileKind, Ino, StripeIndex, Timestamp};

    use super::*;

    /// An OST that lends one file for all objects, and whose share may be used up.
    struct Files {
        file: File,
        is_full: AtomicBool,
        writers: AtomicUsize,
        tell: OnceLock<Box<dyn Fn(ObjectId) + Send + Sync>>,
    }

    struct Lent(Arc<Files>);

    impl ObjectFiles for Files {
        fn lend(self: Arc<Self>, _: ObjectId, _: (Timestamp, Timestamp)) -> Result<Arc<dyn LentFile>, Errno> {
            Ok(Arc::new(Lent(self)))
        }

        fn on_removal(&self, tell: Box<dyn Fn(ObjectId) + Send + Sync>) {
            assert!(self.tell.set(tell).is_ok());
        }
    }

    impl LentFile for Lent {
        fn file(&self) -> BorrowedFd<'_> {
            self.0.file.as_fd()
        }

        fn begin_writing(&self) -> bool {
            let begins = !self.0.is_full.load(Ordering::Relaxed);
            self.0.writers.fetch_add(usize::from(begins), Ordering::Relaxed);
            begins
        }

        fn end_writing(&self) {
            self.0.writers.fetch_sub(1, Ordering::Relaxed);
        }

        fn settle(&self) -> Result<(), Errno> {
            Err(Errno::ENOSPC)
        }
    }

    #[derive(Default)]
    struct Ids {
        next: AtomicU32,
        is_gone: AtomicBool,
        closed: Mutex<Vec<u32>>,
    }

    #[async_trait]
    impl BackingIds for Ids {
        async fn open(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
            tokio::task::yield_now().await;
            match self.is_gone.load(Ordering::Relaxed) {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => Ok(self.next.fetch_add(1, Ordering::Relaxed) + 1),
            }
        }

        fn close(&self, id: u32) {
            self.closed.lock().unwrap().push(id);
        }
    }

    fn table() -> (Arc<Table>, Arc<Files>, Arc<Ids>) {
        let file = tempfile::tempfile().unwrap();
        let files = Arc::new(Files { file, is_full: false.into(), writers: 0.into(), tell: OnceLock::new() });
        let ids = Arc::<Ids>::default();
        let table = Table::new(Passthrough { files: files.clone(), ids: ids.clone() });
        table.turn_on();
        (table, files, ids)
    }

    fn object(counter: u64) -> ObjectId {
        ObjectId { ino: Ino::from_raw(counter).unwrap(), stripe: StripeIndex::new(0) }
    }

    fn attr() -> Attr {
        let time = Timestamp { secs: 0, nanos: 0 };
        let (kind, layout) = (FileKind::Regular, None);
        Attr {
            ino: Ino::ROOT,
            kind,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            layout,
            shards: None,
        }
    }

    const READ: Wish = Wish { writes: false, appends: false };
    const WRITE: Wish = Wish { writes: true, appends: false };
    const APPEND: Wish = Wish { writes: true, appends: true };

    #[tokio::test]
    async fn all_opens_of_an_inode_have_one_id_which_is_kept_a_while() {
        let (table, files, ids) = table();
        let opens =
            futures_util::future::join_all((0..8).map(|_| async { table.open(object(1), &attr(), READ).await }));
        let opens: Vec<Use> = opens.await.into_iter().map(Option::unwrap).collect();
        assert!(opens.iter().all(|open| open.io() == Io::Kernel(1)));
        let appender = table.open(object(1), &attr(), APPEND).await.unwrap();
        assert_eq!(appender.io(), Io::DaemonMapped(1));
        drop((opens, appender));
        assert_eq!(table.open(object(1), &attr(), WRITE).await.unwrap().io(), Io::Kernel(1));
        for n in 2..=KEPT_MAX as u64 + 1 {
            drop(table.open(object(n), &attr(), WRITE).await);
        }
        assert_eq!((&*ids.closed.lock().unwrap(), files.writers.load(Ordering::Relaxed)), (&vec![1], 0));
        assert_eq!(table.lock().by_object.len(), KEPT_MAX);
    }

    #[tokio::test]
    async fn near_the_end_of_the_share_writes_come_here_and_reads_do_not() {
        let (table, files, _ids) = table();
        let early = table.open(object(1), &attr(), WRITE).await.unwrap();
        files.is_full.store(true, Ordering::Relaxed);
        let late = table.open(object(1), &attr(), WRITE).await.unwrap();
        let reader = table.open(object(1), &attr(), READ).await.unwrap();
        assert_eq!([early.io(), late.io(), reader.io()], [Io::Kernel(1), Io::DaemonMapped(1), Io::Kernel(1)]);
        assert_eq!((early.settle(), late.settle(), reader.settle()), (Err(Errno::ENOSPC), Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn the_id_of_a_removed_object_is_given_back_at_once() {
        let (table, files, ids) = table();
        let tell = |n| files.tell.get().unwrap()(object(n));
        drop(table.open(object(1), &attr(), READ).await);
        tell(1);
        let open = table.open(object(2), &attr(), READ).await;
        tell(2);
        assert_eq!(*ids.closed.lock().unwrap(), [1]);
        drop(open);
        assert_eq!(*ids.closed.lock().unwrap(), [1, 2]);
        assert!(table.lock().by_object.is_empty() && table.lock().unused.is_empty());
    }

    #[tokio::test]
    async fn without_an_id_an_inode_stays_with_the_daemon_until_nobody_has_it_open() {
        let (table, _files, ids) = table();
        ids.is_gone.store(true, Ordering::Relaxed);
        let first = table.open(object(1), &attr(), WRITE).await.unwrap();
        ids.is_gone.store(false, Ordering::Relaxed);
        let second = table.open(object(1), &attr(), READ).await.unwrap();
        assert_eq!([first.io(), second.io()], [Io::Daemon, Io::Daemon]);
        drop((first, second));
        assert_eq!(table.open(object(1), &attr(), READ).await.unwrap().io(), Io::Kernel(1));
    }

    #[tokio::test]
    async fn an_open_from_before_the_place_was_decided_and_later_ones_agree() {
        let (table, _files, _ids) = table();
        let early = table.open_undecided(object(1)).await.unwrap();
        let late = table.open(object(1), &attr(), WRITE).await.unwrap();
        assert_eq!([early.io(), late.io()], [Io::Daemon, Io::Daemon]);
        drop((early, late));
        let decided = table.open(object(1), &attr(), WRITE).await.unwrap();
        let slow = table.open_undecided(object(1)).await.unwrap();
        assert_eq!([decided.io(), slow.io()], [Io::Kernel(1), Io::DaemonMapped(1)]);
    }
}
