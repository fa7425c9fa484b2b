//! What the supervisor does with data that could not be drained: keeps it for a time, and has `burstfsd` try again. Without
//! any I/O or clock, as [`crate::policy`], whose part of the instance's life this is.
//!
//! ```text
//!                        burstfsd says: draining               drained
//!   held --> WAITING ---------------------------> DRAINING ------------------> ENDING(Remove)
//!             |   ^                                  |
//!             |   '-- another burstfsd: incomplete --+-- no progress --> RESTING --(pause)--> WAITING
//!             |                                      |                     ^
//!             '------------ ended, or failed --------'---------------------'
//!   anywhere: the time is over, or an administrator says so --> ENDING(Remove)
//! ```
//! Each attempt is a life of `burstfsd` of its own: it begins like any other daemon that is started again, so that there is
//! one way back for a drain that failed, a node that was switched off, and a process that was killed. Which attempt begins
//! when is decided by the node that carries the MGS, inside `burstfsd`.
//!
//! Invariants: data goes only after a complete drain, when its time is over, or when an administrator wants it; who waits for
//! the end (the epilog) waits while something moves, else for the site's `retry` and never longer than `no_progress`.

use std::time::Duration;

use burstfs_node::control::{DaemonMessage, NodeMessage, State};
use burstfs_node::held::{Held, Hope, pause};
use burstfs_node::journal::Step;
use burstfs_types::{Code, Failure};

use crate::policy::{Action, Event, Finish, Patience};

/// Data that is kept.
#[derive(Debug)]
pub(crate) struct Keeping {
    held: Held,
    patience: Patience,
    /// Whether nobody waits for the end any more.
    is_released: bool,
    /// When whoever waits is let go, unless something moves then.
    release_at: Duration,
    expires_at: Option<Duration>,
    life: Life,
    /// Lives that came to nothing in a row.
    fruitless: u32,
    has_advanced: bool,
}

/// What `burstfsd` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// It waits for the other nodes, or for the time of the next attempt.
    Waiting,
    /// It drains, and must make progress until then.
    Draining { deadline: Duration },
    /// There is none until then.
    Resting { until: Duration },
    /// Nothing is left to do.
    Over,
}

