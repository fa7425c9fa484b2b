//! What the client needs of a connection to another node.

use async_trait::async_trait;
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::oss::{OssReply, OssRequest};
use burstfs_types::Errno;
use bytes::Bytes;
use thiserror::Error;

/// Why another node's service gave no reply.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RemoteError {
    /// The service was reached and says no.
    #[error("{0}")]
    Refused(Errno),
    /// No connection, or the peer is known to be gone.
    #[error("unreachable: {reason}")]
    Unreachable {
        /// What the transport says.
        reason: String,
    },
    /// The request's deadline passed.
    #[error("no answer within the deadline")]
    TimedOut,
    /// The peer sent what is not a reply.
    #[error("broken reply: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
}

/// Memory that goes with a request. It is owned, since a transport may send it again or let the server reach into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteBulk {
    /// None.
    None,
    /// What the server gets.
    Source(Bytes),
    /// Room for so many bytes that the server puts; the reply brings [`RemoteBulk::Received`].
    Sink(usize),
    /// What the server put.
    Received(Bytes),
}

/// The services of another node. An implementation connects when it is first used, resends under the same xid after a
/// lost connection, and gives up at the request's deadline.
#[async_trait]
pub trait RemoteNode: Send + Sync + 'static {
    /// Calls the node's MDT.
    async fn mds(&self, request: MdsRequest) -> Result<MdsReply, RemoteError>;

    /// Calls the node's OST. A request with [`RemoteBulk::Sink`] is answered with [`RemoteBulk::Received`], any other with
    /// [`RemoteBulk::None`].
    async fn oss(&self, request: OssRequest, bulk: RemoteBulk) -> Result<(OssReply, RemoteBulk), RemoteError>;
}
