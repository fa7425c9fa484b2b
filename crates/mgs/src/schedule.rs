//! When a round of draining is due by itself. Pure: the driver says what time it is.
//!
//! | `when` | a round is due |
//! |---|---|
//! | `end`, `manual` | never |
//! | `continuous` | as often as its walk costs little: after two seconds, or ten times what the round before took |
//! | `interval:D` | D after the last began |
//!
//! The job's time limit makes rounds of its own: see [`crate::Deadline`].

use std::time::Duration;

use crate::rounds::{Reason, Wanted};

/// The shortest time between the end of a continuous round and the next.
const CONTINUOUS_MIN: Duration = Duration::from_secs(2);
/// A round that took T is followed by a pause of so many T.
const COST_FACTOR: u32 = 10;

/// When a directive is drained while the job runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Often {
    /// Not by itself.
    Never,
    /// What is closed and quiet, soon.
    Continuously,
    /// Each time that this has passed.
    Each(Duration),
}

/// The rounds that come by themselves.
#[derive(Debug)]
pub struct Schedule {
    directives: Vec<Often>,
    /// By directive, when its last interval began.
    began: Vec<Duration>,
    /// Not before.
    continuous_from: Duration,
}

impl Schedule {
    /// For directives, in their order; the first interval begins at `now`.
    pub fn new(directives: Vec<Often>, now: Duration) -> Schedule {
        let began = vec![now; directives.len()];
        Schedule { directives, began, continuous_from: now + CONTINUOUS_MIN }
    }

    /// What is due at `now`; what is due once is not due again before its time.
    pub fn due(&mut self, now: Duration) -> Option<Wanted> {
        let elapsed = |(index, often): (usize, &Often)| match often {
            Often::Each(interval) if now >= self.began[index] + *interval => Some(index),
            Often::Each(_) | Often::Never | Often::Continuously => None,
        };
        let directives: Vec<usize> = self.directives.iter().enumerate().filter_map(elapsed).collect();
        if !directives.is_empty() {
            directives.iter().for_each(|index| self.began[*index] = now);
            return Some(Wanted { reason: Reason::Interval, below: None, directives: Some(directives) });
        }
        let continuous = self.directives.iter().enumerate().filter(|(_, often)| **often == Often::Continuously);
        let directives: Vec<usize> = continuous.map(|(index, _)| index).collect();
        if directives.is_empty() || now < self.continuous_from {
            return None;
        }
        // Until its end is told, which says how long to wait.
        self.continuous_from = Duration::MAX;
        Some(Wanted { reason: Reason::Continuous, below: None, directives: Some(directives) })
    }

    /// A round has ended at `now` that took `took`.
    pub fn ended(&mut self, now: Duration, took: Duration) {
        self.continuous_from = now + CONTINUOUS_MIN.max(took * COST_FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn wanted(reason: Reason, directives: &[usize]) -> Option<Wanted> {
        Some(Wanted { reason, below: None, directives: Some(directives.to_vec()) })
    }

    #[test]
    fn intervals_are_counted_from_their_beginning() {
        let mut schedule = Schedule::new(vec![Often::Each(s(10)), Often::Never, Often::Each(s(25))], s(100));
        assert_eq!(schedule.due(s(109)), None);
        assert_eq!(schedule.due(s(111)), wanted(Reason::Interval, &[0]));
        assert_eq!(schedule.due(s(112)), None);
        assert_eq!(schedule.due(s(125)), wanted(Reason::Interval, &[0, 2]));
        assert_eq!(schedule.due(s(134)), None);
    }

    #[test]
    fn continuous_rounds_leave_the_job_alone_in_between() {
        let mut schedule = Schedule::new(vec![Often::Never, Often::Continuously], s(0));
        assert_eq!(schedule.due(s(1)), None);
        assert_eq!(schedule.due(s(2)), wanted(Reason::Continuous, &[1]));
        assert_eq!(schedule.due(s(50)), None, "it is under way");
        schedule.ended(s(60), s(5));
        assert_eq!((schedule.due(s(109)), schedule.due(s(110))), (None, wanted(Reason::Continuous, &[1])));
        assert_eq!(Schedule::new(vec![Often::Never], s(0)).due(s(1000)), None);
    }
}
