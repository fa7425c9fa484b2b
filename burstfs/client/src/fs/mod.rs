//! The file system over inodes, without FUSE.
//!
//! Owns the routing: an inode's metadata lives on the MDT that its number names, a file's bytes on the OSTs of its
//! layout; a target of this node is called directly, another node's over its connection. Owns the merging of what the
//! MDT and the OSTs know of a file into one set of attributes.
//!
//! Does not own state that could grow old: no attribute, entry or byte is kept between two calls, so what one node has
//! been told is done, every other node sees. The exceptions are [`OpenFile`], which holds what never changes of an open
//! file (its inode, and its layout once it is decided) a hint about set-id bits, the names of
//! those who have locks, and how directories are spread over MDTs, where whoever is wrong is told so ([`shards`]). What the
//! kernel keeps is covered by leases ([`Leases`]).
//!
//! Invariants:
//! - the bytes of a regular file are its objects' bytes; the size is the end of the last byte that any object holds;
//! - size, blocks, atime and mtime of a file come from its objects as soon as there is one, else from the MDT; ctime is
//!   the latest of both;
//! - every [`OpenFile`] is one registration at the MDT, and is taken back by one [`ClientFs::close`].
//!
//! Concurrency: every method takes `&self`; nothing is locked across an await. An operation that needs only targets of
//! this node finishes at its first poll. Dropping an operation's future half way leaves it done or not done, as a lost
//! connection would.
//!
//! Failure: [`FsError`], and what a user sees of it is decided in one place, [`FsError::errno`].

mod attr;
mod bulk;
mod data;
mod dir;
mod error;
mod file;
mod gather;
mod layout;
mod leases;
mod locks;
mod namespace;
mod remote;
mod shards;
mod statfs;
mod targets;
mod xattr;

use std::sync::Arc;

use burstfs_types::{Ino, Name, NodeIndex, OstIndex};

pub use attr::AttrChange;
pub use data::{FallocateRange, WriteData};
pub use dir::{Listed, PlusEntry, PlusListing};
pub use error::{AppendOrOffset, FsError};
pub use file::OpenFile;
pub use leases::{KernelCache, Leases};
pub use namespace::{Credentials, Looked, NewFile, NewSpecial, Opened};
pub use remote::{RemoteError, RemoteNode};
pub use statfs::FsStatfs;
pub use targets::{Node, Targets};

use file::SetIdWatch;
use locks::LockState;
use shards::Spread;

/// The file system, as the node `node` of the instance sees it.
pub struct ClientFs {
    targets: Arc<Targets>,
    node: NodeIndex,
    watch: Arc<SetIdWatch>,
    locks: Arc<LockState>,
    spread: Arc<Spread>,
    leases: Arc<Leases>,
    /// Whether this node's kernel asks, which then knows what was changed.
    is_for_kernel: bool,
}

impl ClientFs {
    /// The file system over `targets`, for a client on `node`: new files live on that node's OST. `leases` answers the MDTs.
    pub fn new(targets: Targets, node: NodeIndex, leases: Arc<Leases>) -> ClientFs {
        ClientFs {
            targets: Arc::new(targets),
            node,
            watch: Arc::default(),
            locks: Arc::default(),
            spread: Arc::default(),
            leases,
            is_for_kernel: true,
        }
    }

    /// What the kernel may keep.
    pub(crate) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// Takes from the kernel all that it keeps: what it is told from now on may be something else.
    pub async fn take_from_kernel(&self) {
        self.leases.drop_all().await;
    }

    /// A change of these inodes, and these names in directories, was tried. To be told before the caller hears what came of it.
    async fn told<T>(&self, tried: Result<T, FsError>, inos: &[Ino], names: &[(Ino, &Name)]) -> Result<T, FsError> {
        match &tried {
            // The MDT spares its caller the recall; the kernel does not know that it has happened, if it has.
            Err(error) if error.leaves_open() => self.leases.drop_all().await,
            _ => self.changed(inos, names).await,
        }
        tried
    }

    /// These inodes were changed, and these names in directories. To be told before the caller hears that it is done.
    async fn changed(&self, inos: &[Ino], names: &[(Ino, &Name)]) {
        if self.is_for_kernel {
            self.leases.changed(inos);
        } else {
            self.leases.changed_behind_the_kernel(inos, names).await;
        }
    }

    /// This node.
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// The same file system for whoever works on many files at once: what one task asks of another node's MDT at the same
    /// time goes there in one message.
    pub fn gathering(&self) -> ClientFs {
        ClientFs {
            targets: Arc::new(self.targets.gathering()),
            node: self.node,
            watch: Arc::clone(&self.watch),
            locks: Arc::clone(&self.locks),
            spread: Arc::clone(&self.spread),
            leases: Arc::clone(&self.leases),
            is_for_kernel: false,
        }
    }

    /// The OST of this node.
    pub fn local_ost(&self) -> OstIndex {
        OstIndex::new(self.node.get())
    }

    /// The targets.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }
}
