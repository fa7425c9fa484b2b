//! The services of this node, for every other node: which request goes to which role, and who may ask.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use burstfs_client::fs::Leases;
use burstfs_mds::Mdt;
use burstfs_net::{Handler, Peer};
use burstfs_oss::Ost;
use burstfs_proto::DecodeError;
use burstfs_proto::batch::{self, BatchReply, BatchRequest};
use burstfs_proto::hello::Role;
use burstfs_proto::leases::{LeaseReply, LeaseRequest};
use burstfs_proto::mds::MdsRequest;
use burstfs_proto::mgs::{MgsReply, MgsRequest};
use burstfs_proto::oss::OssRequest;
use burstfs_proto::service::{Bulk, Caller, MetadataService, ObjectService};
use burstfs_proto::stage::StageRequest;
use burstfs_types::{Errno, NodeIndex};
use tokio::sync::watch;

use crate::check;
use crate::links::Links;
use crate::mgs::MgsDriver;
use crate::turns::Turns;

/// Transfers up to this size are done on the thread that has the request: handing it over would cost more than a copy
/// from or to the page cache.
const SMALL_IO_BYTES: usize = 64 << 10;

/// Long transfers that are under way at a time for each processor: more would only take turns at the page cache.
const TRANSFERS_PER_PROCESSOR: usize = 4;

/// How long a request for the MGS waits on a node that does not carry it.
const TAKING_OVER: Duration = Duration::from_secs(10);

/// The targets of this node.
#[derive(Clone)]
pub(crate) struct Targets {
    pub(crate) own: NodeIndex,
    pub(crate) mdt: Arc<Mdt>,
    pub(crate) ost: Arc<Ost>,
    /// The way to the others'.
    pub(crate) links: Links,
    /// What this node's kernel keeps.
    pub(crate) leases: Arc<Leases>,
}

/// Answers what comes over the network. The targets are opened while the node joins, so they may be a moment away.
pub(crate) struct Roles {
    targets: watch::Receiver<Option<Targets>>,
    mgs: watch::Receiver<Option<Arc<MgsDriver>>>,
    /// Of long transfers at the OST.
    turns: Turns,
}

impl Roles {
    /// `mgs` is there on the node that carries the MGS, and comes when another node takes it over.
    pub(crate) fn new(
        targets: watch::Receiver<Option<Targets>>,
        mgs: watch::Receiver<Option<Arc<MgsDriver>>>,
    ) -> Roles {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Roles { targets, mgs, turns: Turns::new((TRANSFERS_PER_PROCESSOR * processors).clamp(8, 64)) }
    }

    async fn targets(&self) -> Result<Targets, Errno> {
        let mut targets = self.targets.clone();
        let opened = targets.wait_for(Option::is_some).await.map_err(|_| Errno::EIO)?;
        opened.clone().ok_or(Errno::EIO)
    }

    /// Whoever asks a node that does not carry the MGS has noticed earlier than the node itself that it is to take it over.
    async fn mgs(&self) -> Result<Arc<MgsDriver>, Errno> {
        let mut mgs = self.mgs.clone();
        let taken_over = tokio::time::timeout(TAKING_OVER, mgs.wait_for(Option::is_some)).await;
        let carried = taken_over.map_err(|_| Errno::ENXIO)?.map_err(|_| Errno::EIO)?;
        carried.clone().ok_or(Errno::ENXIO)
    }

