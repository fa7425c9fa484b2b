//! Rounds of draining while the job runs: one at a time, for all nodes.
//!
//! ```text
//!            want            begin            end
//!    idle ----------> wanted ------> running ------> idle, its outcome kept for those who ask
//!      '-------------- close: nothing begins any more; what runs ends as cut short
//! ```
//!
//! Who wants a round while one runs gets the next: what he has closed before he asked may be behind the one that runs. Wishes
//! that wait become one round, which is about all that any of them is about.
//!
//! Owns the order of rounds and what became of them. Does not own what a round copies (its plan is the stager's bytes) nor
//! when one is due by itself ([`crate::Schedule`]).

use std::collections::VecDeque;

use burstfs_proto::mgs::{RoundFigures, RoundState};

/// Outcomes that are kept.
const KEPT: usize = 64;

/// Why there is a round. The greater one counts when several wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// To see how much there is to drain.
    Survey,
    /// Files that are closed and quiet.
    Continuous,
    /// The time of an interval is over.
    Interval,
    /// The time limit comes near.
    Deadline,
    /// Somebody asked.
    Asked,
}

/// A round that somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Why.
    pub reason: Reason,
    /// At or below this path of the instance; `None`: everything.
    pub below: Option<Vec<u8>>,
    /// Which directives, by number; `None`: all that may be drained while the job runs.
    pub directives: Option<Vec<usize>>,
}

impl Wanted {
    /// What is about all that either is about.
    fn with(self, other: Wanted) -> Wanted {
        let below = if self.below == other.below { self.below } else { None };
        let directives = match (self.directives, other.directives) {
            (Some(mut mine), Some(theirs)) => {
                mine.extend(theirs);
                mine.sort_unstable();
                mine.dedup();
                Some(mine)
            }
            (None, _) | (_, None) => None,
        };
        Wanted { reason: self.reason.max(other.reason), below, directives }
    }
}

/// The rounds of an instance.
#[derive(Debug)]
pub struct Rounds {
    next: u64,
    wanted: Option<Wanted>,
    running: Option<(u64, Reason)>,
    over: VecDeque<(u64, RoundState)>,
    is_closed: bool,
}

impl Rounds {
    /// Rounds are numbered from `first` on; a restarted MGS begins higher than the one before.
    pub fn new(first: u64) -> Rounds {
        Rounds { next: first.max(1), wanted: None, running: None, over: VecDeque::new(), is_closed: false }
    }

    /// Somebody wants a round: its number, or `None` when there will be none.
    pub fn want(&mut self, wanted: Wanted) -> Option<u64> {
        if self.is_closed {
            return None;
        }
        self.wanted = Some(match self.wanted.take() {
            None => wanted,
            Some(before) => before.with(wanted),
        });
        Some(self.next)
    }

    /// Begins the round that is wanted, unless one runs.
    pub fn begin(&mut self) -> Option<(u64, Wanted)> {
        if self.is_closed || self.running.is_some() {
            return None;
        }
        let wanted = self.wanted.take()?;
        let number = self.next;
        self.next += 1;
        self.running = Some((number, wanted.reason));
        Some((number, wanted))
    }

    /// The round is over.
    pub fn end(&mut self, number: u64, figures: RoundFigures, failure: Option<String>) {
        if self.running.is_some_and(|(running, _)| running == number) {
            self.running = None;
        }
        self.over.push_back((number, RoundState::Over { figures, failure }));
        if self.over.len() > KEPT {
            self.over.pop_front();
        }
    }

    /// The job is over: no round begins any more.
    pub fn close(&mut self) {
        self.is_closed = true;
        self.wanted = None;
    }

    /// Whether no round begins any more.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The round that runs.
    pub fn running(&self) -> Option<(u64, Reason)> {
        self.running
    }

    /// Whether a round is wanted that has not begun.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// How a round is, as far as it is not known better by its queue: `None` for one that runs.
    pub fn state(&self, number: u64) -> Option<RoundState> {
        if self.running.is_some_and(|(running, _)| running == number) {
            return None;
        }
        let over = self.over.iter().find(|(over, _)| *over == number).map(|(_, state)| state.clone());
        over.or(Some(match number >= self.next && !self.is_closed {
            true => RoundState::Waiting,
            false => RoundState::Unknown,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(below: Option<&str>) -> Wanted {
        Wanted { reason: Reason::Asked, below: below.map(Into::into), directives: None }
    }

    fn of(reason: Reason, directives: &[usize]) -> Wanted {
        Wanted { reason, below: None, directives: Some(directives.to_vec()) }
    }

    #[test]
    fn who_asks_while_one_runs_gets_the_next() {
        let mut rounds = Rounds::new(7);
        assert_eq!(rounds.want(asked(None)), Some(7));
        assert_eq!(rounds.begin(), Some((7, asked(None))));
        assert_eq!(rounds.state(7), None);
        assert_eq!((rounds.want(asked(Some("/a"))), rounds.want(asked(Some("/a")))), (Some(8), Some(8)));
        assert_eq!(rounds.state(8), Some(RoundState::Waiting));
        assert_eq!(rounds.begin(), None, "one at a time");
        let figures = RoundFigures { files: 3, ..RoundFigures::default() };
        rounds.end(7, figures, None);
        assert_eq!(rounds.state(7), Some(RoundState::Over { figures, failure: None }));
        assert_eq!(rounds.begin(), Some((8, asked(Some("/a")))));
        assert_eq!(rounds.state(3), Some(RoundState::Unknown), "of another life");
    }

    #[test]
    fn wishes_that_wait_become_one_about_all() {
        let mut rounds = Rounds::new(1);
        rounds.want(of(Reason::Interval, &[2]));
        rounds.want(of(Reason::Continuous, &[0, 2]));
        assert_eq!(rounds.begin().unwrap().1, of(Reason::Interval, &[0, 2]));
        rounds.end(1, RoundFigures::default(), None);
        rounds.want(of(Reason::Continuous, &[0]));
        rounds.want(asked(Some("/a")));
        assert_eq!(rounds.begin().unwrap().1, asked(None));
    }

    #[test]
    fn nothing_begins_behind_the_end() {
        let mut rounds = Rounds::new(1);
        rounds.want(asked(None));
        rounds.begin().unwrap();
        rounds.want(asked(None));
        rounds.close();
        assert_eq!((rounds.begin(), rounds.want(asked(None))), (None, None));
        assert_eq!(rounds.state(2), Some(RoundState::Unknown));
        rounds.end(1, RoundFigures::default(), Some("cut short".to_owned()));
        assert!(matches!(rounds.state(1), Some(RoundState::Over { failure: Some(_), .. })));
    }
}
