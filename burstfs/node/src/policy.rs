//! What the supervisor does about what happens to its instance: the state machine, without any I/O or clock.
//!
//! ```text
//!             staging_in          ready             Stop                 drained
//!   STARTING ------------> STAGING_IN ----> READY ---------> DRAINING ------------> ENDING(Remove)
//!      |  \                 /  |            |  ^ daemon ended   |  ^ daemon ended
//!      |   \ Stop     Stop /   |            +--+ (restart)      +--+ (restart, without mount)
//!      |    v             v    |            | too often         | incomplete, no progress
//!      |      CANCELLING       |            v                   v
//!      |          |            |           LOST -- Stop -->    HELD, see [`crate::keeping`]
//!      v          v            v                 DRAINING
//!     ENDING(Fail): failed | daemon ended | too long
//! ```
//!
//! Invariants: an outcome is recorded once; nothing is removed after READY without a complete drain; each event returns
//! the actions in the order in which they are to be done, the journal's step first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use burstfs_node::control::{DaemonMessage, NodeMessage, Progress, State};
use burstfs_node::held::{Held, Hope};
use burstfs_node::journal::Step;
use burstfs_types::{Code, Failure, JobEnd};

use crate::keeping::Keeping;

/// How many restarts of `burstfsd` within [`RESTART_WINDOW`] are one too many.
const RESTARTS_MAX: usize = 5;
/// "In a short time".
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// How long a daemon may take to answer a cancel before it is ended.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How much longer than the daemon's own time-out the supervisor waits for it to say so.
const START_MARGIN: Duration = Duration::from_secs(10);

/// Where the instance is on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Starting,
    StagingIn,
    Ready,
    /// The job runs, and the daemon is not started again before its end.
    Lost,
    Cancelling,
    Draining,
    /// Something could not be drained: data is kept.
    Held,
    Ending,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Starting => "STARTING",
            Phase::StagingIn => "STAGING_IN",
            Phase::Ready => "READY",
            Phase::Lost => "DEGRADED",
            Phase::Cancelling => "CANCELLING",
            Phase::Draining => "DRAINING",
            Phase::Held => "HELD",
            Phase::Ending => "ENDING",
        }
    }
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    /// `burstfsd` said something.
    Said(DaemonMessage),
    /// `burstfsd` is gone, or cannot be talked to any more (it is then ended); how, and its last words.
    DaemonEnded(String),
    /// The job's end on this node.
    Stop,
    /// Slurm says that the job does not start any more, or, once it ran, that it is over; its state.
    JobEnded(String),
    /// Slurm was asked how the job ended: what it said, if anything.
    JobEndHeard(Option<JobEnd>),
    /// [`Machine::deadline`] has passed.
    TimedOut,
    /// Somebody wants what is held drained now.
    Resume,
    /// An administrator wants what is held removed.
    Discard,
}

/// What to do.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    /// Write the step to the journal.
    Journal(Step),
    /// Tell the plugin, with what it is to say to the job.
    RecordReady { environment: BTreeMap<String, String>, warning: Option<Failure> },
    /// Tell the plugin; `announce` when no daemon could tell the other nodes, so that Slurm has to.
    RecordFailed { failure: Failure, announce: bool },
    /// Tell `burstfsd`, if there is one.
    Send(NodeMessage),
    /// Abort a mount whose daemon is gone.
    AbortMount,
    /// Unmount; with force when nobody serves it or it is busy.
    Unmount,
    /// Mount (again).
    Mount,
    /// Start `burstfsd` again.
    Restart { serves_mount: bool },
    /// End `burstfsd`: with time to exit by itself, or at once.
    EndDaemon { patiently: bool },
    /// Start `burstfsd` to drain what is held, when it can.
    RestartHeld(Held),
    /// Whoever waits for the end need not wait any more: data is held, or (`None`) the drain goes on by itself.
    Release(Option<Held>),
    /// Ask Slurm how the job ended.
    AskJobEnd,
    /// Make what was journalled survive a power loss.
    SyncJournal,
    /// Put something unexpected into the log.
    Warn(Failure),
    /// Put something into the log.
    Note(String),
    /// The last action.
    Finish(Finish),
}

