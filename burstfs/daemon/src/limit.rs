//! The job's time limit, as far as drains care: asked of Slurm now and then, since an administrator may move it.
//!
//! Owns the clock's side of [`burstfs_mgs::Deadline`]: how much time is left, how much there is to drain, and the one warning
//! in the job's output when it cannot be drained in time. Only the node that carries the MGS asks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use burstfs_mgs::{Amount, Deadline};
use burstfs_node::description::InstanceDescription;
use burstfs_proto::mgs::StageFigures;
use burstfs_spec::{DrainDeadline, DrainWhen, StageOut};
use burstfs_types::{Code, Failure};
use tokio::time::Instant;

use crate::job;
use crate::rounds::may_run_early;

/// A round's own speed says nothing before it has gone on for so long.
const TELLING: Duration = Duration::from_secs(6);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The limit of one job.
pub(crate) struct Limit {
    description: Arc<InstanceDescription>,
    asked: Option<Instant>,
    end: Option<SystemTime>,
    deadline: Option<Deadline>,
    changed: Amount,
    has_warned: bool,
}

impl Limit {
    /// Nothing is known yet. `told` is the deadline that the job was told at its start.
    pub(crate) fn new(description: Arc<InstanceDescription>) -> Limit {
        Limit { description, asked: None, end: None, deadline: None, changed: Amount::default(), has_warned: false }
    }

    /// Asks Slurm, if it is time; `told` is the deadline that the job was told at its start.
    pub(crate) async fn refresh(&mut self, directives: &[StageOut], told: Option<u64>) {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return;
        }
        self.asked = Some(Instant::now());
        // A slurmctld that does not answer has not moved the limit.
        if let Some(end) = job::end_time(&self.description).await {
            self.end = Some(end);
        }
        if self.deadline.is_none()
            && let Some(end) = self.end
        {
            let told = told.map(|told| SystemTime::UNIX_EPOCH + Duration::from_secs(told));
            let reserve = told.and_then(|told| end.duration_since(told).ok());
            self.deadline = reserve
                .map(|reserve| self.deadline_with(reserve))
                .or_else(|| deadline(&self.description, directives, end));
        }
    }

    fn deadline_with(&self, reserve: Duration) -> Deadline {
        Deadline::new(Some(reserve), Duration::MAX, nodes(&self.description))
    }

    /// So much has changed and is not drained, as was just found.
    pub(crate) fn found(&mut self, changed: Amount) {
        self.changed = changed;
    }

    /// A round has moved so much in that time.
    pub(crate) fn measured(&mut self, moved: Amount, took: Duration) {
        if let Some(deadline) = &mut self.deadline {
            deadline.measured(moved, took);
        }
    }

    /// Whether drains follow one another now.
    pub(crate) fn is_due(&self) -> bool {
        let due = |deadline: &Deadline| self.left().is_some_and(|left| deadline.is_due(left, self.changed));
        self.deadline.as_ref().is_some_and(due)
    }

    /// Says in the job's output, once, that what was closed before the deadline will not be drained before the limit.
    pub(crate) fn warn_if_missed(&mut self) {
        let (Some(deadline), Some(left)) = (&self.deadline, self.left()) else { return };
        if self.has_warned || !deadline.is_missed(left, self.changed) {
            return;
        }
        self.has_warned = true;
        let needed = deadline.time_for(self.changed).as_secs();
        let Amount { files, bytes } = self.changed;
        let message = format!(
            "{files} files with {bytes} bytes are not drained, which takes {needed} s at the measured rate, and the time limit is \
             in {} s: the rest is drained after it",
            left.as_secs()
        );
        let failure = Failure::new(Code::DeadlineMissed, message);
        tracing::info!("{failure}");
        let (description, line) = (self.description.clone(), format!("burstfs: warning: {failure}"));
        tokio::spawn(async move { job::notify(&description, &line).await });
    }

    /// A round is so far after `elapsed`: its own speed says when it will be over.
    pub(crate) fn watch(&mut self, figures: &StageFigures, elapsed: Duration) {
        if elapsed < TELLING {
            return;
        }
        let done = Amount { files: figures.files_done, bytes: figures.bytes_done };
        self.measured(done, elapsed);
        let left = |total: u64, done: u64| total.saturating_sub(done);
        let files = left(figures.files_total, figures.files_done);
        self.changed = Amount { files, bytes: left(figures.bytes_total, figures.bytes_done) };
        self.warn_if_missed();
    }

    /// Until the limit; `None` where there is none.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.end.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

/// The deadline that the job is told, seconds since the epoch; `None` without a time limit, or without anything that is drained
/// before it.
pub(crate) async fn told(description: &InstanceDescription, directives: &[StageOut]) -> Option<u64> {
    if directives.is_empty() {
        return None;
    }
    let end = job::end_time(description).await?;
    let at = end - deadline(description, directives, end)?.reserve();
    Some(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
}

/// The longest reserve that any directive asks for of those that are drained before the limit.
fn deadline(description: &InstanceDescription, directives: &[StageOut], end: SystemTime) -> Option<Deadline> {
    let left = end.duration_since(SystemTime::now()).ok()?;
    let nodes = nodes(description);
    let reserve = |directive: &StageOut| {
        let asked = match directive.deadline {
            DrainDeadline::Auto => None,
            DrainDeadline::Before(time) => Some(time),
        };
        Deadline::new(asked, left, nodes).reserve()
    };
    let automatic =
        directives.iter().filter(|directive| directive.when != DrainWhen::Manual && may_run_early(directive));
    let longest = automatic.map(reserve).max()?;
    Some(Deadline::new(Some(longest), left, nodes))
}

fn nodes(description: &InstanceDescription) -> u32 {
    u32::try_from(description.nodes.len()).unwrap_or(u32::MAX)
}
