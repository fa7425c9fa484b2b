//! Durations as people write them.

use std::fmt;
use std::time::Duration;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;

/// The longest that anything may take: nobody waits for ten years.
const MAX_SECS: u64 = 10 * 365 * 86_400;

/// A duration of whole seconds, at least one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct TimeSpan(u64);

impl TimeSpan {
    /// A day.
    pub const DAY: TimeSpan = TimeSpan(86_400);

    /// The seconds.
    pub fn as_secs(self) -> u64 {
        self.0
    }

    /// The same, for waiting.
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    pub(crate) fn parse(key: &str, text: &Text) -> Result<TimeSpan, Fault> {
        let plain = text.plain();
        let refused = |why: &str| {
            let message = format!("\"{plain}\" is no value of {key}: {why}; say 90s, 15m, 24h or 2days, for instance");
            Fault::new(Code::BadValue, &text.span, message)
        };
        let duration = humantime::parse_duration(&plain).map_err(|error| refused(&error.to_string()))?;
        if duration.subsec_nanos() != 0 {
            return Err(refused("not a whole number of seconds"));
        }
        TimeSpan::try_from(duration.as_secs()).map_err(|why| refused(&why))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = humantime::format_duration(self.as_duration()).to_string();
        // One word, as a directive needs it; humantime reads that as well.
        text.retain(|c| c != ' ');
        f.write_str(&text)
    }
}

impl TryFrom<u64> for TimeSpan {
    type Error = String;

    fn try_from(secs: u64) -> Result<TimeSpan, String> {
        match secs {
            0 => Err("a duration of nothing".to_owned()),
            secs if secs > MAX_SECS => Err("more than ten years".to_owned()),
            secs => Ok(TimeSpan(secs)),
        }
    }
}

impl From<TimeSpan> for u64 {
    fn from(span: TimeSpan) -> u64 {
        span.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for secs in [1, 59, 60, 3_661, 86_400, 90_061, MAX_SECS] {
            let span = TimeSpan::try_from(secs).unwrap();
            assert_eq!(humantime::parse_duration(&span.to_string()), Ok(span.as_duration()), "{span}");
        }
        assert_eq!(TimeSpan::DAY.to_string(), "1day");
        assert!(TimeSpan::try_from(0).is_err() && TimeSpan::try_from(MAX_SECS + 1).is_err());
    }
}
