//! Locks that programs put on files: `fcntl` byte ranges, open file descriptions' ranges, `flock`.
//!
//! A lock is asked for once. Where it has to wait, the request is answered at once as [`LockAnswer::Waits`], and stays in the
//! MDT's queue under its ticket; [`AwaitLocks`] is the long poll for all tickets of a client. A ticket that waits no longer
//! is asked for again with the same request: the lock is then the client's already, unless the MDT was restarted meanwhile
//! and has forgotten the queue, in which case it waits again. So nothing depends on a message that comes once only.

use burstfs_types::{Ino, NodeIndex};
use serde::{Deserialize, Serialize};

/// What a lock keeps others from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum LockKind {
    /// Others may have it at the same time.
    Shared,
    /// Nobody else may have any.
    Exclusive,
}

/// Bytes from `first` to `last`, both of them in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LockRange {
    /// The first byte.
    pub first: u64,
    /// The last byte; not below `first`.
    pub last: u64,
}

impl LockRange {
    /// All of a file.
    pub const ALL: LockRange = LockRange { first: 0, last: u64::MAX };

    /// Whether some byte is in both.
    pub fn overlaps(self, other: LockRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A lock of somebody on a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// The file.
    pub ino: Ino,
    /// Whose it is among the client's: the kernel's number for a process or an open file description.
    pub owner: u64,
    /// The process, for those who ask who has it.
    pub pid: u32,
    /// Which bytes.
    pub range: LockRange,
    /// Which kind.
    pub kind: LockKind,
}

/// Asks for a lock, in place of what the owner has of these bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetLock {
    /// The lock.
    pub lock: Lock,
    /// Wait under this number, of the client's choice, if somebody else has it; else the answer is EAGAIN.
    pub ticket: Option<u64>,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockAnswer {
    /// The owner has it.
    Granted,
    /// It waits in the queue.
    Waits,
}

/// Gives up what an owner has of some bytes of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unlock {
    /// The file.
    pub ino: Ino,
    /// The owner.
    pub owner: u64,
    /// Which bytes.
    pub range: LockRange,
}

/// Asks who keeps a lock from being granted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetLock {
    /// The lock.
    pub lock: Lock,
}

/// A lock that keeps another from being granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LockHolder {
    /// Which bytes.
    pub range: LockRange,
    /// Which kind.
    pub kind: LockKind,
    /// The holder's node.
    pub node: NodeIndex,
    /// The process there.
    pub pid: u32,
}

/// Waits, for about a second, until one of the client's tickets waits no longer, or one is in the queue that is not named
/// here: then the client asks again for all of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AwaitLocks {
    /// The tickets, at most [`AwaitLocks::TICKETS_MAX`].
    pub tickets: Vec<u64>,
}

impl AwaitLocks {
    /// Tickets of a client that wait at an MDT.
    pub const TICKETS_MAX: usize = 65_536;
}

/// Leaves the queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaveQueue {
    /// The ticket.
    pub ticket: u64,
}
