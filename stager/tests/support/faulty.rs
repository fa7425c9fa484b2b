//! A target that fails: a file system of this process's (FUSE) over a directory, whose changes fail from the k-th on, as often as
//! is wanted. What the stager sees of it are real system calls and real errors.
//!
//! Only what the stager uses is there. An inode is the path by which it was last looked up.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// Which changes fail.
pub struct Faults {
    seen: AtomicU64,
    from: AtomicU64,
    count: AtomicU64,
    errno: i32,
}

impl Faults {
    /// The next change, which may be one that fails.
    fn strike(&self) -> Result<(), Errno> {
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let from = self.from.load(Ordering::Relaxed);
        let fails = number >= from && number - from < self.count.load(Ordering::Relaxed);
        if fails { Err(Errno::from_i32(self.errno)) } else { Ok(()) }
    }

    /// How many changes there were.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// From now on none fails.
    pub fn end(&self) {
        self.count.store(0, Ordering::Relaxed);
    }
}

/// The file system, mounted for as long as this lives.
pub struct Faulty {
    pub faults: Arc<Faults>,
    _session: BackgroundSession,
}

impl Faulty {
    /// Mounts `backing` at `mount`; `count` changes from the `from`-th on fail with `errno`.
    pub fn mount(backing: &Path, mount: &Path, from: u64, count: u64, errno: i32) -> Faulty {
        let faults = Arc::new(Faults { seen: AtomicU64::new(0), from: from.into(), count: count.into(), errno });
        let paths = Paths { root: backing.to_owned(), by_ino: HashMap::from([(1, PathBuf::new())]) };
        let fs =
            Over { faults: faults.clone(), paths: Mutex::new(paths), files: Mutex::default(), next: AtomicU64::new(1) };
        let session = fuser::spawn_mount(fs, mount, &Config::default()).unwrap();
        Faulty { faults, _session: session }
    }
}

const TTL: Duration = Duration::ZERO;

struct Paths {
    root: PathBuf,
    by_ino: HashMap<u64, PathBuf>,
}

struct Over {
    faults: Arc<Faults>,
    paths: Mutex<Paths>,
    files: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

fn errno(error: io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(5))
}

fn time(secs: i64, nanos: i64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos.unsigned_abs());
    match u64::try_from(secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(secs.unsigned_abs()) + nanos,
    }
}

impl Over {
    fn path(&self, ino: INodeNo) -> Result<PathBuf, Errno> {
        let paths = self.paths.lock().unwrap();
        paths.by_ino.get(&ino.0).map(|path| paths.root.join(path)).ok_or(Errno::from_i32(2))
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    /// The attributes of the name; from now on its inode is this path.
    fn entry(&self, path: &Path) -> Result<FileAttr, Errno> {
        let metadata = fs::symlink_metadata(path).map_err(errno)?;
        let mut paths = self.paths.lock().unwrap();
        let below = path.strip_prefix(&paths.root).unwrap().to_owned();
        paths.by_ino.insert(metadata.ino(), below);
        Ok(attr(metadata.ino(), &metadata))
    }

    fn moved(&self, from: &Path, to: &Path) {
        let mut paths = self.paths.lock().unwrap();
        let (from, to) =
            (from.strip_prefix(&paths.root).unwrap().to_owned(), to.strip_prefix(&paths.root).unwrap().to_owned());
        for path in paths.by_ino.values_mut().filter(|path| **path == from) {
            path.clone_from(&to);
        }
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().unwrap().insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        self.files.lock().unwrap().get(&handle.0).cloned().ok_or(Errno::from_i32(9))
    }

    fn set_times(&self, path: &Path, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>) -> io::Result<()> {
        let spec = |time: Option<TimeOrNow>| match time {
            None => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Some(TimeOrNow::Now) => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Some(TimeOrNow::SpecificTime(time)) => {
                let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                rustix::fs::Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() }
            }
        };
        let times = rustix::fs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)?)
    }
}

