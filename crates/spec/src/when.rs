//! Times of a directive: when output is copied out, and how long before the time limit.

use std::fmt;
use std::time::Duration;

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;

/// The shortest interval: rounds below it would be all that the nodes do.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The longest time that a directive may name; more is a slip.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// When output is copied out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DrainWhen {
    /// At the job's end.
    #[default]
    End,
    /// A file when it was closed and has been quiet; the rest at the end.
    Continuous,
    /// What has changed, each time that this has passed; the rest at the end.
    Interval(Duration),
    /// When the job says so (`burstfs sync`), and not otherwise.
    Manual,
}

/// How long before the time limit the drain begins while the script still runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DrainDeadline {
    /// As long as what has changed takes at the rate that was measured.
    #[default]
    Auto,
    /// So long.
    Before(Duration),
}

impl DrainWhen {
    pub(crate) fn parse(text: &Text) -> Result<DrainWhen, Fault> {
        parse(&text.plain()).map_err(|message| Fault::new(Code::BadValue, &text.span, message))
    }
}

impl DrainDeadline {
    pub(crate) fn parse(text: &Text) -> Result<DrainDeadline, Fault> {
        deadline(&text.plain()).map_err(|message| Fault::new(Code::BadValue, &text.span, message))
    }
}

fn parse(word: &str) -> Result<DrainWhen, String> {
    match word {
        "end" => Ok(DrainWhen::End),
        "continuous" => Ok(DrainWhen::Continuous),
        "manual" => Ok(DrainWhen::Manual),
        _ => match word.strip_prefix("interval:") {
            Some(time) => duration(time).and_then(|time| match time >= INTERVAL_MIN {
                true => Ok(DrainWhen::Interval(time)),
                false => Err(format!("an interval of {word} is too short; the shortest is 1s")),
            }),
            None => Err(format!("\"{word}\" is no value of when; it is end, continuous, interval:DURATION or manual")),
        },
    }
}

fn deadline(word: &str) -> Result<DrainDeadline, String> {
    match word {
        "auto" => Ok(DrainDeadline::Auto),
        _ => duration(word).map(DrainDeadline::Before),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("\"{text}\" is no time; it is a number with a unit, for instance 15m or 2days"))?;
    if time > DURATION_MAX { Err(format!("{text} is longer than a year")) } else { Ok(time) }
}

impl fmt::Display for DrainWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DrainWhen::End => f.write_str("end"),
            DrainWhen::Continuous => f.write_str("continuous"),
            DrainWhen::Interval(time) => write!(f, "interval:{}", compact(*time)),
            DrainWhen::Manual => f.write_str("manual"),
        }
    }
}

impl fmt::Display for DrainDeadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DrainDeadline::Auto => f.write_str("auto"),
            DrainDeadline::Before(time) => f.write_str(&compact(*time)),
        }
    }
}

/// As a directive has it: without white space.
fn compact(time: Duration) -> String {
    humantime::format_duration(time).to_string().replace(' ', "")
}

impl TryFrom<String> for DrainWhen {
    type Error = String;

    fn try_from(word: String) -> Result<DrainWhen, String> {
        parse(&word)
    }
}

impl From<DrainWhen> for String {
    fn from(when: DrainWhen) -> String {
        when.to_string()
    }
}

impl TryFrom<String> for DrainDeadline {
    type Error = String;

    fn try_from(word: String) -> Result<DrainDeadline, String> {
        deadline(&word)
    }
}

impl From<DrainDeadline> for String {
    fn from(deadline: DrainDeadline) -> String {
        deadline.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for word in ["end", "continuous", "manual", "interval:15m", "interval:1h30m", "interval:2days"] {
            assert_eq!(parse(&parse(word).unwrap().to_string()), parse(word), "{word}");
        }
        assert_eq!(parse("interval:90s"), Ok(DrainWhen::Interval(Duration::from_secs(90))));
        assert_eq!(deadline("10m"), Ok(DrainDeadline::Before(Duration::from_secs(600))));
        assert_eq!(deadline("auto").unwrap().to_string(), "auto");
        for word in ["", "often", "interval:", "interval:15", "interval:10ms", "interval:2000days", "Interval:1m"] {
            assert!(parse(word).is_err(), "{word}");
        }
        assert!(deadline("-1m").is_err() && deadline("10").is_err());
    }
}