/// What is left of the instance on this node.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Finish {
    /// Nothing but the outcome of a failed start, until the job's end.
    Fail,
    /// Nothing.
    Remove,
    /// The data, which nobody looks after: what is known of it cannot be read.
    Leave(Held),
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) start: Duration,
    pub(crate) no_progress: Duration,
    /// How long an epilog waits for what cannot be drained.
    pub(crate) retry: Duration,
    /// How long what is held is kept.
    pub(crate) retain: Duration,
    /// The wall clock at the moment from which all times are counted.
    pub(crate) epoch_secs: u64,
    /// Whether the epilog waits for no drain.
    pub(crate) returns_node: bool,
}

impl Patience {
    /// The moment of a time of the wall clock; the beginning when it was before.
    pub(crate) fn at(&self, epoch_secs: u64) -> Duration {
        Duration::from_secs(epoch_secs.saturating_sub(self.epoch_secs))
    }

    fn kept_until(&self, now: Duration) -> u64 {
        self.epoch_secs.saturating_add(now.saturating_add(self.retain).as_secs())
    }
}

/// The state. `now` is the time since any fixed moment.
#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    patience: Patience,
    deadline: Option<Duration>,
    progress: Progress,
    restarts: VecDeque<Duration>,
    restart_count: u32,
    /// What the job is to be told when it starts.
    warning: Option<Failure>,
    /// How the job ended, once that is in the journal.
    job_end: Option<JobEnd>,
    /// In [`Phase::Held`].
    keeping: Option<Keeping>,
}

impl Machine {
    /// A daemon has just been started in `phase`.
    pub(crate) fn new(phase: Phase, patience: Patience, now: Duration) -> Machine {
        let mut machine = Machine {
            phase,
            patience,
            deadline: None,
            progress: Progress::default(),
            restarts: VecDeque::new(),
            restart_count: 0,
            warning: None,
            job_end: None,
            keeping: None,
        };
        machine.deadline = match phase {
            Phase::Starting | Phase::Ready => machine.start_deadline(now),
            _ => machine.progress_deadline(now),
        };
        machine
    }

    /// Data is held already, and nobody waits for the end; what to do first.
    pub(crate) fn of_held(held: Held, patience: Patience, now: Duration) -> (Machine, Vec<Action>) {
        let mut machine = Machine::new(Phase::Held, patience, now);
        let actions = machine.keeping.insert(Keeping::new(held, patience, None, now)).begin(now);
        (machine, actions)
    }

    /// The journal of an earlier supervisor says how the job ended.
    pub(crate) fn recall_job_end(&mut self, end: Option<JobEnd>) {
        self.job_end = end;
    }

    /// How the job ended, if that is known.
    pub(crate) fn job_end(&self) -> Option<JobEnd> {
        self.job_end
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The phase, as people see it.
    pub(crate) fn state(&self) -> &'static str {
        match &self.keeping {
            Some(keeping) if keeping.is_draining() => Phase::Draining.name(),
            Some(_) | None => self.phase.name(),
        }
    }

