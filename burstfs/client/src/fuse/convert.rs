//! Between the kernel's words and the file system's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use burstfs_proto::locks::LockKind;
use burstfs_proto::mds::{RenameMode, SetTime};
use burstfs_proto::oss::AllocateMode;
use burstfs_types::{Attr, DeviceNumber, FileKind, Ino, Timestamp};
use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};

use crate::fs::{FsError, FsStatfs};

/// What `stat` gives as the best size for I/O on a file: each read and write is a request of at most this size, and
/// stdio takes it for its buffers.
const FILE_BLOCK_BYTES: u32 = 1 << 20;
/// The same for everything else, and the unit of `statfs`.
pub(super) const BLOCK_BYTES: u32 = 4096;

/// The errno for the kernel.
pub(super) fn errno(error: &FsError) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw())
}

/// An inode number of the kernel's.
pub(super) fn ino(nodeid: INodeNo) -> Result<Ino, FsError> {
    Ino::from_raw(nodeid.0).ok_or(FsError::Invalid { what: "the inode number" })
}

pub(super) fn name(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

/// Permission bits of a mode with or without a file type.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// What `mknod` shall make; `device` counts for devices only.
pub(super) fn special_kind(mode: u32, device: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::Character(DeviceNumber(device))),
        libc::S_IFBLK => Some(FileKind::Block(DeviceNumber(device))),
        _ => None,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Character(_) => FileType::CharDevice,
        FileKind::Block(_) => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.get()),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: match attr.kind {
            FileKind::Character(DeviceNumber(device)) | FileKind::Block(DeviceNumber(device)) => device,
            _ => 0,
        },
        blksize: if attr.kind == FileKind::Regular { FILE_BLOCK_BYTES } else { BLOCK_BYTES },
        flags: 0,
    }
}

/// What tells the kernel that a name is not there, and that it may keep that: attributes of inode 0.
pub(super) fn nothing() -> FileAttr {
    let epoch = UNIX_EPOCH;
    let (kind, perm, nlink, uid, gid) = (FileType::RegularFile, 0, 0, 0, 0);
    let (ino, size, blocks, rdev, blksize, flags) = (INodeNo(0), 0, 0, 0, 0, 0);
    let (atime, mtime, ctime, crtime) = (epoch, epoch, epoch, epoch);
    FileAttr { ino, size, blocks, atime, mtime, ctime, crtime, kind, perm, nlink, uid, gid, rdev, blksize, flags }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.nanos)))).unwrap_or(UNIX_EPOCH)
}

/// A time that the kernel sends. Before the epoch fuser takes the nanoseconds in the wrong direction (-0.5 s, which is
/// second -1 and 500,000,000 ns, arrives as -1.5 s): its seconds and nanoseconds are taken apart again.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Timestamp { secs, nanos: before.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode, FsError> {
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        bits if bits == RenameFlags::RENAME_NOREPLACE.bits() => Ok(RenameMode::NoReplace),
        bits if bits == RenameFlags::RENAME_EXCHANGE.bits() => Ok(RenameMode::Exchange),
        _ => Err(FsError::Invalid { what: "the combination of rename flags" }),
    }
}

pub(super) fn allocate_mode(mode: i32) -> Result<AllocateMode, FsError> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Ok(AllocateMode::Extend),
        libc::FALLOC_FL_KEEP_SIZE => Ok(AllocateMode::KeepSize),
        PUNCH => Ok(AllocateMode::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(AllocateMode::Zero),
        ZERO_KEEP => Ok(AllocateMode::ZeroKeepSize),
        _ => Err(FsError::Unsupported { what: "the mode of fallocate" }),
    }
}

/// What kind of lock `struct flock` asks for; `None` for one that gives up.
pub(super) fn lock_kind(typ: i32) -> Result<Option<LockKind>, FsError> {
    match typ {
        libc::F_RDLCK => Ok(Some(LockKind::Shared)),
        libc::F_WRLCK => Ok(Some(LockKind::Exclusive)),
        libc::F_UNLCK => Ok(None),
        _ => Err(FsError::Invalid { what: "the type of the lock" }),
    }
}

/// The same the other way.
pub(super) fn lock_type(kind: LockKind) -> i32 {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// `statfs` in blocks.
pub(super) struct Blocks {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) available: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
}

impl From<FsStatfs> for Blocks {
    fn from(of: FsStatfs) -> Blocks {
        let unit = u64::from(BLOCK_BYTES);
        // No inode is set aside: as many can still be made as there are blocks.
        let files_free = of.available / unit;
        Blocks {
            total: of.capacity / unit,
            free: of.capacity.saturating_sub(of.used) / unit,
            available: of.available / unit,
            files: of.inodes_used.saturating_add(files_free),
            files_free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive_fuser() {
        // As fuser 0.18 builds it from second -1 and 500,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(1, 500_000_000);
        let half_before = Timestamp { secs: -1, nanos: 500_000_000 };
        assert_eq!(timestamp(from_fuser), half_before);
        assert_eq!(system_time(half_before), UNIX_EPOCH - Duration::from_millis(500));
    }

    #[test]
    fn times_no_clock_shows_do_not_panic() {
        for secs in [i64::MIN, i64::MAX] {
            system_time(Timestamp { secs, nanos: 999_999_999 });
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT).is_err());
        assert!(rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).is_err());
        assert!(allocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE).is_err());
        assert!(allocate_mode(libc::FALLOC_FL_PUNCH_HOLE).is_err());
        assert_eq!(special_kind(libc::S_IFDIR | 0o777, 0), None);
    }
}
