//! Leases: what a client may keep of what an MDT told it, and how the MDT takes that back.
//!
//! A lease comes with the answer to a read ([`LeasedLookup`], [`LeasedGetAttr`]) and is of one [`Part`] of one inode. It ends
//! when the MDT recalls it, and at the latest [`TERM`] after the client has sent the request that got it: so a client that
//! hears nothing any more keeps nothing either, without being told.

use std::time::Duration;

use burstfs_types::{Attr, ClientId, Ino, MdtIndex, Name};
use serde::{Deserialize, Serialize};

use crate::mds::Entry;

/// How long a lease lasts, counted by the client from the moment that it sent its request. Others wait for so long for a
/// client that neither answers nor is known to be gone: shorter than the time-out of their own requests.
pub const TERM: Duration = Duration::from_secs(20);

/// What of an inode is leased.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Part {
    /// Its attributes.
    Attributes,
    /// Of a directory: what its names stand for, and that others are not there.
    Entries,
}

/// One part of one inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Leased {
    /// The inode.
    pub ino: Ino,
    /// Which part.
    pub part: Part,
}

/// Asks what a name stands for, for somebody who wants to keep the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeasedLookup {
    /// The directory. If it is spread over several MDTs, its head: names that another shard holds are not leased.
    pub directory: Ino,
    /// The directory, or the shard of it, of this MDT that holds the name.
    pub parent: Ino,
    /// The entry.
    pub name: Name,
}

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeasedEntry {
    /// As [`crate::mds::Lookup`] answers; `None`: there is no such entry.
    pub entry: Option<Entry>,
    /// The client has a lease of the directory's entries.
    pub has_entries: bool,
    /// The client has a lease of the attributes that are in `entry`.
    pub has_attributes: bool,
}

/// Asks for an inode's attributes, for somebody who wants to keep them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeasedGetAttr {
    /// The inode.
    pub ino: Ino,
}

/// Attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeasedAttr {
    /// The attributes.
    pub attr: Attr,
    /// The client has a lease of them.
    pub has_attributes: bool,
}

rpcs! {
    /// What an MDT asks a client.
    LeaseRequest,
    /// A client's answer.
    LeaseReply, Leases;
    /// Takes leases back. The answer means: nothing of it is kept any more, nor will be what was asked for before.
    0x0601 Idempotent Recall(Recall) -> ();
}

/// Takes leases back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recall {
    /// Whose. A node's later client has nothing of an earlier one's.
    pub client: ClientId,
    /// Which.
    pub what: Recalled,
}

/// Which leases.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Recalled {
    /// These.
    These(Vec<Leased>),
    /// All that this MDT has given: it was started again and does not know them.
    AllOf(MdtIndex),
}
