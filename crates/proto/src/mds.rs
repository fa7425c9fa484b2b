//! The metadata service's RPCs.
//!
//! Who may call: clients of the instance, and other MDSs (the `Peer*` requests). An error of the file system is an
//! [`Errno`](burstfs_types::Errno) in the reply's place.

use burstfs_types::{
    Attr, ClientId, FileKind, Ino, Layout, LayoutPolicy, MdtIndex, Name, ObjectId, OstIndex, Shards, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::leases::{LeasedAttr, LeasedEntry, LeasedGetAttr, LeasedLookup};
use crate::locks::{AwaitLocks, GetLock, LeaveQueue, LockAnswer, LockHolder, SetLock, Unlock};

rpcs! {
    /// A request to an MDT.
    MdsRequest,
    /// An MDT's answer.
    MdsReply, Mds;
    /// Name to inode.
    0x0101 ReadOnly Lookup(Lookup) -> Entry;
    /// Attributes of an inode of this MDT.
    0x0102 ReadOnly GetAttr(GetAttr) -> Attr;
    /// Changes attributes.
    0x0103 Replayable SetAttr(SetAttr) -> Attr;
    /// Makes (or, unless exclusive, finds) a regular file and opens it.
    0x0104 Replayable Create(Create) -> Created;
    /// Makes a named pipe or a socket's name.
    0x0105 Replayable Mknod(Mknod) -> Attr;
    /// Makes a directory; sent to the parent's MDT, which asks the new directory's MDT.
    0x0106 Replayable Mkdir(Mkdir) -> Attr;
    /// Removes a name of a file.
    0x0107 Replayable Unlink(Unlink) -> ();
    /// Removes an empty directory; sent to the parent's MDT.
    0x0108 Replayable Rmdir(Rmdir) -> ();
    /// Renames.
    0x0109 Replayable Rename(Rename) -> ();
    /// Another name for a file, in a directory of this MDT.
    0x010a Replayable Link(Link) -> Attr;
    /// Makes a symbolic link.
    0x010b Replayable Symlink(Symlink) -> Attr;
    /// A symbolic link's target.
    0x010c ReadOnly Readlink(Readlink) -> Vec<u8>;
    /// Registers an open of a regular file, so that its inode outlives its last name.
    0x010d Replayable Open(Open) -> Attr;
    /// Takes one such registration back.
    0x010e Replayable Close(Close) -> ();
    /// A part of a directory's listing.
    0x010f ReadOnly Readdir(Readdir) -> Listing;
    /// Value of an extended attribute.
    0x0110 ReadOnly GetXattr(GetXattr) -> Vec<u8>;
    /// Sets an extended attribute.
    0x0111 Replayable SetXattr(SetXattr) -> ();
    /// Names of the extended attributes.
    0x0112 ReadOnly ListXattr(ListXattr) -> Vec<Vec<u8>>;
    /// Removes an extended attribute.
    0x0113 Replayable RemoveXattr(RemoveXattr) -> ();
    /// Inodes in use on this MDT.
    0x0114 ReadOnly Statfs(Statfs) -> MdtStatfs;
    /// What layout an inode has, or gives to what is made in it, and why.
    0x0115 ReadOnly GetLayout(GetLayout) -> LayoutInfo;
    /// Sets the layout that a directory gives to what is made in it, or that a file without a layout shall have.
    0x0116 Replayable SetLayout(SetLayout) -> ();
    /// Decides the layout of a file that has none, for its first byte.
    0x0117 Replayable DecideLayout(DecideLayout) -> Attr;
    /// Sets aside the place of an append to a striped file: where it begins, bytes.
    0x0118 Replayable ReserveAppend(ReserveAppend) -> u64;
    /// Says that a striped file is about to be truncated, so that appends begin there.
    0x0119 Idempotent EndAppends(EndAppends) -> ();
    /// A lock on a file.
    0x0120 Replayable SetLock(SetLock) -> LockAnswer;
    /// Gives locks up.
    0x0121 Replayable Unlock(Unlock) -> ();
    /// Who keeps a lock from being granted; `None` if nobody does.
    0x0122 ReadOnly GetLock(GetLock) -> Option<LockHolder>;
    /// Which of the client's tickets wait no longer.
    0x0123 ReadOnly AwaitLocks(AwaitLocks) -> Vec<u64>;
    /// Leaves the queue; false when the ticket did not wait (any more).
    0x0124 Replayable LeaveQueue(LeaveQueue) -> bool;
    /// Whether a file has changed since it was last drained, and may be changing.
    0x0130 ReadOnly GetChange(GetChange) -> ChangeState;
    /// A file was drained; whether it counts as drained now.
    0x0131 Idempotent EndChange(EndChange) -> bool;
    /// `Lookup` with leases of what it tells.
    0x0140 ReadOnly LeasedLookup(LeasedLookup) -> LeasedEntry;
    /// `GetAttr` with a lease of what it tells.
    0x0141 ReadOnly LeasedGetAttr(LeasedGetAttr) -> LeasedAttr;
    /// From another MDT: makes sure that a part of a transaction can be done here, and holds what it concerns.
    0x0180 Idempotent PeerPrepare(PeerPrepare) -> Vec<Attr>;
    /// From the coordinator: the prepared part is done, or dropped.
    0x0181 Idempotent PeerDecide(PeerDecide) -> ();
    /// From a participant: what became of a transaction of this MDT's.
    0x0182 ReadOnly PeerOutcome(PeerOutcome) -> Outcome;
    /// From another MDT: what a name stands for, as a transaction is planned. EBUSY while that is being decided.
    0x0183 ReadOnly PeerLook(PeerLook) -> Looked;
    /// From another MDT: the directory that a directory is in, and its shards. EBUSY while that is being decided.
    0x0184 ReadOnly PeerParent(PeerParent) -> DirectoryPlace;
    /// From the checker: a part of this MDT's records.
    0x0185 ReadOnly PeerRecords(PeerRecords) -> Records;
}

/// Asks for the entry `name` of the directory `parent`.
///
/// In this and all requests about a name, "a directory of this MDT" may be a shard of one, and is the one that holds the name: EREMCHG
/// when another shard holds it. Nothing has happened then; the directory's head knows which.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lookup {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
}

