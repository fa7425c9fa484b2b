//! The metadata service: one MDT of an instance.
//!
//! Owns the inodes and entries of one MDT, the replies to requests that may come again, and the records of objects that no
//! file needs any more. Does not own sockets (`burstfs-net`), objects (`burstfs-oss`), or the choice of where a new directory
//! lives (`burstfs-placement`).
//!
//! ```text
//!     MetadataService::call
//!          |  Mdt        client, reply cache, locks, clock, commit
//!          v    `--> txn     operations over several MDTs
//!        ops/*           one file each: what POSIX says, synchronous
//!          v
//!       Namespace        inodes, entries, orphans; record::* are their bytes
//!          v
//!      Transaction       an overlay that is committed whole or dropped
//!          v
//!        Engine          RocksDB, or memory
//! ```

mod changes;
mod check;
mod clients;
mod clock;
mod destroy;
mod file_locks;
mod habits;
mod inos;
mod leases;
mod locks;
mod mdt;
mod namespace;
mod ops;
mod peers;
mod record;
mod root;
mod split;
mod store;
mod txn;

pub use check::{Checker, Violation, check};
pub use clock::{Clock, SystemClock};
pub use destroy::ObjectRemover;
pub use mdt::{Mdt, MdtConfig};
pub use peers::{NoPeers, Peers};
pub use store::{Change, Engine, MemoryEngine, Overlay, Pair, RocksEngine, StoreError, Transaction};