impl Keeping {
    /// Something was not drained. Whoever waits for the end is let go at `release_at`, or was before.
    pub(crate) fn new(held: Held, patience: Patience, release_at: Option<Duration>, now: Duration) -> Keeping {
        let expires_at = held.kept_until.map(|until| patience.at(until).max(now));
        Keeping {
            held,
            patience,
            is_released: release_at.is_none(),
            release_at: release_at.unwrap_or(now),
            expires_at,
            life: Life::Resting { until: now },
            fruitless: 0,
            has_advanced: false,
        }
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.life, Life::Draining { .. })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.life == Life::Over
    }

    /// When [`Event::TimedOut`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let of_life = match self.life {
            Life::Draining { deadline } => Some(deadline),
            Life::Resting { until } => Some(until),
            Life::Waiting | Life::Over => None,
        };
        let release = (!self.is_released && !self.is_draining()).then_some(self.release_at);
        [of_life, release, self.expires_at].into_iter().flatten().min()
    }

    /// The counters have moved.
    pub(crate) fn advance(&mut self, now: Duration) {
        self.has_advanced = true;
        if let Life::Draining { deadline } = &mut self.life {
            *deadline = now + self.patience.no_progress;
        }
    }

    /// What to do first.
    pub(crate) fn begin(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = vec![Action::Journal(Step::Held(self.held.clone()))];
        actions.extend(self.release_if_due(now));
        if let Life::Resting { until } = self.life
            && until <= now
        {
            actions.extend(self.start());
        }
        actions
    }

    pub(crate) fn apply(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Said(DaemonMessage::State(State::Draining)) => {
                self.life = Life::Draining { deadline: now + self.patience.no_progress };
                Vec::new()
            }
            Event::Said(DaemonMessage::Drained { complete: true, failure, .. }) => {
                let mut actions = vec![Action::Journal(Step::Drained { complete: true })];
                actions.extend(failure.map(Action::Warn));
                actions.extend(self.end(true));
                actions
            }
            Event::Said(DaemonMessage::Drained { complete: false, failure, hope, suspects }) => {
                self.held.doubt(&suspects);
                let failure = failure.unwrap_or_else(|| self.held.failure.clone());
                let mut actions = vec![Action::EndDaemon { patiently: true }];
                actions.extend(self.failed(failure, hope, now));
                actions
            }
            Event::Said(DaemonMessage::Failed(failure)) => {
                let mut actions = vec![Action::EndDaemon { patiently: false }];
                actions.extend(self.rest(&failure.to_string(), now));
                actions
            }
            Event::DaemonEnded(words) => self.rest(&words, now),
            Event::TimedOut => self.timed_out(now),
            Event::Said(DaemonMessage::Durable) => vec![Action::Journal(Step::Durable), Action::SyncJournal],
            Event::Stop if self.is_released => vec![Action::Release(Some(self.held.clone()))],
            Event::Resume if matches!(self.life, Life::Resting { .. }) => self.start(),
            Event::Resume => vec![Action::Send(NodeMessage::Resume)],
            Event::Discard => self.remove("an administrator has removed what could not be drained"),
            Event::Stop
            | Event::JobEnded(_)
            | Event::JobEndHeard(_)
            | Event::Said(
                DaemonMessage::State(_)
                | DaemonMessage::Progress(_)
                | DaemonMessage::Ready { .. }
                | DaemonMessage::Warning(_)
                | DaemonMessage::AskJobEnd
                | DaemonMessage::JobEnd(_),
            ) => Vec::new(),
        }
    }

    fn timed_out(&mut self, now: Duration) -> Vec<Action> {
        if self.expires_at.is_some_and(|at| at <= now) {
            return self.remove("what could not be drained was kept for as long as the job asked, and is removed now");
        }
        match self.life {
            Life::Draining { deadline } if deadline <= now => {
                let message = format!("the drain made no progress for {} s", self.patience.no_progress.as_secs());
                let hope = Hope { errors_may_pass: true, ..Hope::default() };
                let mut actions = vec![Action::EndDaemon { patiently: false }];
                self.release_at = now;
                actions.extend(self.failed(Failure::new(Code::DrainIncomplete, message), hope, now));
                actions
            }
            Life::Resting { until } if until <= now => self.start(),
            Life::Draining { .. } | Life::Resting { .. } | Life::Waiting | Life::Over => self.release_if_due(now),
        }
    }

    /// An attempt has failed: the next life of the daemon waits for what may help.
    fn failed(&mut self, failure: Failure, hope: Hope, now: Duration) -> Vec<Action> {
        self.held.failure = failure;
        self.held.hope = hope;
        self.held.attempts = self.held.attempts.saturating_add(1);
        self.fruitless = 0;
        if std::mem::take(&mut self.has_advanced) {
            self.release_at = self.release_at.max(now + self.patience.retry);
        }
        if !hope.errors_may_pass {
            self.release_at = now;
        }
        self.life = Life::Resting { until: now };
        self.begin(now)
    }

    fn start(&mut self) -> Vec<Action> {
        self.life = Life::Waiting;
        vec![Action::RestartHeld(self.held.clone())]
    }

    /// The daemon has come to nothing: the node of the MGS may be off, or the others not that far.
    fn rest(&mut self, words: &str, now: Duration) -> Vec<Action> {
        self.fruitless = self.fruitless.saturating_add(1);
        let pause = pause(self.fruitless).min(self.patience.no_progress);
        self.life = Life::Resting { until: now + pause };
        vec![Action::Note(format!("burstfsd waits in vain: {words}; again in {} s", pause.as_secs()))]
    }

    fn release_if_due(&mut self, now: Duration) -> Vec<Action> {
        if self.is_released || self.release_at > now {
            return Vec::new();
        }
        self.is_released = true;
        vec![Action::Release(Some(self.held.clone()))]
    }

    fn remove(&mut self, why: &str) -> Vec<Action> {
        let failure = Failure::new(Code::HeldRemoved, why);
        let mut actions = vec![
            Action::Warn(failure.clone()),
            Action::Journal(Step::Remove),
            Action::Send(NodeMessage::Removed(failure)),
        ];
        actions.extend(self.end(true));
        actions
    }

    fn end(&mut self, patiently: bool) -> Vec<Action> {
        self.life = Life::Over;
        vec![Action::EndDaemon { patiently }, Action::Finish(Finish::Remove)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPE: Hope = Hope { errors_may_pass: true, nodes_may_return: false };

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn patience() -> Patience {
        Patience {
            start: at(60),
            no_progress: at(600),
            retry: at(30),
            retain: at(1_000),
            epoch_secs: 5_000,
            returns_node: false,
        }
    }

    fn held() -> Held {
        Held {
            failure: Failure::new(Code::DrainNoSpace, "quota"),
            kept_until: Some(6_000),
            attempts: 1,
            hope: HOPE,
            suspects: Vec::new(),
        }
    }

    fn incomplete(hope: Hope) -> Event {
        Event::Said(DaemonMessage::Drained { complete: false, failure: None, hope, suspects: Vec::new() })
    }

    fn released(actions: &[Action]) -> bool {
        actions.iter().any(|action| matches!(action, Action::Release(_)))
    }

    fn draining() -> Event {
        Event::Said(DaemonMessage::State(State::Draining))
    }

    #[test]
    fn the_epilog_waits_for_a_while_and_not_while_nothing_can_help() {
        let mut keeping = Keeping::new(held(), patience(), Some(at(30)), at(0));
        let actions = keeping.begin(at(0));
        assert!(matches!(actions[..], [Action::Journal(Step::Held(_)), Action::RestartHeld(_)]), "{actions:?}");
        keeping.apply(draining(), at(1));
        assert!(!released(&keeping.apply(incomplete(HOPE), at(2))));
        assert_eq!((keeping.held().attempts, keeping.deadline()), (2, Some(at(30))));
        assert!(released(&keeping.apply(Event::TimedOut, at(30))));
        assert!(released(&keeping.apply(Event::Stop, at(31))), "a late epilog");

        let mut hopeless = Keeping::new(held(), patience(), Some(at(30)), at(0));
        hopeless.begin(at(0));
        assert!(released(&hopeless.apply(incomplete(Hope::default()), at(2))));
    }

    #[test]
    fn what_moves_is_waited_for() {
        let mut keeping = Keeping::new(held(), patience(), Some(at(30)), at(0));
        keeping.begin(at(0));
        keeping.apply(draining(), at(1));
        keeping.advance(at(500));
        assert_eq!(keeping.deadline(), Some(at(1_000)), "the end of its time, not that of patience");
        let actions = keeping.apply(incomplete(HOPE), at(900));
        assert!(!released(&actions), "there was progress: {actions:?}");
        assert_eq!(keeping.deadline(), Some(at(930)));
    }

    #[test]
    fn what_stands_still_is_not() {
        let mut keeping = Keeping::new(Held { kept_until: None, ..held() }, patience(), Some(at(30)), at(0));
        keeping.begin(at(0));
        keeping.apply(draining(), at(1));
        assert_eq!(keeping.deadline(), Some(at(601)));
        let actions = keeping.apply(Event::TimedOut, at(601));
        assert_eq!(actions[0], Action::EndDaemon { patiently: false });
        assert!(released(&actions) && matches!(actions.last(), Some(Action::RestartHeld(_))), "{actions:?}");
    }

    #[test]
    fn a_daemon_that_comes_to_nothing_rests_longer_and_longer() {
        let mut keeping = Keeping::new(Held { kept_until: None, ..held() }, patience(), None, at(0));
        keeping.begin(at(0));
        for (n, pause) in [(0, 1), (10, 2), (20, 4)] {
            let actions = keeping.apply(Event::DaemonEnded("x".into()), at(n));
            assert!(matches!(actions[..], [Action::Note(_)]), "{actions:?}");
            assert_eq!(keeping.deadline(), Some(at(n + pause)));
            assert!(matches!(keeping.apply(Event::TimedOut, at(n + pause))[..], [Action::RestartHeld(_)]));
        }
        assert_eq!(keeping.held().attempts, 1, "none of them was an attempt");
        keeping.apply(Event::DaemonEnded("x".into()), at(30));
        assert!(matches!(keeping.apply(Event::Resume, at(31))[..], [Action::RestartHeld(_)]));
        assert_eq!(keeping.apply(Event::Resume, at(32)), [Action::Send(NodeMessage::Resume)]);
    }

    #[test]
    fn it_ends_drained_expired_or_discarded() {
        let drained =
            DaemonMessage::Drained { complete: true, failure: None, hope: Hope::default(), suspects: Vec::new() };
        for (event, step) in [(Event::Said(drained), Step::Drained { complete: true }), (Event::Discard, Step::Remove)]
        {
            let mut keeping = Keeping::new(held(), patience(), None, at(0));
            keeping.begin(at(0));
            let actions = keeping.apply(event, at(1));
            assert!(actions.contains(&Action::Journal(step)), "{actions:?}");
            assert_eq!(actions.last(), Some(&Action::Finish(Finish::Remove)));
            assert!(keeping.is_over());
        }
        let mut keeping = Keeping::new(held(), patience(), None, at(0));
        keeping.begin(at(0));
        assert_eq!(keeping.deadline(), Some(at(1_000)), "6,000 seconds since the epoch");
        let actions = keeping.apply(Event::TimedOut, at(1_000));
        assert!(matches!(&actions[0], Action::Warn(failure) if failure.code == Code::HeldRemoved));
        assert!(matches!(&actions[2], Action::Send(NodeMessage::Removed(_))), "{actions:?}");
        assert_eq!(actions.last(), Some(&Action::Finish(Finish::Remove)));
    }
}