/// What an entry names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Its attributes; `None` when another MDT holds them (a directory whose home is elsewhere, a file that was renamed or
    /// linked into a directory of this MDT): ask there.
    pub attr: Option<Attr>,
}

/// Asks for an inode's attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetAttr {
    /// The inode.
    pub ino: Ino,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SetTime {
    /// The server's clock.
    Now,
    /// This time.
    At(Timestamp),
}

/// Changes what is `Some`. `ctime` moves on its own. The size of a regular file is the objects' business: the client
/// truncates them, and says so here with `touch_mtime` for a file that has none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetAttr {
    /// The inode.
    pub ino: Ino,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// Clears set-user-id, and set-group-id where the group may execute: what a write, truncate or chown by an ordinary
    /// user does (`write(2)`, `chown(2)`; Linux `setattr_should_drop_sgid`).
    pub kill_set_id: bool,
    /// Registers an open of a regular file for writing with it: its objects are about to change, and until the [`Close`]
    /// nobody keeps its attributes.
    pub opens: bool,
}

/// Makes a regular file, or opens the one that is there. EREMOTE when that one is of another MDT: it is opened there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Create {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
    /// Permission bits.
    pub mode: u16,
    /// Bits that the caller denies where the directory has no default ACL; `None`: `mode` is exact, whatever the directory has.
    pub umask: Option<u16>,
    /// The caller.
    pub uid: u32,
    /// The caller's group; a set-group-id directory overrides it.
    pub gid: u32,
    /// `O_EXCL`: EEXIST when the name is taken.
    pub exclusive: bool,
    /// The OST that is nearest to the caller.
    pub near: OstIndex,
    /// The layout of a new file; `None`: as the directory has it.
    pub policy: Option<LayoutPolicy>,
}