    async fn call_oss(&self, caller: Caller, request: OssRequest, bulk: &mut dyn Bulk) -> Result<Vec<u8>, Errno> {
        let ost = self.targets().await?.ost;
        let is_transfer = matches!(request, OssRequest::Read(_) | OssRequest::Write(_) | OssRequest::Append(_));
        let is_long = match &request {
            OssRequest::Read(_) | OssRequest::Write(_) | OssRequest::Append(_) => {
                bulk.source_len().max(bulk.sink_len()) > SMALL_IO_BYTES
            }
            OssRequest::Sync(_)
            | OssRequest::WriteBack(_)
            | OssRequest::Remove(_)
            | OssRequest::Truncate(_)
            | OssRequest::Allocate(_)
            | OssRequest::List(_) => true,
            OssRequest::Glimpse(_) | OssRequest::SetTimes(_) | OssRequest::Seek(_) | OssRequest::Statfs(_) => false,
        };
        if !is_long {
            return ost.call(caller, request, bulk).await.map(|reply| reply.encode());
        }
        // A client that sends a hundred of them does not keep the others waiting. What is not a transfer is seldom, or waits for the
        // device alone.
        let _turn = if is_transfer { Some(self.turns.take(caller.client).await) } else { None };
        // The OST finishes without waiting, so blocking on it is only the I/O itself.
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(ost.call(caller, request, bulk))).map(|reply| reply.encode())
    }
}

#[async_trait]
impl Handler for Roles {
    async fn handle(
        &self,
        peer: &Peer,
        caller: Caller,
        opcode: u16,
        body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> Result<Vec<u8>, Errno> {
        let refused = |error: DecodeError| {
            tracing::warn!("a request of {:?} is refused: {error}", peer.role);
            Errno::EPROTO
        };
        check_role(peer, opcode)?;
        match opcode >> 8 {
            1 => {
                let request = MdsRequest::decode(opcode, body).map_err(refused)?;
                self.targets().await?.mdt.call(caller, request).await.map(|reply| reply.encode())
            }
            2 => self.call_oss(caller, OssRequest::decode(opcode, body).map_err(refused)?, bulk).await,
            3 => {
                let request = MgsRequest::decode(opcode, body).map_err(refused)?;
                if let MgsRequest::Check(_) = request {
                    return Ok(MgsReply::Check(check::check(&self.targets().await?).await?).encode());
                }
                self.mgs().await?.call(request).await.map(|reply| reply.encode())
            }
            4 => {
                let request = StageRequest::decode(opcode, body).map_err(refused)?;
                self.mgs().await?.call_stage(caller, request).await.map(|reply| reply.encode())
            }
            5 => {
                let BatchRequest::Batch(batch) = BatchRequest::decode(opcode, body).map_err(refused)?;
                let mdt = self.targets().await?.mdt;
                batch::run(&*mdt, caller, batch).await.map(|replies| BatchReply::Batch(replies).encode())
            }
            6 => {
                let LeaseRequest::Recall(recall) = LeaseRequest::decode(opcode, body).map_err(refused)?;
                self.targets().await?.leases.recall(recall).await.map(|()| LeaseReply::Recall(()).encode())
            }
            _ => Err(refused(DecodeError::UnknownOpcode(opcode))),
        }
    }
}

/// The `burstfs` command may ask how the instance is, for a drain, and have what is held drained; nothing else.
fn check_role(peer: &Peer, opcode: u16) -> Result<(), Errno> {
    use burstfs_proto::Rpc;
    use burstfs_proto::mgs::{AskDrain, AwaitDrain, Check, Resume, Status};
    match peer.role {
        Role::Node(_) => Ok(()),
        Role::Command => {
            let allowed = [Status::OPCODE, Check::OPCODE, Resume::OPCODE, AskDrain::OPCODE, AwaitDrain::OPCODE];
            if allowed.contains(&opcode) { Ok(()) } else { Err(Errno::EACCES) }
        }
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::{ClientId, NodeIndex};

    use super::*;

    #[test]
    fn a_command_may_only_ask_and_have_drained() {
        let client = ClientId { node: NodeIndex::new(0), incarnation: 1 };
        let command = Peer { uid: 7, role: Role::Command, client };
        let node = Peer { role: Role::Node(client), ..command };
        for (opcode, expected) in
            [(0x0306, Ok(())), (0x0310, Ok(())), (0x0301, Err(Errno::EACCES)), (0x0101, Err(Errno::EACCES))]
        {
            assert_eq!(check_role(&command, opcode), expected);
            assert_eq!(check_role(&node, opcode), Ok(()));
        }
    }
}
