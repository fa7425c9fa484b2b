//! The instance as a local directory, and a wrapper that fails its k-th call.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use burstfs_stager::{Change, ChangeState, Extent, InstanceTree, Opened, Page, PageEntry, Space, TreeHandle};
use burstfs_types::{Attr, Errno, FileKind, Ino, Layout, Name, NodeIndex, OstIndex, Timestamp};
use rustix::fs::{AtFlags, CWD, SeekFrom, Timespec, Timestamps, XattrFlags};

/// A directory as an instance: inodes are the file system's, but for the root's. Files are on OST `ino % nodes`.
pub struct LocalTree {
    root: PathBuf,
    nodes: u16,
    /// Bytes of a stripe unit, where files are on all nodes.
    unit: Option<u32>,
    paths: Mutex<HashMap<u64, PathBuf>>,
    handles: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
    /// By inode, the ctime (nanoseconds) of which it was said that it is drained.
    ended: Mutex<HashMap<u64, u64>>,
    /// Files that somebody has open for writing.
    pub writers: Mutex<HashSet<u64>>,
    /// Whether changes of files that were drained are seen by their times only, as those of a mapping are.
    pub is_blind: AtomicBool,
    /// Run when a file was read; once.
    pub on_read: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from(&error)
}

fn os(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

impl LocalTree {
    pub fn new(root: &Path, nodes: u16) -> LocalTree {
        LocalTree {
            root: root.to_owned(),
            nodes,
            unit: None,
            paths: Mutex::new(HashMap::from([(1, root.to_owned())])),
            handles: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
            ended: Mutex::default(),
            writers: Mutex::default(),
            is_blind: AtomicBool::new(false),
            on_read: Mutex::default(),
        }
    }

    /// The same with striped files.
    pub fn striped(root: &Path, nodes: u16, unit: u32) -> LocalTree {
        LocalTree { unit: Some(unit), ..LocalTree::new(root, nodes) }
    }

    /// Handles that nobody closed.
    pub fn open_handles(&self) -> usize {
        self.handles.lock().unwrap().len()
    }

    fn path(&self, ino: Ino) -> Result<PathBuf, Errno> {
        self.paths.lock().unwrap().get(&ino.get()).cloned().ok_or(Errno::ESTALE)
    }

    fn child(&self, dir: Ino, name: &Name) -> Result<PathBuf, Errno> {
        Ok(self.path(dir)?.join(std::ffi::OsStr::from_bytes(name.as_bytes())))
    }

    fn learn(&self, path: PathBuf) -> Result<Attr, Errno> {
        let meta = fs::symlink_metadata(&path).map_err(errno)?;
        let attr = self.attr(&meta);
        self.paths.lock().unwrap().insert(attr.ino.get(), path);
        Ok(attr)
    }

    fn attr(&self, meta: &fs::Metadata) -> Attr {
        let kind = match meta.mode() & 0o170000 {
            0o040000 => FileKind::Directory,
            0o120000 => FileKind::Symlink,
            0o010000 => FileKind::Fifo,
            0o140000 => FileKind::Socket,
            _ => FileKind::Regular,
        };
        let root = fs::symlink_metadata(&self.root).unwrap();
        let raw = if meta.ino() == root.ino() { 1 } else { meta.ino() };
        let time = |secs, nanos: i64| Timestamp { secs, nanos: nanos as u32 };
        let ost = OstIndex::new((meta.ino() % u64::from(self.nodes)) as u16);
        Attr {
            ino: Ino::from_raw(raw).unwrap(),
            kind,
            mode: (meta.mode() & 0o7777) as u16,
            nlink: meta.nlink() as u32,
            uid: meta.uid(),
            gid: meta.gid(),
            size: meta.len(),
            blocks: meta.blocks(),
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            layout: (kind == FileKind::Regular).then(|| match self.unit {
                None => Layout::on_one(ost),
                Some(unit) => {
                    let osts = (0..self.nodes).map(|at| OstIndex::new((ost.get() + at) % self.nodes));
                    Layout::new(unit, osts.collect()).unwrap()
                }
            }),
            shards: None,
        }
    }

    fn handle(&self, handle: TreeHandle) -> Result<Arc<File>, Errno> {
        self.handles.lock().unwrap().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn opened(&self, file: File, attr: Attr) -> Opened {
        let handle = TreeHandle(self.next.fetch_add(1, Ordering::Relaxed));
        self.handles.lock().unwrap().insert(handle.0, Arc::new(file));
        Opened { handle, attr }
    }
}

/// What is staged in inherits no ACL.
fn without_acls(path: &Path) {
    for acl in ["system.posix_acl_access", "system.posix_acl_default"] {
        // There may be none, and a file has no default one.
        let _ = rustix::fs::removexattr(path, acl);
    }
}

#[async_trait]
impl InstanceTree for LocalTree {
    fn place(&self, ino: Ino, layout: Option<&Layout>) -> Option<NodeIndex> {
        let node = layout.map_or((ino.get() % u64::from(self.nodes)) as u16, |layout| layout.osts()[0].get());
        Some(NodeIndex::new(node))
    }

    async fn lookup(&self, dir: Ino, name: &Name) -> Result<Ino, Errno> {
        Ok(self.learn(self.child(dir, name)?)?.ino)
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        Ok(self.attr(&fs::symlink_metadata(self.path(ino)?).map_err(errno)?))
    }

    async fn setattr(&self, ino: Ino, change: Change) -> Result<(), Errno> {
        let path = self.path(ino)?;
        if change.uid.is_some() || change.gid.is_some() {
            std::os::unix::fs::lchown(&path, change.uid, change.gid).map_err(errno)?;
        }
        if let Some(mode) = change.mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode.into())).map_err(errno)?;
        }
        let spec = |time: Option<Timestamp>| match time {
            Some(time) => Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        };
        let times = Timestamps { last_access: spec(change.atime), last_modification: spec(change.mtime) };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(os)
    }

    async fn readdir(&self, dir: Ino, cookie: u64, max: u32) -> Result<Page, Errno> {
        let path = self.path(dir)?;
        let mut names: Vec<_> = fs::read_dir(&path).map_err(errno)?.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let mut entries = Vec::new();
        for (index, name) in names.iter().enumerate().skip(cookie as usize).take(max as usize) {
            let attr = self.learn(path.join(name))?;
            let name = Name::new(name.as_bytes()).unwrap();
            // A directory's attributes are elsewhere, as with many MDTs.
            let (ino, kind) = (attr.ino, attr.kind);
            let attr = (kind != FileKind::Directory).then_some(attr);
            entries.push(PageEntry { name, ino, kind, attr, cookie: index as u64 + 1 });
        }
        let is_end = cookie as usize + entries.len() >= names.len();
        Ok(Page { entries, is_end })
    }

    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        Ok(fs::read_link(self.path(ino)?).map_err(errno)?.into_os_string().into_vec())
    }

    async fn mkdir(&self, dir: Ino, name: &Name, mode: u16) -> Result<Ino, Errno> {
        let path = self.child(dir, name)?;
        fs::create_dir(&path).map_err(errno)?;
        without_acls(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode.into())).map_err(errno)?;
        Ok(self.learn(path)?.ino)
    }

    async fn symlink(&self, dir: Ino, name: &Name, target: &[u8]) -> Result<Ino, Errno> {
        let path = self.child(dir, name)?;
        std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).map_err(errno)?;
        Ok(self.learn(path)?.ino)
    }

    async fn link(&self, ino: Ino, dir: Ino, name: &Name) -> Result<(), Errno> {
        fs::hard_link(self.path(ino)?, self.child(dir, name)?).map_err(errno)
    }

    async fn rename(&self, dir: Ino, name: &Name, new_name: &Name) -> Result<(), Errno> {
        let (from, to) = (self.child(dir, name)?, self.child(dir, new_name)?);
        // As with NOREPLACE: a second link fails where the name is taken.
        fs::hard_link(&from, to).and_then(|()| fs::remove_file(from)).map_err(errno)
    }

    async fn unlink(&self, dir: Ino, name: &Name) -> Result<(), Errno> {
        fs::remove_file(self.child(dir, name)?).map_err(errno)
    }

    async fn open(&self, ino: Ino) -> Result<Opened, Errno> {
        let path = self.path(ino)?;
        let file = File::open(&path).map_err(errno)?;
        let attr = self.attr(&file.metadata().map_err(errno)?);
        Ok(self.opened(file, attr))
    }

    async fn create(&self, dir: Ino, name: &Name, mode: u16) -> Result<Opened, Errno> {
        let path = self.child(dir, name)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600).custom_flags(libc_nofollow());
        let file = options.open(&path).map_err(errno)?;
        without_acls(&path);
        file.set_permissions(fs::Permissions::from_mode(mode.into())).map_err(errno)?;
        let attr = self.learn(path)?;
        Ok(self.opened(file, attr))
    }

    async fn read_at(&self, handle: TreeHandle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let file = self.handle(handle)?;
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], offset + done as u64).map_err(errno)? {
                0 => break,
                n => done += n,
            }
        }
        if let Some(then) = self.on_read.lock().unwrap().take() {
            then();
        }
        Ok(done)
    }

    async fn next_data(&self, handle: TreeHandle, offset: u64) -> Result<Option<Extent>, Errno> {
        let file = self.handle(handle)?;
        let start = match rustix::fs::seek(&*file, SeekFrom::Data(offset)) {
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            start => start.map_err(os)?,
        };
        let end = rustix::fs::seek(&*file, SeekFrom::Hole(start)).map_err(os)?;
        Ok(Some(Extent { start, end }))
    }

    async fn write_at(&self, handle: TreeHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.handle(handle)?.write_all_at(data, offset).map_err(errno)
    }

    async fn truncate(&self, handle: TreeHandle, size: u64) -> Result<(), Errno> {
        self.handle(handle)?.set_len(size).map_err(errno)
    }

    async fn fsync(&self, handle: TreeHandle) -> Result<(), Errno> {
        self.handle(handle)?.sync_all().map_err(errno)
    }

    async fn close(&self, handle: TreeHandle) -> Result<(), Errno> {
        self.handles.lock().unwrap().remove(&handle.0).map(drop).ok_or(Errno::EBADF)
    }

    async fn list_xattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(self.path(ino)?, &mut names[..]).map_err(os)?;
        Ok(names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(self.path(ino)?, name, &mut value[..]).map_err(os)?;
        value.truncate(len);
        Ok(value)
    }

    async fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        rustix::fs::lsetxattr(self.path(ino)?, name, value, XattrFlags::empty()).map_err(os)
    }

    async fn change(&self, ino: Ino) -> Result<ChangeState, Errno> {
        let meta = fs::symlink_metadata(self.path(ino)?).map_err(errno)?;
        let ctime = meta.ctime() as u64 * 1_000_000_000 + meta.ctime_nsec() as u64;
        let ended = self.ended.lock().unwrap().get(&ino.get()).copied();
        let is_ended = ended.is_some_and(|ended| ended == ctime || self.is_blind.load(Ordering::Relaxed));
        let is_writable = self.writers.lock().unwrap().contains(&ino.get());
        Ok(ChangeState { number: (!is_ended).then_some(ctime), is_writable, is_changed: !is_ended || is_writable })
    }

    async fn end_change(&self, ino: Ino, number: Option<u64>) -> Result<bool, Errno> {
        let now = self.change(ino).await?;
        if now.is_writable || now.number != number {
            return Ok(false);
        }
        if let Some(number) = number {
            self.ended.lock().unwrap().insert(ino.get(), number);
        }
        Ok(true)
    }

    async fn write_back(&self, handle: TreeHandle) -> Result<(), Errno> {
        self.handle(handle).map(drop)
    }

    async fn space(&self) -> Result<Space, Errno> {
        let space = rustix::fs::statvfs(&self.root).map_err(os)?;
        Ok(Space { capacity: space.f_blocks * space.f_frsize, available: space.f_bavail * space.f_frsize })
    }
}

fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits() as i32
}

/// Fails calls of a tree, counted from 1.
pub struct FaultTree {
    pub inner: LocalTree,
    calls: AtomicU64,
    from: u64,
    count: u64,
    errno: Errno,
}

impl FaultTree {
    /// Fails `count` calls, from call `from` on.
    pub fn new(inner: LocalTree, from: u64, count: u64, errno: Errno) -> FaultTree {
        FaultTree { inner, calls: AtomicU64::new(0), from, count, errno }
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn step(&self) -> Result<(), Errno> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = call >= self.from && call - self.from < self.count;
        if fails { Err(self.errno) } else { Ok(()) }
    }
}

#[async_trait]
impl InstanceTree for FaultTree {
    fn place(&self, ino: Ino, layout: Option<&Layout>) -> Option<NodeIndex> {
        self.inner.place(ino, layout)
    }

    async fn lookup(&self, dir: Ino, name: &Name) -> Result<Ino, Errno> {
        self.step()?;
        self.inner.lookup(dir, name).await
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.step()?;
        self.inner.getattr(ino).await
    }

    async fn setattr(&self, ino: Ino, change: Change) -> Result<(), Errno> {
        self.step()?;
        self.inner.setattr(ino, change).await
    }

    async fn readdir(&self, dir: Ino, cookie: u64, max: u32) -> Result<Page, Errno> {
        self.step()?;
        self.inner.readdir(dir, cookie, max).await
    }

    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.step()?;
        self.inner.readlink(ino).await
    }

    async fn mkdir(&self, dir: Ino, name: &Name, mode: u16) -> Result<Ino, Errno> {
        self.step()?;
        self.inner.mkdir(dir, name, mode).await
    }

    async fn symlink(&self, dir: Ino, name: &Name, target: &[u8]) -> Result<Ino, Errno> {
        self.step()?;
        self.inner.symlink(dir, name, target).await
    }

    async fn link(&self, ino: Ino, dir: Ino, name: &Name) -> Result<(), Errno> {
        self.step()?;
        self.inner.link(ino, dir, name).await
    }

    async fn rename(&self, dir: Ino, name: &Name, new_name: &Name) -> Result<(), Errno> {
        self.step()?;
        self.inner.rename(dir, name, new_name).await
    }

    async fn unlink(&self, dir: Ino, name: &Name) -> Result<(), Errno> {
        self.step()?;
        self.inner.unlink(dir, name).await
    }

    async fn open(&self, ino: Ino) -> Result<Opened, Errno> {
        self.step()?;
        self.inner.open(ino).await
    }

    async fn create(&self, dir: Ino, name: &Name, mode: u16) -> Result<Opened, Errno> {
        self.step()?;
        self.inner.create(dir, name, mode).await
    }

    async fn read_at(&self, handle: TreeHandle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.step()?;
        self.inner.read_at(handle, offset, into).await
    }

    async fn next_data(&self, handle: TreeHandle, offset: u64) -> Result<Option<Extent>, Errno> {
        self.step()?;
        self.inner.next_data(handle, offset).await
    }

    async fn write_at(&self, handle: TreeHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.step()?;
        self.inner.write_at(handle, offset, data).await
    }

    async fn truncate(&self, handle: TreeHandle, size: u64) -> Result<(), Errno> {
        self.step()?;
        self.inner.truncate(handle, size).await
    }

    async fn fsync(&self, handle: TreeHandle) -> Result<(), Errno> {
        self.step()?;
        self.inner.fsync(handle).await
    }

    async fn close(&self, handle: TreeHandle) -> Result<(), Errno> {
        // As close(2): the handle is gone also when there was an error.
        self.step().and(self.inner.close(handle).await)
    }

    async fn list_xattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        self.step()?;
        self.inner.list_xattr(ino).await
    }

    async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.step()?;
        self.inner.get_xattr(ino, name).await
    }

    async fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        self.step()?;
        self.inner.set_xattr(ino, name, value).await
    }

    async fn change(&self, ino: Ino) -> Result<ChangeState, Errno> {
        self.step()?;
        self.inner.change(ino).await
    }

    async fn end_change(&self, ino: Ino, number: Option<u64>) -> Result<bool, Errno> {
        self.step()?;
        self.inner.end_change(ino, number).await
    }

    async fn write_back(&self, handle: TreeHandle) -> Result<(), Errno> {
        self.step()?;
        self.inner.write_back(handle).await
    }

    async fn space(&self) -> Result<Space, Errno> {
        self.step()?;
        self.inner.space().await
    }
}
