//! The way to the other MDTs.

use async_trait::async_trait;
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_types::{Errno, MdtIndex};

/// Sends requests to other MDTs of the instance, and again under the same xid where a connection is lost.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks `mdt`, which is another one than the caller.
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno>;

    /// Whether `mdt` will never answer again: its node is gone, and its records with it.
    fn is_lost(&self, mdt: MdtIndex) -> bool;
}

/// For an instance with one MDT.
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, _mdt: MdtIndex, _request: MdsRequest) -> Result<MdsReply, Errno> {
        Err(Errno::ENXIO)
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }
}
