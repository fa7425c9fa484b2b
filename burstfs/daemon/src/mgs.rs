//! The MGS of the instance, on node 0 or on the node that took it over: drives the rules of `burstfs-mgs`.
//!
//! Owns the directory and the two queues of staging work behind one lock each, wakes long polls, keeps the directory on
//! disk, and watches for the reasons that make a start pointless. A restarted node 0 goes on from what is on disk; the
//! queues start anew, since doing an item again is harmless.
//!
//! Locks are held for a change or a look, never across an await. A long poll subscribes before it looks, so that no
//! change is missed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use burstfs_mgs::{Identity, JoinRefused, Mgs, Pulse, Queue, Silence};
use burstfs_proto::mgs::{
    AwaitArrivals, Barrier, Conclusion, Hasten, InstanceStatus, MgsReply, MgsRequest, News, Resume, StageFigures,
    State, WaitMap, Waited,
};
use burstfs_proto::service::Caller;
use burstfs_proto::stage::{AwaitRound, Direction, Finished, Item, StageReply, StageRequest, Take, Taken};
use burstfs_types::{Errno, Failure, JobEnd, NodeIndex};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::life::TICK;
use crate::rounds::Book;

/// The longest that one long poll is kept; the asker asks again.
const LONG_POLL_MAX: Duration = Duration::from_secs(20);
/// In the MGS's directory.
const STATE_FILE: &str = "state.json";
/// The number of the queue of the stage-in that goes on while the job runs.
pub(crate) const ARRIVALS: u64 = 1;
/// The most items of one answer.
const ITEMS_MAX: u32 = 256;

/// What becomes of staging records, and of work that nobody can do. Called under the lock of the queues, so that a queue is not seen empty
/// before its sink has all that came of it: a sink does not come back to the queues.
pub(crate) trait StageSink: Send + Sync {
    /// What came of an item.
    fn records(&self, direction: Direction, records: Vec<Vec<u8>>);
    /// An item whose node was given up.
    fn undoable(&self, direction: Direction, items: Vec<Item>);
    /// Whether something has ended at an error since this was asked last.
    fn take_stop(&self) -> bool {
        false
    }
    /// Whether an item is of something that has ended at an error, and nobody is to do it any more.
    fn has_stopped(&self, _item: &Item) -> bool {
        false
    }
    /// Items that nobody does for that reason.
    fn withdrawn(&self, _items: Vec<Item>) {}
}

/// The MGS, as node 0's daemon runs it.
pub(crate) struct MgsDriver {
    mgs: Mutex<Mgs>,
    stages: Mutex<Stages>,
    changes: watch::Sender<u64>,
    /// Nobody is kept waiting any more.
    is_leaving: AtomicBool,
    state_file: PathBuf,
    own: NodeIndex,
    silence: Mutex<Silence>,
    began: Instant,
    /// Of bytes that are staged in or drained.
    pulse: Mutex<Pulse>,
    /// Nodes that know that the start has failed.
    failed: Mutex<HashSet<NodeIndex>>,
    /// Drains while the job runs ([`crate::rounds`]).
    pub(crate) book: Book,
}

struct Stages {
    /// By direction and round; round 0 is that before the job, or after it.
    queues: HashMap<(Direction, u64), StageQueue>,
    first_id: u64,
}

struct StageQueue {
    queue: Queue,
    is_seeded: bool,
    sink: Arc<dyn StageSink>,
}

impl StageQueue {
    /// Adds work, but for what has ended at an error, of which nothing waits any more. Returns what nobody can do.
    fn push(&mut self, items: Vec<Item>) -> Vec<Item> {
        let (mut withdrawn, items): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| self.sink.has_stopped(item));
        if self.sink.take_stop() {
            withdrawn.extend(self.queue.withdraw(|item| self.sink.has_stopped(item)));
        }
        if !withdrawn.is_empty() {
            self.sink.withdrawn(withdrawn);
        }
        self.queue.push(items)
    }
}

