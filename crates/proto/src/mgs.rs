//! The MGS's RPCs: rendezvous, map, barriers, progress, status.

use std::net::SocketAddr;

use burstfs_types::{Failure, JobEnd, NodeIndex};
use serde::{Deserialize, Serialize};

rpcs! {
    /// A request to the MGS.
    MgsRequest,
    /// The MGS's answer.
    MgsReply, Mgs;
    /// A node joins, or joins again after a restart.
    0x0301 Idempotent Join(Join) -> ();
    /// Waits until the map is there (long poll).
    0x0302 ReadOnly WaitMap(WaitMap) -> Waited<Map>;
    /// A node has reached a phase; waits until all have (long poll).
    0x0303 Idempotent Barrier(Barrier) -> Waited<BarrierDone>;
    /// A node's figures, about once a second; the answer is what it must know.
    0x0304 Idempotent Report(Report) -> News;
    /// A node cannot go on starting.
    0x0305 Idempotent Fail(Fail) -> ();
    /// The instance as people see it.
    0x0306 ReadOnly Status(Status) -> InstanceStatus;
    /// Whether all MDTs and OSTs are consistent.
    0x0307 ReadOnly Check(Check) -> Checked;
    /// Drains what is held now, not only when it is time; the instance as it is then.
    0x0310 Idempotent Resume(Resume) -> InstanceStatus;
    /// Asks for a round of draining while the job runs: the number of the round, or `None` when there will be none.
    0x0311 Idempotent AskDrain(AskDrain) -> Option<u64>;
    /// How a round is (long poll for its end).
    0x0312 ReadOnly AwaitDrain(AwaitDrain) -> RoundState;
    /// What has become of input that comes while the job runs (long poll for news).
    0x0313 ReadOnly AwaitArrivals(AwaitArrivals) -> ArrivalNews;
    /// Somebody waits for input that comes while the job runs: it is to be brought next.
    0x0314 Idempotent Hasten(Hasten) -> ();
}

/// A node's registration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// Who.
    pub node: NodeIndex,
    /// Which life of its daemon.
    pub incarnation: u64,
    /// Where its targets answer.
    pub address: SocketAddr,
    /// Where they answer over RDMA, device by device; nowhere where this node has none, or is not to use it.
    pub rdma: Vec<SocketAddr>,
    /// Of a node whose part could not be drained, in a life of its daemon that tries again.
    pub held: Option<HeldPart>,
}

/// What a node knows of its part that is held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldPart {
    /// How many attempts to drain it have ended on this node.
    pub attempts: u32,
    /// Nodes that have, as far as this one knows, less than the job wrote.
    pub suspects: Vec<NodeIndex>,
    /// How the job ended, if this node knows.
    pub job_end: Option<JobEnd>,
}

/// Waits for the map for at most `wait_ms`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WaitMap {
    /// Milliseconds.
    pub wait_ms: u32,
    /// Answer only with a map newer than this generation; 0 for any.
    pub newer_than: u64,
}

/// The end of a long poll.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Waited<T> {
    /// What was waited for.
    Done(T),
    /// Not yet: ask again.
    NotYet,
    /// It will never come: the instance failed to start.
    Failed(Failure),
}

/// Which nodes serve what, at which addresses. Node `n` serves MDT `n` and OST `n`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Map {
    /// Rises with every change.
    pub generation: u64,
    /// By node index.
    pub nodes: Vec<MapNode>,
}

/// One node of the map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapNode {
    /// Its host name, as Slurm knows it.
    pub host: String,
    /// Where its targets answer.
    pub address: SocketAddr,
    /// Where they answer over RDMA.
    pub rdma: Vec<SocketAddr>,
}

/// What all nodes go through together, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Stage-in is done on this node.
    StagedIn,
    /// The file system is unmounted on this node: no client of the job is left here.
    ClientsGone,
    /// This node's part of the drain is done.
    Drained,
    /// This node needs no other node's servers any more.
    Finished,
}

/// Reaches a phase and waits for the others, at most `wait_ms`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Barrier {
    /// Who.
    pub node: NodeIndex,
    /// What it reached.
    pub phase: Phase,
    /// Milliseconds.
    pub wait_ms: u32,
}

/// All that live have reached the phase.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BarrierDone {
    /// Nodes that were given up.
    pub lost: Vec<NodeIndex>,
    /// The deadline that the job is told, seconds since the epoch.
    pub drain_deadline: Option<u64>,
    /// How the job ended, once its clients are gone; `None` also where nobody needs to know, or Slurm did not say.
    pub job_end: Option<JobEnd>,
    /// Why not all input is there with which the job starts, as its `on_error=warn` allows.
    pub partial: Option<Failure>,
    /// How the drain ended, once it has.
    pub conclusion: Option<Conclusion>,
}

/// How a drain ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Conclusion {
    /// Everything that was to be drained is at its destination.
    Drained,
    /// Something is not, for this reason, and is not to be kept.
    Dropped(Failure),
    /// Something is not: data is kept.
    Held(Kept),
}

/// Why data is kept, and what can make another attempt come to more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Why, and how to go on.
    pub failure: Failure,
    /// Seconds since the epoch.
    pub kept_until: u64,
    /// The errors may pass by themselves.
    pub errors_may_pass: bool,
    /// Nodes were missing that may return.
    pub nodes_may_return: bool,
}

/// One direction of staging, so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StageFigures {
    /// Bytes of the files found so far.
    pub bytes_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Entries found so far.
    pub files_total: u64,
    /// Entries done.
    pub files_done: u64,
    /// Entries that failed.
    pub files_failed: u64,
}

