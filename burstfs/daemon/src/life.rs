//! The life of one node of an instance, from the supervisor's first word to its last.
//!
//! ```text
//!   start --> find the MGS --> join, open targets --> serve the mount --> stage in --> barrier StagedIn --> ready
//!     |            |                 |                     |                 |                |
//!     '------------+-----------------+--- failed, cancelled+-----------------'----------------'--> wait for stop
//!
//!   ready --client_gone--> barrier ClientsGone --> drain --> (MGS: receipt, conclusion) --> barrier Drained --> drained
//!                               ^                                                                 |
//!                               '--- the MGS's node was lost: again with the next ([`crate::succession`])
//! ```
//!
//! Owns the order of these steps on this node, and nothing else. A daemon that was started again after a crash goes
//! through the same steps: what the MGS has seen already it answers at once.
//!
//! Failure: before `ready` the first failure is told to the MGS, which tells all nodes, and to the supervisor. After
//! `ready` nothing ends this life but the supervisor; a drain that cannot be done ends as incomplete.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use burstfs_client::fuse::Arrivals;
use burstfs_net::XidSource;
use burstfs_node::control::{DaemonMessage, NodeMessage, Progress, State};
use burstfs_node::description::InstanceDescription;
use burstfs_node::held::{Hope, epoch_secs};
use burstfs_oss::Ost;
use burstfs_proto::mgs::{
    BarrierDone, Conclusion as MgsConclusion, Fail, Kept, Phase, Report, State as InstanceState, Status,
};
use burstfs_proto::oss::{OssReply, OssRequest, Statfs};
use burstfs_proto::service::{NoBulk, ObjectService};
use burstfs_proto::stage::Direction;
use burstfs_spec::{Compat, Create, StageInOnError, Tmpdir};
use burstfs_stager::{Cancel, Cure};
use burstfs_types::{Code, Failure, JobEnd, NodeIndex};
use tokio::sync::mpsc;

use crate::arrivals::Arriving;
use crate::control::{self, Supervisor};
use crate::directory::{Directory, Seat};
use crate::durable::Durable;
use crate::lost::LostNodes;
use crate::mgs::MgsDriver;
use crate::node::{self, MountDevice, Node};
use crate::rounds::Follower;
use crate::staging::{self, Conclusion, Staging};
use crate::succession::Succession;
use crate::{arrivals, held, job, limit, note};

/// Between two reports to the MGS and the supervisor.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at where the paths lead that are to be drained: until all are there, and then.
const MEMORY_INTERVAL_FIRST: Duration = Duration::from_millis(500);
const MEMORY_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is noted of whom nothing was heard.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// How long a node that could not start tries to tell the MGS. Node 0 may have failed and ended before it; the others then
/// find out by themselves.
const FAILURE_TOLD: Duration = Duration::from_secs(2);
/// How long node 0 stays for the others to hear the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long another node waits for node 0 to answer that it has heard it, and node 0 for its answers to be out.
const FAREWELL_ANSWERED: Duration = Duration::from_secs(1);

/// Runs until the supervisor says stop.
pub(crate) async fn run(control: UnixStream, device: Option<MountDevice>) -> anyhow::Result<()> {
    let (description, mut messages, supervisor) = control::open(control).await?;
    let description = Arc::new(description);
    tracing::info!(instance = %description.instance, node = description.node_name(), "starting");
    if let Some(held) = description.held.clone() {
        held::run(description, held, &mut messages, &supervisor).await;
        return Ok(());
    }
    supervisor.say(DaemonMessage::State(State::Starting)).await;
    let mut is_client_gone = false;
    let started = tokio::select! {
        started = start(description.clone(), device, &supervisor) => started,
        ending = cancelled(&mut messages, description.restarted, &mut is_client_gone) => match ending {
            Ending::Stop => return Ok(()),
            Ending::Failed(failure) => Err(failure),
        },
    };
    match started {
        Ok(life) => {
            supervisor.say(DaemonMessage::Ready { environment: life.environment() }).await;
            life.live(&mut messages, is_client_gone).await;
        }
        Err(failure) => {
            tracing::error!("{failure}");
            supervisor.say(DaemonMessage::Failed(failure.clone())).await;
            after_failure(&mut messages, &supervisor, description.restarted.then_some(failure)).await;
        }
    }
    tracing::info!("ending");
    Ok(())
}

