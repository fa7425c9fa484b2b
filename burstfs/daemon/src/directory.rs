//! The MGS as a node asks it: in its own process where it is, over the network elsewhere.
//!
//! Owns where the MGS is, as this node sees it (the seat), and how long nothing was heard of it. A request that was under way
//! to a seat that was left goes to the next; staging work does not, since each MGS has a queue of its own. Who decides that
//! the seat moves is [`crate::succession`].

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_net::{Channel, Deadline, RpcError, XidSource};
use burstfs_proto::mgs::{Barrier, BarrierDone, Join, Map, MgsReply, MgsRequest, Phase, WaitMap, Waited};
use burstfs_proto::stage::{AwaitRound, Direction, Finished, Round, StageReply, StageRequest, Take, Taken};
use burstfs_proto::{Answer, Rpc};
use burstfs_stager::{QueueLost, WorkQueue};
use burstfs_types::{Code, Errno, Failure, NodeIndex};
use tokio::sync::watch;

use crate::mgs::MgsDriver;

/// One long poll.
const POLL: Duration = Duration::from_secs(10);
/// What a request may take on top of what it waits for, and of the time after which its MGS is lost.
const GRACE: Duration = Duration::from_secs(15);
/// Before a node that holds data asks an MGS again that has refused it: the first pause, and the last.
const JOIN_PAUSE: Duration = Duration::from_millis(50);
const JOIN_PAUSE_LAST: Duration = Duration::from_millis(3_200);

/// Which node carries the MGS, and the way to it.
#[derive(Clone)]
pub(crate) struct Seat {
    /// The node.
    pub(crate) node: NodeIndex,
    way: Way,
}

#[derive(Clone)]
enum Way {
    /// This process.
    Own(Arc<MgsDriver>, XidSource),
    /// Another node's.
    Remote(Channel),
}

impl Seat {
    /// The MGS is in this process, on `node`. `xids` number this node's requests for staging work.
    pub(crate) fn own(node: NodeIndex, mgs: Arc<MgsDriver>, xids: XidSource) -> Seat {
        Seat { node, way: Way::Own(mgs, xids) }
    }

    /// The MGS is on `node`, another one.
    pub(crate) fn remote(node: NodeIndex, channel: Channel) -> Seat {
        Seat { node, way: Way::Remote(channel) }
    }

    /// The MGS, if it is in this process.
    pub(crate) fn mgs(&self) -> Option<&Arc<MgsDriver>> {
        match &self.way {
            Way::Own(mgs, _) => Some(mgs),
            Way::Remote(_) => None,
        }
    }

    /// The channel to the MGS, if it is elsewhere.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        match &self.way {
            Way::Own(..) => None,
            Way::Remote(channel) => Some(channel),
        }
    }
}

/// The way to the MGS, wherever it is now. Clones share it.
#[derive(Clone)]
pub(crate) struct Directory {
    seat: Arc<watch::Sender<Seat>>,
    silent_ticks: Arc<AtomicU32>,
    patience: Duration,
}

impl Directory {
    /// The MGS is at `seat`; `silence` is the time without a word after which a node is lost.
    pub(crate) fn new(seat: Seat, silence: Duration) -> Directory {
        Directory {
            seat: Arc::new(watch::Sender::new(seat)),
            silent_ticks: Arc::default(),
            patience: POLL + silence + GRACE,
        }
    }

    /// Where the MGS is now.
    pub(crate) fn seat(&self) -> Seat {
        self.seat.borrow().clone()
    }

    /// Whether the MGS is no longer on `node`.
    pub(crate) fn has_left(&self, node: NodeIndex) -> bool {
        self.seat.borrow().node != node
    }

    /// Waits until the MGS is no longer on `node`.
    pub(crate) async fn left(&self, node: NodeIndex) {
        // An error would mean that the sender is gone, and it is here.
        let _ = self.seat.subscribe().wait_for(|seat| seat.node != node).await;
    }

    /// From now on the MGS is at `next`. What waits for the one before is asked there again.
    pub(crate) fn move_to(&self, next: Seat) {
        self.silent_ticks.store(0, Ordering::Relaxed);
        let before = self.seat.send_replace(next);
        if let Some(channel) = before.channel() {
            channel.close();
        }
    }

