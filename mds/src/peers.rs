//! The way to the other MDTs, and to the clients.

use async_trait::async_trait;
use burstfs_proto::leases::Recall;
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_types::{Errno, MdtIndex};

/// Sends requests to other MDTs of the instance, and again under the same xid where a connection is lost.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks `mdt`, which is another one than the caller.
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno>;

    /// Whether `mdt` will never answer again: its node is gone, and its records with it.
    fn is_lost(&self, mdt: MdtIndex) -> bool;

    /// Takes leases back from a client, of any node. Succeeds when it keeps nothing of them any more, or is no more itself;
    /// fails within seconds when it does not answer, and is then asked again.
    async fn recall(&self, recall: Recall) -> Result<(), Errno>;
}

/// For an instance with one MDT, whose clients keep nothing.
pub struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn call(&self, _mdt: MdtIndex, _request: MdsRequest) -> Result<MdsReply, Errno> {
        Err(Errno::ENXIO)
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }

    async fn recall(&self, _recall: Recall) -> Result<(), Errno> {
        Ok(())
    }
}