/// A file that is open now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Its attributes.
    pub attr: Attr,
    /// False when the name was there already.
    pub is_new: bool,
}

/// Makes a named pipe or a socket's name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mknod {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
    /// `Fifo` or `Socket`, or `Regular` (without opening it); others are EPERM.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Bits that the caller denies where the directory has no default ACL; `None`: `mode` is exact, whatever the directory has.
    pub umask: Option<u16>,
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
}

/// Makes a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mkdir {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
    /// Permission bits.
    pub mode: u16,
    /// Bits that the caller denies where the directory has no default ACL; `None`: `mode` is exact, whatever the directory has.
    pub umask: Option<u16>,
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
}

/// Removes a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unlink {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
}

/// Removes a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rmdir {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
}

/// What to do when the new name is taken (`renameat2(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// EEXIST.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// Renames. A directory that gets another parent is renamed by MDT 0, which any other answers with EREMOTE.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rename {
    /// The directory of the old name; of this MDT, unless this is MDT 0.
    pub parent: Ino,
    /// The old name.
    pub name: Name,
    /// The directory of the new name.
    pub new_parent: Ino,
    /// The new name.
    pub new_name: Name,
    /// What to do when the new name is taken.
    pub mode: RenameMode,
}

/// Gives a file another name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// The file, of any MDT.
    pub ino: Ino,
    /// The directory of the new name; of this MDT.
    pub new_parent: Ino,
    /// The new name.
    pub new_name: Name,
}

/// Makes a symbolic link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Symlink {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
    /// Where it points, as given: 1 to 4,095 bytes without NUL.
    pub target: Vec<u8>,
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
}

/// Asks for a symbolic link's target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Readlink {
    /// The link.
    pub ino: Ino,
}

/// Registers an open of a regular file by the calling client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The file.
    pub ino: Ino,
    /// Whether it is open for writing.
    pub writes: bool,
}

/// Asks what is known of changes to a file or symbolic link since it was last drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetChange {
    /// The file.
    pub ino: Ino,
}

/// What an MDT knows of changes to a file. A mapping may have changed the bytes of one that nobody has open: its objects'
/// times tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeState {
    /// The latest change; `None` when there was none since the file was drained, or changes are not recorded.
    pub number: Option<u64>,
    /// Somebody has it open for writing, or may have.
    pub is_writable: bool,
    /// Whether changes are recorded.
    pub is_tracked: bool,
}

impl ChangeState {
    /// Whether the file has to be taken for changed.
    pub fn is_changed(&self) -> bool {
        self.number.is_some() || self.is_writable || !self.is_tracked
    }
}

/// Says that a file was drained as it was when its latest change had this number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndChange {
    /// The file.
    pub ino: Ino,
    /// [`ChangeState::number`] from before it was read.
    pub number: Option<u64>,
}

/// Takes back one [`Open`] or [`Create`] of the calling client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Close {
    /// The file.
    pub ino: Ino,
}

/// Asks for a part of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Readdir {
    /// The directory.
    pub ino: Ino,
    /// 0 for the beginning, else the cookie of the last entry seen: goes on behind it, also when it is gone.
    pub cookie: u64,
    /// At most so many entries (the server may give fewer).
    pub entries_max: u32,
    /// Whether to send attributes of the inodes of this MDT.
    pub with_attrs: bool,
}

/// One entry of a listing; `.` and `..` are the client's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListingEntry {
    /// The name.
    pub name: Name,
    /// What it names.
    pub entry: Entry,
    /// Stable while the entry lives, never 0, at least 3, and below 2^63.
    pub cookie: u64,
}

/// A part of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The entries in the order of their cookies.
    pub entries: Vec<ListingEntry>,
    /// True when nothing comes behind the last.
    pub is_end: bool,
    /// The directory that the listed one is in; the root is in itself. A shard is in its head.
    pub parent: Ino,
    /// The shards of a directory that is spread: the entries are those of its head alone.
    pub shards: Option<Shards>,
    /// A shard's word for [`Shards::moved_below`], as far as its own range is concerned; a head's. All names of a directory are in
    /// listings of all shards only if these agree.
    pub moved_below: u64,
}

