//! Where things go: stripe arithmetic of a file's bytes, the home of a new directory, the layout of a new file.
//!
//! Owns the arithmetic and nothing else: pure, no I/O, no state, no clock. Clients, MDSs and the stager compute the same
//! answers from the same arguments.
//!
//! Round robin over `n` stripes of `s` bytes, rows from top to bottom:
//!
//! ```text
//!     file      | unit 0 | unit 1 | unit 2 | unit 3 | unit 4 | ...        n = 3
//!     stripe 0  | unit 0 | unit 3 | ...
//!     stripe 1  | unit 1 | unit 4 | ...
//!     stripe 2  | unit 2 | ...
//! ```
//!
//! Invariants: the extents of a range are disjoint, in file order, and cover it exactly; [`file_offset`] is the inverse of
//! [`extents`]; `object_size(stripe, x)` is the number of bytes below file offset `x` that the stripe holds, hence also the
//! first object offset at or behind `x`.
//!
//! Failure: none. Every argument is accepted: sums saturate at `u64::MAX`, far behind
//! `burstfs_types::limits::FILE_SIZE_MAX_BYTES`, which the callers enforce.

mod home;
mod stripes;

pub use home::{directory_home, name_hash, shard_homes, striped};
pub use stripes::{Extent, Extents, extents, file_offset, file_size, object_size};