    /// A tick of time has passed; how many there were since the MGS was last heard.
    pub(crate) fn tick(&self) -> u32 {
        match self.seat.borrow().way {
            Way::Own(..) => 0,
            Way::Remote(_) => self.silent_ticks.fetch_add(1, Ordering::Relaxed).saturating_add(1),
        }
    }

    /// Asks the MGS, wherever it is.
    pub(crate) async fn call<R>(&self, request: R) -> Result<R::Reply, RpcError>
    where
        R: Rpc + Into<MgsRequest> + Clone,
        Answer<R>: TryFrom<MgsReply>,
    {
        loop {
            let seat = self.seat();
            match self.ask(&seat, &request).await {
                Err(_) if self.has_left(seat.node) => {}
                answered => return answered,
            }
        }
    }

    async fn ask<R>(&self, seat: &Seat, request: &R) -> Result<R::Reply, RpcError>
    where
        R: Rpc + Into<MgsRequest> + Clone,
        Answer<R>: TryFrom<MgsReply>,
    {
        match &seat.way {
            Way::Own(mgs, _) => {
                let reply = mgs.call(request.clone().into()).await.map_err(RpcError::Errno)?;
                Answer::try_from(reply).map(|Answer(reply)| reply).map_err(|_| RpcError::Closed)
            }
            Way::Remote(channel) => {
                let answered = channel.call(request, Deadline::after(self.patience)).await;
                if matches!(answered, Ok(_) | Err(RpcError::Errno(_))) {
                    self.silent_ticks.store(0, Ordering::Relaxed);
                }
                answered
            }
        }
    }

    /// Joins, and waits until all have; of an instance that is held, until an attempt begins.
    pub(crate) async fn join(&self, join: Join) -> Result<Map, Failure> {
        let mut pause = JOIN_PAUSE;
        loop {
            match self.call(join.clone()).await {
                Ok(()) => return self.map_newer_than(0).await,
                // The MGS of the attempt before is about to end: its next life answers at the same address.
                Err(RpcError::Errno(Errno::ESTALE)) if join.held.is_some() && pause <= JOIN_PAUSE_LAST => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(not_reached(&error)),
            }
        }
    }

    /// Waits for a map newer than `generation`; with the current generation, for a failure of the start.
    pub(crate) async fn map_newer_than(&self, generation: u64) -> Result<Map, Failure> {
        let ask = || WaitMap { wait_ms: millis(POLL), newer_than: generation };
        self.until_done(ask, || {}).await
    }

    /// Reaches a phase and waits for the others. `still_waiting` is told of every answer that says "not yet".
    pub(crate) async fn barrier(
        &self,
        node: NodeIndex,
        phase: Phase,
        still_waiting: impl Fn(),
    ) -> Result<BarrierDone, Failure> {
        self.until_done(|| Barrier { node, phase, wait_ms: millis(POLL) }, still_waiting).await
    }

    async fn until_done<R, T>(&self, ask: impl Fn() -> R, still_waiting: impl Fn()) -> Result<T, Failure>
    where
        R: Rpc<Reply = Waited<T>> + Into<MgsRequest> + Clone,
        Answer<R>: TryFrom<MgsReply>,
    {
        loop {
            match self.call(ask()).await.map_err(|error| not_reached(&error))? {
                Waited::Done(done) => return Ok(done),
                Waited::NotYet => still_waiting(),
                Waited::Failed(failure) => return Err(failure),
            }
        }
    }

