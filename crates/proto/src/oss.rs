//! The object service's RPCs. Bulk data travels apart from the bodies: the server puts what `Read` returns into the
//! client's memory, and gets what `Write` stores from there.

use burstfs_types::{ObjectId, Timestamp};
use serde::{Deserialize, Serialize};

rpcs! {
    /// A request to an OST.
    OssRequest,
    /// An OST's answer.
    OssReply, Oss;
    /// Reads; the bytes are the reply's bulk data. Stops at the object's end.
    0x0201 ReadOnly Read(Read) -> ReadDone;
    /// Writes the request's bulk data. All of it, or an error.
    0x0202 Idempotent Write(Write) -> WriteDone;
    /// Writes the request's bulk data at the object's end, atomically between clients.
    0x0203 Replayable Append(Append) -> WriteDone;
    /// Sets an object's length; makes it if it is not there.
    0x0204 Idempotent Truncate(Truncate) -> ();
    /// Size and times of objects.
    0x0205 ReadOnly Glimpse(Glimpse) -> Vec<Option<ObjectAttr>>;
    /// Removes objects; those that are not there are no error.
    0x0206 Idempotent Remove(Remove) -> ();
    /// Sets times of an object, if it is there.
    0x0207 Idempotent SetTimes(SetTimes) -> ();
    /// Makes an object's data durable.
    0x0208 Idempotent Sync(Sync) -> ();
    /// `fallocate(2)` on an object.
    0x0209 Idempotent Allocate(Allocate) -> ();
    /// `SEEK_DATA` and `SEEK_HOLE` on an object.
    0x020a ReadOnly Seek(Seek) -> SeekDone;
    /// Space of this OST.
    0x020b ReadOnly Statfs(Statfs) -> OstStatfs;
    /// Which objects there are, for the checker.
    0x020c ReadOnly List(List) -> Listed;
    /// Takes the right to write unseen from mappings of an object.
    0x020d Idempotent WriteBack(WriteBack) -> ();
}

/// Reads `len` bytes at `offset`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Read {
    /// The object.
    pub object: ObjectId,
    /// In the object, bytes.
    pub offset: u64,
    /// At most `limits::RPC_BULK_MAX_BYTES`.
    pub len: u32,
}

/// How much was read: less than asked at the object's end, 0 for an object that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadDone {
    /// Bytes.
    pub len: u32,
}

/// Writes the bulk data at `offset`; makes the object if it is not there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Write {
    /// The object.
    pub object: ObjectId,
    /// In the object, bytes.
    pub offset: u64,
}

/// Writes the bulk data at the object's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Append {
    /// The object; the only one of its file.
    pub object: ObjectId,
}

/// What a write left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WriteDone {
    /// The object's size after it.
    pub size: u64,
}

/// Sets an object's length.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Truncate {
    /// The object.
    pub object: ObjectId,
    /// Bytes.
    pub size: u64,
}

/// Asks for objects' attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Glimpse {
    /// The objects; at most 4,096.
    pub objects: Vec<ObjectId>,
}

/// What an OST knows of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectAttr {
    /// Bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Timestamp,
    /// Last write or truncation.
    pub mtime: Timestamp,
    /// Last change of any kind.
    pub ctime: Timestamp,
}

/// Removes objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remove {
    /// The objects; at most 4,096.
    pub objects: Vec<ObjectId>,
}

/// Sets times of an object; `None` leaves one alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetTimes {
    /// The object.
    pub object: ObjectId,
    /// Last read.
    pub atime: Option<Timestamp>,
    /// Last write.
    pub mtime: Option<Timestamp>,
}

/// `fsync(2)` or `fdatasync(2)` of an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sync {
    /// The object.
    pub object: ObjectId,
    /// Data, and what is needed to find it.
    pub data_only: bool,
}

/// Writes back what mappings have changed. A store through a mapping moves an object's times only when it takes the page for
/// writing; afterwards the next store has to do so again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WriteBack {
    /// The object.
    pub object: ObjectId,
}

/// What `fallocate(2)` shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Allocate; the size grows.
    Extend,
    /// Allocate; the size stays.
    KeepSize,
    /// Make a hole.
    PunchHole,
    /// Zeros; the size grows.
    Zero,
    /// Zeros; the size stays.
    ZeroKeepSize,
}

/// `fallocate(2)` on an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Allocate {
    /// The object.
    pub object: ObjectId,
    /// What to do.
    pub mode: AllocateMode,
    /// In the object, bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SeekTarget {
    /// The next byte that is data.
    Data,
    /// The next hole; the end of the object is one.
    Hole,
}

/// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seek {
    /// The object.
    pub object: ObjectId,
    /// What to look for.
    pub target: SeekTarget,
    /// From here on.
    pub offset: u64,
}

/// Where it is; `None` when there is no more of it (ENXIO).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeekDone {
    /// In the object, bytes.
    pub offset: Option<u64>,
}

/// Asks for the OST's space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statfs;

/// An OST's space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OstStatfs {
    /// The OST's share of the instance's capacity.
    pub capacity: u64,
    /// Used by objects.
    pub used: u64,
    /// What can still be written: the rest of the share, or less where the device has less.
    pub available: u64,
    /// Objects.
    pub objects: u64,
}

/// Asks for objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct List {
    /// Which part of the OST: 0 at the beginning, then [`Listed::next`]'s.
    pub part: u16,
    /// The last object seen of that part.
    pub behind: Option<ObjectId>,
}

/// Some of an OST's objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listed {
    /// The objects, with the bytes that are allocated for each.
    pub objects: Vec<(ObjectId, u64)>,
    /// Where to go on; `None` at the end.
    pub next: Option<List>,
}
