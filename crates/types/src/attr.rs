//! Attributes of an inode.

use serde::{Deserialize, Serialize};

use crate::{Ino, Layout, Shards};

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    Character(DeviceNumber),
    /// A block device.
    Block(DeviceNumber),
}

/// Which device a device file stands for, in the kernel's own 32-bit form (`new_encode_dev`); only carried, never opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct DeviceNumber(pub u32);

/// A point in time since the epoch, as `struct timespec` has it: `nanos` is below 10^9 also for times before the epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub secs: i64,
    /// Nanoseconds on top.
    pub nanos: u32,
}

/// What `stat` shows of an inode, and its layout.
///
/// For a regular file `size`, `blocks`, `mtime` and `atime` are what the MDT knows; while its objects hold data, the
/// OSTs know better and the client merges a glimpse (see `burstfs-client`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits with set-id and sticky (`mode & 0o7777`).
    pub mode: u16,
    /// Names that it has. For a directory 2 and one for each sub-directory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that are allocated.
    pub blocks: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Where the bytes of a regular file live; `None` for other kinds, and for a file for which that is not decided yet: it
    /// has no bytes.
    pub layout: Option<Layout>,
    /// Who holds the names of a directory that is spread over MDTs. Its `nlink`, `mtime` and `ctime` are then those of its head alone, and
    /// the client merges what the others know.
    pub shards: Option<Box<Shards>>,
}
