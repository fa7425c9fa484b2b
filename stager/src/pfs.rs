//! System calls on the persistent file system, all relative to open directories.
//!
//! Below a tree's root nothing is followed: directories are opened one component at a time with `O_NOFOLLOW`, so that a
//! path may also be longer than `PATH_MAX`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use burstfs_types::Timestamp;
use rustix::fs::{self, Advice, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::{self, Errno};

use crate::error::OsError;
use crate::item::EntryKind;
use crate::plan::Quota;
use crate::tree::{Extent, Kind, Meta};

type Result<T> = std::result::Result<T, OsError>;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Linux's largest symbolic link target.
const XATTR_LIST_MAX: usize = 65_536;

/// Opens a directory by the path that a user named: links are followed.
pub(crate) fn open_root(path: &[u8]) -> Result<OwnedFd> {
    Ok(fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Opens a file by the path that a user named, for reading: links are followed.
pub(crate) fn open_path(path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(fs::open(path, flags, Mode::empty())?)
}

/// Opens the directory `below` a root.
pub(crate) fn open_below(root: &[u8], below: &[u8]) -> Result<OwnedFd> {
    let mut dir = open_root(root)?;
    for name in below.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        dir = open_child(dir.as_fd(), name)?;
    }
    Ok(dir)
}

/// Opens the directory `name` in `dir`.
pub(crate) fn open_child(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    Ok(fs::openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Opens a file for reading; one that turns out to be a pipe does not block.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::empty())?)
}

/// Makes a file that nobody else can open yet.
pub(crate) fn create_exclusive(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// Makes or empties a file in place.
pub(crate) fn create_in_place(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// Opens a file that is there, for reading and writing.
pub(crate) fn open_existing(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::empty())?)
}

/// Attributes of an open file.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<Meta> {
    Ok(meta(&fs::fstat(fd)?))
}

