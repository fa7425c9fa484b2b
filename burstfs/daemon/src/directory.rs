//! The MGS as a node asks it: in its own process on node 0, over the network elsewhere.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use burstfs_net::{Channel, Deadline, RpcError, XidSource};
use burstfs_proto::mgs::{Barrier, BarrierDone, Join, Map, MgsReply, MgsRequest, Phase, WaitMap, Waited};
use burstfs_proto::stage::{Direction, Finished, StageReply, StageRequest, Take, Taken};
use burstfs_proto::{Answer, Rpc};
use burstfs_stager::{QueueLost, WorkQueue};
use burstfs_types::{Code, Failure, NodeIndex};

use crate::mgs::MgsDriver;

/// One long poll.
const POLL: Duration = Duration::from_secs(10);
/// What a request may take on top of what it waits for: longer than node 0's daemon takes to be started again.
const GRACE: Duration = Duration::from_secs(30);

/// The way to the MGS.
#[derive(Clone)]
pub(crate) enum Directory {
    /// Node 0: this process.
    Own(Arc<MgsDriver>, XidSource),
    /// Node 0, from elsewhere.
    Remote(Channel),
}

impl Directory {
    /// Asks the MGS.
    pub(crate) async fn call<R>(&self, request: R) -> Result<R::Reply, RpcError>
    where
        R: Rpc + Into<MgsRequest>,
        Answer<R>: TryFrom<MgsReply>,
    {
        match self {
            Directory::Own(mgs, _) => {
                let reply = mgs.call(request.into()).await.map_err(RpcError::Errno)?;
                Answer::try_from(reply).map(|Answer(reply)| reply).map_err(|_| RpcError::Closed)
            }
            Directory::Remote(channel) => channel.call(&request, Deadline::after(POLL + GRACE)).await,
        }
    }

    /// Joins, and waits until all have.
    pub(crate) async fn join(&self, join: Join) -> Result<Map, Failure> {
        self.call(join).await.map_err(|error| lost(&error))?;
        self.map_newer_than(0).await
    }

    /// Waits for a map newer than `generation`; with the current generation, for a failure of the start.
    pub(crate) async fn map_newer_than(&self, generation: u64) -> Result<Map, Failure> {
        loop {
            let ask = WaitMap { wait_ms: millis(POLL), newer_than: generation };
            match self.call(ask).await.map_err(|error| lost(&error))? {
                Waited::Done(map) => return Ok(map),
                Waited::NotYet => {}
                Waited::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Reaches a phase and waits for the others. `still_waiting` is told of every answer that says "not yet".
    pub(crate) async fn barrier(
        &self,
        node: NodeIndex,
        phase: Phase,
        still_waiting: impl Fn(),
    ) -> Result<BarrierDone, Failure> {
        loop {
            let ask = Barrier { node, phase, wait_ms: millis(POLL) };
            match self.call(ask).await.map_err(|error| lost(&error))? {
                Waited::Done(done) => return Ok(done),
                Waited::NotYet => still_waiting(),
                Waited::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Reaches a phase without waiting. Best effort: whoever waits for it gives this node up when it is gone.
    pub(crate) async fn reach(&self, node: NodeIndex, phase: Phase) {
        if let Err(error) = self.call(Barrier { node, phase, wait_ms: 0 }).await {
            tracing::warn!("the MGS does not hear that {node} reached {phase:?}: {error}");
        }
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn lost(error: &RpcError) -> Failure {
    Failure::new(Code::DrainIncomplete, format!("the first node of the job does not answer: {error}"))
}

/// The queue of staging work, as this node's engine takes from it.
pub(crate) struct Work {
    pub(crate) directory: Directory,
    pub(crate) node: NodeIndex,
    pub(crate) incarnation: u64,
}

#[async_trait]
impl WorkQueue for Work {
    async fn take(&self, direction: Direction, finished: Vec<Finished>, max: u32) -> Result<Taken, QueueLost> {
        let wait_ms = if max == 0 { 0 } else { millis(POLL) };
        let take =
            Take { direction, node: self.node, incarnation: self.incarnation, finished, items_max: max, wait_ms };
        let reply = match &self.directory {
            Directory::Own(mgs, xids) => {
                let number = xids.take();
                let reply = mgs.call_stage(number.caller(), StageRequest::Take(take)).await;
                reply.map(|StageReply::Take(taken)| taken).map_err(RpcError::Errno)
            }
            Directory::Remote(channel) => channel.call(&take, Deadline::after(POLL + GRACE)).await,
        };
        reply.map_err(|error| QueueLost { reason: error.to_string() })
    }
}
