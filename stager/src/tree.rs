//! What the stager needs of the instance's file system, and attributes as both sides have them.

use async_trait::async_trait;
use burstfs_types::{Attr, Errno, FileKind, Ino, Layout, Name, NodeIndex, Timestamp};

/// An open file of the instance, as its owner numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TreeHandle(pub u64);

/// A file that is open now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// For the calls that take one.
    pub handle: TreeHandle,
    /// Exact, glimpse included.
    pub attr: Attr,
}

/// One entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageEntry {
    /// Its name.
    pub name: Name,
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Its attributes where they cost nothing; size and times are hints.
    pub attr: Option<Attr>,
    /// Where to go on behind it.
    pub cookie: u64,
}

/// A part of a listing, without `.` and `..`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<PageEntry>,
    /// True when nothing comes behind the last.
    pub is_end: bool,
}

/// A range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// From.
    pub start: u64,
    /// To, exclusive.
    pub end: u64,
}

/// Attributes to set: what is `Some`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last read.
    pub atime: Option<Timestamp>,
    /// Last change of the contents.
    pub mtime: Option<Timestamp>,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Change::default()
    }
}

/// What the MDS knows of a file's changes since it was last drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeState {
    /// The latest change, for [`InstanceTree::end_change`].
    pub number: Option<u64>,
    /// Somebody may have it open for writing.
    pub is_writable: bool,
    /// It has to be taken for changed.
    pub is_changed: bool,
}

/// Space of the instance, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Its size.
    pub capacity: u64,
    /// What can still be written.
    pub available: u64,
}

/// The instance's file system, by inode and handle. All nodes see the same one. No call checks permissions: the instance
/// is the user's own.
///
/// A call that needs no other node should finish without returning `Poll::Pending`.
#[async_trait]
pub trait InstanceTree: Send + Sync + 'static {
    /// The node that is closest to an inode's data (`layout` of a regular file) or entries (`None`): work on it is done
    /// there. `None`: any node.
    fn place(&self, ino: Ino, layout: Option<&Layout>) -> Option<NodeIndex>;

    /// The inode behind a name.
    async fn lookup(&self, dir: Ino, name: &Name) -> Result<Ino, Errno>;
    /// Exact attributes, glimpse included.
    async fn getattr(&self, ino: Ino) -> Result<Attr, Errno>;
    /// Sets attributes.
    async fn setattr(&self, ino: Ino, change: Change) -> Result<(), Errno>;
    /// Entries behind `cookie` (0: from the beginning), at most `max`.
    async fn readdir(&self, dir: Ino, cookie: u64, max: u32) -> Result<Page, Errno>;
    /// A symbolic link's target.
    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno>;

    /// Makes a directory.
    async fn mkdir(&self, dir: Ino, name: &Name, mode: u16) -> Result<Ino, Errno>;
    /// Makes a symbolic link.
    async fn symlink(&self, dir: Ino, name: &Name, target: &[u8]) -> Result<Ino, Errno>;
    /// Gives a file another name. EXDEV where that cannot be.
    async fn link(&self, ino: Ino, dir: Ino, name: &Name) -> Result<(), Errno>;
    /// Gives a file another name in its directory. EEXIST when that is taken: nothing is ever replaced.
    async fn rename(&self, dir: Ino, name: &Name, new_name: &Name) -> Result<(), Errno>;
    /// Removes a name of something that is no directory.
    async fn unlink(&self, dir: Ino, name: &Name) -> Result<(), Errno>;

    /// Opens a regular file for reading.
    async fn open(&self, ino: Ino) -> Result<Opened, Errno>;
    /// Makes a regular file, or empties the one that is there, and opens it for reading and writing.
    async fn create(&self, dir: Ino, name: &Name, mode: u16) -> Result<Opened, Errno>;
    /// Reads; less than asked only at the end of the file. Holes are zeros.
    async fn read_at(&self, handle: TreeHandle, offset: u64, into: &mut [u8]) -> Result<usize, Errno>;
    /// The next data at or behind `offset`; `None` when there is only a hole. One extent may be reported in parts.
    async fn next_data(&self, handle: TreeHandle, offset: u64) -> Result<Option<Extent>, Errno>;
    /// Writes all of `data`. Several may be under way.
    async fn write_at(&self, handle: TreeHandle, offset: u64, data: &[u8]) -> Result<(), Errno>;
    /// Sets the length.
    async fn truncate(&self, handle: TreeHandle, size: u64) -> Result<(), Errno>;
    /// Makes data durable.
    async fn fsync(&self, handle: TreeHandle) -> Result<(), Errno>;
    /// Ends a handle; an error of a write that was not reported yet comes here.
    async fn close(&self, handle: TreeHandle) -> Result<(), Errno>;

    /// Names of extended attributes.
    async fn list_xattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno>;
    /// One's value.
    async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno>;
    /// Sets one.
    async fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Errno>;

    /// What the MDS knows of a file's or link's changes.
    async fn change(&self, ino: Ino) -> Result<ChangeState, Errno>;
    /// The file was drained as it was at this change; whether it counts as unchanged now.
    async fn end_change(&self, ino: Ino, number: Option<u64>) -> Result<bool, Errno>;
    /// Sees to it that the next store through a mapping of the file moves its times.
    async fn write_back(&self, handle: TreeHandle) -> Result<(), Errno>;

    /// Space, over all nodes.
    async fn space(&self) -> Result<Space, Errno>;
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Special(&'static str),
}

impl Kind {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Kind::File => "regular file",
            Kind::Directory => "directory",
            Kind::Symlink => "symbolic link",
            Kind::Special(text) => text,
        }
    }
}

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Kind {
        match kind {
            FileKind::Regular => Kind::File,
            FileKind::Directory => Kind::Directory,
            FileKind::Symlink => Kind::Symlink,
            FileKind::Fifo => Kind::Special("named pipe"),
            FileKind::Socket => Kind::Special("socket"),
            FileKind::Character(_) | FileKind::Block(_) => Kind::Special("device"),
        }
    }
}

/// Attributes of an entry of either side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl Meta {
    /// Whether nothing was written between two looks at the same source.
    pub(crate) fn is_same_version(&self, other: &Meta) -> bool {
        (self.size, self.mtime, self.ctime) == (other.size, other.mtime, other.ctime)
    }

    /// What `update=changed` asks.
    pub(crate) fn looks_like(&self, other: &Meta) -> bool {
        self.kind == other.kind && (self.size, self.mtime) == (other.size, other.mtime)
    }

    /// Fewer blocks than bytes. The last block of an inline or compressed file counts as data.
    pub(crate) fn may_have_holes(&self) -> bool {
        self.size > 4096 && self.blocks.saturating_mul(512) < self.size
    }
}

impl From<&Attr> for Meta {
    fn from(attr: &Attr) -> Meta {
        Meta {
            kind: attr.kind.into(),
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            dev: 0,
            ino: attr.ino.get(),
        }
    }
}
