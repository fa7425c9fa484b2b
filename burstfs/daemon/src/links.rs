//! What the MDT of this node needs of the other nodes: their MDTs, and the removal of objects of files that are gone.
//!
//! Owns one channel per other node; it is connected when first used. The MDT may be asked before this node has the map:
//! another node may have got it a moment earlier. What needs another node then waits for the map.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_client::fs::Leases;
use burstfs_mds::{ObjectRemover, Peers};
use burstfs_net::{Channel, Client, ClientBulk, Deadline, Numbered, RpcError};
use burstfs_oss::Ost;
use burstfs_proto::Rpc;
use burstfs_proto::leases::Recall;
use burstfs_proto::mds::{MdsReply, MdsRequest, Orphan};
use burstfs_proto::mgs::Map;
use burstfs_proto::oss::Remove;
use burstfs_proto::service::{NoBulk, ObjectService};
use burstfs_types::{Errno, Ino, MdtIndex, NodeIndex, ObjectId, OstIndex};
use tokio::sync::watch;

/// How long a request waits for a node that does not answer: longer than a daemon takes to be started again.
pub(crate) const RPC_TIMEOUT: Duration = Duration::from_secs(60);

/// How long one attempt to take leases back waits for an answer: who has waited so long asks again.
const RECALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The channels to all nodes, by node index. Clones share them.
#[derive(Clone)]
pub(crate) struct Links {
    client: Client,
    channels: Arc<watch::Sender<Vec<Channel>>>,
    lost: Arc<Mutex<HashSet<NodeIndex>>>,
    own: NodeIndex,
    /// What this node's kernel keeps.
    leases: Arc<Leases>,
}

impl Links {
    /// No map yet. `leases` are those of this node's own client.
    pub(crate) fn new(client: Client, own: NodeIndex, leases: Arc<Leases>) -> Links {
        Links { client, channels: Arc::new(watch::Sender::new(Vec::new())), lost: Arc::default(), own, leases }
    }

    /// Takes the map over.
    pub(crate) fn set_map(&self, map: &Map) {
        let channels = map.nodes.iter().map(|node| self.client.channel(node.address)).collect();
        self.channels.send_replace(channels);
    }

    /// Ends the channel to a node that will not come back.
    pub(crate) fn give_up(&self, node: NodeIndex) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
        if let Some(channel) = self.channels.borrow().get(usize::from(node.get())) {
            channel.close();
        }
    }

    async fn channel(&self, node: u16) -> Result<Channel, RpcError> {
        let mut channels = self.channels.subscribe();
        let known = channels.wait_for(|channels| !channels.is_empty()).await.map_err(|_| RpcError::Closed)?;
        known.get(usize::from(node)).cloned().ok_or(RpcError::Errno(Errno::ENXIO))
    }

    /// How many nodes there are.
    pub(crate) async fn nodes(&self) -> Result<u16, Errno> {
        let mut channels = self.channels.subscribe();
        let known = channels.wait_for(|channels| !channels.is_empty()).await.map_err(|_| Errno::EIO)?;
        u16::try_from(known.len()).map_err(|_| Errno::EIO)
    }

    /// A number for a call within this process.
    pub(crate) fn take_number(&self) -> Numbered {
        self.client.xids().take()
    }

    /// Calls a service of another node.
    pub(crate) async fn call_node<R: Rpc>(&self, node: NodeIndex, request: &R) -> Result<R::Reply, RpcError> {
        self.channel(node.get()).await?.call(request, Deadline::after(RPC_TIMEOUT)).await
    }

    /// Calls another MDT.
    pub(crate) async fn call_mds(&self, mdt: MdtIndex, request: &MdsRequest) -> Result<MdsReply, RpcError> {
        let channel = self.channel(mdt.get()).await?;
        let deadline = Deadline::after(RPC_TIMEOUT);
        let (body, _) = channel.exchange(request.opcode(), request.encode(), ClientBulk::None, deadline).await?;
        Ok(MdsReply::decode(request.opcode(), &body)?)
    }
}

#[async_trait]
impl Peers for Links {
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno> {
        self.call_mds(mdt, &request).await.map_err(|error| {
            if !matches!(error, RpcError::Errno(_)) {
                tracing::warn!("{} to {mdt}: {error}", request.name());
            }
            error.errno()
        })
    }

    fn is_lost(&self, mdt: MdtIndex) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(&NodeIndex::new(mdt.get()))
    }

    async fn recall(&self, recall: Recall) -> Result<(), Errno> {
        if recall.client.node == self.own {
            return self.leases.recall(recall).await;
        }
        let channel = self.channel(recall.client.node.get()).await?;
        Ok(channel.call(&recall, Deadline::after(RECALL_TIMEOUT)).await?)
    }
}

/// Removes objects of files that are gone, here and on other nodes.
pub(crate) struct Remover {
    pub(crate) own: NodeIndex,
    pub(crate) links: Links,
    pub(crate) ost: Arc<Ost>,
}

#[async_trait]
impl ObjectRemover for Remover {
    async fn remove(&self, orphans: &[Orphan]) -> Vec<Ino> {
        let objects: Vec<(OstIndex, ObjectId)> = orphans.iter().flat_map(Orphan::objects).collect();
        let osts: HashSet<OstIndex> = objects.iter().map(|(ost, _)| *ost).collect();
        let mut failed = HashSet::new();
        for ost in osts {
            let of_ost = objects.iter().filter(|(at, _)| *at == ost).map(|(_, object)| *object).collect();
            if let Err(error) = self.remove_from(ost, of_ost).await
                // The node was given up, and its objects with it.
                && !matches!(error, RpcError::Closed)
            {
                tracing::warn!("{} to {ost}: {error}; it is tried again", Remove::NAME);
                failed.insert(ost);
            }
        }
        let is_gone = |orphan: &&Orphan| orphan.layout.osts().iter().all(|ost| !failed.contains(ost));
        orphans.iter().filter(is_gone).map(|orphan| orphan.ino).collect()
    }
}

impl Remover {
    async fn remove_from(&self, ost: OstIndex, objects: Vec<ObjectId>) -> Result<(), RpcError> {
        let request = Remove { objects };
        if ost.get() != self.own.get() {
            return self.links.channel(ost.get()).await?.call(&request, Deadline::after(RPC_TIMEOUT)).await;
        }
        let number = self.links.client.xids().take();
        let removed = self.ost.call(number.caller(), request.into(), &mut NoBulk).await;
        removed.map(drop).map_err(RpcError::Errno)
    }
}
