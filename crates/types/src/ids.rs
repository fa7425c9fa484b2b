//! Typed ids. No `Deref`, no arithmetic: an index of one kind cannot be used as another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(u16);

        impl $name {
            /// The index as given; whether such a target exists is for the instance's map to say.
            pub const fn new(index: u16) -> Self {
                Self(index)
            }

            /// The bare number.
            pub const fn get(self) -> u16 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:04x}"), self.0)
            }
        }
    };
}

index!(
    /// One metadata target of the instance.
    MdtIndex, "MDT");
index!(
    /// One object target of the instance.
    OstIndex, "OST");
index!(
    /// A node of the instance: its position in the job's sorted node list. Node 0 carries the MGS.
    NodeIndex, "node");

/// A file's piece on one OST: its position in the layout's list of OSTs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct StripeIndex(u16);

impl StripeIndex {
    /// The stripe as given.
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The bare number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// An inode number: the index of the MDT that holds the inode, and a counter of that MDT. Never reused in an instance;
/// the kernel's nodeid and `st_ino` are this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ino(u64);

impl Ino {
    /// The root directory: counter 1 of MDT 0, which is also FUSE's root nodeid.
    pub const ROOT: Ino = Ino(1);
    const COUNTER_BITS: u32 = 48;
    /// The largest counter that an MDT may hand out.
    pub const COUNTER_MAX: u64 = (1 << Self::COUNTER_BITS) - 1;

    /// The inode `counter` of `mdt`. `None` when the counter is 0 or does not fit in 48 bits.
    pub const fn new(mdt: MdtIndex, counter: u64) -> Option<Ino> {
        if counter == 0 || counter > Self::COUNTER_MAX {
            return None;
        }
        Some(Ino(((mdt.0 as u64) << Self::COUNTER_BITS) | counter))
    }

    /// The inode with this number, as the kernel or a peer names it. `None` when its counter is 0.
    pub const fn from_raw(raw: u64) -> Option<Ino> {
        if raw & Self::COUNTER_MAX == 0 { None } else { Some(Ino(raw)) }
    }

    /// The number as the kernel sees it.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The MDT that holds the inode.
    pub const fn mdt(self) -> MdtIndex {
        MdtIndex((self.0 >> Self::COUNTER_BITS) as u16)
    }

    /// The counter within its MDT.
    pub const fn counter(self) -> u64 {
        self.0 & Self::COUNTER_MAX
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A file's object on one OST.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectId {
    /// The file.
    pub ino: Ino,
    /// Which stripe of it.
    pub stripe: StripeIndex,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ino, self.stripe.get())
    }
}

/// Who sends requests: one life of one node's `burstfsd`. A restarted daemon is another client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ClientId {
    /// The node.
    pub node: NodeIndex,
    /// Which life of the node's daemon: nanoseconds since the epoch at its start.
    pub incarnation: u64,
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.node, self.incarnation)
    }
}

/// A request's number: rises by one per request of a client, survives reconnection, and is the reply cache's key
/// together with the [`ClientId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Xid(pub u64);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x{}", self.0)
    }
}