/// Asks for an extended attribute. ENODATA when it is not there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetXattr {
    /// The inode.
    pub ino: Ino,
    /// Its full name (`user.x`).
    pub name: Vec<u8>,
}

/// Whether an extended attribute may, must or must not be there (`setxattr(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum XattrMode {
    /// Set it.
    Any,
    /// `XATTR_CREATE`: EEXIST when it is there.
    Create,
    /// `XATTR_REPLACE`: ENODATA when it is not.
    Replace,
}

/// Sets an extended attribute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetXattr {
    /// The inode.
    pub ino: Ino,
    /// Its full name.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// Whether it may be there.
    pub mode: XattrMode,
    /// Clears set-group-id with an access ACL: the caller is neither in the inode's group nor privileged.
    pub kill_set_gid: bool,
}

/// Asks for the names of an inode's extended attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListXattr {
    /// The inode.
    pub ino: Ino,
}

/// Removes an extended attribute. ENODATA when it is not there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RemoveXattr {
    /// The inode.
    pub ino: Ino,
    /// Its full name.
    pub name: Vec<u8>,
}

/// Who said that a layout is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LayoutOrigin {
    /// The job's request.
    Job,
    /// The directory that the inode was made in.
    Parent,
    /// Somebody who set it on the inode.
    Own,
}

/// A wanted layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WantedLayout {
    /// Which.
    pub policy: LayoutPolicy,
    /// Who said so.
    pub origin: LayoutOrigin,
}

impl WantedLayout {
    /// What is made in a directory that wants this wants.
    pub fn inherited(self) -> WantedLayout {
        let origin = match self.origin {
            LayoutOrigin::Job => LayoutOrigin::Job,
            LayoutOrigin::Parent | LayoutOrigin::Own => LayoutOrigin::Parent,
        };
        WantedLayout { origin, ..self }
    }
}

/// How the files of a directory were written, as far as its MDT remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Habit {
    /// So many of its latest files, at most 8, are remembered.
    pub files: u8,
    /// So many of them were open for writing on several nodes at a time.
    pub shared: u8,
}

impl Habit {
    /// Whether the next file is likely to be written by several nodes, too.
    pub fn is_shared(self) -> bool {
        self.shared > 0 && self.shared * 2 >= self.files
    }
}

/// Why a file's layout is what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LayoutChoice {
    /// The wanted layout says it.
    Wanted,
    /// `auto`, as the file was made: by what was known of its directory.
    Directory(Habit),
    /// `auto`, at its first byte: by how many nodes had it open for writing.
    Writers(u32),
}

/// Asks for an inode's layout: of a directory, or a regular file; EINVAL for others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetLayout {
    /// The inode.
    pub ino: Ino,
}

/// An inode's layout.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayoutInfo {
    /// `Directory` or `Regular`.
    pub kind: FileKind,
    /// What is wanted.
    pub wanted: WantedLayout,
    /// What a regular file got; `None` before its first byte, and for a directory.
    pub layout: Option<Layout>,
    /// Why it is this one.
    pub choice: Option<LayoutChoice>,
}

/// Sets the wanted layout. EEXIST for a file that has its layout, EINVAL for what is neither file nor directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetLayout {
    /// The inode.
    pub ino: Ino,
    /// The layout; `None`: the job's.
    pub policy: Option<LayoutPolicy>,
}

/// Decides a file's layout, unless it is decided. The attributes that come back have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DecideLayout {
    /// The file.
    pub ino: Ino,
    /// The OST that is nearest to the caller.
    pub near: OstIndex,
}

/// Sets aside `len` bytes at the end of a striped file. No other append gets them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReserveAppend {
    /// The file.
    pub ino: Ino,
    /// The file's size as its objects have it, bytes.
    pub size: u64,
    /// Bytes to append. EFBIG when the file would become too large.
    pub len: u64,
}