/// Attributes of a name, links not followed; `None` when there is nothing.
pub(crate) fn stat_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Meta>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(meta(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Attributes behind a path that a user named, links followed; `None` when there is nothing.
pub(crate) fn stat_path(path: &[u8]) -> Result<Option<Meta>> {
    match fs::stat(path) {
        Ok(stat) => Ok(Some(meta(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The path without links.
pub(crate) fn canonical(path: &[u8]) -> Result<Vec<u8>> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let path = std::fs::canonicalize(std::ffi::OsStr::from_bytes(path));
    let path = path.map_err(|error| OsError(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())))?;
    Ok(path.into_os_string().into_vec())
}

/// A symbolic link's target.
pub(crate) fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    Ok(fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Makes a symbolic link.
pub(crate) fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    Ok(fs::symlinkat(target, dir, name)?)
}

/// Makes a directory that its owner can work in.
pub(crate) fn mkdir(dir: BorrowedFd<'_>, name: &[u8], mode: u16) -> Result<()> {
    Ok(fs::mkdirat(dir, name, Mode::from_raw_mode(u32::from(mode)))?)
}

/// Makes a directory at a path that a user named.
pub(crate) fn mkdir_path(path: &[u8], mode: u16) -> Result<()> {
    Ok(fs::mkdir(path, Mode::from_raw_mode(u32::from(mode)))?)
}

/// Another name for a file.
pub(crate) fn link(old_dir: BorrowedFd<'_>, old: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    Ok(fs::linkat(old_dir, old, dir, name, AtFlags::empty())?)
}

/// Renames within a directory.
pub(crate) fn rename(dir: BorrowedFd<'_>, old: &[u8], new: &[u8]) -> Result<()> {
    Ok(fs::renameat(dir, old, dir, new)?)
}

/// Removes a temporary name.
pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Makes a file or directory durable.
pub(crate) fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(fs::fsync(fd)?)
}

/// Whether the file system that a directory is on makes everything durable at once, and says so when something could not be
/// written, as `fsync` of each file would: those of local disks do (syncfs(2); since Linux 5.8 it reports errors). Of
/// what a parallel file system promises there, nothing is known.
pub(crate) fn syncs_whole(dir: BorrowedFd<'_>) -> bool {
    const LOCAL: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];
    fs::fstatfs(dir).is_ok_and(|found| LOCAL.contains(&{ found.f_type }))
}

/// Makes everything on the file system durable. An error that any of its files had since `dir` was opened is reported.
pub(crate) fn sync_file_system(dir: BorrowedFd<'_>) -> Result<()> {
    Ok(fs::syncfs(dir)?)
}

/// Starts writing back a range, without waiting, so that the sync at the end has less to wait for. What was written stays in
/// memory for the check.
pub(crate) fn start_writeback(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    // SAFETY: a call on a descriptor that is open; nothing of this process's memory is touched. That the advice is not taken
    // harms nobody.
    let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Tells the kernel to read ahead far.
pub(crate) fn read_sequentially(fd: BorrowedFd<'_>) {
    let _ = fs::fadvise(fd, 0, None, Advice::Sequential);
}

/// Sets permission bits.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u16) -> Result<()> {
    Ok(fs::fchmod(fd, Mode::from_raw_mode(u32::from(mode)))?)
}

/// Sets permission bits of a directory that perhaps cannot be opened; a link in its place is not followed. Through
/// `/proc`, since `fchmod` takes no `O_PATH` descriptor.
pub(crate) fn set_mode_of_directory(dir: BorrowedFd<'_>, name: &[u8], mode: u16) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(dir, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(fs::chmod(path, Mode::from_raw_mode(u32::from(mode)))?)
}

/// Sets owner and group.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let uid = uid.map(fs::Uid::from_raw);
    let gid = gid.map(fs::Gid::from_raw);
    Ok(fs::fchown(fd, uid, gid)?)
}

/// Sets owner and group of a name, links not followed.
pub(crate) fn set_owner_of_name(dir: BorrowedFd<'_>, name: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let uid = uid.map(fs::Uid::from_raw);
    let gid = gid.map(fs::Gid::from_raw);
    Ok(fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets access and modification time.
pub(crate) fn set_times(fd: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    Ok(fs::futimens(fd, &timestamps(atime, mtime))?)
}

/// Sets times of a name, links not followed.
pub(crate) fn set_times_of_name(dir: BorrowedFd<'_>, name: &[u8], atime: Timestamp, mtime: Timestamp) -> Result<()> {
    Ok(fs::utimensat(dir, name, &timestamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets a file's length.
pub(crate) fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    Ok(fs::ftruncate(fd, size)?)
}

/// Fills `into` as far as the file reaches.
pub(crate) fn read_at(fd: BorrowedFd<'_>, mut offset: u64, into: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match io::pread(fd, &mut into[done..], offset) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(done)
}

/// Writes all of `data`.
pub(crate) fn write_at(fd: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        match io::pwrite(fd, data, offset) {
            Ok(0) => return Err(Errno::IO.into()),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The next data at or behind `offset`; `None` when there is only a hole. A file system that knows no holes says that
/// all is data.
pub(crate) fn next_data(fd: BorrowedFd<'_>, offset: u64, size: u64) -> Result<Option<Extent>> {
    let start = match fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            return Ok((offset < size).then_some(Extent { start: offset, end: size }));
        }
        Err(errno) => return Err(errno.into()),
    };
    let end = fs::seek(fd, SeekFrom::Hole(start))?;
    Ok(Some(Extent { start, end }))
}

/// Names of extended attributes.
pub(crate) fn list_xattr(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut small = [0_u8; 512];
    let names = match fs::flistxattr(fd, &mut small[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => small[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_LIST_MAX];
            let len = fs::flistxattr(fd, &mut large[..])?;
            large.truncate(len);
            large
        }
        Err(errno) => return Err(errno.into()),
    };
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// An extended attribute's value.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let len = fs::fgetxattr_query(fd, name)?;
    let mut value = vec![0; len];
    let len = fs::fgetxattr(fd, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Whether there is an extended attribute. One that cannot be read counts as not there.
pub(crate) fn has_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> bool {
    fs::fgetxattr_query(fd, name).is_ok()
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    Ok(fs::fremovexattr(fd, name)?)
}

/// Sets an extended attribute.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    Ok(fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// What this process's user and group may still write by their quotas; `None` where the file system has none, or does not tell.
pub(crate) fn user_quota(fd: BorrowedFd<'_>) -> Option<Quota> {
    let ids =
        [(libc::USRQUOTA, rustix::process::geteuid().as_raw()), (libc::GRPQUOTA, rustix::process::getegid().as_raw())];
    let quotas = ids.into_iter().filter_map(|(kind, id)| quota(fd, kind, id));
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    quotas.reduce(|a, b| Quota {
        free_bytes: least(a.free_bytes, b.free_bytes),
        free_files: least(a.free_files, b.free_files),
    })
}

fn quota(fd: BorrowedFd<'_>, kind: libc::c_int, id: u32) -> Option<Quota> {
    let command = (libc::Q_GETQUOTA << 8) | kind;
    // SAFETY: all zeros is a `dqblk`; the kernel fills it, and it lives until the call returns.
    let filled = unsafe {
        let mut filled: libc::dqblk = std::mem::zeroed();
        let done = libc::syscall(libc::SYS_quotactl_fd, fd.as_raw_fd(), command, id, &raw mut filled);
        if done == 0 { Some(filled) } else { None }
    }?;
    // Limits are in units of 1 KiB; 0 is none.
    let left = |limit: u64, used: u64| (limit > 0).then(|| limit.saturating_sub(used));
    Some(Quota {
        free_bytes: left(filled.dqb_bhardlimit.saturating_mul(1024), filled.dqb_curspace),
        free_files: left(filled.dqb_ihardlimit, filled.dqb_curinodes),
    })
}

/// An open listing.
pub(crate) struct Listing(fs::Dir);

impl Listing {
    /// From the beginning.
    pub(crate) fn open(dir: BorrowedFd<'_>) -> Result<Listing> {
        Ok(Listing(fs::Dir::read_from(dir)?))
    }

    /// The next entry, without `.` and `..`. `None` as kind where the file system does not say.
    pub(crate) fn next(&mut self) -> Result<Option<(Vec<u8>, Option<EntryKind>)>> {
        loop {
            let entry = match self.0.read() {
                None => return Ok(None),
                Some(entry) => entry?,
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => Some(EntryKind::File),
                FileType::Directory => Some(EntryKind::Directory),
                FileType::Symlink => Some(EntryKind::Symlink),
                FileType::Unknown => None,
                _ => Some(EntryKind::Other),
            };
            return Ok(Some((name.to_vec(), kind)));
        }
    }
}

fn timestamps(atime: Timestamp, mtime: Timestamp) -> Timestamps {
    let spec = |time: Timestamp| Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}

fn meta(stat: &Stat) -> Meta {
    let time = |secs: i64, nanos: u64| Timestamp { secs, nanos: nanos as u32 };
    Meta {
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Special("named pipe"),
            FileType::Socket => Kind::Special("socket"),
            FileType::CharacterDevice => Kind::Special("character device"),
            FileType::BlockDevice => Kind::Special("block device"),
            _ => Kind::Special("thing of unknown kind"),
        },
        mode: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        dev: stat.st_dev,
        ino: stat.st_ino,
    }
}
