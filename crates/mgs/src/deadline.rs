//! When the drain before the job's time limit begins, and whether it is in time. Pure: the driver says how much time is left,
//! how much there is to drain, and how fast it went.
//!
//! ```text
//!   start ------------------------- begin ---------- deadline ------------- limit
//!                                    |                  |<---- reserve ------>|
//!                                    |<---- what has changed, at the measured rate, and half as much again ---->|
//! ```
//! What is closed before the deadline (`BURSTFS_DRAIN_DEADLINE`) is at the target at the limit. The job is told once, so the
//! reserve is fixed at its start; drains begin earlier when there is more to drain than the reserve is long, and from their
//! beginning on they follow one another. What cannot be drained in time is drained after the limit: the deadline is about how
//! much a site whose epilog is cut short can lose.

use std::time::Duration;

/// The part of the time limit that `deadline=auto` sets aside.
const AUTO_PART: u32 = 10;
/// Its bounds; never more than half of the time.
const AUTO_MIN: Duration = Duration::from_secs(15);
const AUTO_MAX: Duration = Duration::from_secs(30 * 60);
/// For what a round takes besides copying.
const OVERHEAD: Duration = Duration::from_secs(3);
/// Taken for the rate of a node while none was measured.
const NODE_RATE: Amount = Amount { files: 500, bytes: 100 << 20 };
/// A round that moved less says nothing about the rate.
const TELLING: Amount = Amount { files: 64, bytes: 8 << 20 };

/// What takes no longer is drained at once at the end, whatever is left of the time: nobody is warned of it.
const WORTH_A_WARNING: Duration = Duration::from_secs(1);

/// How much is drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amount {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The reserve before the time limit, and what was measured.
#[derive(Clone, Debug)]
pub struct Deadline {
    reserve: Duration,
    measured: (Amount, Duration),
}

impl Deadline {
    /// For a job whose limit is `left` away, on so many nodes; `asked` is what the directive says, `None` for `auto`.
    pub fn new(asked: Option<Duration>, left: Duration, nodes: u32) -> Deadline {
        let auto = (left / AUTO_PART).clamp(AUTO_MIN, AUTO_MAX).min(left / 2);
        let nodes = u64::from(nodes.max(1));
        let assumed = Amount { files: NODE_RATE.files * nodes, bytes: NODE_RATE.bytes * nodes };
        Deadline { reserve: asked.map_or(auto, |asked| asked.min(left)), measured: (assumed, Duration::from_secs(1)) }
    }

    /// How long before the limit the deadline is.
    pub fn reserve(&self) -> Duration {
        self.reserve
    }

    /// A round has moved this in that time.
    pub fn measured(&mut self, amount: Amount, took: Duration) {
        if amount.files >= TELLING.files || amount.bytes >= TELLING.bytes {
            self.measured = (amount, took.max(Duration::from_millis(1)));
        }
    }

    /// Bytes of a second, as measured.
    pub fn rate(&self) -> u64 {
        let (amount, took) = self.measured;
        (amount.bytes as f64 / took.as_secs_f64()) as u64
    }

    /// How long it takes to drain so much.
    pub fn time_for(&self, changed: Amount) -> Duration {
        let (amount, took) = self.measured;
        let ratio = |of: fn(Amount) -> u64| of(changed) as f64 / of(amount).max(1) as f64;
        // Small files cost by their number, large ones by their bytes.
        let ratio = ratio(|amount| amount.files).max(ratio(|amount| amount.bytes)).min(1e9);
        took.mul_f64(ratio)
    }

    /// Whether drains follow one another now: `left` is the time until the limit.
    pub fn is_due(&self, left: Duration, changed: Amount) -> bool {
        let needed = self.time_for(changed).mul_f64(1.5) + OVERHEAD;
        left <= self.reserve || (changed != Amount::default() && left <= needed)
    }

    /// Whether the deadline has come and what has changed before it cannot be drained before the limit.
    pub fn is_missed(&self, left: Duration, changed: Amount) -> bool {
        left <= self.reserve && self.time_for(changed) > left.max(WORTH_A_WARNING)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const fn amount(files: u64, bytes: u64) -> Amount {
        Amount { files, bytes }
    }

    #[test]
    fn the_reserve_follows_the_limit() {
        let reserve = |asked, left| Deadline::new(asked, left, 4).reserve();
        assert_eq!(reserve(None, s(60)), s(15));
        assert_eq!(reserve(None, s(20)), s(10), "never more than half");
        assert_eq!(reserve(None, s(3600)), s(360));
        assert_eq!(reserve(None, s(7 * 86400)), s(1800));
        assert_eq!(reserve(Some(s(600)), s(86400)), s(600));
        assert_eq!(reserve(Some(s(600)), s(60)), s(60));
    }

    #[test]
    fn more_to_drain_begins_earlier() {
        let mut deadline = Deadline::new(None, s(3600), 1);
        deadline.measured(amount(10, 100 << 20), s(1));
        assert_eq!(deadline.rate(), 100 << 20);
        let large = amount(10, 60_000 << 20);
        assert_eq!(deadline.time_for(large), s(600));
        assert!(!deadline.is_due(s(904), large) && deadline.is_due(s(903), large));
        assert!(!deadline.is_due(s(361), amount(0, 0)) && deadline.is_due(s(360), amount(0, 0)));
        assert!(!deadline.is_missed(s(360), amount(10, 35_000 << 20)) && deadline.is_missed(s(360), large));
        assert!(!deadline.is_missed(s(400), large), "the deadline is still to come");
        assert!(!deadline.is_missed(s(0), amount(4, 0)), "a few open files at the limit are no news");
    }

    #[test]
    fn small_files_cost_by_their_number() {
        let mut deadline = Deadline::new(None, s(3600), 1);
        deadline.measured(amount(1000, 1000), s(2));
        assert_eq!(deadline.time_for(amount(50_000, 50_000)), s(100));
        deadline.measured(amount(3, 30), s(5));
        assert_eq!(deadline.time_for(amount(50_000, 50_000)), s(100), "three files say nothing");
    }

    proptest! {
        #[test]
        fn nothing_overflows(files: u64, bytes: u64, took in 0..u64::MAX / 4, left in 0..u64::MAX / 4, more: u64) {
            let mut deadline = Deadline::new(None, s(left), 3);
            deadline.measured(amount(files, bytes), Duration::from_nanos(took));
            let changed = amount(more, more);
            prop_assert!(deadline.is_due(s(0), changed));
            let _ = (deadline.is_missed(s(left), changed), deadline.rate());
        }
    }
}