/// Forgets the appends behind `size`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndAppends {
    /// The file.
    pub ino: Ino,
    /// What it is truncated to, bytes.
    pub size: u64,
}

/// Asks for the MDT's figures.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statfs;

/// An MDT's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MdtStatfs {
    /// Inodes that exist.
    pub inodes_used: u64,
}

/// A transaction over several MDTs. No number is used twice in an instance, and the number says who coordinates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TxId(Ino);

impl TxId {
    /// The transaction that has the number `taken`, which the coordinator took from those of its inodes.
    pub fn new(taken: Ino) -> TxId {
        TxId(taken)
    }

    /// The number.
    pub fn number(self) -> Ino {
        self.0
    }

    /// The MDT that decides whether it happens.
    pub fn coordinator(self) -> MdtIndex {
        self.0.mdt()
    }
}

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Named {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
}

/// What an entry shall name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Becomes {
    /// Nothing: the entry goes.
    Nothing,
    /// This inode.
    Inode(Named),
    /// The inode that a participant's answer is about: a directory that it makes, a file that gets a name. Only in the
    /// coordinator's own part.
    Answered,
}

/// A directory to make.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewDirectory {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The directory that will hold the name.
    pub parent: Ino,
    /// The layout of what is made in it.
    pub layout: WantedLayout,
    /// Its extended attributes: the ACLs that it inherits.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What all shards of a directory have of it, so that what is made in them is as if it were made in one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inherited {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The layout of what is made in it.
    pub layout: WantedLayout,
    /// The default ACL.
    pub default_acl: Option<Vec<u8>>,
}

/// Names of a directory that move from its head to the shard of their range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Piece {
    /// Hashes from here on,
    pub from: u64,
    /// and below this one.
    pub until: u64,
    /// Every name with such a hash, in the order of hashes and names.
    pub names: Vec<MovedName>,
}

/// A name that moves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MovedName {
    /// The name.
    pub name: Name,
    /// What it stands for.
    pub named: Named,
    /// It keeps its place in listings.
    pub cookie: u64,
}

/// A change of one inode that all shards of a directory have to follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Of attributes.
    Attr(SetAttr),
    /// Of the default ACL.
    Xattr(SetXattr),
    /// Of the layout of what is made in it.
    Layout(SetLayout),
}

impl Change {
    /// Which inode changes.
    pub fn ino(&self) -> Ino {
        match self {
            Change::Attr(it) => it.ino,
            Change::Xattr(it) => it.ino,
            Change::Layout(it) => it.ino,
        }
    }

    /// The same change of another inode.
    pub fn of(&self, ino: Ino) -> Change {
        match self.clone() {
            Change::Attr(it) => Change::Attr(SetAttr { ino, ..it }),
            Change::Xattr(it) => Change::Xattr(SetXattr { ino, ..it }),
            Change::Layout(it) => Change::Layout(SetLayout { ino, ..it }),
        }
    }
}