/// Waits for news of input that comes while the job runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AwaitArrivals {
    /// How many paths that did not come the caller knows.
    pub known: u64,
    /// Waits so long, milliseconds.
    pub wait_ms: u32,
}

/// What has become of input that comes while the job runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ArrivalNews {
    /// Paths of the instance that will not come, those that the caller knows left out; some thousands at most.
    pub failed: Vec<Vec<u8>>,
    /// All that comes is there, on all nodes.
    pub is_over: bool,
    /// Something did not come that is not among the paths.
    pub is_unnamed: bool,
}

/// Wants input brought next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hasten {
    /// A path of the instance; of a directory with all that is in it, with a slash at its end.
    pub path: Vec<u8>,
}

/// Whether the input is there, as `BURSTFS_STAGE_IN` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// All of it, or there is none, or it is brought before the job starts.
    #[default]
    Complete,
    /// It comes while the job runs.
    Async,
    /// Some of it did not come.
    Partial,
}

/// Asks for a round of draining.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AskDrain {
    /// Only what is at or below this path of the instance.
    pub below: Option<Vec<u8>>,
}

/// Asks how a round is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AwaitDrain {
    /// Which.
    pub round: u64,
    /// Waits so long for its end, milliseconds.
    pub wait_ms: u32,
}

/// How a round is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RoundState {
    /// It has not begun.
    Waiting,
    /// It has.
    Running {
        /// What it has come to.
        figures: RoundFigures,
        /// How far it is, over all nodes.
        progress: StageFigures,
    },
    /// It is over.
    Over {
        /// What it has come to.
        figures: RoundFigures,
        /// The first thing that went wrong.
        failure: Option<String>,
    },
    /// There is no such round: the MGS was started again, or the job's end came before it.
    Unknown,
}

/// What a round of draining has come to so far, over all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RoundFigures {
    /// Files copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were drained as they are, or that the target had.
    pub unchanged: u64,
    /// Files that somebody was writing.
    pub busy: u64,
    /// What failed.
    pub failed: u64,
    /// Files that are to be drained again, or yet.
    pub changed_files: u64,
    /// Their bytes.
    pub changed_bytes: u64,
}

/// What a node tells about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Who.
    pub node: NodeIndex,
    /// Capacity of its OST, bytes.
    pub capacity: u64,
    /// Used of it, bytes.
    pub used: u64,
    /// Its part of the stage-in.
    pub stage_in: StageFigures,
    /// Its part of the drain.
    pub stage_out: StageFigures,
}

/// What every node must know, however its part stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct News {
    /// Nodes that were given up.
    pub lost: Vec<NodeIndex>,
    /// Rises when anything moves on any node: bytes and entries that were staged or drained.
    pub moved: u64,
}

/// Why a node cannot go on starting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fail {
    /// Who.
    pub node: NodeIndex,
    /// Why.
    pub failure: Failure,
}

/// Wants what is held drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Resume {
    /// How the job ended, if its user says so: it counts where no node knows it of Slurm.
    pub ended: Option<JobEnd>,
}

/// Asks for the instance's state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status;

/// An instance's state, as `burstfs status` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Not all nodes have joined.
    Starting,
    /// Input is copied in.
    StagingIn,
    /// The job's script may run.
    Ready,
    /// Output is copied out.
    Draining,
    /// All is at its destination.
    Drained,
    /// The start failed.
    Failed,
    /// Something could not be drained; data is kept.
    Held,
}

/// The instance as people see it. Also the shape of `burstfs status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// `<cluster>.<job id>.<restart count>`.
    pub instance: String,
    /// The value of `name`.
    pub name: String,
    /// The job's user.
    pub user: String,
    /// Where it is in its life.
    pub state: State,
    /// All hosts, by node index.
    pub hosts: Vec<String>,
    /// Hosts that have not joined or were lost.
    pub missing: Vec<String>,
    /// Bytes asked for.
    pub capacity: u64,
    /// Bytes used by objects.
    pub used: u64,
    /// The share of each node that has told it.
    pub spaces: Vec<NodeSpace>,
    /// Bytes that are to be drained yet, as far as was found when somebody looked last; `None` where nobody has.
    pub dirty: Option<u64>,
    /// Bytes that were staged in or drained in a second, over all nodes, of late.
    pub rate: u64,
    /// Stage-in over all nodes.
    pub stage_in: StageFigures,
    /// Whether what is staged in is there.
    pub input: Input,
    /// Drain over all nodes.
    pub stage_out: StageFigures,
    /// What the nodes talk over: `rdma`, `tcp`, or `rdma, tcp on` those that have only that.
    pub transport: String,
    /// Where the receipt of the drain is, or will be.
    pub receipt: String,
    /// Until when data is kept that could not be drained: seconds since the epoch.
    pub kept_until: Option<u64>,
    /// How many attempts to drain it have ended.
    pub attempts: u32,
    /// What could not be drained, and is not kept.
    pub dropped: Option<Failure>,
    /// Why it is what it is; empty when all is well.
    pub reason: String,
}

/// A node's share of an instance's capacity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSpace {
    /// The node.
    pub host: String,
    /// Bytes.
    pub capacity: u64,
    /// Used of them.
    pub used: u64,
}

/// Asks for a walk over all targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Check;

/// What a walk over all targets found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    /// What is wrong, some hundreds of them at most.
    pub findings: Vec<String>,
    /// How many there are.
    pub findings_count: u64,
    /// Inodes that were looked at.
    pub inodes: u64,
    /// Objects that were looked at.
    pub objects: u64,
    /// Nodes whose targets did not answer, and were not looked at.
    pub missing: Vec<NodeIndex>,
}
