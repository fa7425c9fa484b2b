//! The loop that every node runs: take work, do it, hand in what came of it.
//!
//! ```text
//!   take(max = free workers) --items--> workers (blocking threads) --finished--> hand-in, at most one call under way,
//!        ^  long poll, at most one                                               what finishes meanwhile goes with the next
//!        '------ until the queue says that everything is over
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use burstfs_proto::stage::{Direction, Finished, Item, Taken};
use burstfs_types::NodeIndex;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::error::{Again, EntryError};
use crate::identity::Identity;
use crate::item::{self, Dir, Record, Step, Work};
use crate::job::AtEnd;
use crate::journal::Journal;
use crate::links::Links;
use crate::list::Streams;
use crate::names::Page;
use crate::pace::Pace;
use crate::round::{Occasion, Selection, Takes};
use crate::{
    DrainedFiles, InstanceTree, Ledger, Progress, QueueLost, StageJob, WorkQueue, batch, drain, ledger, list, names,
    start, survey,
};

/// Finished work of one hand-in stays below this, encoded; well under the RPC's limit for a body.
const HAND_IN_MAX_BYTES: usize = 600 << 10;

/// How often and how fast an entry is tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Tries after the first, for errors that pass.
    pub retries: u32,
    /// Before the first of them; doubles each time.
    pub first_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { retries: 3, first_delay: Duration::from_millis(200) }
    }
}

impl RetryPolicy {
    pub(crate) fn allows(&self, error: &EntryError, tries: u32) -> bool {
        match error.again() {
            Again::Often => tries < self.retries,
            Again::Once => tries < self.retries.min(1),
            Again::Never => false,
        }
    }

    pub(crate) fn delay(&self, tries: u32) -> Duration {
        self.first_delay.saturating_mul(1 << tries.min(6))
    }
}

/// One node's engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeIndex,
    /// All of them.
    pub nodes: u16,
    /// The job: part of temporary names.
    pub job_id: u32,
    /// Items at a time.
    pub workers: usize,
    /// Directory of this node's journals; must exist.
    pub stage_dir: PathBuf,
    /// Where the instance is mounted on the nodes: absolute links into it are understood.
    pub mount: Vec<u8>,
    /// For errors that may pass.
    pub retry: RetryPolicy,
    /// Whether the job runs meanwhile.
    pub occasion: Occasion,
    /// What this node has drained while the job ran; `None` when it has never taken part in a round.
    pub drained: Option<Arc<DrainedFiles>>,
}

