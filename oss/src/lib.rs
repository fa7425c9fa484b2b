//! Object service: one OST as a directory of object files.
//!
//! Owns the directory and everything in it, the OST's share of the instance's capacity, the open files of its objects, and
//! the record of appends that makes a resend harmless. Does not own: which bytes of a file an object holds
//! (`burstfs-placement`), threads, sockets, or the decision where a request runs.
//!
//! ```text
//!     <directory>/
//!       1f/000000000000002a.0000     object of inode 0x2a, stripe 0; one of 32 sub-directories, made when needed
//!       appends                      appends that clients may send again, see `appends`
//! ```
//!
//! Invariants:
//! 1. An object's bytes live in its file and nowhere else: the page cache is the only cache.
//! 2. The space counter is the sum of what is charged for each object, plus reservations of operations under way. What is
//!    charged for an object is what the device had allocated for it when an operation on it last ended; holes cost nothing.
//!    What the file system adds on its own later (ext4: blocks for the extents of a file in many pieces, made when the
//!    kernel writes it back) is charged with the next operation, or with the next opening.
//! 3. An operation that allocates reserves first, for each block that it touches and that has none. So the share is never
//!    exceeded by more than the file system's own metadata of the objects.
//! 4. A write is acknowledged when all its bytes are in the object, or refused; an append is all or nothing.
//! 5. An append runs once, however often it is sent, also over a restart.
//! 6. Once the device failed a change for good ([`Ost::fatal_error`]), no change is acknowledged; reads go on, since the
//!    drain wants whatever can still be had.
//!
//! What a client on another node reads in a pattern is read ahead into the page cache (`readahead`): there is nowhere else to keep it.
//!
//! Concurrency: every operation runs on the calling thread and ends there; it waits for nothing but the device (and a bulk
//! transfer that is not in this process). Locks, in the order in which they are taken: a shard of the cache of open files,
//! never held together with another lock except an object's charge · an object's content (shared by writes, alone for
//! append, truncate and allocate) · the space counter's gate · the append record, or an object's charge.
//!
//! Failure: the process's death loses nothing that was acknowledged, since it is in the kernel. What dies with the node is
//! gone, and only `Sync` promises more. A failed append leaves the object as it was.

mod allocation;
mod appends;

mod device;
mod lent;
mod list;
mod name;
mod operations;
mod ost;
mod readahead;
mod space;
mod store;
mod subdirs;

pub use ost::{OpenError, Options, Ost};
