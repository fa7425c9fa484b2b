//! Another node of the instance, over its channel.

use std::net::SocketAddr;
use std::time::Duration;

use burstfs_net::{Channel, Client, ClientBulk, Deadline, Region, RegionTooLarge, RpcError, Source};
use burstfs_proto::batch::{Batch, BatchedReply};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::oss::{OssReply, OssRequest, Read};
use bytes::Bytes;
use thiserror::Error;

/// Why another node gave no answer that is of use.
#[derive(Clone, Debug, Error)]
pub enum RemoteError {
    /// The call failed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// There can be no memory for what would come.
    #[error(transparent)]
    Region(#[from] RegionTooLarge),
}

/// The services of another node. Connects when it is first used; a call is sent again over a new connection until its
/// deadline.
#[derive(Clone)]
pub struct RemoteNode {
    client: Client,
    channel: Channel,
    timeout: Duration,
}

impl RemoteNode {
    /// The node at `address`, whose calls may take `timeout` each.
    pub fn new(client: &Client, address: SocketAddr, timeout: Duration) -> RemoteNode {
        RemoteNode { client: client.clone(), channel: client.channel(address), timeout }
    }

    /// The channel: to close it once the node is known to be gone for good.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(super) async fn mds(&self, request: MdsRequest) -> Result<MdsReply, RemoteError> {
        let (body, _) = self.exchange(request.opcode(), request.encode(), ClientBulk::None).await?;
        Ok(MdsReply::decode(request.opcode(), &body).map_err(RpcError::from)?)
    }

    /// Several requests to the node's MDT.
    pub(super) async fn batch(&self, batch: Batch) -> Result<Vec<BatchedReply>, RemoteError> {
        Ok(self.channel.call(&batch, Deadline::after(self.timeout)).await?)
    }

    /// A copy of `bytes` that can be sent as it is.
    pub(super) fn copy_to_send(&self, bytes: &[u8]) -> Source {
        self.client.copy_to_send(bytes)
    }

    pub(super) async fn oss(&self, request: OssRequest, source: Option<Source>) -> Result<OssReply, RemoteError> {
        let bulk = source.map_or(ClientBulk::None, ClientBulk::Source);
        let (body, _) = self.exchange(request.opcode(), request.encode(), bulk).await?;
        Ok(OssReply::decode(request.opcode(), &body).map_err(RpcError::from)?)
    }

    /// Reads; the bytes are in memory of the transport's, and stay there.
    pub(super) async fn read(&self, request: Read) -> Result<(OssReply, Bytes), RemoteError> {
        let sink = self.client.region(request.len as usize).await?;
        let request = OssRequest::from(request);
        let (body, sink) = self.exchange(request.opcode(), request.encode(), ClientBulk::Sink(sink)).await?;
        let reply = OssReply::decode(request.opcode(), &body).map_err(RpcError::from)?;
        Ok((reply, Bytes::from_owner(sink.unwrap_or_default())))
    }

    async fn exchange(
        &self,
        opcode: u16,
        body: Vec<u8>,
        bulk: ClientBulk,
    ) -> Result<(Bytes, Option<Region>), RpcError> {
        self.channel.exchange(opcode, body, bulk, Deadline::after(self.timeout)).await
    }
}