/// One change that a transaction makes to one record, with what must be so for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// An entry. EAGAIN unless it names `was` now.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
        /// What the transaction was planned on.
        was: Option<Ino>,
        /// What it shall name.
        becomes: Becomes,
    },
    /// A directory's inode is made. Its attributes are in the answer.
    MakeDirectory(NewDirectory),
    /// The inode of a directory, or of a shard, goes. ENOTEMPTY when it has entries.
    RemoveDirectory {
        /// The directory.
        ino: Ino,
        /// The shards that it was planned on, besides the head. EAGAIN unless it has these.
        shards: Vec<Ino>,
    },
    /// What is the same of a directory and of all its shards changes. The directory's attributes are in the answer.
    Change {
        /// Of which inode, and how.
        change: Change,
        /// As for `RemoveDirectory`.
        shards: Vec<Ino>,
    },
    /// An inode is made for names of a directory. Its attributes are in the answer.
    MakeShard {
        /// Which range of names it is for.
        index: u16,
        /// Of how many.
        count: u16,
        /// The directory.
        head: Ino,
        /// Cookies of names are from here on.
        next_cookie: u64,
        /// What it has of its directory.
        like: Inherited,
    },
    /// A directory gets shards. EAGAIN when it is not as planned. Only in the coordinator's own part.
    Spread {
        /// The directory.
        head: Ino,
        /// Where the shards are, by their ranges, without the head; each is the answer of that MDT.
        homes: Vec<MdtIndex>,
        /// As in `MakeShard`.
        next_cookie: u64,
        /// As in `MakeShard`.
        like: Inherited,
    },
    /// Names leave the head of a directory. EAGAIN unless these are all that it has of the range.
    GiveNames {
        /// The head.
        head: Ino,
        /// What moves.
        piece: Piece,
    },
    /// Names come to a shard.
    TakeNames {
        /// The shard.
        shard: Ino,
        /// What moves.
        piece: Piece,
    },
    /// An inode has got another name: its ctime moves, and a directory's parent is this one.
    Renamed {
        /// The inode.
        ino: Ino,
        /// The new parent.
        parent: Ino,
    },
    /// A file gets one more name. Its attributes are in the answer.
    AddName {
        /// The file.
        ino: Ino,
    },
    /// A file loses a name.
    DropName {
        /// The file.
        ino: Ino,
    },
}

/// Asks a participant to promise its part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerPrepare {
    /// The transaction.
    pub tx: TxId,
    /// Who has asked for it: knows of it without being told. `None`: this is nobody's request.
    pub client: Option<ClientId>,
    /// The coordinator has no unfinished transaction below this one: what is known of those can be forgotten.
    pub oldest: TxId,
    /// The time of the change, by the coordinator's clock.
    pub now: Timestamp,
    /// The participant's part.
    pub steps: Vec<Step>,
}

/// Tells a participant how a transaction ended. One that it does not know is finished already.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerDecide {
    /// The transaction.
    pub tx: TxId,
    /// Whether it happens.
    pub is_commit: bool,
}

/// Asks the coordinator how a transaction ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerOutcome {
    /// The transaction.
    pub tx: TxId,
}

/// How a transaction stands with its coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// Not decided yet.
    Running,
    /// It happens.
    Committed,
    /// It does not happen.
    Aborted,
}

/// Asks what an entry names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerLook {
    /// A directory of this MDT.
    pub parent: Ino,
    /// The name.
    pub name: Name,
}

/// What a name stands for, and in which directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Looked {
    /// `None` when nothing has the name.
    pub named: Option<Named>,
    /// The directory, also when a shard of it was asked.
    pub directory: Ino,
}

/// Where a directory is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectoryPlace {
    /// The directory that it is in. The root is in itself, a shard in its head.
    pub parent: Ino,
    /// Its shards besides the head.
    pub shards: Vec<Ino>,
}

/// Asks for a directory's parent and shards.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerParent {
    /// A directory of this MDT.
    pub ino: Ino,
}

/// Asks for records, for the checker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerRecords {
    /// Where to go on: empty at the beginning, then [`Records::next`].
    pub from: Vec<u8>,
}

/// Some of an MDT's records, as they are stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Records {
    /// Keys and values. Values that the checker does not look at are left out.
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
    /// Inode numbers from here on were never given out.
    pub limit: u64,
    /// How many inodes the MDT counts.
    pub inodes: i64,
}

/// Objects that no inode needs any more; the MDS keeps the record until the OSTs have removed them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Orphan {
    /// The file that is gone.
    pub ino: Ino,
    /// Where its objects are.
    pub layout: Layout,
}

impl Orphan {
    /// The objects with their OSTs.
    pub fn objects(&self) -> impl Iterator<Item = (OstIndex, ObjectId)> + '_ {
        self.layout.stripes().map(|(stripe, ost)| (ost, ObjectId { ino: self.ino, stripe }))
    }
}
