//! The kernel's requests.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use burstfs_proto::locks::{Lock, LockRange};
use burstfs_proto::mds::XattrMode;
use burstfs_proto::oss::SeekTarget;
use burstfs_types::{ACL_ACCESS, Attr, Errno, Ino};
use fuser::{
    BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle as RuntimeHandle;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::arrivals::Arrivals;
use super::callers::Caller;
use super::convert::{self, BLOCK_BYTES, Blocks};
use super::handles::{Handle, Handles};
use super::passthrough::{Passthrough, Table, Use, Wish};
use super::replies::{OpenReply, ReplyError, TTL, attributes, done, entry, leased_attributes, looked, refuse, sized};
use super::run::Runner;
use super::session::FuseConfig;
use super::signals::{killed, signalled};
use super::writes::{Durability, HowToWrite, write};
use crate::fs::{
    AttrChange, ClientFs, Credentials, FallocateRange, FsError, Leases, Listed, Looked, NewFile, NewSpecial, Opened,
    WriteData,
};

/// The largest read or write. The kernel's own limit (`fs.fuse.max_pages_limit`) is the same, and larger ones gain
/// nothing.
const IO_BYTES_MAX: u32 = 1 << 20;
/// Asynchronous requests that the kernel sends at a time.
const BACKGROUND_MAX: u16 = 64;
/// Entries of one listing request: about what fits a page of `getdents64`.
const ENTRIES_MAX: u32 = 512;
/// Cookies of the two entries that no MDT lists; those of all others are larger.
const DOT_COOKIE: u64 = 1;
const DOT_DOT_COOKIE: u64 = 2;

/// What the kernel is asked for; without any of these the semantics would be others, so the session fails then.
const CAPABILITIES: InitFlags = InitFlags::FUSE_ATOMIC_O_TRUNC
    .union(InitFlags::FUSE_POSIX_LOCKS)
    .union(InitFlags::FUSE_FLOCK_LOCKS)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2);