enum Ending {
    Stop,
    Failed(Failure),
}

/// Waits for the supervisor to end a start. The job of a daemon that was started again may have ended already: then there
/// is data to drain, and the start goes on.
async fn cancelled(messages: &mut mpsc::Receiver<NodeMessage>, restarted: bool, is_client_gone: &mut bool) -> Ending {
    loop {
        match messages.recv().await {
            Some(NodeMessage::Stop) => return Ending::Stop,
            Some(NodeMessage::ClientGone) if restarted => *is_client_gone = true,
            Some(NodeMessage::Cancel | NodeMessage::ClientGone) => {
                let message = "the job ended while its file system started";
                return Ending::Failed(Failure::new(Code::Cancelled, message));
            }
            Some(NodeMessage::Start(_)) => tracing::error!("a second start message is ignored"),
            Some(NodeMessage::JobEnd(_) | NodeMessage::Resume | NodeMessage::Removed(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// A node that could not start has nothing to drain; one that could not start again (`undrained` says why) has.
async fn after_failure(
    messages: &mut mpsc::Receiver<NodeMessage>,
    supervisor: &Supervisor,
    undrained: Option<Failure>,
) {
    loop {
        match messages.recv().await {
            Some(NodeMessage::Stop) => return,
            Some(NodeMessage::ClientGone) => {
                let ended = undrained.clone().map_or(Ok(()), |failure| Err(NotDrained::unknown(failure)));
                supervisor.say(drained(ended, Vec::new())).await;
            }
            Some(
                NodeMessage::Cancel
                | NodeMessage::Start(_)
                | NodeMessage::JobEnd(_)
                | NodeMessage::Resume
                | NodeMessage::Removed(_),
            ) => {}
            None => std::future::pending().await,
        }
    }
}

/// Why a drain is not complete, and what can help.
pub(crate) struct NotDrained {
    pub(crate) failure: Failure,
    pub(crate) hope: Hope,
}

impl From<Kept> for NotDrained {
    fn from(kept: Kept) -> NotDrained {
        let Kept { failure, errors_may_pass, nodes_may_return, .. } = kept;
        NotDrained { failure, hope: Hope { errors_may_pass, nodes_may_return } }
    }
}

/// How a drain ended, for the supervisor.
pub(crate) fn drained(ended: Result<(), NotDrained>, suspects: Vec<NodeIndex>) -> DaemonMessage {
    match ended {
        Ok(()) => DaemonMessage::Drained { complete: true, failure: None, hope: Hope::default(), suspects },
        Err(NotDrained { failure, hope }) => {
            tracing::error!("{failure}");
            DaemonMessage::Drained { complete: false, failure: Some(failure), hope, suspects }
        }
    }
}

/// A node that is ready, or has something to drain.
pub(crate) struct Life {
    description: Arc<InstanceDescription>,
    node: Node,
    staging: Arc<Staging>,
    supervisor: Supervisor,
    advances: Arc<AtomicU64>,
    reporter: Arc<Reporter>,
    /// Nodes that were lost before the job was over everywhere; set once it is.
    lost_before: OnceLock<Vec<NodeIndex>>,
    /// Set with it, where nothing was lost.
    durable: OnceLock<Durable>,
    /// This node's part in drains while the job runs; set once it is ready.
    rounds: OnceLock<Follower>,
    /// The deadline that the job is told.
    drain_deadline: OnceLock<u64>,
    /// Set when the job starts without all of its input.
    is_partial: OnceLock<()>,
    /// This node's part in bringing input while the job runs; set once it is ready.
    arriving: OnceLock<Arriving>,
}

async fn start(
    description: Arc<InstanceDescription>,
    device: Option<MountDevice>,
    supervisor: &Supervisor,
) -> Result<Life, Failure> {
    let joining = find_directory(&description).await?;
    let (directory, _server) = (joining.directory.clone(), joining.server.clone());
    let own_mgs = directory.seat().mgs().cloned();
    if let Some(mgs) = &own_mgs {
        watch_start(mgs.clone(), description.clone());
    }
    let started = async {
        let node = joining.join(&description).await?;
        begin(description.clone(), node, device, supervisor).await
    };
    match started.await {
        Ok(life) => Ok(life),
        Err(failure) => {
            let fail = Fail { node: NodeIndex::new(description.node_index), failure: failure.clone() };
            match tokio::time::timeout(FAILURE_TOLD, directory.call(fail)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!("the MGS does not hear of the failure: {error}"),
                Err(_) => tracing::info!("the MGS does not hear of the failure in time"),
            }
            // Those who have joined wait for node 0's word, which ends with this process.
            if let Some(mgs) = own_mgs
                && tokio::time::timeout(FAREWELL, mgs.failure_is_known()).await.is_err()
            {
                tracing::info!("not every node has answered the failure of the start");
            }
            Err(failure)
        }
    }
}

/// Looks for the MGS for as long as that makes sense. Node 0 is the MGS and watches over the start; while another node
/// cannot reach it, it must see for itself whether the job still starts. A daemon that was started again has data of a job
/// that may well have ended.
async fn find_directory(description: &InstanceDescription) -> Result<node::Joining, Failure> {
    let (id, restart_count) = (description.instance.job_id(), description.instance.restart_count());
    tokio::select! {
        joining = node::find_directory(description) => joining,
        failure = job::start_is_pointless(id, restart_count, description.slurm_conf.as_deref()),
            if !description.restarted => Err(failure),
        () = tokio::time::sleep(node::start_timeout(description)) => {
            let (host, code) = (&description.nodes[0], Code::NodeMissing);
            Err(Failure::new(code, format!("{host}: did not answer in time; see the burstfs log there")))
        }
    }
}

async fn begin(
    description: Arc<InstanceDescription>,
    node: Node,
    device: Option<MountDevice>,
    supervisor: &Supervisor,
) -> Result<Life, Failure> {
    let life = Life::of(description, node, supervisor).await?;
    let arrivals = arrivals::expected(&life.staging, &life.node.directory);
    if let Some(device) = device {
        let session = life.node.serve(device, &life.description, arrivals.clone()).await?;
        tokio::spawn(async move { tracing::info!("FUSE session: {:?}", session.ended().await) });
    }
    life.stage_in(arrivals).await?;
    tokio::spawn(life.succession().watch());
    tokio::spawn({
        let staging = life.staging.clone();
        async move {
            loop {
                let are_there = staging.remember_sources().await;
                tokio::time::sleep(if are_there { MEMORY_INTERVAL } else { MEMORY_INTERVAL_FIRST }).await;
            }
        }
    });
    Ok(life)
}

/// Node 0 looks after the start of all: the time, the job, nodes that fall silent.
fn watch_start(mgs: Arc<MgsDriver>, description: Arc<InstanceDescription>) {
    let ticks_max = ticks(node::silence(&description));
    let for_time = mgs.clone();
    let timeout = node::start_timeout(&description);
    tokio::spawn(async move {
        tokio::time::sleep(timeout).await;
        for_time.start_timed_out();
    });
    let for_job = mgs.clone();
    tokio::spawn(async move {
        let (id, restart_count) = (description.instance.job_id(), description.instance.restart_count());
        tokio::select! {
            failure = job::start_is_pointless(id, restart_count, description.slurm_conf.as_deref()) => for_job.fail(failure),
            () = for_job.is_past_start() => {}
        }
    });
    tokio::spawn(mgs.listen(ticks_max));
}

/// Variables that are not burstfs's own, which the job has asked for: those of [`burstfs_spec::FOREIGN_VARIABLES`].
fn foreign_variables(create: &Create, mount: &str) -> impl Iterator<Item = (String, String)> {
    let tmpdir = match create.tmpdir {
        Tmpdir::Yes => Some(("TMPDIR".to_owned(), mount.to_owned())),
        Tmpdir::No => None,
    };
    let compat = match create.compat {
        // As DataWarp has it, with a slash at the end.
        Compat::Dw => Some(("DW_JOB_STRIPED".to_owned(), format!("{mount}/"))),
        Compat::None => None,
    };
    tmpdir.into_iter().chain(compat)
}

/// How many ticks make a time, rounded up.
pub(crate) fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX)
}

impl Life {
    /// The staging and the reports of a node that has joined.
    pub(crate) async fn of(
        description: Arc<InstanceDescription>,
        node: Node,
        supervisor: &Supervisor,
    ) -> Result<Life, Failure> {
        let spec = staging::bind(&description).await?;
        let staging = Staging::new(description.clone(), node.directory.clone(), node.fs.clone(), spec);
        let staging = staging.map_err(|error| Failure::new(Code::DaemonFailed, format!("stage directory: {error}")))?;
        let (staging, advances) = (Arc::new(staging), Arc::<AtomicU64>::default());
        let reporter = Arc::new(Reporter {
            node: NodeIndex::new(description.node_index),
            directory: node.directory.clone(),
            ost: node.ost.clone(),
            xids: node.xids.clone(),
            staging: staging.clone(),
            supervisor: supervisor.clone(),
            advances: advances.clone(),
            moved: AtomicU64::new(0),
            lost: node.lost.clone(),
        });
        tokio::spawn({
            let reporter = reporter.clone();
            async move { reporter.run().await }
        });
        Ok(Life {
            description,
            node,
            staging,
            supervisor: supervisor.clone(),
            advances,
            reporter,
            lost_before: OnceLock::new(),
            durable: OnceLock::new(),
            rounds: OnceLock::new(),
            drain_deadline: OnceLock::new(),
            is_partial: OnceLock::new(),
            arriving: OnceLock::new(),
        })
    }

    fn own(&self) -> NodeIndex {
        NodeIndex::new(self.description.node_index)
    }

    /// Copies the input in, and waits until all nodes have. What comes while the job runs begins to.
    async fn stage_in(&self, arrivals: Option<Arc<Arrivals>>) -> Result<(), Failure> {
        let directory = &self.node.directory;
        if self.staging.has_work(Direction::In) && !self.has_been_ready().await {
            self.supervisor.say(DaemonMessage::State(State::StagingIn)).await;
            let (cancel, seat) = (Cancel::default(), directory.seat());
            let staged = tokio::select! {
                staged = self.staging.stage_in(&seat, cancel.clone()) => staged?,
                // With the current generation this waits for a failure of the start, or for a moved node.
                moved = directory.map_newer_than(self.node.map.generation) => {
                    cancel.cancel();
                    let message = "a node changed its address while it started";
                    return Err(moved.err().unwrap_or_else(|| Failure::new(Code::DaemonFailed, message)));
                }
            };
            if let (Some(mgs), Some(staged)) = (seat.mgs(), staged.filter(|staged| !staged.outcome.is_complete)) {
                mgs.set_partial(self.without_all_input(staged).await?);
            }
            self.reporter.tell().await;
        }
        if arrivals.is_some() && directory.seat().mgs().is_some_and(|mgs| !mgs.has_arrived()) {
            arrivals::prepare(&self.description, &self.staging, &self.node.fs.gathering()).await?;
        }
        if let Some(mgs) = directory.seat().mgs().filter(|mgs| mgs.drain_deadline().is_none()) {
            mgs.set_drain_deadline(limit::told(&self.description, self.staging.directives()).await);
        }
        let passed = directory.barrier(self.own(), Phase::StagedIn, || self.advance()).await?;
        if let Some(deadline) = passed.drain_deadline {
            self.drain_deadline.get_or_init(|| deadline);
        }
        if let Some(failure) = passed.partial {
            self.is_partial.get_or_init(|| ());
            // Where the MGS is the batch script runs.
            if directory.seat().mgs().is_some() {
                tracing::warn!("{failure}");
                self.supervisor.say(DaemonMessage::Warning(failure)).await;
            }
        }
        if let Some(arrivals) = arrivals {
            let (staging, directory) = (self.staging.clone(), directory.clone());
            let fs = &self.node.fs;
            let arriving = Arriving::start(self.description.clone(), staging, directory, fs, arrivals).await?;
            self.arriving.get_or_init(|| arriving);
        }
        self.supervisor.say(DaemonMessage::State(State::Ready)).await;
        Ok(())
    }

    /// Not all input has come: what the job is told, if it starts all the same; else why it does not.
    async fn without_all_input(&self, staged: Conclusion) -> Result<Failure, Failure> {
        let missing = |on_error| self.staging.missing_in(&staged.outcome, on_error);
        if let Some(failure) = missing(StageInOnError::Fail) {
            return Err(failure);
        }
        if let Some(failure) = missing(StageInOnError::Hold) {
            let (job_id, message) = (self.description.instance.job_id(), failure.message);
            return Err(match job::requeue_held(&self.description).await {
                Ok(()) => {
                    let advice = format!("the job is held; put it right, then: scontrol release {job_id}");
                    Failure::new(Code::StageInHeld, format!("{message}; {advice}"))
                }
                Err(why) => {
                    Failure::new(failure.code, format!("{message}; the job fails, since it cannot be held: {why}"))
                }
            });
        }
        let reasons = staged.outcome.reasons.join("; ");
        let failure = missing(StageInOnError::Warn).unwrap_or_else(|| Failure::new(Code::StageInFailed, reasons));
        let staging = self.staging.clone();
        let report = tokio::task::spawn_blocking(move || staging.write_stage_in_report(&staged)).await;
        let report = report.unwrap_or_else(|error| Err(Failure::new(Code::Internal, error.to_string())));
        let where_to_look = match report {
            Ok(path) => format!("all that is missing is in {}", path.display()),
            Err(failure) => failure.to_string(),
        };
        let message = format!("{}; the job starts without it, as on_error=warn says; {where_to_look}", failure.message);
        Ok(Failure::new(failure.code, message))
    }

    /// Whether this is a later life of a daemon, of an instance whose job has its input already.
    async fn has_been_ready(&self) -> bool {
        let status = self.node.directory.call(Status).await;
        self.description.restarted && status.is_ok_and(|status| status.state > InstanceState::StagingIn)
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let description = &self.description;
        let mount = description.mount.to_string_lossy().into_owned();
        let capacity = description.capacity_bytes.saturating_mul(description.nodes.len() as u64);
        let mut environment = BTreeMap::from([
            ("BURSTFS".to_owned(), mount.clone()),
            (description.spec.create.name.variable(), mount.clone()),
            ("BURSTFS_INSTANCE".to_owned(), description.instance.to_string()),
            ("BURSTFS_CAPACITY_BYTES".to_owned(), capacity.to_string()),
            ("BURSTFS_SERVERS".to_owned(), staging::servers(description)),
            ("BURSTFS_STAGE_IN".to_owned(), self.input().to_owned()),
        ]);
        environment.extend(foreign_variables(&description.spec.create, &mount));
        let deadline = self.drain_deadline.get().map(|at| ("BURSTFS_DRAIN_DEADLINE".to_owned(), at.to_string()));
        environment.extend(deadline);
        environment
    }

    /// Whether the input is there when the script starts.
    fn input(&self) -> &'static str {
        match (self.is_partial.get(), self.staging.arriving().is_empty()) {
            (Some(()), _) => "partial",
            (None, true) => "complete",
            (None, false) => "async",
        }
    }

    /// From ready to the end.
    async fn live(&self, messages: &mut mpsc::Receiver<NodeMessage>, is_client_gone: bool) {
        if !is_client_gone {
            if self.staging.has_work(Direction::Out) {
                self.rounds.get_or_init(|| {
                    Follower::start(self.description.clone(), self.staging.clone(), self.node.directory.clone())
                });
            }
            if !client_gone(messages).await {
                return;
            }
        }
        let ended = tokio::select! {
            ended = self.end() => ended,
            () = stopped(messages) => return,
        };
        let suspects = self.lost_before.get().cloned().unwrap_or_default();
        self.supervisor.say(drained(ended, suspects)).await;
        stopped(messages).await;
    }

    fn succession(&self) -> Succession {
        Succession {
            description: self.description.clone(),
            directory: self.node.directory.clone(),
            map: self.node.map.clone(),
            lost: self.node.lost.clone(),
            client: self.node.mgs_client.clone(),
            carried: self.node.carried.clone(),
            services: self.node.services.clone(),
        }
    }

    /// Waits for all clients to be gone, drains, and waits for the others to have drained; with the next MGS again, if the
    /// one is lost meanwhile.
    pub(crate) async fn end(&self) -> Result<(), NotDrained> {
        let ended = self.drained_everywhere().await;
        if let (Err(_), Some(durable)) = (&ended, self.durable.get()) {
            durable.finish().await;
        }
        ended
    }

    async fn drained_everywhere(&self) -> Result<(), NotDrained> {
        let directory = &self.node.directory;
        self.supervisor.say(DaemonMessage::State(State::Draining)).await;
        if let Some(rounds) = self.rounds.get() {
            rounds.stop(&self.node.directory).await;
        }
        if let Some(arriving) = self.arriving.get() {
            arriving.stop(directory).await;
        }
        self.staging.clear_arrivals().await;
        // A node on the way may be gone already; then what is remembered must do.
        let _ = tokio::time::timeout(REPORT_INTERVAL, self.staging.remember_sources()).await;
        let ended = loop {
            let seat = directory.seat();
            match self.end_with(&seat).await {
                Ok(Some(ended)) => break ended,
                Ok(None) => tracing::warn!("the MGS has moved; the drain begins anew"),
                Err(failure) => return Err(NotDrained::unknown(failure)),
            }
        };
        self.farewell().await;
        match ended.conclusion {
            // What is dropped the node with the MGS has said.
            Some(MgsConclusion::Drained | MgsConclusion::Dropped(_)) => Ok(()),
            Some(MgsConclusion::Held(kept)) => Err(kept.into()),
            None => {
                let message = "how the drain ended is not known";
                Err(NotDrained::unknown(Failure::new(Code::DrainIncomplete, message)))
            }
        }
    }

    /// The end with the MGS at one seat; `None` when it left that seat before the end.
    async fn end_with(&self, seat: &Seat) -> Result<Option<BarrierDone>, Failure> {
        let directory = &self.node.directory;
        if let Some(mgs) = seat.mgs() {
            self.learn_job_end(mgs).await;
        }
        let gone = directory.barrier(self.own(), Phase::ClientsGone, || self.advance()).await?;
        if let Some(end) = gone.job_end {
            self.supervisor.say(DaemonMessage::JobEnd(end)).await;
        }
        self.node.lost.heed(&gone.lost);
        if directory.has_left(seat.node) {
            return Ok(None);
        }
        self.make_durable(gone.lost);
        let drained = self.drain(seat, gone.job_end).await;
        if directory.has_left(seat.node) {
            return Ok(None);
        }
        match (seat.mgs(), drained) {
            (Some(mgs), Ok(dropped)) => {
                if self.outlives_job() {
                    note::take_away(&self.description).await;
                }
                mgs.conclude(dropped.map_or(MgsConclusion::Drained, MgsConclusion::Dropped));
            }
            (Some(mgs), Err(kept)) => {
                note::leave(&self.description, Some(kept.kept_until), kept.failure.to_string()).await;
                mgs.conclude(MgsConclusion::Held(kept));
            }
            (None, Ok(_)) => {}
            (None, Err(kept)) => tracing::error!("{}", kept.failure),
        }
        tokio::select! {
            biased;
            () = directory.left(seat.node) => Ok(None),
            // While anything moves the reports' answers say so.
            passed = directory.barrier(self.own(), Phase::Drained, || {}) => passed.map(Some),
        }
    }

    fn outlives_job(&self) -> bool {
        self.description.held.is_some() || self.description.drains_alone
    }

    /// The job is over on all nodes, but for those that were `lost`. Where a node was lost before, nobody can say what is missing, and
    /// nothing is called durable.
    fn make_durable(&self, lost: Vec<NodeIndex>) {
        if self.lost_before.get().is_some() {
            return;
        }
        let held = self.description.held.as_ref();
        // Nodes that miss an attempt have lost nothing by it.
        let lost = if held.is_some() { Vec::new() } else { lost };
        let is_whole =
            self.lost_before.get_or_init(|| lost).is_empty() && held.is_none_or(|held| held.suspects.is_empty());
        if is_whole && self.staging.has_work(Direction::Out) {
            self.durable.get_or_init(|| Durable::start(self.supervisor.clone(), self.description.data_dir.clone()));
        }
    }

    /// Has the MGS know how the job ended before this node lets the barrier pass, so that all nodes hear the same of it. Where it is not to be
    /// known, what depends on it is kept.
    async fn learn_job_end(&self, mgs: &MgsDriver) {
        if mgs.job_end().is_none()
            && self.staging.depends_on_job_end()
            && let Some(end) = self.supervisor.job_end().await
        {
            mgs.set_job_end(end);
        }
    }

    /// Does this node's part of the drain. Where the MGS is: what is missing and is dropped, or kept.
    async fn drain(&self, seat: &Seat, job_end: Option<JobEnd>) -> Result<Option<Failure>, Kept> {
        if !self.staging.has_work(Direction::Out) {
            return Ok(None);
        }
        if self.description.drains_alone && self.description.held.is_none() && seat.mgs().is_some() {
            note::leave(&self.description, None, "the output is drained".to_owned()).await;
        }
        let conclusion = self.staging.drain(seat, job_end).await;
        self.reporter.tell().await;
        let conclusion = match conclusion {
            Ok(Some(conclusion)) => conclusion,
            Ok(None) => return Ok(None),
            Err(failure) => return Err(self.kept(failure, Cure::Wait)),
        };
        let outcome = &conclusion.outcome;
        let short = outcome.shortfall(|index| self.staging.keeps(index));
        let kept = short.map(|short| self.kept(short.failure, short.cure));
        let dropped = outcome.shortfall(|index| !self.staging.keeps(index)).map(|short| dropped(short.failure));
        let words = kept.iter().map(|kept| &kept.failure).chain(&dropped).map(Failure::to_string);
        let words = words.reduce(|first, second| format!("{first}; {second}"));
        let staging = self.staging.clone();
        let receipt = tokio::task::spawn_blocking(move || staging.write_receipt(&conclusion, words)).await;
        match receipt.unwrap_or_else(|error| Err(Failure::new(Code::Internal, error.to_string()))) {
            Ok(path) => tracing::info!("receipt: {}", path.display()),
            // The job's data is where it should be, or kept; only the word about it is missing.
            Err(failure) => tracing::error!("{failure}"),
        }
        if let Some(failure) = &dropped {
            tracing::warn!("{failure}");
        }
        kept.map_or(Ok(dropped), Err)
    }

    /// What becomes of what could not be drained, and what its user can do.
    fn kept(&self, failure: Failure, cure: Cure) -> Kept {
        let description = &self.description;
        let kept_until = description.held.as_ref().and_then(|held| held.kept_until);
        let kept_until = kept_until.unwrap_or_else(|| epoch_secs(SystemTime::now()) + description.retain().as_secs());
        let lost = self.node.lost.known();
        let nodes_may_return = !lost.is_empty();
        let resume = format!("burstfs resume {}", description.instance.job_id());
        let advice = match cure {
            _ if nodes_may_return => {
                let missing = held::hosts(description, |node| lost.contains(&node));
                format!("when {missing} is back the drain goes on, also by: {resume}")
            }
            _ if failure.code == Code::JobEndUnknown => {
                format!("it is asked again from time to time; or say it: {resume} --ended success (or failure)")
            }
            Cure::MakeRoom => format!("free space, then: {resume}"),
            Cure::Permit => format!("make the destination writable, then: {resume}"),
            Cure::Wait => format!("it is tried again from time to time, and at once by: {resume}"),
            Cure::None => format!("the receipt names what is missing; to try again: {resume}"),
        };
        let nodes = held::hosts(description, |node| !lost.contains(&node));
        let until = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(kept_until));
        // Nobody waits for a second of a day.
        let until = until.to_string().get(..16).map(|minute| format!("{minute}Z")).unwrap_or_default();
        let message = format!("{}; data kept on {nodes} until {until}; {advice}", failure.message);
        let errors_may_pass = !nodes_may_return && cure != Cure::None;
        Kept { failure: Failure::new(failure.code, message), kept_until, errors_may_pass, nodes_may_return }
    }

    /// Nobody's servers are needed any more. The node with the MGS waits for the others to have heard it, but not for long.
    async fn farewell(&self) {
        match self.node.directory.seat().mgs() {
            Some(mgs) => {
                let all = self.node.directory.barrier(self.own(), Phase::Finished, || {});
                if tokio::time::timeout(FAREWELL, all).await.is_err() {
                    tracing::warn!("not every node has said that it is done");
                }
                // What was asked before is answered, so that nobody waits for an answer that cannot come; at once what is only
                // waited for, as for a round of draining by a node that has stopped taking part.
                mgs.leave();
                if tokio::time::timeout(FAREWELL_ANSWERED, self.node.server.shutdown()).await.is_err() {
                    tracing::info!("not every answer is out");
                }
            }
            None => {
                let told = self.node.directory.reach(self.own(), Phase::Finished);
                if tokio::time::timeout(FAREWELL_ANSWERED, told).await.is_err() {
                    tracing::info!("the MGS does not answer the farewell: its node has ended");
                }
            }
        }
    }

    fn advance(&self) {
        self.advances.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells the MGS and the supervisor how things stand.
struct Reporter {
    node: NodeIndex,
    directory: Directory,
    ost: Arc<Ost>,
    xids: XidSource,
    staging: Arc<Staging>,
    supervisor: Supervisor,
    advances: Arc<AtomicU64>,
    /// The most that the MGS has said of what moves anywhere.
    moved: AtomicU64,
    lost: Arc<LostNodes>,
}

impl Reporter {
    /// From time to time, for as long as the daemon lives.
    async fn run(&self) {
        loop {
            self.tell().await;
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }

    /// Now: where a step has ended, so that its last figures are seen.
    async fn tell(&self) {
        let report = self.report().await;
        self.supervisor.say(DaemonMessage::Progress(self.progress(&report))).await;
        match self.directory.call(report).await {
            Ok(news) => {
                self.lost.heed(&news.lost);
                if self.moved.fetch_max(news.moved, Ordering::Relaxed) < news.moved {
                    self.advances.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::debug!("the MGS does not hear this node's report: {error}"),
        }
    }

    async fn report(&self) -> Report {
        let number = self.xids.take();
        // An OST that cannot say what it holds has told why; the other figures still count.
        let space = match self.ost.call(number.caller(), OssRequest::Statfs(Statfs), &mut NoBulk).await {
            Ok(OssReply::Statfs(space)) => Some(space),
            Ok(_) | Err(_) => None,
        };
        Report {
            node: self.node,
            capacity: space.map_or(0, |space| space.capacity),
            used: space.map_or(0, |space| space.used),
            stage_in: self.staging.progress_in.figures(),
            stage_out: self.staging.drain_figures(),
        }
    }

    fn progress(&self, report: &Report) -> Progress {
        let sum = |of: fn(&burstfs_proto::mgs::StageFigures) -> u64| {
            of(&report.stage_in).saturating_add(of(&report.stage_out))
        };
        let (bytes_out, files_out) = self.staging.drained_in_all();
        Progress {
            files_done: report.stage_in.files_done.saturating_add(files_out),
            files_total: sum(|figures| figures.files_total),
            bytes_done: report.stage_in.bytes_done.saturating_add(bytes_out),
            bytes_total: sum(|figures| figures.bytes_total),
            advances: self.advances.load(Ordering::Relaxed),
            used_bytes: report.used,
        }
    }
}

/// Waits for the mount of this node to be gone; false when the supervisor says stop instead.
async fn client_gone(messages: &mut mpsc::Receiver<NodeMessage>) -> bool {
    loop {
        match messages.recv().await {
            Some(NodeMessage::Stop) => return false,
            Some(NodeMessage::ClientGone) => return true,
            Some(
                NodeMessage::Cancel
                | NodeMessage::Start(_)
                | NodeMessage::JobEnd(_)
                | NodeMessage::Resume
                | NodeMessage::Removed(_),
            ) => {}
            None => std::future::pending().await,
        }
    }
}

async fn stopped(messages: &mut mpsc::Receiver<NodeMessage>) {
    loop {
        match messages.recv().await {
            Some(NodeMessage::Stop) => return,
            Some(
                NodeMessage::ClientGone
                | NodeMessage::Cancel
                | NodeMessage::Start(_)
                | NodeMessage::JobEnd(_)
                | NodeMessage::Resume
                | NodeMessage::Removed(_),
            ) => {}
            None => std::future::pending().await,
        }
    }
}

/// What is not copied, and not kept either.
fn dropped(failure: Failure) -> Failure {
    Failure::new(failure.code, format!("{}; it is not kept, as on_error= says", failure.message))
}
