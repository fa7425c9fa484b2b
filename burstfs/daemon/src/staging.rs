//! Stage-in and drain of this node: the engine of `burstfs-stager` between the queue and the instance's file system, and
//! on node 0 the ledger.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use burstfs_client::fs::{ClientFs, Credentials};
use burstfs_node::description::InstanceDescription;
use burstfs_proto::mgs::StageFigures;
use burstfs_proto::stage::{Direction, Item};
use burstfs_spec::{DrainOn, DrainOnError, JobSpec, StageIn, StageInOnError, StageInWhen, StageOut};
use burstfs_stager::{
    AtEnd, Cancel, Config, DrainedFiles, Engine, Header, Ledger, Occasion, Outcome, Progress, RetryPolicy, RoundPlan,
    StageJob, not_brought, seed,
};
use burstfs_types::{Code, Failure, JobEnd, NodeIndex, hostlist};

use crate::directory::{Directory, Seat, Work};
use crate::job;
use crate::mgs::{ARRIVALS, MgsDriver, StageSink};
use crate::tree::Tree;

/// Items that one node works on at a time.
const WORKERS: usize = 4;

/// The staging of one node.
pub(crate) struct Staging {
    description: Arc<InstanceDescription>,
    directory: Directory,
    tree: Arc<Tree>,
    stage_dir: PathBuf,
    spec: JobSpec,
    /// Figures of the stage-in.
    pub(crate) progress_in: Arc<Progress>,
    /// Figures of the drain at the end.
    progress_out: Arc<Progress>,
    rounds: Mutex<RoundsHere>,
}

/// What this node knows of the drains while the job runs.
#[derive(Default)]
struct RoundsHere {
    /// `None` until there was a round.
    drained: Option<Arc<DrainedFiles>>,
    /// Figures of the latest.
    progress: Arc<Progress>,
    /// Of those before, bytes and files.
    done_before: (u64, u64),
    has_ended: bool,
}

impl Staging {
    /// Prepares; nothing moves yet. `spec` has its variables replaced.
    pub(crate) fn new(
        description: Arc<InstanceDescription>,
        directory: Directory,
        fs: Arc<ClientFs>,
        spec: JobSpec,
    ) -> std::io::Result<Staging> {
        let stage_dir = description.data_dir.join("stage");
        std::fs::create_dir_all(&stage_dir)?;
        let drained = DrainedFiles::was_in(&stage_dir).then(|| DrainedFiles::open(&stage_dir)).transpose()?;
        let rounds = RoundsHere { drained: drained.map(Arc::new), ..RoundsHere::default() };
        let owner = Credentials { uid: description.uid, gid: description.gid, umask: None };
        Ok(Staging {
            tree: Arc::new(Tree::new(Arc::new(fs.gathering()), owner)),
            description,
            directory,
            stage_dir,
            spec,
            progress_in: Arc::default(),
            progress_out: Arc::default(),
            rounds: Mutex::new(rounds),
        })
    }

    /// Notes where the paths lead that are to be drained, in case a node on the way is lost; whether all are there.
    pub(crate) async fn remember_sources(&self) -> bool {
        let mut all = true;
        for job in self.spec.stage_out.iter().filter_map(|stage| StageJob::try_from(stage).ok()) {
            all &= self.tree.remember(job.root()).await;
        }
        all
    }

    /// Whether the job asked for this direction, before it starts or after it has ended.
    pub(crate) fn has_work(&self, direction: Direction) -> bool {
        match direction {
            Direction::In => self.before().next().is_some(),
            Direction::Out => !self.spec.stage_out.is_empty(),
        }
    }

    /// The input that comes while the job runs.
    pub(crate) fn arriving(&self) -> Vec<StageJob> {
        let directives = self.spec.stage_in.iter().filter(|stage| stage.when == StageInWhen::Async);
        // Their variables were replaced at the start, or it would have failed.
        directives.filter_map(|stage| StageJob::try_from(stage).ok()).collect()
    }

