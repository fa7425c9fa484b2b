//! How fast something moves: from a count that rises, looked at from time to time.

use std::collections::VecDeque;
use std::time::Duration;

/// A rate is of about so long: shorter ones jump, longer ones are late.
const WINDOW: Duration = Duration::from_secs(10);
/// Looks that come sooner after the one before count as the same.
const STEP: Duration = Duration::from_millis(500);

/// What moved lately.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    samples: VecDeque<(Duration, u64)>,
    /// The count at the last look, and the sum of all its rises: a count that begins anew has not fallen.
    count: u64,
    sum: u64,
}

impl Pulse {
    /// The count is so high at `now`.
    pub fn note(&mut self, now: Duration, count: u64) {
        let rise = if count >= self.count { count - self.count } else { count };
        self.sum = self.sum.saturating_add(rise);
        self.count = count;
        let has_begun = self.samples.len() > 1;
        match self.samples.back_mut() {
            Some((at, sum)) if has_begun && now < *at + STEP => *sum = self.sum,
            Some(_) | None => self.samples.push_back((now, self.sum)),
        }
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
    }

    /// What it rises in a second, at `now`.
    pub fn rate(&self, now: Duration) -> u64 {
        let begins = self.samples.iter().find(|(at, _)| *at + WINDOW >= now);
        let Some((began, before)) = begins.copied() else { return 0 };
        let secs = now.saturating_sub(began).as_secs_f64();
        if secs < STEP.as_secs_f64() { 0 } else { ((self.sum - before) as f64 / secs) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.rate(secs(1)), 0);
        for second in 0..=20 {
            pulse.note(secs(second), second * 100);
        }
        assert_eq!(pulse.rate(secs(20)), 100);
        for second in 21..=40 {
            pulse.note(secs(second), 2_000 + (second - 20) * 1_000);
        }
        assert_eq!(pulse.rate(secs(40)), 1_000);
        for second in 41..=60 {
            pulse.note(secs(second), 22_000);
        }
        assert_eq!(pulse.rate(secs(60)), 0);
        assert!(pulse.samples.len() < 15, "{}", pulse.samples.len());
    }

    #[test]
    fn a_count_that_begins_anew_has_not_fallen() {
        let mut pulse = Pulse::default();
        pulse.note(secs(0), 500);
        pulse.note(secs(1), 700);
        pulse.note(secs(2), 100);
        assert_eq!(pulse.rate(secs(2)), 150);
    }

    #[test]
    fn looks_that_follow_one_another_closely_do_not_make_it_jump() {
        let mut pulse = Pulse::default();
        pulse.note(secs(0), 0);
        pulse.note(secs(1), 100);
        pulse.note(secs(1) + Duration::from_millis(1), 200);
        pulse.note(secs(2), 200);
        assert_eq!(pulse.rate(secs(2)), 100);
    }
}