/// Why an engine could not go on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The queue is gone.
    #[error(transparent)]
    QueueLost(#[from] QueueLost),
    /// The journal cannot be opened.
    #[error("the stager's journal {path}: {source}")]
    Journal {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Ends an engine's work early: what was not begun is recorded as not attempted.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The items that a queue begins with: one for each job. `attempt` differs between attempts of the same Slurm job (the
/// seconds of the clock will do): temporaries of other attempts are removed.
/// `ledger` knows what an earlier attempt has published.
pub fn seed(ledger: &Ledger, attempt: u32) -> Vec<Item> {
    (0..ledger.jobs.len() as u16)
        .map(|job| Work { job, attempt, step: Step::Start { is_published: ledger.is_published(job) } })
        .map(|work| Item { place: None, body: item::encode(&work) })
        .collect()
}

/// As [`seed`], of a round while the job runs, which publishes nothing.
pub fn seed_round(jobs: &[StageJob], attempt: u32) -> Vec<Item> {
    (0..jobs.len() as u16)
        .map(|job| Work { job, attempt, step: Step::Start { is_published: false } })
        .map(|work| Item { place: None, body: item::encode(&work) })
        .collect()
}

/// What the steps share.
pub(crate) struct Context {
    pub(crate) direction: Direction,
    pub(crate) jobs: Vec<StageJob>,
    pub(crate) tree: Arc<dyn InstanceTree>,
    pub(crate) config: Config,
    pub(crate) progress: Arc<Progress>,
    pub(crate) cancel: Cancel,
    pub(crate) identity: Identity,
    pub(crate) journal: Journal,
    pub(crate) links: Links,
    pub(crate) streams: Mutex<Streams>,
    /// Directories whose attributes a list has brought up already.
    pub(crate) named_dirs: Mutex<HashSet<(u16, u128)>>,
    paces: Vec<Pace>,
    pub(crate) runtime: Handle,
    temporaries: AtomicU32,
}

impl Context {
    /// Waits until the directive `number` may move so many more bytes on this node.
    pub(crate) async fn pace(&self, number: u16, bytes: u64) {
        if let Some(pace) = self.paces.get(usize::from(number)) {
            pace.wait(bytes, &self.cancel).await;
        }
    }

    /// Which files a round is about; `None` when nobody but the stager is at work.
    pub(crate) fn round(&self) -> Option<&Selection> {
        match &self.config.occasion {
            Occasion::Alone => None,
            Occasion::Round(selection) => Some(selection),
        }
    }

    /// Whether the directive's drain copies nothing: it is that at the end, of what is drained on demand.
    pub(crate) fn only_names(&self, job: &StageJob) -> bool {
        self.round().is_none() && job.at_end == AtEnd::Name
    }

    /// A number that this node has not used in a temporary name of this attempt, nor, most likely, in an earlier life.
    pub(crate) fn temporary_number(&self) -> u32 {
        self.temporaries.fetch_add(1, Ordering::Relaxed)
    }
}

/// What came of a step.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) items: Vec<Item>,
    pub(crate) records: Vec<Record>,
}

impl Done {
    pub(crate) fn push_item(&mut self, place: Option<NodeIndex>, work: &Work) {
        self.items.push(Item { place, body: item::encode(work) });
    }
}

/// One node's engine for one direction.
pub struct Engine {
    context: Arc<Context>,
    leftovers: Vec<Dir>,
}

impl Engine {
    /// Opens the journal. Must be called within a tokio runtime of several threads.
    pub fn open(
        direction: Direction,
        jobs: Vec<StageJob>,
        tree: Arc<dyn InstanceTree>,
        config: Config,
        progress: Arc<Progress>,
        cancel: Cancel,
    ) -> Result<Engine, EngineError> {
        let name = match (direction, &config.occasion) {
            (Direction::In, Occasion::Alone) => "in.journal",
            (Direction::Out, Occasion::Alone) => "out.journal",
            (_, Occasion::Round(_)) => "rounds.journal",
        };
        let path = config.stage_dir.join(name);
        let (journal, leftovers) =
            Journal::open(&path).map_err(|source| EngineError::Journal { path: path.clone(), source })?;
        let paces = jobs.iter().map(|job| Pace::new(job.bytes_per_second, config.nodes)).collect();
        let context = Arc::new(Context {
            direction,
            jobs,
            tree,
            config,
            progress,
            cancel,
            identity: Identity::of_process(),
            journal,
            links: Links::default(),
            streams: Mutex::new(HashMap::new()),
            named_dirs: Mutex::new(HashSet::new()),
            paces,
            runtime: Handle::current(),
            temporaries: AtomicU32::new(random_u32()),
        });
        Ok(Engine { context, leftovers })
    }

    /// Removes what an earlier life has left half made, and does no work.
    pub async fn clean(self) {
        let Engine { context, leftovers } = self;
        let cleaned = tokio::task::spawn_blocking(move || drain::remove_leftovers(&context, &leftovers)).await;
        if let Err(error) = cleaned {
            tracing::error!(%error, "removing an earlier life's temporaries panicked");
        }
    }

    /// Works until the queue says that everything is over.
    pub async fn run(self, queue: Arc<dyn WorkQueue>) -> Result<(), EngineError> {
        let Engine { context, leftovers } = self;
        Engine { context: context.clone(), leftovers }.clean().await;
        let mut work = Loop {
            context,
            queue,
            workers: JoinSet::new(),
            calls: JoinSet::new(),
            finished: Vec::new(),
            polls: false,
            hands_in: false,
        };
        let ended = work.run().await;
        // Whoever lost the queue may open another engine on the same journal at once.
        while work.workers.join_next().await.is_some() {}
        ended
    }
}

enum Call {
    Poll(Result<Taken, QueueLost>),
    HandIn(Result<Taken, QueueLost>),
}

struct Loop {
    context: Arc<Context>,
    queue: Arc<dyn WorkQueue>,
    workers: JoinSet<Finished>,
    calls: JoinSet<Call>,
    finished: Vec<Finished>,
    polls: bool,
    hands_in: bool,
}

impl Loop {
    async fn run(&mut self) -> Result<(), EngineError> {
        loop {
            self.call();
            tokio::select! {
                Some(finished) = self.workers.join_next() => match finished {
                    Ok(finished) => self.finished.push(finished),
                    // `perform` catches panics of the steps; this is the runtime's end.
                    Err(error) => return Err(QueueLost { reason: error.to_string() }.into()),
                },
                Some(call) = self.calls.join_next() => {
                    let (taken, was_poll) = match call {
                        Ok(Call::Poll(taken)) => (taken?, true),
                        Ok(Call::HandIn(taken)) => (taken?, false),
                        Err(error) => return Err(QueueLost { reason: error.to_string() }.into()),
                    };
                    if was_poll { self.polls = false } else { self.hands_in = false }
                    match taken {
                        Taken::Over => return Ok(()),
                        Taken::Work(items) => self.begin(items),
                    }
                }
            }
        }
    }

    /// Makes the calls that can be made now.
    fn call(&mut self) {
        let free = self.context.config.workers.max(1).saturating_sub(self.workers.len());
        if !self.polls && free > 0 {
            self.polls = true;
            let finished = self.next_hand_in();
            self.spawn_call(finished, free as u32, Call::Poll);
        } else if !self.hands_in && !self.finished.is_empty() {
            self.hands_in = true;
            let finished = self.next_hand_in();
            self.spawn_call(finished, 0, Call::HandIn);
        }
    }

    fn spawn_call(&mut self, finished: Vec<Finished>, max: u32, wrap: fn(Result<Taken, QueueLost>) -> Call) {
        let queue = self.queue.clone();
        let direction = self.context.direction;
        self.calls.spawn(async move { wrap(queue.take(direction, finished, max).await) });
    }

    fn next_hand_in(&mut self) -> Vec<Finished> {
        let mut bytes = 0;
        let fits = self.finished.iter().take_while(|finished| {
            bytes += finished_bytes(finished);
            bytes <= HAND_IN_MAX_BYTES
        });
        let count = fits.count().max(1).min(self.finished.len());
        self.finished.drain(..count).collect()
    }

    fn begin(&mut self, items: Vec<(u64, Item)>) {
        for (id, item) in items {
            let context = self.context.clone();
            self.workers.spawn_blocking(move || perform(&context, id, &item));
        }
    }
}

fn finished_bytes(finished: &Finished) -> usize {
    let items: usize = finished.items.iter().map(|item| item.body.len() + 8).sum();
    let records: usize = finished.records.iter().map(|record| record.len() + 4).sum();
    items + records + 16
}

/// Does one item, on a blocking thread.
fn perform(context: &Arc<Context>, id: u64, item: &Item) -> Finished {
    let done = match item::decode::<Work>(&item.body) {
        Ok(work) => {
            let step = std::panic::AssertUnwindSafe(|| context.runtime.block_on(step(context, work.clone())));
            std::panic::catch_unwind(step).unwrap_or_else(|_| {
                tracing::error!(?work, "the stager panicked");
                ledger::given_up(&work, "burstfs failed here (E601); see the node's log")
            })
        }
        // Nothing is known of it; the ledger misses its entries and says INCOMPLETE.
        Err(error) => {
            tracing::error!(%error, "an item of the queue");
            Done::default()
        }
    };
    Finished { id, items: done.items, records: done.records.iter().map(item::encode).collect() }
}

async fn step(context: &Context, work: Work) -> Done {
    let Some(job) = context.jobs.get(usize::from(work.job)) else {
        return ledger::given_up(&work, "the job's list of directives is shorter on this node");
    };
    if context.cancel.is_cancelled() {
        return ledger::given_up(&work, "cancelled");
    }
    if let Occasion::Round(selection @ Selection { takes: Takes::Nothing, .. }) = &context.config.occasion {
        return survey::step(context, job, work, selection).await;
    }
    let (number, attempt) = (work.job, work.attempt);
    match work.step {
        Step::Start { is_published } => start::start(context, job, number, attempt, is_published).await,
        Step::List { dir, from } => list::list(context, job, number, attempt, dir, from).await,
        Step::Copy(copy) => batch::copy(context, job, number, attempt, copy).await,
        Step::Names { dir, at, is_nul } => names::names(context, job, number, attempt, Page { dir, at, is_nul }).await,
    }
}

fn random_u32() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}
