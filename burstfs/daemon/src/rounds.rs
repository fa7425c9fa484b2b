//! Drains while the job runs.
//!
//! ```text
//!   node with the MGS                                   every node
//!   scheduler: due? asked? -> Rounds (pure, burstfs-mgs)
//!     begin: queue of the round, its plan published -->  follower: takes part with an engine of its own, until the
//!     its queue is empty: the round has ended                      queue is empty; then waits for the next
//!   the job's end: rounds closed, queue dropped    --->  stop: no other round; what an engine has begun it finishes
//! ```
//!
//! Owns when rounds are, as far as it takes a clock and tasks, and this node's part in them. Does not own what is due
//! ([`burstfs_mgs::Schedule`]), the order of rounds ([`burstfs_mgs::Rounds`]), or how files are copied (`burstfs-stager`).
//!
//! Invariants: one round at a time, over all nodes. A node reaches the barrier `ClientsGone` only when its part in the last
//! round has ended ([`Follower::stop`]), so that the drain at the end never works beside a round: an older copy of a file
//! cannot get the name after a newer one.
//!
//! Failure: a round never fails the job; what it could not copy the next one, or the drain at the end, copies. The MGS that is
//! started again, or moves, begins with rounds of higher numbers, or of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burstfs_mgs::{Amount, Often, Reason, Rounds, Schedule, Wanted};
use burstfs_node::description::InstanceDescription;
use burstfs_proto::mgs::{AskDrain, AwaitDrain, RoundFigures, RoundState, StageFigures};
use burstfs_proto::stage::{Direction, Item, Round};
use burstfs_spec::{Atomic, DrainOn, DrainWhen, StageOut};
use burstfs_stager::{Cancel, RoundPlan, RoundTally, Selection, StageJob, Takes, seed_round};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::directory::{Directory, Seat};
use crate::limit::Limit;
use crate::mgs::{MgsDriver, StageSink};
use crate::staging::{Staging, attempt};

/// How often the scheduler looks.
const LOOK: Duration = Duration::from_millis(250);
/// How long a file must not have changed before a continuous drain takes it.
const QUIET: Duration = Duration::from_secs(3);
/// The shortest time between a round and the survey after it; a survey that took T is followed by so many T without one, and there are
/// about so many until the time limit.
const SURVEY_MIN: Duration = Duration::from_secs(5);
const SURVEY_FACTOR: u32 = 50;
/// Between rounds that follow one another before the time limit.
const DEADLINE_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether a round will be over in time.
const WATCH: Duration = Duration::from_secs(2);
/// After an MGS has not answered.
const PAUSE: Duration = Duration::from_secs(1);

/// The rounds at the MGS.
pub(crate) struct Book(Mutex<Inner>);

struct Inner {
    rounds: Rounds,
    current: Option<Current>,
}

