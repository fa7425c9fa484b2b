//! RDMA for the transport: what it needs of libibverbs and librdmacm, safe to call.
//!
//! ```text
//!   Device --- ProtectionDomain --- Arena (slabs, registered once) --- Block, Hold
//!      |                |                                                |
//!   ConnectionId --- Endpoint (QP, CQ, windows) <-- memory under way ----'
//! ```
//!
//! Owns: all unsafe code of burstfs that touches verbs, and the argument why each piece of it is right. Does not own:
//! messages, credits, and when to do what (`burstfs_net::rdma` does).
//!
//! Invariants: memory that a device may write to is reachable by no code (the endpoint has it); memory that a device may read
//! is not reused before it has; nothing is ever exposed to a peer but through a window, which is bound to one range and one
//! connection (`endpoint`). Concurrency: an endpoint and an identifier belong to one thread at a time; arenas are shared.
//! Nothing here blocks but the calls that take a connection apart, for as long as the kernel takes.
//!
//! The bindings are named in one module, `sys`.

mod buddy;
mod cm;
mod device;
mod endpoint;
mod error;
mod extents;
mod memory;
mod sync;
mod sys;
mod table;

pub use cm::{ConnectionId, Event, PRIVATE_DATA_MAX_BYTES, Terms};
pub use device::{Device, DeviceLimits, ProtectionDomain, Unusable};
pub use endpoint::{Completion, Depths, Done, Endpoint, Exposure, Lent, Remote};
pub use error::{VerbsError, WorkError};
pub use memory::{Arena, BLOCK_MAX_BYTES, BLOCK_MIN_BYTES, Block, Hold, Purpose, SLAB_BYTES};