    /// Does this node's part of the stage-in that goes on while the job runs, until the queue at `seat` is over. Where the MGS is, tells it how
    /// that ended, and returns why not all has come.
    pub(crate) async fn work_on_arrivals(&self, seat: Seat, cancel: Cancel) -> Result<Option<Failure>, Failure> {
        let jobs = self.arriving();
        let ledger = match seat.mgs() {
            Some(mgs) => Some((mgs.clone(), self.begin_arrivals(mgs, &jobs)?)),
            None => None,
        };
        let (direction, progress) = (Direction::In, self.progress_in.clone());
        let effort = Effort { direction, round: ARRIVALS, occasion: Occasion::Alone, jobs, progress };
        let worked = self.work(effort, seat, cancel.clone()).await;
        let Some((mgs, ledger)) = ledger else { return worked.map(|()| None) };
        if cancel.is_cancelled() {
            return Ok(None);
        }
        let mut problems: Vec<String> = mgs.lost().into_iter().map(|node| self.lost(node)).collect();
        problems.extend(worked.err().map(|failure| failure.to_string()));
        let Outcome { is_complete, failure, reasons, .. } = ledger.finish(self.tree.clone(), &problems).await;
        let failure = failure.or_else(|| (!is_complete).then(|| Failure::new(Code::StageInFailed, reasons.join("; "))));
        mgs.end_arrivals(failure.clone());
        Ok(failure)
    }

    fn begin_arrivals(&self, mgs: &Arc<MgsDriver>, jobs: &[StageJob]) -> Result<Arc<Ledger>, Failure> {
        let job_id = self.description.instance.job_id();
        let ledger = Ledger::create(&self.stage_dir, Direction::In, jobs.to_vec(), job_id)
            .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let ledger = Arc::new(ledger);
        let sink = ArrivalSink { ledger: ledger.clone(), mgs: Arc::downgrade(mgs) };
        mgs.seed_arrivals(seed(&ledger, attempt()), Arc::new(sink));
        Ok(ledger)
    }

    /// Removes what of the input that comes while the job runs is half there on account of this node: nobody brings the rest any
    /// more.
    pub(crate) async fn clear_arrivals(&self) {
        let jobs = self.arriving();
        if jobs.is_empty() {
            return;
        }
        let config = self.config(Occasion::Alone, None);
        let engine = Engine::open(Direction::In, jobs, self.tree.clone(), config, Arc::default(), Cancel::default());
        match engine {
            Ok(engine) => engine.clean().await,
            Err(error) => tracing::warn!("files that came in may be half there: {error}"),
        }
    }

    /// Whether any directive is drained, or not, by how the job ended.
    pub(crate) fn depends_on_job_end(&self) -> bool {
        self.spec.stage_out.iter().any(|stage| stage.on != DrainOn::Always)
    }

    /// Whether what the directive `index` of the drain could not copy is kept.
    pub(crate) fn keeps(&self, index: usize) -> bool {
        self.spec.stage_out.get(index).is_none_or(|stage| stage.on_error == DrainOnError::Hold)
    }

    /// The directives of the stage-in before the job's start.
    fn before(&self) -> impl Iterator<Item = &StageIn> {
        self.spec.stage_in.iter().filter(|stage| stage.when == StageInWhen::Before)
    }

    /// What of the stage-in before the job's start is missing, of the directives with this `on_error`.
    pub(crate) fn missing_in(&self, outcome: &Outcome, on_error: StageInOnError) -> Option<Failure> {
        let before: Vec<_> = self.before().collect();
        let counts = |index: usize| before.get(index).is_none_or(|stage| stage.on_error == on_error);
        outcome.shortfall(counts).map(|short| short.failure)
    }

    /// Does this node's part of the stage-in before the job's start; see [`Staging::run`].
    pub(crate) async fn stage_in(&self, seat: &Seat, cancel: Cancel) -> Result<Option<Conclusion>, Failure> {
        let jobs = self.before().map(StageJob::try_from).collect::<Result<_, _>>();
        let jobs = jobs.map_err(|error: burstfs_spec::SpecError| error.failure())?;
        self.run(Direction::In, jobs, seat, cancel, None).await
    }

    /// Does this node's part of the drain at the job's end; see [`Staging::run`]. `job_end` is how the job ended, the same on all nodes.
    pub(crate) async fn drain(&self, seat: &Seat, job_end: Option<JobEnd>) -> Result<Option<Conclusion>, Failure> {
        let at_end = |stage| Ok(StageJob { at_end: AtEnd::of(stage, job_end), ..StageJob::try_from(stage)? });
        let jobs = self.spec.stage_out.iter().map(at_end).collect::<Result<_, _>>();
        let jobs = jobs.map_err(|error: burstfs_spec::SpecError| error.failure())?;
        self.run(Direction::Out, jobs, seat, Cancel::default(), job_end).await
    }

