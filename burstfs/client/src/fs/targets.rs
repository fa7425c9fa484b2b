//! The instance's targets: who answers for an MDT or an OST, and how he is called.

use std::ops::Range;
use std::sync::Arc;

use burstfs_net::{Source, XidSource};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::oss::{self, OssReply, OssRequest};
use burstfs_proto::service::{Bulk, MetadataService, NoBulk, ObjectService};
use burstfs_proto::{Answer, Rpc};
use burstfs_types::{MdtIndex, NodeIndex, ObjectId, OstIndex, limits};
use bytes::Bytes;

use super::bulk::{Lent, Room};
use super::data::WriteData;
use super::error::{AppendOrOffset, FsError};
use super::gather::Gatherer;
use super::remote::{RemoteError, RemoteNode};

/// An RPC of the metadata service.
pub(super) trait MdsRpc: Rpc + Into<MdsRequest> {
    fn answer(reply: MdsReply) -> Option<Self::Reply>;
}

impl<R> MdsRpc for R
where
    R: Rpc + Into<MdsRequest>,
    Answer<R>: TryFrom<MdsReply>,
{
    fn answer(reply: MdsReply) -> Option<R::Reply> {
        Answer::try_from(reply).ok().map(|Answer(reply)| reply)
    }
}

/// An RPC of the object service.
pub(super) trait OssRpc: Rpc + Into<OssRequest> {
    fn answer(reply: OssReply) -> Option<Self::Reply>;
}

impl<R> OssRpc for R
where
    R: Rpc + Into<OssRequest>,
    Answer<R>: TryFrom<OssReply>,
{
    fn answer(reply: OssReply) -> Option<R::Reply> {
        Answer::try_from(reply).ok().map(|Answer(reply)| reply)
    }
}

/// Node n, which serves MDT n and OST n.
#[derive(Clone)]
pub enum Node {
    /// This process: calls are function calls.
    Local {
        /// The node's MDT.
        mds: Arc<dyn MetadataService>,
        /// The node's OST.
        oss: Arc<dyn ObjectService>,
    },
    /// Another node.
    Remote(RemoteNode),
}

/// All nodes of the instance, in the order of their indices.
pub struct Targets {
    nodes: Vec<Node>,
    xids: XidSource,
    /// One for each node, where requests that are made at the same time go together.
    gatherers: Vec<Gatherer>,
}

impl Targets {
    /// The targets as a client reaches them that numbers its requests with `xids`: the same numbers as those of its
    /// channels, since a service takes a number for one request only.
    pub fn new(nodes: Vec<Node>, xids: XidSource) -> Targets {
        Targets { nodes, xids, gatherers: Vec::new() }
    }

    /// The same targets; requests to another node's MDT that one task makes at the same time go together.
    pub(super) fn gathering(&self) -> Targets {
        let gatherers = self.nodes.iter().map(|_| Gatherer::default()).collect();
        Targets { nodes: self.nodes.clone(), xids: self.xids.clone(), gatherers }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Says that a node is gone for good: every call to it, also one that waits, fails at once from now on.
    pub fn give_up(&self, node: NodeIndex) {
        if let Some(Node::Remote(remote)) = self.nodes.get(usize::from(node.get())) {
            remote.channel().close();
        }
    }

    pub(super) fn mdts(&self) -> impl Iterator<Item = MdtIndex> + use<> {
        (0..u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)).map(MdtIndex::new)
    }