#[derive(Clone)]
struct Current {
    round: Round,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally(Mutex<RoundTally>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, RoundTally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StageSink for Tally {
    fn records(&self, _direction: Direction, records: Vec<Vec<u8>>) {
        self.lock().accept(&records);
    }

    fn undoable(&self, _direction: Direction, items: Vec<Item>) {
        items.iter().for_each(|_| self.lock().give_up("its node was lost"));
    }
}

impl Book {
    /// No rounds yet. `incarnation` orders the lives of the daemon that carries the MGS.
    pub(crate) fn new(incarnation: u64) -> Book {
        Book(Mutex::new(Inner { rounds: Rounds::new(incarnation), current: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newer_than(&self, number: u64) -> Option<Round> {
        let inner = self.lock();
        inner.current.as_ref().map(|current| &current.round).filter(|round| round.number > number).cloned()
    }

    fn state(&self, number: u64, progress: StageFigures) -> RoundState {
        let inner = self.lock();
        inner.rounds.state(number).unwrap_or_else(|| {
            let figures =
                inner.current.as_ref().map_or_else(Default::default, |current| current.tally.lock().figures());
            RoundState::Running { figures, progress }
        })
    }
}

impl MgsDriver {
    /// Answers a command that wants a drain.
    pub(crate) fn ask_drain(&self, ask: AskDrain) -> Option<u64> {
        let wanted = Wanted { reason: Reason::Asked, below: ask.below, directives: None };
        self.book.lock().rounds.want(wanted)
    }

    /// Answers a command that waits for a round.
    pub(crate) async fn await_drain(&self, request: AwaitDrain) -> RoundState {
        let ended = || {
            let state = self.book.state(request.round, self.drain_figures());
            (!matches!(state, RoundState::Waiting | RoundState::Running { .. })).then_some(state)
        };
        let ended = self.look_for(request.wait_ms, ended).await;
        ended.unwrap_or_else(|| self.book.state(request.round, self.drain_figures()))
    }

    /// Answers a node that takes part in rounds.
    pub(crate) async fn await_round(&self, newer_than: u64, wait_ms: u32) -> Option<Round> {
        self.look_for(wait_ms, || self.book.newer_than(newer_than)).await
    }

    /// The job's end: no round begins any more, and who works on one hears that it is over.
    pub(crate) fn close_rounds(&self) {
        self.book.lock().rounds.close();
        self.drop_rounds();
    }
}

/// This node's part in rounds, until it is stopped.
pub(crate) struct Follower {
    /// Set when this node's part is to end; closed when both tasks have.
    stop: watch::Sender<bool>,
    cancel: Arc<Mutex<Cancel>>,
}

impl Follower {
    /// Takes part from now on, and decides when there are rounds while this node carries the MGS.
    pub(crate) fn start(
        description: Arc<InstanceDescription>,
        staging: Arc<Staging>,
        directory: Directory,
    ) -> Follower {
        let (stop, stopped) = watch::channel(false);
        let cancel = Arc::<Mutex<Cancel>>::default();
        tokio::spawn(follow(staging.clone(), directory.clone(), cancel.clone(), stopped.clone()));
        tokio::spawn(schedule(description, staging, directory, stopped));
        Follower { stop, cancel }
    }

    /// Ends this node's part: returns when nothing of it is at work any more.
    pub(crate) async fn stop(&self, directory: &Directory) {
        self.stop.send_replace(true);
        if let Some(mgs) = directory.seat().mgs() {
            mgs.close_rounds();
        }
        self.cancel.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        // Each task holds a receiver until its end, whichever way it ends.
        self.stop.closed().await;
    }
}

async fn follow(
    staging: Arc<Staging>,
    directory: Directory,
    cancel: Arc<Mutex<Cancel>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut seen = (directory.seat().node, 0);
    while !*stopped.borrow() {
        let seat = directory.seat();
        if seat.node != seen.0 {
            // Another MGS, with rounds of its own.
            seen = (seat.node, 0);
        }
        let round = tokio::select! {
            round = directory.await_round(&seat, seen.1) => round,
            _ = stopped.changed() => return,
        };
        match round {
            Ok(Some(round)) => {
                seen.1 = round.number;
                let mine = Cancel::default();
                *cancel.lock().unwrap_or_else(PoisonError::into_inner) = mine.clone();
                if !*stopped.borrow() {
                    take_part(&staging, &seat, &round, mine).await;
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("the MGS does not say when there is a round: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn take_part(staging: &Staging, seat: &Seat, round: &Round, cancel: Cancel) {
    let Some(plan) = RoundPlan::decode(&round.plan) else {
        return tracing::error!(number = round.number, "the plan of a round cannot be read");
    };
    if let Err(failure) = staging.work_on_round(round.number, plan, seat.clone(), cancel).await {
        tracing::info!(number = round.number, "this node's part in a round ended early: {failure}");
    }
}

/// Begins rounds for as long as this node carries the MGS.
async fn schedule(
    description: Arc<InstanceDescription>,
    staging: Arc<Staging>,
    directory: Directory,
    mut stopped: watch::Receiver<bool>,
) {
    let clock = Instant::now();
    let mut limit = Limit::new(description);
    let (mut survey_from, mut deadline_from, mut is_due) = (SURVEY_MIN, Duration::ZERO, false);
    let mut due = Schedule::new(staging.directives().iter().map(often).collect(), Duration::ZERO);
    while !*stopped.borrow() {
        tokio::time::sleep(LOOK).await;
        let Some(mgs) = directory.seat().mgs().cloned() else { continue };
        tokio::select! {
            () = limit.refresh(staging.directives(), mgs.drain_deadline()) => {}
            // The job's end does not wait for slurmctld.
            _ = stopped.changed() => return,
        }
        let now = clock.elapsed();
        let of_all = |reason| Wanted { reason, below: None, directives: None };
        // How much there is when the deadline comes decides whether the job is warned.
        let has_come = limit.is_due() && !std::mem::replace(&mut is_due, limit.is_due());
        let by_limit = (limit.is_due() && !has_come && now >= deadline_from).then(|| of_all(Reason::Deadline));
        let is_survey_due = limit.left().is_some() && now >= survey_from;
        let survey = (is_survey_due || has_come).then(|| of_all(Reason::Survey));
        if let Some(wanted) = due.due(now).or(by_limit).or(survey) {
            mgs.book.lock().rounds.want(wanted);
        }
        let begun = mgs.book.lock().rounds.begin();
        let Some((number, wanted)) = begun else { continue };
        let (began, began_at) = (clock.elapsed(), Instant::now());
        let is_of_all = wanted.below.is_none() && wanted.directives.is_none();
        let reason = wanted.reason;
        let figures = watch_round(&mut limit, &mgs, began_at, hold_round(&staging, &mgs, number, wanted)).await;
        let (now, took) = (clock.elapsed(), clock.elapsed() - began);
        match reason {
            Reason::Survey => {}
            Reason::Continuous => due.ended(now, took),
            Reason::Interval | Reason::Deadline | Reason::Asked => deadline_from = now + DEADLINE_PAUSE,
        }
        if is_of_all {
            mgs.found_dirty(figures.changed_bytes);
            limit.found(Amount { files: figures.changed_files, bytes: figures.changed_bytes });
            limit.warn_if_missed();
        }
        limit.measured(Amount { files: figures.files, bytes: figures.bytes }, took);
        let sparse = limit.left().unwrap_or_default() / SURVEY_FACTOR;
        survey_from = now + SURVEY_MIN.max(took * SURVEY_FACTOR).max(sparse);
    }
}

/// Holds a round, and warns the job meanwhile if it will not be over in time.
async fn watch_round(
    limit: &mut Limit,
    mgs: &MgsDriver,
    began: Instant,
    round: impl Future<Output = RoundFigures>,
) -> RoundFigures {
    let mut round = std::pin::pin!(round);
    loop {
        tokio::select! {
            figures = &mut round => return figures,
            () = tokio::time::sleep(WATCH) => limit.watch(&mgs.drain_figures(), began.elapsed()),
        }
    }
}

/// One round, from its beginning to its end.
async fn hold_round(staging: &Staging, mgs: &MgsDriver, number: u64, wanted: Wanted) -> RoundFigures {
    let plan = plan(staging.directives(), &wanted);
    let tally = Arc::<Tally>::default();
    let items = seed_round(&plan.jobs, attempt());
    let round = Round { number, plan: plan.encode() };
    mgs.begin_round(number, items, tally.clone());
    mgs.book.lock().current = Some(Current { round, tally: tally.clone() });
    mgs.wake();
    let is_whole = mgs.round_is_over(number).await;
    let (figures, failure) = {
        let tally = tally.lock();
        (tally.figures(), tally.first_failure().map(str::to_owned))
    };
    let failure = failure.or_else(|| (!is_whole).then(|| "the job ended before it was done".to_owned()));
    if let Some(failure) = &failure {
        tracing::info!(number, "a drain while the job runs is not whole: {failure}");
    }
    if figures.files > 0 {
        tracing::info!(number, reason = ?wanted.reason, files = figures.files, bytes = figures.bytes, "drained");
    }
    {
        let mut inner = mgs.book.lock();
        inner.rounds.end(number, figures, failure);
        inner.current = None;
    }
    mgs.end_round(number);
    figures
}

/// What a round is about.
fn plan(directives: &[StageOut], wanted: &Wanted) -> RoundPlan {
    let is_chosen = |index: usize, directive: &StageOut| {
        let is_named = wanted.directives.as_ref().is_none_or(|named| named.contains(&index));
        is_named && may_run_early(directive) && (wanted.reason == Reason::Asked || directive.when != DrainWhen::Manual)
    };
    let chosen = directives.iter().enumerate().filter(|(index, directive)| is_chosen(*index, directive));
    // Their variables were replaced at the start, or it would have failed.
    let jobs = chosen.filter_map(|(_, directive)| StageJob::try_from(directive).ok()).collect();
    let takes = match wanted.reason {
        Reason::Survey => Takes::Nothing,
        Reason::Continuous => Takes::Quiet(QUIET),
        Reason::Interval | Reason::Deadline | Reason::Asked => Takes::Changed,
    };
    RoundPlan { jobs, selection: Selection { below: wanted.below.clone(), takes } }.narrowed()
}

/// What is only wanted after certain ends of the job is not drained before its end, nor what shall appear at once.
pub(crate) fn may_run_early(directive: &StageOut) -> bool {
    match (directive.on, directive.atomic) {
        (DrainOn::Always, Atomic::File | Atomic::None) => true,
        (DrainOn::Always, Atomic::Dir) | (DrainOn::Success | DrainOn::Failure, _) => false,
    }
}

fn often(directive: &StageOut) -> Often {
    match directive.when {
        _ if !may_run_early(directive) => Often::Never,
        DrainWhen::End | DrainWhen::Manual => Often::Never,
        DrainWhen::Continuous => Often::Continuously,
        DrainWhen::Interval(interval) => Often::Each(interval),
    }
}
