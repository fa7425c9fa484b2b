//! What is kept of an instance whose drain was incomplete: why, until when, and when it is tried again. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use burstfs_types::{Code, Failure, NodeIndex};
use serde::{Deserialize, Serialize};

/// The pause before the first attempt by itself; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const PAUSE_LAST: Duration = Duration::from_secs(3_600);

/// Data that is held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Why.
    pub failure: Failure,
    /// Until when it is kept, seconds since the epoch; `None`: until an administrator removes it.
    pub kept_until: Option<u64>,
    /// How many attempts to drain it have ended.
    pub attempts: u32,
    /// What can make another attempt come to more.
    pub hope: Hope,
    /// Nodes that stood still, or were given up by the others, before all that the job wrote was on their disks: there may
    /// be less there than the job wrote, and no drain of it is complete.
    pub suspects: Vec<NodeIndex>,
}

/// What can make another attempt to drain come to more than the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hope {
    /// Errors that may pass: it is tried again from time to time.
    pub errors_may_pass: bool,
    /// Nodes were missing: it is tried again when all are there.
    pub nodes_may_return: bool,
}

impl Hope {
    /// Anything can.
    pub const ALL: Hope = Hope { errors_may_pass: true, nodes_may_return: true };
}

impl Held {
    /// Data of which nobody can say more than `why`: an administrator decides on it.
    pub fn unknown(why: &str) -> Held {
        let failure = Failure::new(Code::Held, why);
        Held { failure, kept_until: None, attempts: 0, hope: Hope::default(), suspects: Vec::new() }
    }

    /// Adds to [`Held::suspects`].
    pub fn doubt(&mut self, nodes: &[NodeIndex]) {
        self.suspects.extend_from_slice(nodes);
        self.suspects.sort_unstable();
        self.suspects.dedup();
    }

    /// The pause before the next attempt that nobody asks for.
    pub fn pause(&self) -> Duration {
        pause(self.attempts)
    }

    /// Whether the time for which it is kept is over.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.time_left(now) == Some(Duration::ZERO)
    }

    /// How long it is still kept; `None`: until an administrator removes it.
    pub fn time_left(&self, now: SystemTime) -> Option<Duration> {
        let until = UNIX_EPOCH + Duration::from_secs(self.kept_until?);
        Some(until.duration_since(now).unwrap_or_default())
    }
}

/// The pause after so many attempts.
pub fn pause(attempts: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX)).min(PAUSE_LAST)
}

/// Seconds since the epoch.
pub fn epoch_secs(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!([1, 2, 5].map(pause), [1, 2, 16].map(Duration::from_secs));
        assert_eq!([0, 13, 200, u32::MAX].map(pause), [1, 3_600, 3_600, 3_600].map(Duration::from_secs));
    }

    #[test]
    fn the_time_left_ends() {
        let held = Held {
            failure: Failure::new(Code::DrainFailed, "x"),
            kept_until: Some(100),
            attempts: 1,
            hope: Hope::default(),
            suspects: Vec::new(),
        };
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        assert_eq!(held.time_left(at(40)), Some(Duration::from_secs(60)));
        assert!(!held.is_expired(at(99)) && held.is_expired(at(100)) && held.is_expired(at(101)));
        assert!(!Held { kept_until: None, ..held }.is_expired(at(u32::MAX.into())));
    }
}