    /// Does this node's part of a direction with the queue at `seat`, until all nodes are done. Where the MGS is returns how
    /// it ended.
    async fn run(
        &self,
        direction: Direction,
        jobs: Vec<StageJob>,
        seat: &Seat,
        cancel: Cancel,
        job_end: Option<JobEnd>,
    ) -> Result<Option<Conclusion>, Failure> {
        let began = SystemTime::now();
        let ledger = match seat.mgs() {
            Some(mgs) => Some((mgs.clone(), self.begin(mgs, direction, &jobs)?)),
            None => None,
        };
        let progress = match direction {
            Direction::In => self.progress_in.clone(),
            Direction::Out => {
                self.rounds().has_ended = true;
                self.progress_out.clone()
            }
        };
        let effort = Effort { direction, round: 0, occasion: Occasion::Alone, jobs, progress };
        let worked = self.work(effort, seat.clone(), cancel).await;
        let Some((mgs, ledger)) = ledger else { return worked.map(|()| None) };
        let mut problems: Vec<String> = mgs.lost().into_iter().map(|node| self.lost(node)).collect();
        problems.extend(mgs.suspects().into_iter().map(|node| self.suspect(node)));
        problems.extend(worked.err().map(|failure| failure.to_string()));
        let outcome = ledger.finish(self.tree.clone(), &problems).await;
        Ok(Some(Conclusion { ledger, outcome, began, job_end }))
    }

    fn begin(&self, mgs: &MgsDriver, direction: Direction, jobs: &[StageJob]) -> Result<Arc<Ledger>, Failure> {
        let job_id = self.description.instance.job_id();
        let ledger = Ledger::create(&self.stage_dir, direction, jobs.to_vec(), job_id)
            .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let ledger = Arc::new(ledger);
        mgs.seed(direction, seed(&ledger, attempt()), Arc::new(Sink(ledger.clone())));
        Ok(ledger)
    }

    /// The directives of the drain, in order.
    pub(crate) fn directives(&self) -> &[StageOut] {
        &self.spec.stage_out
    }

    /// Does this node's part of a drain while the job runs, until the round is over.
    pub(crate) async fn work_on_round(
        &self,
        number: u64,
        plan: RoundPlan,
        seat: Seat,
        cancel: Cancel,
    ) -> Result<(), Failure> {
        let progress = Arc::<Progress>::default();
        {
            let mut rounds = self.rounds();
            if rounds.drained.is_none() {
                let opened = DrainedFiles::open(&self.stage_dir);
                let failed = |error| Failure::new(Code::Internal, format!("what rounds have drained: {error}"));
                rounds.drained = Some(Arc::new(opened.map_err(failed)?));
            }
            let figures = rounds.progress.figures();
            rounds.done_before.0 += figures.bytes_done;
            rounds.done_before.1 += figures.files_done;
            rounds.progress = progress.clone();
        }
        let RoundPlan { jobs, selection } = plan;
        let effort =
            Effort { direction: Direction::Out, round: number, occasion: Occasion::Round(selection), jobs, progress };
        self.work(effort, seat, cancel).await
    }

    /// How far the drain is: that at the end once it has begun, before it the latest round.
    pub(crate) fn drain_figures(&self) -> StageFigures {
        let rounds = self.rounds();
        if rounds.has_ended { self.progress_out.figures() } else { rounds.progress.figures() }
    }

    /// Bytes and files that this node has drained at any time; they only rise.
    pub(crate) fn drained_in_all(&self) -> (u64, u64) {
        let rounds = self.rounds();
        let (now, end) = (rounds.progress.figures(), self.progress_out.figures());
        let (bytes, files) = rounds.done_before;
        (bytes + now.bytes_done + end.bytes_done, files + now.files_done + end.files_done)
    }

