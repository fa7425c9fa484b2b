//! `bwlimit=`: how fast this node moves bytes of a directive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Cancel;

/// What may go at once after a pause: the time that it would have taken.
const BURST: Duration = Duration::from_millis(50);
/// A wait is looked at so often: the drain may have been cancelled.
const STEP: Duration = Duration::from_millis(250);

/// One directive's rate on this node: an equal share of what it has over all nodes, so that these never exceed it together.
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    began: Instant,
    /// When what was let through has had its time, nanoseconds from `began`.
    busy_until: AtomicU64,
}

impl Pace {
    /// `bytes_per_second` over `nodes` nodes; `None` is no limit.
    pub(crate) fn new(bytes_per_second: Option<u64>, nodes: u16) -> Pace {
        let share = bytes_per_second.map(|rate| (rate / u64::from(nodes.max(1))).max(1));
        Pace { bytes_per_second: share, began: Instant::now(), busy_until: AtomicU64::new(0) }
    }

    /// Waits until `bytes` may be moved; at once when `cancel` says so.
    pub(crate) async fn wait(&self, bytes: u64, cancel: &Cancel) {
        let Some(rate) = self.bytes_per_second.filter(|_| bytes > 0) else { return };
        let mut left = self.book(bytes, rate, self.began.elapsed());
        while !left.is_zero() && !cancel.is_cancelled() {
            let step = left.min(STEP);
            tokio::time::sleep(step).await;
            left -= step;
        }
    }

    /// Takes the next place in time for `bytes`; how long it is until then.
    fn book(&self, bytes: u64, rate: u64, now: Duration) -> Duration {
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let earliest = nanos(now.saturating_sub(BURST));
        let begin = |until: u64| until.max(earliest);
        let booked = self
            .busy_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| Some(begin(until).saturating_add(cost)));
        let start = Duration::from_nanos(begin(booked.unwrap_or(u64::MAX)));
        start.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_their_time() {
        let pace = Pace::new(Some(4_000_000), 4);
        let mut now = Duration::from_secs(10);
        let mut waited = Duration::ZERO;
        for _ in 0..100 {
            let wait = pace.book(100_000, 1_000_000, now);
            now += wait;
            waited += wait;
        }
        let expected = Duration::from_secs(10) - Duration::from_millis(100) - BURST;
        assert!(waited.abs_diff(expected) < Duration::from_millis(1), "{waited:?}");
        assert_eq!(pace.book(1, 1_000_000, now + Duration::from_secs(60)), Duration::ZERO, "a pause is not saved up");
        assert!(pace.book(u64::MAX, 1, now) > Duration::ZERO);
        assert!(pace.book(1, 1, now) > Duration::from_secs(1 << 30), "it does not wrap around");
    }
}