impl MgsDriver {
    /// The MGS of an instance whose state is kept in `dir`; goes on from what is there.
    pub(crate) fn open(dir: &Path, own: NodeIndex, identity: Identity, incarnation: u64) -> anyhow::Result<MgsDriver> {
        let state_file = dir.join(STATE_FILE);
        let mgs = match std::fs::read(&state_file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{}", state_file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Mgs::new(identity),
            Err(error) => return Err(error).with_context(|| format!("{}", state_file.display())),
        };
        MgsDriver::new(dir, own, mgs, incarnation)
    }

    /// Whether the MGS of an earlier life of this daemon has left its state in `dir`.
    pub(crate) fn was_in(dir: &Path) -> bool {
        dir.join(STATE_FILE).exists()
    }

    /// Drives `mgs` from here on, and keeps it in `dir`.
    pub(crate) fn new(dir: &Path, own: NodeIndex, mgs: Mgs, incarnation: u64) -> anyhow::Result<MgsDriver> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        // Whoever joined before this life began is listened for, or would never be missed.
        let mut silence = Silence::default();
        mgs.joined().into_iter().for_each(|node| silence.expect(node));
        let driver = MgsDriver {
            mgs: Mutex::new(mgs),
            stages: Mutex::new(Stages { queues: HashMap::new(), first_id: incarnation }),
            changes: watch::Sender::new(0),
            is_leaving: AtomicBool::new(false),
            state_file: dir.join(STATE_FILE),
            own,
            silence: Mutex::new(silence),
            began: Instant::now(),
            pulse: Mutex::default(),
            failed: Mutex::default(),
            book: Book::new(incarnation),
        };
        driver.keep(&driver.lock())?;
        Ok(driver)
    }

    /// Answers a request of a node or, for the status, of a command.
    pub(crate) async fn call(&self, request: MgsRequest) -> Result<MgsReply, Errno> {
        match request {
            MgsRequest::Join(join) => {
                self.heard(join.node);
                match self.change(|mgs| mgs.join(&join)) {
                    Ok(()) => Ok(MgsReply::Join(())),
                    Err(refused) => {
                        tracing::info!("join refused: {refused}");
                        if let JoinRefused::GaveUp(node) = refused {
                            self.lose(node);
                        }
                        Err(Errno::ESTALE)
                    }
                }
            }
            MgsRequest::WaitMap(WaitMap { wait_ms, newer_than }) => {
                Ok(MgsReply::WaitMap(self.poll(wait_ms, |mgs| mgs.poll_map(newer_than)).await))
            }
            MgsRequest::Barrier(Barrier { node, phase, wait_ms }) => {
                self.require_member(node)?;
                self.heard(node);
                self.change(|mgs| mgs.reach(node, phase));
                Ok(MgsReply::Barrier(self.poll(wait_ms, |mgs| mgs.poll_barrier(phase)).await))
            }
            MgsRequest::Report(report) => {
                self.require_member(report.node)?;
                self.heard(report.node);
                let mut mgs = self.lock();
                mgs.report(report);
                self.lock_pulse().note(self.began.elapsed(), mgs.bytes_moved());
                Ok(MgsReply::Report(News { lost: mgs.lost(), moved: mgs.moved() }))
            }
            MgsRequest::Fail(fail) => {
                tracing::warn!("{}: {}", fail.node, fail.failure);
                self.fail(fail.failure);
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(fail.node);
                self.wake();
                Ok(MgsReply::Fail(()))
            }
            MgsRequest::Status(_) => Ok(MgsReply::Status(self.status())),
            MgsRequest::Resume(Resume { ended }) => {
                self.change(|mgs| mgs.resume(ended));
                Ok(MgsReply::Resume(self.status()))
            }
            MgsRequest::AskDrain(ask) => Ok(MgsReply::AskDrain(self.ask_drain(ask))),
            MgsRequest::AwaitDrain(request) => Ok(MgsReply::AwaitDrain(self.await_drain(request).await)),
            MgsRequest::AwaitArrivals(AwaitArrivals { known, wait_ms }) => {
                let news = self.look_for(wait_ms, || self.lock().arrival_news(known)).await;
                Ok(MgsReply::AwaitArrivals(news.unwrap_or_default()))
            }
            MgsRequest::Hasten(Hasten { path }) => {
                self.hasten(&path);
                Ok(MgsReply::Hasten(()))
            }
            // Of all targets, which the MGS does not know: `crate::check` answers.
            MgsRequest::Check(_) => Err(Errno::EPROTO),
        }
    }

    fn status(&self) -> InstanceStatus {
        let status = self.lock().status();
        InstanceStatus { rate: self.lock_pulse().rate(self.began.elapsed()), ..status }
    }

    /// So many bytes are to be drained yet, as was just found.
    pub(crate) fn found_dirty(&self, bytes: u64) {
        self.lock().found_dirty(bytes);
    }

    /// Hands out staging work. A node that was given up gets none, and what it did no longer counts.
    pub(crate) async fn call_stage(&self, caller: Caller, request: StageRequest) -> Result<StageReply, Errno> {
        let take = match request {
            StageRequest::Take(take) => take,
            StageRequest::AwaitRound(AwaitRound { newer_than, wait_ms }) => {
                return Ok(StageReply::AwaitRound(self.await_round(newer_than, wait_ms).await));
            }
        };
        if take.node != caller.client.node || take.incarnation != caller.client.incarnation {
            return Err(Errno::EPERM);
        }
        self.require_member(take.node)?;
        if self.lock().lost().contains(&take.node) {
            return Err(Errno::ESTALE);
        }
        self.heard(take.node);
        let deadline = Instant::now() + Duration::from_millis(take.wait_ms.into()).min(LONG_POLL_MAX);
        let mut changes = self.changes.subscribe();
        self.finish((take.direction, take.round), take.finished.clone());
        loop {
            changes.borrow_and_update();
            let taken = self.take(caller, &take);
            let is_answer = match &taken {
                Taken::Over => true,
                Taken::Work(work) => !work.is_empty() || take.items_max == 0,
            };
            if is_answer || !self.changes_until(deadline, &mut changes).await {
                return Ok(StageReply::Take(taken));
            }
        }
    }

    /// Starts the work of one direction; until then askers wait. What cannot be done, and all records, go to `sink`.
    pub(crate) fn seed(&self, direction: Direction, items: Vec<Item>, sink: Arc<dyn StageSink>) {
        self.seed_queue((direction, 0), items, sink);
    }

    /// Starts the work of the stage-in that goes on while the job runs.
    pub(crate) fn seed_arrivals(&self, items: Vec<Item>, sink: Arc<dyn StageSink>) {
        self.change(Mgs::expect_arrivals);
        self.seed_queue((Direction::In, ARRIVALS), items, sink);
    }

    /// These paths of the instance will not come.
    pub(crate) fn fail_arrivals(&self, paths: Vec<Vec<u8>>) {
        self.change(|mgs| mgs.fail_arrivals(paths));
    }

    /// The stage-in that goes on while the job runs is over.
    pub(crate) fn end_arrivals(&self, failure: Option<Failure>) {
        self.change(|mgs| mgs.end_arrivals(failure));
    }

    /// Whether it is.
    pub(crate) fn has_arrived(&self) -> bool {
        self.lock().has_arrived()
    }

    /// Drops its work: whoever takes from it hears that it is over.
    pub(crate) fn drop_arrivals(&self) {
        self.lock_stages().queues.remove(&(Direction::In, ARRIVALS));
        self.wake();
    }

    /// What has to be done for `path` to arrive comes next.
    fn hasten(&self, path: &[u8]) {
        if let Some(stage) = self.lock_stages().queues.get_mut(&(Direction::In, ARRIVALS)) {
            stage.queue.hasten(|item| burstfs_stager::is_needed_for(item, path));
        }
    }

    /// Starts the work of a round of draining.
    pub(crate) fn begin_round(&self, number: u64, items: Vec<Item>, sink: Arc<dyn StageSink>) {
        self.seed_queue((Direction::Out, number), items, sink);
    }

    /// Waits until the work of a round is done; false when it was cut short.
    pub(crate) async fn round_is_over(&self, number: u64) -> bool {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            match self.lock_stages().queues.get(&(Direction::Out, number)).map(|stage| stage.queue.is_empty()) {
                Some(true) => return true,
                None => return false,
                Some(false) => {}
            }
            if changes.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Forgets the work of a round that is over.
    pub(crate) fn end_round(&self, number: u64) {
        self.lock_stages().queues.remove(&(Direction::Out, number));
        self.wake();
    }

    /// Drops the work of all rounds: whoever takes from it hears that it is over.
    pub(crate) fn drop_rounds(&self) {
        self.lock_stages().queues.retain(|(direction, round), _| *direction == Direction::In || *round == 0);
        self.wake();
    }

    /// How far the nodes are with draining, together.
    pub(crate) fn drain_figures(&self) -> StageFigures {
        self.lock().status().stage_out
    }

    fn seed_queue(&self, key: (Direction, u64), items: Vec<Item>, sink: Arc<dyn StageSink>) {
        let direction = key.0;
        // Under this lock: a node that is lost from here on finds the queue, or it would be waited for without end.
        let mut stages = self.lock_stages();
        let (lost, nodes) = {
            let mgs = self.lock();
            (mgs.lost(), mgs.identity().hosts.len())
        };
        let mut queue = Queue::new(stages.first_id, nodes);
        lost.into_iter().for_each(|node| drop(queue.lose(node)));
        let undoable = queue.push(items);
        stages.queues.insert(key, StageQueue { queue, is_seeded: true, sink: sink.clone() });
        sink.undoable(direction, undoable);
        drop(stages);
        self.wake();
    }

    /// The start cannot succeed.
    pub(crate) fn fail(&self, failure: Failure) {
        self.change(|mgs| mgs.fail(failure));
    }

    /// The time for the start is over.
    pub(crate) fn start_timed_out(&self) {
        self.change(Mgs::start_timed_out);
    }

    /// The deadline that the job is told.
    pub(crate) fn set_drain_deadline(&self, deadline: Option<u64>) {
        self.change(|mgs| mgs.set_drain_deadline(deadline));
    }

    /// The same, once it is set.
    pub(crate) fn drain_deadline(&self) -> Option<u64> {
        self.lock().drain_deadline()
    }

    /// How the drain ended.
    pub(crate) fn conclude(&self, conclusion: Conclusion) {
        self.change(|mgs| mgs.conclude(conclusion));
    }

    /// Not all input is there with which the job starts.
    pub(crate) fn set_partial(&self, failure: Failure) {
        self.change(|mgs| mgs.set_partial(failure));
    }

    /// How the job ended.
    pub(crate) fn set_job_end(&self, end: JobEnd) {
        self.change(|mgs| mgs.set_job_end(end));
    }

    /// The same, once it is known.
    pub(crate) fn job_end(&self) -> Option<JobEnd> {
        self.lock().job_end()
    }

    /// The attempt to drain what is held begins, with the nodes that are there.
    pub(crate) fn begin(&self) {
        self.change(Mgs::begin);
    }

    /// Waits until `is_true` of the rules' state.
    pub(crate) async fn until(&self, is_true: impl Fn(&Mgs) -> bool) {
        let mut changes = self.changes.subscribe();
        while !is_true(&self.lock()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Nodes whose part may be less than what the job wrote there.
    pub(crate) fn suspects(&self) -> BTreeSet<NodeIndex> {
        self.lock().suspects()
    }

    /// Daemons of before, who do not know yet that there is another attempt, have no say in it.
    fn require_member(&self, node: NodeIndex) -> Result<(), Errno> {
        if self.lock().is_member(node) { Ok(()) } else { Err(Errno::ESTALE) }
    }

    /// Waits until the start has succeeded or failed.
    pub(crate) async fn is_past_start(&self) {
        self.until(|mgs| !matches!(mgs.state(), State::Starting | State::StagingIn)).await;
    }

    /// Waits until every node of which something was heard has said that it failed, by itself or because it was told.
    pub(crate) async fn failure_is_known(&self) {
        let mut changes = self.changes.subscribe();
        let is_known = || {
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            self.lock_silence().nodes().all(|node| failed.contains(&node))
        };
        while !is_known() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Nodes that were given up.
    pub(crate) fn lost(&self) -> Vec<NodeIndex> {
        self.lock().lost()
    }

    /// Listens for the nodes for as long as the daemon lives.
    pub(crate) async fn listen(self: Arc<Self>, ticks_max: u32) {
        loop {
            tokio::time::sleep(TICK).await;
            self.tick(ticks_max);
        }
    }

    /// Another tick of time has passed: gives up every node but this of which nothing was heard for `ticks_max` of them.
    fn tick(&self, ticks_max: u32) {
        let silent = self.lock_silence().tick(ticks_max);
        for node in silent.into_iter().filter(|node| *node != self.own) {
            self.lose(node);
        }
    }

    fn lose(&self, node: NodeIndex) {
        let host = {
            let mgs = self.lock();
            if mgs.lost().contains(&node) {
                return;
            }
            mgs.host(node).to_owned()
        };
        tracing::error!("{host} is given up: nothing was heard of it for too long");
        self.change(|mgs| mgs.lose(node));
        for ((direction, _), stage) in &mut self.lock_stages().queues {
            // Under the lock, as in `finish`.
            let undoable = stage.queue.lose(node);
            stage.sink.undoable(*direction, undoable);
        }
        self.wake();
    }

    fn heard(&self, node: NodeIndex) {
        self.lock_silence().heard(node);
    }

    fn finish(&self, key: (Direction, u64), finished: Vec<Finished>) {
        let direction = key.0;
        if finished.is_empty() {
            return;
        }
        {
            let mut stages = self.lock_stages();
            let Some(stage) = stages.queues.get_mut(&key) else { return };
            for done in finished {
                if stage.queue.finish(done.id) {
                    // Under the lock: whoever finds the queue empty closes the accounts.
                    stage.sink.records(direction, done.records);
                    let undoable = stage.push(done.items);
                    stage.sink.undoable(direction, undoable);
                }
            }
        }
        self.wake();
    }

    fn take(&self, caller: Caller, take: &Take) -> Taken {
        let mut stages = self.lock_stages();
        let stage = stages.queues.get_mut(&(take.direction, take.round)).filter(|stage| stage.is_seeded);
        let Some(stage) = stage else {
            // Nobody hears of a round before its work is there.
            return if take.round == 0 { Taken::Work(Vec::new()) } else { Taken::Over };
        };
        let max = take.items_max.min(ITEMS_MAX) as usize;
        let work = if max == 0 { Vec::new() } else { stage.queue.take_once(caller, max) };
        if work.is_empty() && stage.queue.is_empty() { Taken::Over } else { Taken::Work(work) }
    }

    /// What `look` finds within `wait_ms`.
    pub(crate) async fn look_for<T>(&self, wait_ms: u32, look: impl Fn() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into()).min(LONG_POLL_MAX);
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let found = look();
            if found.is_some() || !self.changes_until(deadline, &mut changes).await {
                return found;
            }
        }
    }

    async fn poll<T>(&self, wait_ms: u32, look: impl Fn(&Mgs) -> Waited<T>) -> Waited<T> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into()).min(LONG_POLL_MAX);
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let answer = look(&self.lock());
            let is_final = !matches!(answer, Waited::NotYet);
            if is_final || !self.changes_until(deadline, &mut changes).await {
                return answer;
            }
        }
    }

    /// Waits for a change until `deadline`, or until this MGS leaves. Whether there was one.
    async fn changes_until(&self, deadline: Instant, changes: &mut watch::Receiver<u64>) -> bool {
        let is_leaving = || self.is_leaving.load(Ordering::Acquire);
        !is_leaving() && tokio::time::timeout_at(deadline, changes.changed()).await.is_ok()
    }

    /// Answers all long polls with what there is now, and those that come yet: this MGS's server is about to end, and who
    /// asked may have stopped listening long ago.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.wake();
    }

    /// Makes a change; where it matters to those who wait or to a restarted node 0, it is kept and they are woken.
    fn change<T>(&self, change: impl FnOnce(&mut Mgs) -> T) -> T {
        let mut mgs = self.lock();
        let before = mgs.version();
        let result = change(&mut mgs);
        if mgs.version() != before {
            if let Err(error) = self.keep(&mgs) {
                tracing::error!("the MGS's state cannot be kept: {error:#}");
            }
            drop(mgs);
            self.wake();
        }
        result
    }

    /// A process's death loses nothing that was written; a node's death loses the instance's targets anyway. So nothing
    /// is synced.
    fn keep(&self, mgs: &Mgs) -> anyhow::Result<()> {
        let next = self.state_file.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(mgs)?).with_context(|| format!("{}", next.display()))?;
        std::fs::rename(&next, &self.state_file).with_context(|| format!("{}", self.state_file.display()))
    }

    /// Tells those who wait to look again.
    pub(crate) fn wake(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Mgs> {
        // The rules leave a valid state after every call, also one that another thread's panic cut short.
        self.mgs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_silence(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_stages(&self) -> MutexGuard<'_, Stages> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use burstfs_proto::mgs::{BarrierDone, Join, Phase, Report, StageFigures};
    use burstfs_types::{ClientId, Code, Xid};

    use super::*;

    #[derive(Default)]
    struct Collected(Mutex<Vec<Vec<u8>>>);

    impl StageSink for Collected {
        fn records(&self, _direction: Direction, records: Vec<Vec<u8>>) {
            self.0.lock().unwrap().extend(records);
        }

        fn undoable(&self, _direction: Direction, items: Vec<Item>) {
            self.0.lock().unwrap().extend(items.into_iter().map(|item| item.body));
        }
    }

    fn driver(dir: &Path) -> Arc<MgsDriver> {
        let identity = Identity {
            instance: "vc.1.0".into(),
            name: "job".into(),
            user: "alice".into(),
            hosts: vec!["node1".into(), "node2".into()],
            capacity: 1,
            receipt: String::new(),
        };
        Arc::new(MgsDriver::open(dir, NodeIndex::new(0), identity, 1_000).unwrap())
    }

    fn join(node: u16) -> MgsRequest {
        let address = SocketAddr::from(([127, 0, 0, 1], 100 + node));
        MgsRequest::Join(Join { node: NodeIndex::new(node), incarnation: 1, address, rdma: vec![], held: None })
    }

    fn barrier(node: u16, wait_ms: u32) -> MgsRequest {
        MgsRequest::Barrier(Barrier { node: NodeIndex::new(node), phase: Phase::StagedIn, wait_ms })
    }

    async fn news(mgs: &MgsDriver, node: u16) -> News {
        let figures = StageFigures::default();
        let node = NodeIndex::new(node);
        let report = Report { node, capacity: 0, used: 0, stage_in: figures, stage_out: figures };
        let Ok(MgsReply::Report(news)) = mgs.call(MgsRequest::Report(report)).await else { panic!("no news") };
        news
    }

    async fn take(mgs: &MgsDriver, node: u16, xid: u64, finished: Vec<Finished>) -> Taken {
        let client = ClientId { node: NodeIndex::new(node), incarnation: 1 };
        let caller = Caller { client, xid: Xid(xid), oldest_unanswered: Xid(xid) };
        let (node, incarnation) = (client.node, client.incarnation);
        let take =
            Take { round: 0, direction: Direction::In, node, incarnation, finished, items_max: 9, wait_ms: 20_000 };
        let reply = mgs.call_stage(caller, StageRequest::Take(take)).await.unwrap();
        let StageReply::Take(taken) = reply else { panic!("{reply:?}") };
        taken
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_by_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        let waiting = tokio::spawn({
            let mgs = mgs.clone();
            async move { mgs.call(MgsRequest::WaitMap(WaitMap { wait_ms: 20_000, newer_than: 0 })).await }
        });
        mgs.call(join(0)).await.unwrap();
        mgs.call(join(1)).await.unwrap();
        assert!(matches!(waiting.await.unwrap(), Ok(MgsReply::WaitMap(Waited::Done(map))) if map.nodes.len() == 2));
        assert_eq!(mgs.call(barrier(0, 0)).await, Ok(MgsReply::Barrier(Waited::NotYet)));
        assert!(matches!(mgs.call(barrier(1, 0)).await, Ok(MgsReply::Barrier(Waited::Done(_)))));
    }

    #[tokio::test]
    async fn nobody_is_kept_waiting_by_an_mgs_that_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        mgs.call(join(0)).await.unwrap();
        mgs.call(join(1)).await.unwrap();
        let begun = Instant::now();
        let polls = [barrier(0, 20_000), MgsRequest::WaitMap(WaitMap { wait_ms: 20_000, newer_than: u64::MAX })];
        let waiting = polls.map(|poll| {
            let mgs = mgs.clone();
            tokio::spawn(async move { mgs.call(poll).await })
        });
        let for_round = tokio::spawn({
            let mgs = mgs.clone();
            async move { mgs.await_round(0, 20_000).await }
        });
        let for_work = tokio::spawn({
            let mgs = mgs.clone();
            async move { take(&mgs, 1, 1, vec![]).await }
        });
        tokio::task::yield_now().await;
        mgs.leave();
        for poll in waiting {
            let answer = poll.await.unwrap();
            assert!(matches!(answer, Ok(MgsReply::Barrier(Waited::NotYet) | MgsReply::WaitMap(Waited::NotYet))));
        }
        assert_eq!(for_round.await.unwrap(), None);
        assert_eq!(for_work.await.unwrap(), Taken::Work(vec![]));
        assert_eq!(mgs.await_round(0, 20_000).await, None, "nor is who comes later");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_restarted_node_0_knows_what_was_reached() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        for request in [join(0), join(1), barrier(0, 0), barrier(1, 0)] {
            mgs.call(request).await.unwrap();
        }
        let again = driver(dir.path());
        assert!(matches!(again.call(barrier(0, 0)).await, Ok(MgsReply::Barrier(Waited::Done(_)))));
    }

    #[tokio::test]
    async fn work_goes_round_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        let sink = Arc::new(Collected::default());
        let idle = tokio::spawn({
            let mgs = mgs.clone();
            async move { take(&mgs, 1, 1, vec![]).await }
        });
        mgs.seed(Direction::In, vec![Item { place: Some(NodeIndex::new(0)), body: vec![1] }], sink.clone());
        let Taken::Work(work) = take(&mgs, 0, 1, vec![]).await else { panic!("no work") };
        let done = Finished { id: work[0].0, items: vec![], records: vec![vec![7]] };
        assert_eq!(take(&mgs, 0, 2, vec![done.clone()]).await, Taken::Over);
        assert_eq!(take(&mgs, 0, 3, vec![done]).await, Taken::Over);
        assert_eq!(idle.await.unwrap(), Taken::Over);
        assert_eq!(*sink.0.lock().unwrap(), [[7]]);
    }

    /// A sink that takes its time.
    #[derive(Default)]
    struct Slow {
        has_begun: AtomicBool,
        is_done: AtomicBool,
    }

    impl StageSink for Slow {
        fn records(&self, _direction: Direction, _records: Vec<Vec<u8>>) {
            self.has_begun.store(true, Ordering::Release);
            std::thread::sleep(Duration::from_millis(50));
            self.is_done.store(true, Ordering::Release);
        }

        fn undoable(&self, _direction: Direction, _items: Vec<Item>) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_is_over_when_all_that_came_of_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        let sink = Arc::<Slow>::default();
        mgs.seed(Direction::In, vec![Item { place: Some(NodeIndex::new(1)), body: vec![1] }], sink.clone());
        let Taken::Work(work) = take(&mgs, 1, 1, vec![]).await else { panic!("no work") };
        let done = Finished { id: work[0].0, items: vec![], records: vec![vec![7]] };
        let handing_in = tokio::spawn({
            let mgs = mgs.clone();
            async move { take(&mgs, 1, 2, vec![done]).await }
        });
        while !sink.has_begun.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        assert_eq!(take(&mgs, 0, 1, vec![]).await, Taken::Over);
        assert!(sink.is_done.load(Ordering::Acquire), "whoever hears that it is over closes the accounts");
        assert_eq!(handing_in.await.unwrap(), Taken::Over);
    }

    /// A sink to whom everything with a small body is over when it has a record.
    #[derive(Default)]
    struct Stopping {
        is_news: AtomicBool,
        has_stopped: AtomicBool,
        withdrawn: Mutex<Vec<Vec<u8>>>,
    }

    impl StageSink for Stopping {
        fn records(&self, _direction: Direction, _records: Vec<Vec<u8>>) {
            self.is_news.store(!self.has_stopped.swap(true, Ordering::AcqRel), Ordering::Release);
        }

        fn undoable(&self, _direction: Direction, items: Vec<Item>) {
            assert_eq!(items, []);
        }

        fn take_stop(&self) -> bool {
            self.is_news.swap(false, Ordering::AcqRel)
        }

        fn has_stopped(&self, item: &Item) -> bool {
            self.has_stopped.load(Ordering::Acquire) && item.body < vec![10]
        }

        fn withdrawn(&self, items: Vec<Item>) {
            self.withdrawn.lock().unwrap().extend(items.into_iter().map(|item| item.body));
        }
    }

    #[tokio::test]
    async fn what_has_ended_at_an_error_is_done_by_nobody_and_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        let sink = Arc::<Stopping>::default();
        let item = |node: u16, body: u8| Item { place: Some(NodeIndex::new(node)), body: vec![body] };
        mgs.seed(Direction::In, vec![item(0, 1), item(1, 2), item(1, 20)], sink.clone());
        let Taken::Work(work) = take(&mgs, 0, 1, vec![]).await else { panic!("no work") };
        let done = Finished { id: work[0].0, items: vec![item(1, 3)], records: vec![vec![7]] };
        let idle = tokio::spawn({
            let mgs = mgs.clone();
            async move { take(&mgs, 0, 2, vec![done]).await }
        });
        let Taken::Work(rest) = take(&mgs, 1, 1, vec![]).await else { panic!("no work") };
        tokio::task::yield_now().await;
        let bodies: Vec<_> = rest.iter().map(|(_, item)| item.body[0]).collect();
        assert!(bodies == [20] || bodies == [2, 20], "{bodies:?}");
        let finished = rest.iter().map(|(id, _)| Finished { id: *id, items: vec![item(0, 4)], records: vec![] });
        assert_eq!(take(&mgs, 1, 2, finished.collect()).await, Taken::Over, "4 is given to nobody");
        assert_eq!(idle.await.unwrap(), Taken::Over);
        let withdrawn = sink.withdrawn.lock().unwrap().clone();
        assert!(withdrawn.contains(&vec![3]) && withdrawn.contains(&vec![4]), "{withdrawn:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_known_when_all_who_joined_have_failed() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        let patience = Duration::from_secs(1);
        mgs.call(join(0)).await.unwrap();
        mgs.call(join(1)).await.unwrap();
        for (node, is_known) in [(0, false), (1, true)] {
            let failure = Failure::new(Code::StageInFailed, "input is gone");
            let fail = burstfs_proto::mgs::Fail { node: NodeIndex::new(node), failure };
            mgs.call(MgsRequest::Fail(fail)).await.unwrap();
            assert_eq!(tokio::time::timeout(patience, mgs.failure_is_known()).await.is_ok(), is_known);
        }
    }

    #[tokio::test]
    async fn a_silent_node_is_given_up_and_the_others_hear_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        mgs.call(join(0)).await.unwrap();
        mgs.call(join(1)).await.unwrap();
        assert_eq!(news(&mgs, 0).await.lost, []);
        mgs.tick(2);
        assert_eq!(mgs.lost(), []);
        mgs.tick(2);
        assert_eq!(mgs.lost(), [NodeIndex::new(1)]);
        assert_eq!(news(&mgs, 0).await.lost, [NodeIndex::new(1)]);
        let answer = mgs.call(barrier(0, 0)).await;
        assert!(matches!(answer, Ok(MgsReply::Barrier(Waited::Failed(failure))) if failure.code == Code::NodeMissing));
    }

    #[tokio::test]
    async fn a_node_that_never_speaks_to_a_restarted_node_0_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mgs = driver(dir.path());
        for request in [join(0), join(1), barrier(0, 0), barrier(1, 0)] {
            mgs.call(request).await.unwrap();
        }
        let again = driver(dir.path());
        again.tick(1);
        assert_eq!(again.lost(), [NodeIndex::new(1)]);
        assert_eq!(
            again.call(barrier(0, 0)).await,
            Ok(MgsReply::Barrier(Waited::Done(BarrierDone {
                lost: again.lost(),
                conclusion: None,
                drain_deadline: None,
                job_end: None,
                partial: None,
            })))
        );
    }
}