    fn rounds(&self) -> MutexGuard<'_, RoundsHere> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(&self, effort: Effort, seat: Seat, cancel: Cancel) -> Result<(), Failure> {
        let Effort { direction, round, occasion, jobs, progress } = effort;
        let drained = self.rounds().drained.clone().filter(|_| direction == Direction::Out);
        let node = NodeIndex::new(self.description.node_index);
        let config = self.config(occasion, drained);
        let code = match direction {
            Direction::In => Code::StageInFailed,
            Direction::Out => Code::DrainIncomplete,
        };
        let incarnation = self.description.incarnation;
        let queue = Work { directory: self.directory.clone(), seat, round, node, incarnation };
        let failed =
            |error: &dyn std::fmt::Display| Failure::new(code, format!("{}: {error}", self.description.node_name()));
        let engine = Engine::open(direction, jobs, self.tree.clone(), config, progress, cancel)
            .map_err(|error| failed(&error))?;
        engine.run(Arc::new(queue)).await.map_err(|error| failed(&error))
    }

    fn config(&self, occasion: Occasion, drained: Option<Arc<DrainedFiles>>) -> Config {
        Config {
            node: NodeIndex::new(self.description.node_index),
            nodes: u16::try_from(self.description.nodes.len()).unwrap_or(u16::MAX),
            job_id: self.description.instance.job_id(),
            workers: WORKERS,
            stage_dir: self.stage_dir.clone(),
            mount: self.description.mount.as_os_str().as_encoded_bytes().to_vec(),
            retry: RetryPolicy::default(),
            occasion,
            drained,
        }
    }

    fn lost(&self, node: NodeIndex) -> String {
        format!("{} was lost, with what it held", self.host(node))
    }

    fn suspect(&self, node: NodeIndex) -> String {
        format!(
            "{} was lost before all that the job wrote was on its disk: files may be missing, or older than they were",
            self.host(node)
        )
    }

    fn host(&self, node: NodeIndex) -> &str {
        self.description.nodes.get(usize::from(node.get())).map_or("?", String::as_str)
    }

    /// Writes what has become of the input next to the job's output.
    pub(crate) fn write_stage_in_report(&self, conclusion: &Conclusion) -> Result<PathBuf, Failure> {
        let (header, dir) = self.header(conclusion, None);
        conclusion.ledger.write_stage_in_report(&header, &dir).map_err(|error| {
            Failure::new(Code::ReceiptFailed, format!("the stage-in's report cannot be written: {error}"))
        })
    }

    /// Writes receipt and report of a drain next to the job's output.
    /// `kept` says what becomes of what is missing.
    pub(crate) fn write_receipt(&self, conclusion: &Conclusion, kept: Option<String>) -> Result<PathBuf, Failure> {
        let (header, dir) = self.header(conclusion, kept);
        conclusion
            .ledger
            .write_receipt(&header, &dir)
            .map_err(|error| Failure::new(Code::ReceiptFailed, format!("the receipt cannot be written: {error}")))
    }

    /// What a report begins with, and the directory that it goes to.
    fn header(&self, conclusion: &Conclusion, kept: Option<String>) -> (Header, PathBuf) {
        let description = &self.description;
        let header = Header {
            instance: description.instance.to_string(),
            job_id: description.instance.job_id(),
            user: description.user.clone(),
            began: humantime::format_rfc3339_seconds(conclusion.began).to_string(),
            ended: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            job_end: conclusion.job_end,
            kept,
        };
        (header, output_dir(description.stdout.as_deref(), &description.work_dir))
    }
}

/// What an engine is to do.
struct Effort {
    direction: Direction,
    /// Whose queue: that of a round, or 0.
    round: u64,
    occasion: Occasion,
    jobs: Vec<StageJob>,
    progress: Arc<Progress>,
}

/// How a direction ended, on node 0.
pub(crate) struct Conclusion {
    ledger: Arc<Ledger>,
    /// The result.
    pub(crate) outcome: Outcome,
    began: SystemTime,
    job_end: Option<JobEnd>,
}

/// What becomes of the work of a direction.
struct Sink(Arc<Ledger>);

impl StageSink for Sink {
    fn records(&self, _direction: Direction, records: Vec<Vec<u8>>) {
        self.0.accept(&records);
    }

    fn undoable(&self, _direction: Direction, items: Vec<Item>) {
        self.0.give_up(&items, "its node was lost");
    }

    fn take_stop(&self) -> bool {
        self.0.take_stop()
    }

    fn has_stopped(&self, item: &Item) -> bool {
        self.0.has_stopped(item)
    }

    fn withdrawn(&self, items: Vec<Item>) {
        self.0.give_up(&items, "an error before it has ended the directive (on_error=fail)");
    }
}