thread_local! {
    /// Where local reads go on their way to the kernel.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What all operations share.
pub(super) struct Core {
    fs: Arc<ClientFs>,
    handles: Handles,
    runner: Runner,
    passthrough: Option<Arc<Table>>,
    arrivals: Option<Arc<Arrivals>>,
    /// Ends the waits of processes that the kernel has let go.
    is_over: watch::Sender<bool>,
}

impl Core {
    pub(super) fn new(
        fs: Arc<ClientFs>,
        config: FuseConfig,
        passthrough: Option<Passthrough>,
        arrivals: Option<Arc<Arrivals>>,
        runtime: RuntimeHandle,
    ) -> Core {
        let runner = Runner::new(runtime, config.operations_max, config.bulk_bytes_max);
        Core {
            fs,
            handles: Handles::default(),
            runner,
            passthrough: passthrough.map(Table::new),
            arrivals,
            is_over: watch::Sender::new(false),
        }
    }

    /// Gives a file just opened a handle, and decides how its I/O is done.
    async fn enter(&self, opened: Opened, flags: i32) -> (FileHandle, OpenReply) {
        let (file, wish) = (&opened.file, Wish::of(flags));
        let passed = match (&self.passthrough, file.sole_local_object()) {
            (Some(table), Some(object)) => table.open(object, &opened.attr, wish).await,
            (Some(table), None) if file.layout().is_none() => table.open_undecided(file.first_object()).await,
            _ => None,
        };
        let reply = OpenReply::of(passed.as_ref());
        (self.handles.insert(opened.file, passed), reply)
    }

    /// The kernel is about to be told of an inode.
    fn show(&self, made: Result<Attr, FsError>) -> Result<Attr, FsError> {
        let attr = made?;
        self.leases().shown(attr.ino);
        Ok(attr)
    }

    /// Takes a handle out of the table and closes its file.
    async fn release(&self, handle: FileHandle) -> Result<(), FsError> {
        let Handle { file, passed } = self.handles.remove(handle).map_err(bad_handle)?;
        // First, since the close may remove the object.
        drop(passed);
        self.fs.close(&file).await
    }

    /// Completes with `signal`, or when the session is over: nobody waits for an answer then.
    async fn interrupted(&self, signal: impl Future<Output = ()>) {
        let mut is_over = self.is_over.subscribe();
        tokio::select! {
            () = signal => {}
            _ = is_over.wait_for(|is_over| *is_over) => {}
        }
    }

    /// What `name` in `parent` is, once that can be said: input may be on its way there. The kernel keeps no name as long as that is so:
    /// each path has to be followed here.
    async fn lookup(&self, parent: Ino, name: &[u8], thread: u32) -> Result<Looked, FsError> {
        let Some(arrivals) = self.arriving() else { return self.fs.leased_lookup(parent, name).await };
        let look = || self.fs.lookup(parent, name);
        let attr = arrivals.lookup((parent, name), look, self.interrupted(killed(thread))).await;
        Ok(Looked { attr: Some(self.show(attr)?), attr_valid: TTL, entry_valid: TTL })
    }

    /// What is on its way, or has not come.
    fn arriving(&self) -> Option<&Arrivals> {
        self.arrivals.as_deref().filter(|arrivals| arrivals.is_active())
    }

    /// Waits until no more input comes into the directory.
    async fn settled(&self, dir: Ino, thread: u32) -> Result<(), FsError> {
        match &self.arrivals {
            Some(arrivals) => arrivals.settled(dir, self.interrupted(killed(thread))).await,
            None => Ok(()),
        }
    }

    /// The same for what has the name `name` in `parent`, if that is a directory: before it is removed, or replaced.
    async fn settled_at(&self, parent: Ino, name: &[u8], thread: u32) -> Result<(), FsError> {
        if self.arrivals.as_ref().is_none_or(|arrivals| arrivals.is_over()) {
            return Ok(());
        }
        match self.fs.lookup(parent, name).await {
            Ok(attr) => self.settled(attr.ino, thread).await,
            // The operation itself says what there is to say.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn leases(&self) -> &Leases {
        self.fs.leases()
    }

    /// Waits for what is under way, and closes what the kernel has left open.
    pub(super) async fn finish(&self) {
        self.is_over.send_replace(true);
        self.leases().detach();
        self.runner.idle().await;
        for Handle { file, passed } in self.handles.drain() {
            drop(passed);
            if let Err(error) = self.fs.close(&file).await {
                warn!(ino = %file.ino(), %error, "a file that was left open could not be closed");
            }
        }
    }
}

/// The session's file system.
pub(super) struct Adapter(pub(super) Arc<Core>);

impl Adapter {
    /// Runs an operation that answers with `reply`, whatever comes of it.
    fn answer<T, R, F>(&self, reply: R, operation: impl FnOnce(Arc<Core>) -> F, ok: impl FnOnce(R, T) + Send + 'static)
    where
        R: ReplyError,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let operation = operation(Arc::clone(&self.0));
        self.0.runner.run(async move {
            match operation.await {
                Ok(output) => ok(reply, output),
                Err(error) => refuse(reply, &error),
            }
        });
    }
}

impl Adapter {
    /// As [`Adapter::answer`], of an operation that may wait for input: it takes no place of those that wait for other nodes
    /// only.
    fn answer_waiting<T, R, F>(
        &self,
        reply: R,
        operation: impl FnOnce(Arc<Core>) -> F,
        ok: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: ReplyError,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        if self.0.arrivals.as_ref().is_none_or(|arrivals| arrivals.is_over()) {
            return self.answer(reply, operation, ok);
        }
        let Some(place) = self.0.runner.wait_place() else { return reply.refuse(fuser::Errno::EAGAIN) };
        let operation = operation(Arc::clone(&self.0));
        self.0.runner.run_in(place, async move {
            match operation.await {
                Ok(output) => ok(reply, output),
                Err(error) => refuse(reply, &error),
            }
        });
    }
}

/// Who makes a symbolic link, for which no mask counts.
fn owner(request: &Request) -> Credentials {
    Credentials { uid: request.uid(), gid: request.gid(), umask: None }
}

fn owner_with(request: &Request, umask: u32) -> Credentials {
    Credentials { umask: Some(convert::permissions(umask)), ..owner(request) }
}

/// Whether a change by this caller clears set-id bits, where fuser does not pass the kernel's word on: it does for all
/// who lack CAP_FSETID.
fn is_ordinary(request: &Request) -> bool {
    request.uid() != 0
}

fn bad_handle(errno: Errno) -> FsError {
    FsError::Refused { rpc: "file handle", errno }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(CAPABILITIES).map_err(|missing| {
            io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's FUSE does not have {missing:?}"))
        })?;
        let refused = |limit| io::Error::other(format!("the kernel's FUSE offers {limit}"));
        config.set_max_write(IO_BYTES_MAX).map_err(refused)?;
        config.set_max_background(BACKGROUND_MAX).map_err(|limit| refused(u32::from(limit)))?;
        // Each by itself, where the kernel has it: a link's target never changes; a listing is used while the directory's time is
        // what it was.
        for offered in [InitFlags::FUSE_CACHE_SYMLINKS, InitFlags::FUSE_AUTO_INVAL_DATA] {
            if config.add_capabilities(offered).is_err() {
                debug!("the kernel's FUSE does not have {offered:?}");
            }
        }
        let Some(table) = &self.0.passthrough else { return Ok(()) };
        let agreed = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if agreed && config.set_max_stack_depth(1).is_ok() {
            table.turn_on();
        } else {
            info!("the kernel's FUSE has no passthrough; files of this node are read and written through burstfsd");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, thread) = (convert::name(name), request.pid());
        let lookup = |core: Arc<Core>| async move { core.lookup(convert::ino(parent)?, &name, thread).await };
        self.answer_waiting(reply, lookup, looked);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        // A number that is no inode's was never told.
        if let Ok(ino) = convert::ino(ino) {
            self.0.leases().forgotten(ino, count);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let get = |core: Arc<Core>| async move { core.fs.leased_getattr(convert::ino(ino)?).await };
        self.answer(reply, get, leased_attributes);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut change = AttrChange {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            kill_set_id: false,
        };
        let says_nothing = change == AttrChange::default() && ctime.is_none();
        let owner_changes = uid.is_some() || gid.is_some();
        change.kill_set_id = says_nothing || owner_changes || (size.is_some() && is_ordinary(request));
        self.answer(reply, |core| async move { core.fs.setattr(convert::ino(ino)?, change).await }, attributes);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            reply,
            |core| async move { core.fs.readlink(convert::ino(ino)?).await },
            |reply, target: Vec<u8>| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (convert::name(name), owner_with(request, umask));
        let Some(kind) = convert::special_kind(mode, rdev) else {
            return reply.error(fuser::Errno::EPERM);
        };
        let new = NewSpecial { kind, mode: convert::permissions(mode), owner };
        let make = |core: Arc<Core>| async move {
            let made = core.fs.mknod(convert::ino(parent)?, &name, new).await;
            core.show(made)
        };
        self.answer(reply, make, entry);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, owner) = (convert::name(name), owner_with(request, umask));
        let mode = convert::permissions(mode);
        let make = |core: Arc<Core>| async move {
            let made = core.fs.mkdir(convert::ino(parent)?, &name, mode, owner).await;
            core.show(made)
        };
        self.answer(reply, make, entry);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.answer(reply, |core| async move { core.fs.unlink(convert::ino(parent)?, &name).await }, done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, thread) = (convert::name(name), request.pid());
        let rmdir = |core: Arc<Core>| async move {
            let parent = convert::ino(parent)?;
            core.settled_at(parent, &name, thread).await?;
            core.fs.rmdir(parent, &name).await
        };
        self.answer_waiting(reply, rmdir, done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, owner) = (convert::name(name), owner(request));
        let target = target.as_os_str().as_bytes().to_vec();
        let make = |core: Arc<Core>| async move {
            let made = core.fs.symlink(convert::ino(parent)?, &name, &target, owner).await;
            core.show(made)
        };
        self.answer(reply, make, entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name, thread) = (convert::name(name), convert::name(new_name), request.pid());
        self.answer_waiting(
            reply,
            |core| async move {
                let from = (convert::ino(parent)?, name.as_slice());
                let to = (convert::ino(new_parent)?, new_name.as_slice());
                core.settled_at(to.0, to.1, thread).await?;
                core.fs.rename(from, to, convert::rename_mode(flags)?).await
            },
            done,
        );
    }

    fn link(&self, _request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let new_name = convert::name(new_name);
        let make = |core: Arc<Core>| async move {
            let made = core.fs.link(convert::ino(ino)?, convert::ino(new_parent)?, &new_name).await;
            core.show(made)
        };
        self.answer(reply, make, entry);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let kill_set_id = truncate && is_ordinary(request);
        self.answer(
            reply,
            |core| async move {
                let ino = convert::ino(ino)?;
                let opened = match Wish::of(flags.0).writes {
                    true => core.fs.open_to_write(ino, truncate).await?,
                    false => core.fs.open(ino, truncate).await?,
                };
                let has_set_id = opened.file.has_set_id();
                let (handle, how) = core.enter(opened, flags.0).await;
                if kill_set_id
                    && has_set_id
                    && let Err(error) = core.fs.clear_set_id(ino).await
                {
                    core.release(handle).await?;
                    return Err(error);
                }
                Ok((handle, how))
            },
            |reply, (handle, how): (FileHandle, OpenReply)| how.opened(reply, handle),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = convert::name(name);
        let new = NewFile {
            mode: convert::permissions(mode),
            owner: owner_with(request, umask),
            exclusive: flags & libc::O_EXCL != 0,
            truncate: flags & libc::O_TRUNC != 0,
            policy: None,
        };
        self.answer(
            reply,
            |core| async move {
                let opened = core.fs.create(convert::ino(parent)?, &name, new).await?;
                let attr = core.show(Ok(opened.attr.clone()))?;
                let (handle, how) = core.enter(opened, flags).await;
                Ok((handle, how, attr))
            },
            |reply, (handle, how, attr): (FileHandle, OpenReply, Attr)| how.created(reply, handle, &attr),
        );
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.0.handles.get(handle) {
            Ok(file) => file,
            Err(errno) => return refuse(reply, &bad_handle(errno)),
        };
        let len = size as usize;
        if !file.is_local() {
            let bulk = self.0.runner.bulk(len);
            return self.answer(
                reply,
                |core| async move { core.fs.read(&file, offset, len).await.map(|bytes| (bytes, bulk)) },
                |reply, (bytes, _bulk)| reply.data(&bytes),
            );
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let into = &mut buffer[..len];
            match self.0.runner.run_here(self.0.fs.read_into(&file, offset, into)) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => refuse(reply, &error),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = match self.0.handles.get(handle) {
            Ok(file) => file,
            Err(errno) => return refuse(reply, &bad_handle(errno)),
        };
        let mut how = HowToWrite {
            is_append: flags.0 & libc::O_APPEND != 0,
            kill_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            durability: Durability::of(flags.0),
        };
        if file.is_local() && !(how.kill_set_id && file.has_set_id()) {
            how.kill_set_id = false;
            let written = self.0.runner.run_here(write(&self.0.fs, &file, offset, WriteData::Lent(data), how));
            return match written {
                Ok(written) => reply.written(written),
                Err(error) => refuse(reply, &error),
            };
        }
        let bulk = self.0.runner.bulk(data.len());
        // The only copy of it that this process makes: what goes to other nodes is sent from here.
        let data = self.0.fs.copy_to_send(data);
        self.answer(
            reply,
            |core| async move {
                let written = write(&core.fs, &file, offset, WriteData::Shared(&data), how).await;
                drop(bulk);
                written
            },
            |reply, written| reply.written(written),
        );
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(reply, |core| async move { core.release(handle).await }, done);
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.answer(
            reply,
            |core| async move {
                let Handle { file, passed } = core.handles.entry(handle).map_err(bad_handle)?;
                core.fs.fsync(&file, datasync).await?;
                settle(passed.as_deref())
            },
            done,
        );
    }

    /// Asked for only where the kernel has written by itself.
    fn flush(&self, _request: &Request, ino: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let settled =
            self.0.handles.entry(handle).map_err(bad_handle).and_then(|entry| settle(entry.passed.as_deref()));
        match convert::ino(ino) {
            Ok(ino) if self.0.fs.may_have_locks(ino, owner.0) => {
                let unlock = |core: Arc<Core>| async move {
                    core.fs.unlock_all(ino, owner.0).await?;
                    settled
                };
                self.answer(reply, unlock, done);
            }
            _ => match settled {
                Ok(()) => reply.ok(),
                Err(error) => refuse(reply, &error),
            },
        }
    }

    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // A name that was made is in its MDT's log; what a node's loss takes is the same before and after.
        reply.ok();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let directory = convert::ino(ino).ok().filter(|_| self.0.arriving().is_none());
        let (keeps, has_kept) = directory.map_or((false, false), |ino| self.0.leases().keep_listing(ino));
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_CACHE_DIR, keeps);
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, has_kept);
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let cookie = if offset <= DOT_DOT_COOKIE { 0 } else { offset };
        let thread = request.pid();
        self.answer_waiting(
            reply,
            |core| async move {
                let dir = convert::ino(ino)?;
                core.settled(dir, thread).await?;
                let mut listed = core.fs.readdir(dir, cookie, ENTRIES_MAX).await?;
                if let Some(arrivals) = &core.arrivals {
                    arrivals.mark(dir, &mut listed);
                }
                Ok(listed)
            },
            move |mut reply, listed| {
                let Listed { listing, is_missing_names } = listed;
                if is_missing_names && listing.is_end && listing.entries.is_empty() {
                    // All that there still is has been told, and that it is not all, too.
                    return reply.error(fuser::Errno::EIO);
                }
                let dots = [(DOT_COOKIE, ino, "."), (DOT_DOT_COOKIE, INodeNo(listing.parent.get()), "..")];
                for (cookie, ino, name) in dots.into_iter().filter(|(cookie, ..)| *cookie > offset) {
                    if reply.add(ino, cookie, FileType::Directory, name) {
                        return reply.ok();
                    }
                }
                for listed in listing.entries {
                    let (ino, kind) = (INodeNo(listed.entry.ino.get()), convert::file_type(listed.entry.kind));
                    if reply.add(ino, listed.cookie, kind, OsStr::from_bytes(listed.name.as_bytes())) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            reply,
            |core| async move { core.fs.statfs().await },
            |reply, figures| {
                let blocks = Blocks::from(figures);
                let (total, free, available) = (blocks.total, blocks.free, blocks.available);
                let name_max = burstfs_types::Name::MAX_LEN as u32;
                let (files, files_free) = (blocks.files, blocks.files_free);
                reply.statfs(total, free, available, files, files_free, BLOCK_BYTES, name_max, BLOCK_BYTES);
            },
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (name, value) = (convert::name(name), value.to_vec());
        if name == ACL_ACCESS {
            let thread = request.pid();
            let may_keep = move |gid| Caller::of(thread).may_keep_set_gid(gid);
            let set =
                |core: Arc<Core>| async move { core.fs.set_access_acl(convert::ino(ino)?, &value, may_keep).await };
            return self.answer(reply, set, done);
        }
        self.answer(reply, |core| async move { core.fs.setxattr(convert::ino(ino)?, &name, &value, mode).await }, done);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = convert::name(name);
        self.answer(
            reply,
            |core| async move { core.fs.getxattr(convert::ino(ino)?, &name).await },
            move |reply, value: Vec<u8>| sized(reply, &value, size),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let thread = request.pid();
        self.answer(
            reply,
            |core| async move {
                let mut names = core.fs.listxattr(convert::ino(ino)?).await?;
                let is_trusted = |name: &Vec<u8>| name.starts_with(b"trusted.");
                if names.iter().any(is_trusted) && !Caller::of(thread).sees_trusted() {
                    names.retain(|name| !is_trusted(name));
                }
                Ok(names)
            },
            move |reply, names: Vec<Vec<u8>>| {
                let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
                sized(reply, &list, size);
            },
        );
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.answer(reply, |core| async move { core.fs.removexattr(convert::ino(ino)?, &name).await }, done);
    }

    fn getlk(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        self.answer(
            reply,
            |core| async move {
                let asked =
                    lock(ino, lock_owner, (start, end), typ, pid)?.ok_or(FsError::Invalid { what: "the lock" })?;
                let holder = core.fs.lock_holder(asked).await?;
                Ok(holder.map(|holder| (holder, holder.node == core.fs.node())))
            },
            move |reply, holder| match holder {
                None => reply.locked(start, end, libc::F_UNLCK, 0),
                // A process of another node has no number here.
                Some((holder, is_here)) => {
                    let last = holder.range.last.min(i64::MAX.unsigned_abs());
                    let pid = if is_here { holder.pid } else { 0 };
                    reply.locked(holder.range.first, last, convert::lock_type(holder.kind), pid);
                }
            },
        );
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let file = match self.0.handles.get(handle) {
            Ok(file) => file,
            Err(errno) => return refuse(reply, &bad_handle(errno)),
        };
        let lock = match lock(ino, lock_owner, (start, end), typ, pid) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                let range = LockRange { first: start, last: end };
                let unlock = |core: Arc<Core>| async move { core.fs.unlock(file.ino(), lock_owner.0, range).await };
                return self.answer(reply, unlock, done);
            }
            Err(error) => return refuse(reply, &error),
        };
        if !sleep {
            return self.answer(reply, |core| async move { core.fs.try_lock(&file, lock).await }, done);
        }
        let Some(place) = self.0.runner.wait_place() else {
            return reply.error(fuser::Errno::ENOLCK);
        };
        let (core, thread) = (Arc::clone(&self.0), request.pid());
        self.0.runner.run_in(place, async move {
            match core.fs.lock(&file, lock, core.interrupted(signalled(thread))).await {
                Ok(()) => reply.ok(),
                Err(error) => refuse(reply, &error),
            }
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.answer(
            reply,
            |core| async move {
                let file = core.handles.get(handle).map_err(bad_handle)?;
                core.fs.fallocate(&file, convert::allocate_mode(mode)?, FallocateRange { offset, len }).await
            },
            done,
        );
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(
            reply,
            |core| async move {
                let file = core.handles.get(handle).map_err(bad_handle)?;
                let target = match whence {
                    libc::SEEK_DATA => SeekTarget::Data,
                    libc::SEEK_HOLE => SeekTarget::Hole,
                    _ => return Err(FsError::Invalid { what: "the kind of seek" }),
                };
                let offset = u64::try_from(offset).map_err(|_| FsError::BeyondEnd { offset: 0 })?;
                let found = core.fs.seek(&file, target, offset).await?;
                i64::try_from(found).map_err(|_| FsError::TooLarge { end: found })
            },
            |reply, offset| reply.offset(offset),
        );
    }
}

/// The lock that a request names; `None` for one that gives up a range.
fn lock(
    ino: INodeNo,
    owner: LockOwner,
    (first, last): (u64, u64),
    typ: i32,
    pid: u32,
) -> Result<Option<Lock>, FsError> {
    let Some(kind) = convert::lock_kind(typ)? else { return Ok(None) };
    Ok(Some(Lock { ino: convert::ino(ino)?, owner: owner.0, pid, range: LockRange { first, last }, kind }))
}

/// Accounts for what the kernel has written by itself.
fn settle(passed: Option<&Use>) -> Result<(), FsError> {
    passed.map_or(Ok(()), Use::settle).map_err(|errno| FsError::Refused { rpc: "the share of the OST", errno })
}