    /// What is held, if anything.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.keeping.as_ref().map(Keeping::held)
    }

    /// When [`Event::TimedOut`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.keeping.as_ref().map_or(self.deadline, Keeping::deadline)
    }

    /// The latest counters.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// How often the daemon was started again.
    pub(crate) fn restart_count(&self) -> u32 {
        self.restart_count
    }

    /// What to do about `event`.
    pub(crate) fn apply(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Said(DaemonMessage::Progress(progress)) => {
                self.note_progress(progress, now);
                return Vec::new();
            }
            Event::Said(DaemonMessage::Warning(failure)) => {
                self.warning = Some(failure);
                return Vec::new();
            }
            Event::Said(DaemonMessage::AskJobEnd) => return self.tell_job_end(),
            Event::Said(DaemonMessage::JobEnd(end)) => return self.note_job_end(end),
            Event::JobEndHeard(end) => return self.hear_job_end(end),
            _ => {}
        }
        match self.phase {
            Phase::Starting | Phase::StagingIn => self.while_starting(event, now),
            Phase::Ready | Phase::Lost => self.while_ready(event, now),
            Phase::Cancelling => self.while_cancelling(event, now),
            Phase::Draining => self.while_draining(event, now),
            Phase::Held => self.while_held(event, now),
            Phase::Ending => Vec::new(),
        }
    }

    /// Whether the job's end has come to this node, and something may be left to drain.
    fn may_drain(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Held)
    }

    /// A daemon asks how the job ended.
    fn tell_job_end(&self) -> Vec<Action> {
        match self.job_end {
            _ if !self.may_drain() => Vec::new(),
            Some(_) => vec![Action::Send(NodeMessage::JobEnd(self.job_end))],
            None => vec![Action::AskJobEnd],
        }
    }

    /// Slurm has been asked.
    fn hear_job_end(&mut self, end: Option<JobEnd>) -> Vec<Action> {
        let mut actions = end.map(|end| self.note_job_end(end)).unwrap_or_default();
        if self.may_drain() {
            actions.push(Action::Send(NodeMessage::JobEnd(self.job_end)));
        }
        actions
    }

    /// The first word stays: what was drained by it is not undone by another.
    fn note_job_end(&mut self, end: JobEnd) -> Vec<Action> {
        if self.job_end.is_some() || !self.may_drain() {
            return Vec::new();
        }
        self.job_end = Some(end);
        vec![Action::Journal(Step::JobEnd { end }), Action::SyncJournal]
    }

    fn start_deadline(&self, now: Duration) -> Option<Duration> {
        Some(now + self.patience.start + START_MARGIN)
    }

    fn progress_deadline(&self, now: Duration) -> Option<Duration> {
        Some(now + self.patience.no_progress)
    }

    fn note_progress(&mut self, progress: Progress, now: Duration) {
        let advanced = progress.is_beyond(&self.progress);
        if advanced {
            self.progress = progress;
        } else {
            // Counters that fall and rise again are no progress.
            self.progress.used_bytes = progress.used_bytes;
        }
        if advanced && matches!(self.phase, Phase::StagingIn | Phase::Draining) {
            self.deadline = self.progress_deadline(now);
        }
        if advanced && let Some(keeping) = &mut self.keeping {
            keeping.advance(now);
        }
    }

    fn while_starting(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Said(DaemonMessage::State(State::StagingIn)) => {
                if self.phase == Phase::Starting {
                    self.phase = Phase::StagingIn;
                    self.deadline = self.progress_deadline(now);
                }
                Vec::new()
            }
            Event::Said(DaemonMessage::Ready { environment }) => self.become_ready(environment),
            // A daemon tells the others itself, unless it has no proof of who it is, or not the network that was asked for. A job that is
            // held has no output that would say why.
            Event::Said(DaemonMessage::Failed(failure)) => {
                let announce = matches!(failure.code, Code::Identity | Code::RdmaMissing | Code::StageInHeld);
                self.fail(failure, announce, true)
            }
            Event::Said(DaemonMessage::Drained { .. }) => {
                let failure = Failure::new(Code::Internal, "burstfsd said that it has drained before it was ready");
                self.fail(failure, true, false)
            }
            Event::Said(
                DaemonMessage::State(_)
                | DaemonMessage::Progress(_)
                | DaemonMessage::Durable
                | DaemonMessage::Warning(_)
                | DaemonMessage::AskJobEnd
                | DaemonMessage::JobEnd(_),
            )
            | Event::JobEndHeard(_)
            | Event::Resume
            | Event::Discard => Vec::new(),
            Event::DaemonEnded(words) => {
                let failure = Failure::new(Code::DaemonFailed, format!("burstfsd could not start: {words}"));
                self.fail(failure, true, false)
            }
            Event::TimedOut => {
                let what = if self.phase == Phase::Starting { "did not start in time" } else { "made no progress" };
                self.fail(Failure::new(Code::DaemonFailed, format!("burstfsd {what}")), true, false)
            }
            Event::JobEnded(state) => {
                let failure = Failure::new(Code::Cancelled, format!("the job is {state} while its file system starts"));
                self.fail(failure, false, false)
            }
            Event::Stop => {
                self.phase = Phase::Cancelling;
                self.deadline = Some(now + CANCEL_GRACE);
                vec![Action::Send(NodeMessage::Cancel)]
            }
        }
    }

    fn become_ready(&mut self, environment: BTreeMap<String, String>) -> Vec<Action> {
        self.phase = Phase::Ready;
        self.deadline = None;
        vec![Action::Journal(Step::Ready), Action::RecordReady { environment, warning: self.warning.take() }]
    }

    fn fail(&mut self, failure: Failure, announce: bool, patiently: bool) -> Vec<Action> {
        self.phase = Phase::Ending;
        self.deadline = None;
        vec![
            Action::RecordFailed { failure, announce },
            Action::EndDaemon { patiently },
            Action::AbortMount,
            Action::Finish(Finish::Fail),
        ]
    }

    fn while_cancelling(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let cancelled = || Failure::new(Code::Cancelled, "the job ended while its file system was started");
        match event {
            // The daemon was faster than the cancel: every node is ready, so all end together, as after any job.
            Event::Said(DaemonMessage::Ready { environment }) => {
                let mut actions = self.become_ready(environment);
                actions.extend(self.begin_drain(now));
                actions
            }
            Event::Said(DaemonMessage::Failed(_)) => self.fail(cancelled(), false, true),
            Event::DaemonEnded(_) | Event::TimedOut => self.fail(cancelled(), false, false),
            Event::Said(_)
            | Event::Stop
            | Event::JobEnded(_)
            | Event::JobEndHeard(_)
            | Event::Resume
            | Event::Discard => Vec::new(),
        }
    }

    fn while_ready(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            // Slurm has ended the job without an epilog here: none will come.
            Event::Stop | Event::JobEnded(_) => self.begin_drain(now),
            Event::DaemonEnded(words) => self.restart_serving(&words, now),
            Event::TimedOut => vec![
                Action::Warn(Failure::new(Code::DaemonLost, "burstfsd did not come back in time after its restart")),
                Action::EndDaemon { patiently: false },
            ]
            .into_iter()
            .chain(self.restart_serving("it hung", now))
            .collect(),
            // A restarted daemon says again how it gets on; the outcome has been recorded long before.
            Event::Said(DaemonMessage::Ready { .. }) => {
                self.deadline = None;
                Vec::new()
            }
            Event::Said(DaemonMessage::Failed(failure)) => vec![Action::Warn(failure)],
            Event::Said(
                DaemonMessage::State(_)
                | DaemonMessage::Progress(_)
                | DaemonMessage::Drained { .. }
                | DaemonMessage::Durable
                | DaemonMessage::Warning(_)
                | DaemonMessage::AskJobEnd
                | DaemonMessage::JobEnd(_),
            )
            | Event::JobEndHeard(_)
            | Event::Resume
            | Event::Discard => Vec::new(),
        }
    }

    fn begin_drain(&mut self, now: Duration) -> Vec<Action> {
        let was_lost = self.phase == Phase::Lost;
        self.phase = Phase::Draining;
        self.deadline = self.progress_deadline(now);
        let mut actions = vec![Action::Journal(Step::Drain), Action::Unmount];
        if was_lost {
            self.restarts.clear();
            actions.push(Action::Restart { serves_mount: false });
        }
        actions.push(Action::Send(NodeMessage::ClientGone));
        if self.patience.returns_node {
            actions.push(Action::Release(None));
        }
        actions
    }

    /// Notes a restart; `false` when there were too many.
    fn may_restart(&mut self, now: Duration) -> bool {
        self.restarts.push_back(now);
        while self.restarts.front().is_some_and(|at| now.saturating_sub(*at) > RESTART_WINDOW) {
            self.restarts.pop_front();
        }
        let allowed = self.restarts.len() <= RESTARTS_MAX;
        self.restart_count += u32::from(allowed);
        allowed
    }

    fn restart_serving(&mut self, words: &str, now: Duration) -> Vec<Action> {
        if !self.may_restart(now) {
            self.phase = Phase::Lost;
            self.deadline = None;
            let message = format!("burstfsd ended {} times in a row: {words}", RESTARTS_MAX + 1);
            return vec![Action::Warn(Failure::new(Code::DaemonLost, message)), Action::AbortMount];
        }
        self.deadline = self.start_deadline(now);
        vec![
            Action::Warn(Failure::new(Code::DaemonRestarted, format!("burstfsd ended: {words}; it is started again"))),
            Action::AbortMount,
            Action::Mount,
            Action::Restart { serves_mount: true },
        ]
    }

    fn while_draining(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Said(DaemonMessage::Drained { complete: true, failure, .. }) => self.drained(failure),
            Event::Said(DaemonMessage::Drained { complete: false, failure, hope, suspects }) => {
                let unnamed = || Failure::new(Code::DrainIncomplete, "burstfsd gave no reason");
                let failure = failure.unwrap_or_else(unnamed);
                self.hold(Held { suspects, ..self.held_now(failure, hope, now) }, true, now)
            }
            Event::Said(DaemonMessage::Failed(failure)) => self.hold(self.held_now(failure, Hope::ALL, now), true, now),
            Event::Said(DaemonMessage::Durable) => vec![Action::Journal(Step::Durable), Action::SyncJournal],
            Event::Stop if self.patience.returns_node => vec![Action::Release(None)],
            Event::DaemonEnded(words) if self.may_restart(now) => {
                self.deadline = self.progress_deadline(now);
                // What the next one does counts from 0.
                self.progress = Progress { used_bytes: self.progress.used_bytes, ..Progress::default() };
                let message = format!("burstfsd ended while it drained: {words}; it is started again");
                vec![
                    Action::Warn(Failure::new(Code::DaemonRestarted, message)),
                    Action::Restart { serves_mount: false },
                    Action::Send(NodeMessage::ClientGone),
                ]
            }
            Event::DaemonEnded(words) => {
                let message = format!("burstfsd ended {} times while it drained: {words}", RESTARTS_MAX + 1);
                let failure = Failure::new(Code::DrainIncomplete, message);
                self.hold(self.held_now(failure, Hope::ALL, now), false, now)
            }
            // Who waits has waited long enough.
            Event::TimedOut => {
                let message = format!("the drain made no progress for {} s", self.patience.no_progress.as_secs());
                self.patience.retry = Duration::ZERO;
                let failure = Failure::new(Code::DrainIncomplete, message);
                self.hold(self.held_now(failure, Hope::ALL, now), false, now)
            }
            Event::Said(
                DaemonMessage::State(_)
                | DaemonMessage::Progress(_)
                | DaemonMessage::Ready { .. }
                | DaemonMessage::Warning(_)
                | DaemonMessage::AskJobEnd
                | DaemonMessage::JobEnd(_),
            )
            | Event::JobEnded(_)
            | Event::JobEndHeard(_)
            | Event::Resume
            | Event::Discard
            | Event::Stop => Vec::new(),
        }
    }

    fn while_held(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let Some(keeping) = &mut self.keeping else { return Vec::new() };
        let actions = keeping.apply(event, now);
        if keeping.is_over() {
            self.phase = Phase::Ending;
            self.keeping = None;
            self.deadline = None;
        }
        if actions.iter().any(|action| matches!(action, Action::RestartHeld(_))) {
            // What the next one does counts from 0.
            self.progress = Progress { used_bytes: self.progress.used_bytes, ..Progress::default() };
        }
        actions
    }

    fn drained(&mut self, failure: Option<Failure>) -> Vec<Action> {
        self.phase = Phase::Ending;
        self.deadline = None;
        let mut actions = vec![Action::Journal(Step::Drained { complete: true })];
        actions.extend(failure.map(Action::Warn));
        actions.extend([Action::EndDaemon { patiently: true }, Action::Finish(Finish::Remove)]);
        actions
    }

    fn held_now(&self, failure: Failure, hope: Hope, now: Duration) -> Held {
        Held { failure, kept_until: Some(self.patience.kept_until(now)), attempts: 1, hope, suspects: Vec::new() }
    }

    /// The drain has failed: what is here is kept, and tried again.
    fn hold(&mut self, held: Held, patiently: bool, now: Duration) -> Vec<Action> {
        self.phase = Phase::Held;
        self.deadline = None;
        self.progress = Progress { used_bytes: self.progress.used_bytes, ..Progress::default() };
        let patience = self.patience;
        let wait = if held.hope.errors_may_pass { patience.retry } else { Duration::ZERO };
        let release_at = (!patience.returns_node).then_some(now + wait);
        let mut actions = vec![Action::EndDaemon { patiently }];
        actions.extend(self.keeping.insert(Keeping::new(held, patience, release_at, now)).begin(now));
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        start: Duration::from_secs(60),
        no_progress: Duration::from_secs(600),
        retry: Duration::from_secs(30),
        retain: Duration::from_secs(86_400),
        epoch_secs: 0,
        returns_node: false,
    };

    fn machine(phase: Phase) -> Machine {
        Machine::new(phase, PATIENCE, Duration::ZERO)
    }

    fn ended() -> Event {
        Event::DaemonEnded("killed by signal 9".to_owned())
    }

    fn ready() -> Event {
        Event::Said(DaemonMessage::Ready { environment: BTreeMap::new() })
    }

    fn finish(actions: &[Action]) -> Option<&Finish> {
        match actions.last() {
            Some(Action::Finish(finish)) => Some(finish),
            _ => None,
        }
    }

    #[test]
    fn an_ordinary_life() {
        let mut machine = machine(Phase::Starting);
        assert!(machine.apply(Event::Said(DaemonMessage::State(State::StagingIn)), Duration::ZERO).is_empty());
        assert_eq!(machine.phase(), Phase::StagingIn);
        let actions = machine.apply(ready(), Duration::ZERO);
        assert_eq!(actions[0], Action::Journal(Step::Ready));
        assert_eq!(machine.deadline(), None, "a job runs as long as it runs");
        let actions = machine.apply(Event::Stop, Duration::ZERO);
        let expected = [Action::Journal(Step::Drain), Action::Unmount, Action::Send(NodeMessage::ClientGone)];
        assert_eq!(actions, expected);
        assert_eq!(
            machine.apply(Event::Said(DaemonMessage::Durable), Duration::ZERO),
            [Action::Journal(Step::Durable), Action::SyncJournal]
        );
        let drained = Event::Said(DaemonMessage::Drained {
            complete: true,
            failure: None,
            hope: Hope::default(),
            suspects: Vec::new(),
        });
        assert_eq!(finish(&machine.apply(drained, Duration::ZERO)), Some(&Finish::Remove));
        assert!(machine.apply(ended(), Duration::ZERO).is_empty());
    }

    #[test]
    fn nothing_is_removed_after_ready_without_a_complete_drain() {
        let incomplete =
            DaemonMessage::Drained { complete: false, failure: None, hope: Hope::default(), suspects: Vec::new() };
        let failed = DaemonMessage::Failed(Failure::new(Code::DrainFailed, "quota"));
        for event in [Event::Said(incomplete), Event::Said(failed), Event::TimedOut] {
            let mut machine = machine(Phase::Ready);
            machine.apply(Event::Stop, Duration::ZERO);
            let actions = machine.apply(event.clone(), Duration::ZERO);
            assert_eq!((machine.phase(), finish(&actions)), (Phase::Held, None), "{event:?}");
            assert!(matches!(actions[1], Action::Journal(Step::Held(_))), "{event:?}: {actions:?}");
            assert!(matches!(actions.last(), Some(Action::RestartHeld(_))), "{event:?}: {actions:?}");
        }
    }

    #[test]
    fn how_the_job_ended_is_asked_once_and_kept() {
        let (asks, said) = (|| Event::Said(DaemonMessage::AskJobEnd), |end| Event::Said(DaemonMessage::JobEnd(end)));
        let mut machine = machine(Phase::Ready);
        for event in [asks(), said(JobEnd::Success), Event::JobEndHeard(Some(JobEnd::Success))] {
            assert_eq!(machine.apply(event, Duration::ZERO), [], "the job runs");
        }
        machine.apply(Event::Stop, Duration::ZERO);
        assert_eq!(machine.apply(asks(), Duration::ZERO), [Action::AskJobEnd]);
        let unknown = machine.apply(Event::JobEndHeard(None), Duration::ZERO);
        assert_eq!(unknown, [Action::Send(NodeMessage::JobEnd(None))], "nothing is kept of no answer");
        assert_eq!(machine.apply(asks(), Duration::ZERO), [Action::AskJobEnd]);
        let heard = machine.apply(Event::JobEndHeard(Some(JobEnd::Failure)), Duration::ZERO);
        let kept = [Action::Journal(Step::JobEnd { end: JobEnd::Failure }), Action::SyncJournal];
        assert_eq!(heard[..2], kept, "before the daemon hears it");
        assert_eq!(heard[2], Action::Send(NodeMessage::JobEnd(Some(JobEnd::Failure))));
        assert_eq!(machine.apply(said(JobEnd::Success), Duration::ZERO), [], "the first word stays");
        assert_eq!(machine.apply(asks(), Duration::ZERO), heard[2..]);
        let incomplete =
            DaemonMessage::Drained { complete: false, failure: None, hope: Hope::ALL, suspects: Vec::new() };
        machine.apply(Event::Said(incomplete), Duration::ZERO);
        assert_eq!((machine.phase(), machine.apply(asks(), Duration::ZERO)), (Phase::Held, heard[2..].to_vec()));
    }

    #[test]
    fn what_the_mgs_has_told_is_kept_as_well() {
        let mut machine = machine(Phase::Draining);
        let told = machine.apply(Event::Said(DaemonMessage::JobEnd(JobEnd::Success)), Duration::ZERO);
        assert_eq!(told, [Action::Journal(Step::JobEnd { end: JobEnd::Success }), Action::SyncJournal]);
        assert_eq!(machine.job_end(), Some(JobEnd::Success));
    }

    #[test]
    fn a_site_that_wants_its_nodes_back_does_not_wait() {
        let mut machine = Machine::new(Phase::Ready, Patience { returns_node: true, ..PATIENCE }, Duration::ZERO);
        assert_eq!(machine.apply(Event::Stop, Duration::ZERO).last(), Some(&Action::Release(None)));
        assert_eq!(machine.apply(Event::Stop, Duration::ZERO), [Action::Release(None)], "a second epilog");
        let incomplete =
            DaemonMessage::Drained { complete: false, failure: None, hope: Hope::ALL, suspects: Vec::new() };
        let actions = machine.apply(Event::Said(incomplete), Duration::ZERO);
        assert!(!actions.iter().any(|action| matches!(action, Action::Release(_))), "{actions:?}");
        assert!(matches!(machine.apply(Event::Stop, Duration::ZERO)[..], [Action::Release(Some(_))]));
    }

    #[test]
    fn a_failed_start_is_recorded_and_undone() {
        let failure = Failure::new(Code::StageInFailed, "no such file");
        let unproved = Failure::new(Code::Identity, "munged does not answer");
        let unreached = Failure::new(Code::RdmaMissing, "node2: this machine has no RDMA device");
        for (event, announced) in [
            (Event::Said(DaemonMessage::Failed(failure)), false),
            (Event::Said(DaemonMessage::Failed(unproved)), true),
            (Event::Said(DaemonMessage::Failed(unreached)), true),
            (ended(), true),
            (Event::TimedOut, true),
        ] {
            for phase in [Phase::Starting, Phase::StagingIn] {
                let actions = machine(phase).apply(event.clone(), Duration::ZERO);
                let Action::RecordFailed { announce, .. } = &actions[0] else { panic!("{actions:?}") };
                assert_eq!(*announce, announced);
                assert_eq!(finish(&actions), Some(&Finish::Fail));
            }
        }
    }

    #[test]
    fn a_cancel_that_comes_too_late_drains() {
        let mut machine = machine(Phase::Starting);
        assert_eq!(machine.apply(Event::Stop, Duration::ZERO), [Action::Send(NodeMessage::Cancel)]);
        let actions = machine.apply(ready(), Duration::ZERO);
        assert_eq!(machine.phase(), Phase::Draining);
        assert_eq!(actions.last(), Some(&Action::Send(NodeMessage::ClientGone)));
    }

    #[test]
    fn a_cancelled_start_ends_without_a_drain() {
        for event in [ended(), Event::TimedOut, Event::Said(DaemonMessage::Failed(Failure::new(Code::Cancelled, "")))] {
            let mut machine = machine(Phase::StagingIn);
            machine.apply(Event::Stop, Duration::ZERO);
            assert_eq!(finish(&machine.apply(event, Duration::ZERO)), Some(&Finish::Fail));
        }
    }

    #[test]
    fn a_job_that_has_ended_ends_its_start_or_its_run() {
        let event = || Event::JobEnded("COMPLETING".to_owned());
        for phase in [Phase::Starting, Phase::StagingIn] {
            let actions = machine(phase).apply(event(), Duration::ZERO);
            assert!(
                matches!(&actions[0], Action::RecordFailed { failure, announce: false } if failure.code == Code::Cancelled)
            );
            assert_eq!(finish(&actions), Some(&Finish::Fail));
        }
        for phase in [Phase::Cancelling, Phase::Draining, Phase::Ending] {
            assert_eq!(machine(phase).apply(event(), Duration::ZERO), []);
        }
        let actions = machine(Phase::Ready).apply(event(), Duration::ZERO);
        assert_eq!(actions[0], Action::Journal(Step::Drain), "no epilog will come");
    }

    #[test]
    fn gives_up_after_five_restarts_in_a_row_and_tries_again_for_the_drain() {
        let mut machine = machine(Phase::Ready);
        for n in 1..=5 {
            let actions = machine.apply(ended(), Duration::from_secs(n));
            assert_eq!(actions.last(), Some(&Action::Restart { serves_mount: true }));
        }
        let actions = machine.apply(ended(), Duration::from_secs(6));
        assert_eq!(machine.phase(), Phase::Lost);
        assert_eq!(actions.last(), Some(&Action::AbortMount));
        assert_eq!(machine.restart_count(), 5);
        let actions = machine.apply(Event::Stop, Duration::from_secs(7));
        assert!(actions.contains(&Action::Restart { serves_mount: false }));
        for n in 0..5 {
            assert_eq!(finish(&machine.apply(ended(), Duration::from_secs(8 + n))), None);
        }
        machine.apply(ended(), Duration::from_secs(13));
        assert_eq!(machine.phase(), Phase::Held);
    }

    #[test]
    fn restarts_that_are_far_apart_do_not_add_up() {
        let mut machine = machine(Phase::Ready);
        for n in 0..100 {
            machine.apply(ended(), Duration::from_secs(61 * n));
            assert_eq!(machine.phase(), Phase::Ready);
        }
    }

    #[test]
    fn progress_postpones_the_end_of_patience_and_noise_does_not() {
        let mut machine = machine(Phase::Ready);
        machine.apply(Event::Stop, Duration::ZERO);
        let at = |n| Duration::from_secs(n);
        let said = |bytes_done| Event::Said(DaemonMessage::Progress(Progress { bytes_done, ..Progress::default() }));
        machine.apply(said(1), at(100));
        assert_eq!(machine.deadline(), Some(at(700)));
        machine.apply(said(1), at(200));
        machine.apply(Event::Said(DaemonMessage::State(State::Draining)), at(300));
        assert_eq!(machine.deadline(), Some(at(700)));
    }
}