/// As [`Sink`], which also tells the MGS what will not come.
struct ArrivalSink {
    ledger: Arc<Ledger>,
    /// It holds the queue, which holds this.
    mgs: Weak<MgsDriver>,
}

impl ArrivalSink {
    fn tell(&self, paths: Vec<Vec<u8>>) {
        if let Some(mgs) = self.mgs.upgrade().filter(|_| !paths.is_empty()) {
            mgs.fail_arrivals(paths);
        }
    }
}

impl StageSink for ArrivalSink {
    fn records(&self, _direction: Direction, records: Vec<Vec<u8>>) {
        self.ledger.accept(&records);
        self.tell(not_brought(&records));
    }

    fn undoable(&self, _direction: Direction, items: Vec<Item>) {
        self.ledger.give_up(&items, "its node was lost");
    }
}

/// Tells attempts of the same job apart.
pub(crate) fn attempt() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs() as u32
}

/// Where the receipt of the job's drain is, or will be.
pub(crate) fn receipt_path(description: &InstanceDescription) -> PathBuf {
    let dir = output_dir(description.stdout.as_deref(), &description.work_dir);
    burstfs_stager::receipt_path(&dir, description.instance.job_id())
}

/// Where its report is.
pub(crate) fn report_path(description: &InstanceDescription) -> PathBuf {
    let dir = output_dir(description.stdout.as_deref(), &description.work_dir);
    burstfs_stager::report_path(&dir, description.instance.job_id())
}

/// The directory of the job's output: where its user looks.
fn output_dir(stdout: Option<&Path>, work_dir: &Path) -> PathBuf {
    let parent = stdout.and_then(Path::parent).unwrap_or(Path::new(""));
    // A pattern in a directory's name is known to Slurm only.
    let dir = if parent.as_os_str().as_encoded_bytes().contains(&b'%') { Path::new("") } else { parent };
    let dir = work_dir.join(dir);
    // A job whose output goes to /dev/null still gets its receipt.
    if dir.starts_with("/dev") { work_dir.to_owned() } else { dir }
}

/// Replaces the variables of the request's paths. Slurm is asked only for what the paths need.
pub(crate) async fn bind(description: &InstanceDescription) -> Result<JobSpec, Failure> {
    let values = burstfs_spec::Values {
        job_id: Some(description.instance.job_id().to_string()),
        user: Some(description.user.clone()),
        env_user: Some(description.user.clone()),
        work_dir: description.work_dir.to_str().map(str::to_owned),
        submit_dir: description.work_dir.to_str().map(str::to_owned),
        ..burstfs_spec::Values::default()
    };
    let bound = description.spec.bind(&values).map_err(|error| error.failure())?;
    let is_resolved = |spec: &JobSpec| {
        spec.stage_in.iter().all(|stage| StageJob::try_from(stage).is_ok())
            && spec.stage_out.iter().all(|stage| StageJob::try_from(stage).is_ok())
    };
    if is_resolved(&bound) {
        return Ok(bound);
    }
    let slurm_conf = description.slurm_conf.as_deref();
    let names = job::names(description.instance.job_id(), slurm_conf).await.unwrap_or_default();
    let values = burstfs_spec::Values {
        job_name: names.job_name,
        array_job_id: names.array_job_id.or_else(|| values.job_id.clone()),
        array_task_id: names.array_task_id,
        ..values
    };
    bound.bind(&values).map_err(|error| error.failure())
}

/// The hosts as `BURSTFS_SERVERS` has them.
pub(crate) fn servers(description: &InstanceDescription) -> String {
    hostlist::compress(&description.nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receipt_goes_where_the_output_goes() {
        let dir = |stdout: Option<&str>| output_dir(stdout.map(Path::new), Path::new("/home/a"));
        assert_eq!(dir(None), Path::new("/home/a"));
        assert_eq!(dir(Some("slurm-%j.out")), Path::new("/home/a"));
        assert_eq!(dir(Some("logs/slurm-7.out")), Path::new("/home/a/logs"));
        assert_eq!(dir(Some("/scratch/%x/out")), Path::new("/home/a"));
        assert_eq!(dir(Some("/dev/null")), Path::new("/home/a"));
        assert_eq!(dir(Some("/lus/out/7")), Path::new("/lus/out"));
    }
}
