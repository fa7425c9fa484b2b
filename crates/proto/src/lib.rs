//! What burstfs's processes say to one another: the RPC table, the messages, their framing and the hello.
//!
//! Pure: encodes and decodes bytes, opens no socket. All nodes of an instance run the same build, so there is one
//! version and no migration; the hello refuses any other. Whatever arrives is checked against the limits of
//! `burstfs_types::limits` before anything is allocated for it.

#[macro_use]
mod table;
pub mod batch;
pub mod frame;
pub mod hello;
pub mod leases;
pub mod locks;
pub mod mds;
pub mod mgs;
pub mod oss;
pub mod service;
pub mod stage;

pub use table::{Answer, Class, DecodeError, Rpc, Service, decode, encode};

/// Rises with every change of a message: a node that was upgraded under a running job is refused, not misunderstood.
pub const PROTOCOL_VERSION: u32 = 1;
