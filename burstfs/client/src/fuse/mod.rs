//! The kernel's side of the client: serves a mounted `/dev/fuse` with a [`ClientFs`].
//!
//! Owns the translation between the kernel's requests and [`ClientFs`], the table of open files that the kernel knows by
//! handle, and the bound on requests under way. Does not own the mount: another, privileged process made it and takes it
//! away; a session ends when that happens.
//!
//! ```text
//!   /dev/fuse -> session thread: build the operation, poll it once
//!                    |- ready (all targets in this process): reply on this thread, no task switch
//!                    `- pending: the operation moves to the runtime with its reply
//! ```
//!
//! Invariants:
//! 1. Nothing is cached by the kernel that could be old on another node: entries and attributes are valid for as long as a
//!    lease lasts ([`crate::fs::Leases`]), else for no time; a listing only beside attributes that are;
//!    a file is opened for direct I/O, or for passthrough where its bytes live on this node (then the cache is that of the
//!    file they live in, which the OST uses too).
//! 2. Every request is answered once, by the operation that owns its reply.
//! 3. Each open file that the kernel has not released when the session ends is closed then.
//!
//! Concurrency: several session threads read the same descriptor. An operation that has to wait holds a part of a
//! bound; at the bound the threads wait too, and the kernel keeps what is not yet read.
//!
//! What fuser 0.18 does not do, met here: it hides the kernel's wish to clear set-id bits in `SETATTR` and `OPEN` (an
//! all-empty `SETATTR` is one; truncation and change of owner imply it for ordinary users); it tells times before the
//! epoch wrongly (`convert::timestamp`); it answers `INTERRUPT` with ENOSYS, so a caller that is killed while its
//! request is under way goes when the answer comes, at the latest at the request's deadline; who waits for a lock is watched
//! (`signals`); it does not pass on whether an ACL's setter may keep set-group-id, which the caller's groups and capabilities tell
//! (`callers`); it does not say whether a lock is one of `flock`, so that these are locks of all bytes, as on NFS.

mod adapter;
mod arrivals;
mod callers;
mod convert;
mod handles;
mod notify;
mod passthrough;
mod replies;
mod run;
mod session;
mod signals;
mod writes;

pub use arrivals::{ArrivalNews, Arrivals, Supply};
pub use passthrough::{BackingIds, Passthrough};
pub use session::{FuseConfig, FuseSession, SessionEnd, serve};

#[cfg(doc)]
use crate::fs::ClientFs;