fn attr(ino: u64, metadata: &fs::Metadata) -> FileAttr {
    let kind = if metadata.is_dir() {
        FileType::Directory
    } else if metadata.is_symlink() {
        FileType::Symlink
    } else {
        FileType::RegularFile
    };
    FileAttr {
        ino: INodeNo(ino),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind,
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

macro_rules! answer {
    ($reply:expr, $result:expr, $value:ident => $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Over {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.child(parent, name).and_then(|path| self.entry(&path));
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = match fh {
            Some(fh) => self.file(fh).and_then(|file| file.metadata().map_err(errno)),
            None => self.path(ino).and_then(|path| fs::symlink_metadata(path).map_err(errno)),
        };
        answer!(reply, found, metadata => reply.attr(&TTL, &attr(ino.0, &metadata)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || {
            self.faults.strike()?;
            let path = self.path(ino)?;
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(size)).map_err(errno)?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::lchown(&path, uid, gid).map_err(errno)?;
            }
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777)).map_err(errno)?;
            }
            if atime.is_some() || mtime.is_some() {
                self.set_times(&path, atime, mtime).map_err(errno)?;
            }
            fs::symlink_metadata(&path).map_err(errno)
        };
        answer!(reply, change(), metadata => reply.attr(&TTL, &attr(ino.0, &metadata)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let found = self.path(ino).and_then(|path| fs::read_link(path).map_err(errno));
        answer!(reply, found, target => reply.data(target.as_os_str().as_encoded_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = || {
            self.faults.strike()?;
            let path = self.child(parent, name)?;
            fs::create_dir(&path).map_err(errno)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777)).map_err(errno)?;
            self.entry(&path)
        };
        answer!(reply, made(), attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.child(parent, name).and_then(|path| fs::remove_file(path).map_err(errno));
        answer!(reply, removed, _done => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = || {
            self.faults.strike()?;
            let path = self.child(parent, name)?;
            std::os::unix::fs::symlink(target, &path).map_err(errno)?;
            self.entry(&path)
        };
        answer!(reply, made(), attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = || {
            self.faults.strike()?;
            let (from, to) = (self.child(parent, name)?, self.child(newparent, newname)?);
            fs::rename(&from, &to).map_err(errno)?;
            self.moved(&from, &to);
            Ok(())
        };
        answer!(reply, renamed(), _done => reply.ok());
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let made = || {
            self.faults.strike()?;
            let path = self.child(newparent, newname)?;
            fs::hard_link(self.path(ino)?, &path).map_err(errno)?;
            self.entry(&path)
        };
        answer!(reply, made(), attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = flags.0 & 3;
        let open = |path: PathBuf| OpenOptions::new().read(access != 1).write(access != 0).open(path).map_err(errno);
        let opened = self.path(ino).and_then(open);
        answer!(reply, opened, file => reply.opened(self.keep(file), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = || {
            self.faults.strike()?;
            let path = self.child(parent, name)?;
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).mode(mode & 0o7777).open(&path);
            Ok((self.keep(file.map_err(errno)?), self.entry(&path)?))
        };
        let flags = FopenFlags::FOPEN_DIRECT_IO;
        answer!(reply, made(), made => reply.created(&TTL, &made.1, Generation(0), made.0, flags));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = || {
            let mut data = vec![0; size as usize];
            let len = self.file(fh)?.read_at(&mut data, offset).map_err(errno)?;
            data.truncate(len);
            Ok(data)
        };
        answer!(reply, read(), data => reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = || {
            self.faults.strike()?;
            self.file(fh)?.write_all_at(data, offset).map_err(errno)?;
            Ok(data.len() as u32)
        };
        answer!(reply, write(), len => reply.written(len));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.lock().unwrap().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.faults.strike(), _done => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.faults.strike(), _done => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let list = || {
            let listed = fs::read_dir(self.path(ino)?).map_err(errno)?;
            let mut names: Vec<(OsString, FileType)> = Vec::new();
            for entry in listed {
                let entry = entry.map_err(errno)?;
                let metadata = entry.metadata().map_err(errno)?;
                names.push((entry.file_name(), attr(0, &metadata).kind));
            }
            names.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(names)
        };
        let names = match list() {
            Ok(names) => names,
            Err(errno) => return reply.error(errno),
        };
        for (index, (name, kind)) in names.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(u64::MAX), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