    pub(super) fn osts(&self) -> impl Iterator<Item = OstIndex> + use<> {
        (0..u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)).map(OstIndex::new)
    }

    /// Whether the OST is in this process.
    pub(super) fn is_local_ost(&self, ost: OstIndex) -> bool {
        matches!(self.nodes.get(usize::from(ost.get())), Some(Node::Local { .. }))
    }

    fn node(&self, index: u16) -> Result<&Node, FsError> {
        self.nodes.get(usize::from(index)).ok_or(FsError::NoSuchNode { node: NodeIndex::new(index) })
    }

    /// Calls an MDT.
    pub(super) async fn mds<R: MdsRpc>(&self, mdt: MdtIndex, request: R) -> Result<R::Reply, FsError> {
        let reply = match self.node(mdt.get())? {
            Node::Local { mds, .. } => {
                let number = self.xids.take();
                mds.call(number.caller(), request.into())
                    .await
                    .map_err(|errno| FsError::Refused { rpc: R::NAME, errno })?
            }
            Node::Remote(remote) => {
                let reply = match self.gatherers.get(usize::from(mdt.get())) {
                    Some(gatherer) => gatherer.call(remote, &self.xids, request.into()).await,
                    None => remote.mds(request.into()).await,
                };
                reply.map_err(remote_error::<R>(mdt.get()))?
            }
        };
        R::answer(reply).ok_or(FsError::WrongReply { rpc: R::NAME })
    }

    /// Calls an OST with a request that has no bulk data.
    pub(super) async fn oss<R: OssRpc>(&self, ost: OstIndex, request: R) -> Result<R::Reply, FsError> {
        match self.node(ost.get())? {
            Node::Local { oss, .. } => self.oss_local(oss.as_ref(), request, &mut NoBulk).await,
            Node::Remote(remote) => {
                let reply = remote.oss(request.into(), None).await.map_err(remote_error::<R>(ost.get()))?;
                R::answer(reply).ok_or(FsError::WrongReply { rpc: R::NAME })
            }
        }
    }

    /// A copy of `data` that can be sent to any other node as it is; waits for nothing.
    pub(super) fn copy_to_send(&self, data: &[u8]) -> Source {
        let remote = self.nodes.iter().find_map(|node| match node {
            Node::Remote(remote) => Some(remote),
            Node::Local { .. } => None,
        });
        remote.map_or_else(|| Bytes::copy_from_slice(data).into(), |remote| remote.copy_to_send(data))
    }

    /// Calls an OST with bytes for it to get: `part` of `data`.
    pub(super) async fn oss_sending<R: OssRpc>(
        &self,
        ost: OstIndex,
        request: R,
        data: WriteData<'_>,
        part: Range<usize>,
    ) -> Result<R::Reply, FsError> {
        match self.node(ost.get())? {
            Node::Local { oss, .. } => self.oss_local(oss.as_ref(), request, &mut Lent(&data.bytes()[part])).await,
            Node::Remote(remote) => {
                let source = match data {
                    WriteData::Lent(bytes) => remote.copy_to_send(&bytes[part]),
                    WriteData::Shared(source) => source.slice(part),
                };
                let reply = remote.oss(request.into(), Some(source)).await.map_err(remote_error::<R>(ost.get()))?;
                R::answer(reply).ok_or(FsError::WrongReply { rpc: R::NAME })
            }
        }
    }

    /// Reads from an object into `into`; how many bytes came.
    pub(super) async fn read_into(
        &self,
        ost: OstIndex,
        object: ObjectId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize, FsError> {
        let Node::Local { oss, .. } = self.node(ost.get())? else {
            let bytes = self.read_remote(ost, object, offset, into.len()).await?;
            into[..bytes.len()].copy_from_slice(&bytes);
            return Ok(bytes.len());
        };
        let request = oss::Read { object, offset, len: read_len(into.len()) };
        let mut room = Room::new(into);
        let done = self.oss_local(oss.as_ref(), request, &mut room).await?;
        let len = done.len as usize;
        if len > room.put_len() { Err(FsError::WrongReply { rpc: oss::Read::NAME }) } else { Ok(len) }
    }

    /// Reads from another node's object. Never more than `len` bytes.
    pub(super) async fn read_remote(
        &self,
        ost: OstIndex,
        object: ObjectId,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, FsError> {
        let Node::Remote(remote) = self.node(ost.get())? else {
            let mut bytes = vec![0; len];
            let read = Box::pin(self.read_into(ost, object, offset, &mut bytes)).await?;
            bytes.truncate(read);
            return Ok(bytes.into());
        };
        let request = oss::Read { object, offset, len: read_len(len) };
        let placed = |error: RemoteError| {
            remote_error::<oss::Read>(ost.get())(error).at(object, AppendOrOffset::Offset(offset), len)
        };
        let (reply, bytes) = remote.read(request).await.map_err(placed)?;
        let done = oss::Read::answer(reply);
        match done.filter(|done| done.len as usize <= bytes.len()) {
            Some(done) => Ok(bytes.slice(..done.len as usize)),
            None => Err(FsError::WrongReply { rpc: oss::Read::NAME }),
        }
    }

    async fn oss_local<R: OssRpc>(
        &self,
        oss: &dyn ObjectService,
        request: R,
        bulk: &mut dyn Bulk,
    ) -> Result<R::Reply, FsError> {
        let number = self.xids.take();
        let reply = oss
            .call(number.caller(), request.into(), bulk)
            .await
            .map_err(|errno| FsError::Refused { rpc: R::NAME, errno })?;
        R::answer(reply).ok_or(FsError::WrongReply { rpc: R::NAME })
    }
}

/// Callers cut their requests to the limit; a longer one would be cut here and read short.
fn read_len(len: usize) -> u32 {
    u32::try_from(len.min(limits::RPC_BULK_MAX_BYTES)).unwrap_or(u32::MAX)
}

fn remote_error<R: Rpc>(node: u16) -> impl FnOnce(RemoteError) -> FsError {
    move |source| FsError::Remote { rpc: R::NAME, node: NodeIndex::new(node), source }
}