    /// Waits for a round of draining at `seat`, above `newer_than`; `None`: not yet.
    pub(crate) async fn await_round(&self, seat: &Seat, newer_than: u64) -> Result<Option<Round>, RpcError> {
        let request = AwaitRound { newer_than, wait_ms: millis(POLL) };
        let asked = async {
            match &seat.way {
                Way::Own(mgs, _) => Ok(mgs.await_round(newer_than, request.wait_ms).await),
                Way::Remote(channel) => channel.call(&request, Deadline::after(self.patience)).await,
            }
        };
        tokio::select! {
            biased;
            () = self.left(seat.node) => Ok(None),
            answer = asked => answer,
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

fn not_reached(error: &RpcError) -> Failure {
    Failure::new(Code::NodeLost, format!("the node that carries the MGS does not answer: {error}"))
}

/// The queue of staging work at one seat, as this node's engine takes from it. When the MGS leaves the seat the queue is
/// lost: the next MGS has one of its own.
pub(crate) struct Work {
    pub(crate) directory: Directory,
    pub(crate) seat: Seat,
    /// Which queue: that of a round, or 0.
    pub(crate) round: u64,
    pub(crate) node: NodeIndex,
    pub(crate) incarnation: u64,
}

impl Work {
    async fn ask(&self, take: Take) -> Result<Taken, RpcError> {
        match &self.seat.way {
            Way::Own(mgs, xids) => {
                let number = xids.take();
                let reply = mgs.call_stage(number.caller(), StageRequest::Take(take)).await;
                match reply.map_err(RpcError::Errno)? {
                    StageReply::Take(taken) => Ok(taken),
                    StageReply::AwaitRound(_) => Err(RpcError::Closed),
                }
            }
            Way::Remote(channel) => channel.call(&take, Deadline::after(self.directory.patience)).await,
        }
    }

    async fn unless_left<T>(&self, asked: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
        tokio::select! {
            biased;
            () = self.directory.left(self.seat.node) => Err(RpcError::Closed),
            answer = asked => answer,
        }
    }
}

#[async_trait]
impl WorkQueue for Work {
    async fn take(&self, direction: Direction, finished: Vec<Finished>, max: u32) -> Result<Taken, QueueLost> {
        let wait_ms = if max == 0 { 0 } else { millis(POLL) };
        let take = Take {
            direction,
            round: self.round,
            node: self.node,
            incarnation: self.incarnation,
            finished,
            items_max: max,
            wait_ms,
        };
        self.unless_left(self.ask(take)).await.map_err(|error| QueueLost { reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::mgs::{Report, StageFigures};

    use super::*;
    use crate::fixture::Fixture;

    const SILENCE: Duration = Duration::from_secs(30);

    /// The MGS is on node 0, which does not answer.
    fn remote(fixture: &Fixture) -> Directory {
        let channel = fixture.client.channel(fixture.map.nodes[0].address);
        Directory::new(Seat::remote(NodeIndex::new(0), channel), SILENCE)
    }

    fn own(fixture: &Fixture) -> Seat {
        Seat::own(NodeIndex::new(1), fixture.mgs(), fixture.client.xids().clone())
    }

    fn report() -> Report {
        let figures = StageFigures::default();
        Report { node: NodeIndex::new(1), capacity: 0, used: 0, stage_in: figures, stage_out: figures }
    }

    #[tokio::test]
    async fn silence_is_counted_of_another_node_and_anew_of_the_next() {
        let fixture = Fixture::new(1, 3);
        let directory = remote(&fixture);
        assert_eq!([directory.tick(), directory.tick(), directory.tick()], [1, 2, 3]);
        let next = fixture.client.channel(fixture.map.nodes[2].address);
        directory.move_to(Seat::remote(NodeIndex::new(2), next));
        assert_eq!(directory.tick(), 1);
        directory.move_to(own(&fixture));
        assert_eq!([directory.tick(), directory.tick()], [0, 0]);
    }

    #[tokio::test]
    async fn a_request_under_way_goes_to_the_next_seat() {
        let fixture = Fixture::new(1, 2);
        let directory = remote(&fixture);
        let asked = tokio::spawn({
            let directory = directory.clone();
            async move { directory.call(report()).await }
        });
        let left = tokio::spawn({
            let directory = directory.clone();
            async move { directory.left(NodeIndex::new(0)).await }
        });
        tokio::task::yield_now().await;
        assert!(!directory.has_left(NodeIndex::new(0)) && !asked.is_finished());
        directory.move_to(own(&fixture));
        assert_eq!(asked.await.unwrap().unwrap().lost, []);
        left.await.unwrap();
        assert!(directory.has_left(NodeIndex::new(0)) && directory.seat().mgs().is_some());
    }

    #[tokio::test]
    async fn work_of_a_seat_that_was_left_is_lost() {
        let fixture = Fixture::new(1, 2);
        let directory = remote(&fixture);
        let work = Work {
            seat: directory.seat(),
            directory: directory.clone(),
            round: 0,
            node: NodeIndex::new(1),
            incarnation: 1,
        };
        let taking = tokio::spawn(async move { work.take(Direction::Out, Vec::new(), 1).await.is_err() });
        tokio::task::yield_now().await;
        assert!(!taking.is_finished());
        directory.move_to(own(&fixture));
        assert!(taking.await.unwrap(), "the next MGS has a queue of its own");
    }
}
