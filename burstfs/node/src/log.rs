//! Lines `<time> LEVEL message` on stderr, which is the instance's log once a supervisor runs.
//!
//! No framework: the supervisor stays resident for the job's whole life and says little.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// ERROR: a person must look.
macro_rules! error { ($($arg:tt)*) => { $crate::log::write("ERROR", format_args!($($arg)*)) }; }
/// WARN: unexpected, but handled.
macro_rules! warning { ($($arg:tt)*) => { $crate::log::write("WARN", format_args!($($arg)*)) }; }
/// INFO: a change of state.
macro_rules! info { ($($arg:tt)*) => { $crate::log::write("INFO", format_args!($($arg)*)) }; }
pub(crate) use {error, info, warning};

/// Where the lines go besides.
static COPY: OnceLock<File> = OnceLock::new();

/// From now on, every line goes to `file` as well: what a prolog writes to stderr goes nowhere, or to slurmd's log.
pub(crate) fn copy_to(file: File) {
    // The first one stays: there is one command in a process.
    let _ = COPY.set(file);
}

/// One line, in one write: the daemon appends to the same file.
pub(crate) fn write(level: &str, message: fmt::Arguments<'_>) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = utc(since.as_secs());
    let text = printable(&message.to_string(), usize::MAX);
    let line = format!("{time}.{:03}Z {level} burstfs-node: {text}\n", since.subsec_millis());
    // Nobody is left to tell when stderr cannot be written.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(mut copy) = COPY.get() {
        let _ = copy.write_all(line.as_bytes());
    }
}

/// `text` on one line and without control characters, at most `max` bytes: parts of it may come from a user.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for character in text.trim_end().chars() {
        let shown = if character.is_control() { ' ' } else { character };
        if out.len() + shown.len_utf8() > max {
            break;
        }
        out.push(shown);
    }
    out
}

/// Until when something is kept, as people read it.
pub(crate) fn until(epoch_secs: Option<u64>) -> String {
    epoch_secs.map_or_else(|| "until it is removed".to_owned(), |secs| format!("until {}Z", &utc(secs)[..16]))
}

/// `2026-08-12T10:00:00` of seconds since the epoch (Hinnant's civil_from_days).
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(utc(1_786_528_800), "2026-08-12T10:00:00");
        assert_eq!(until(Some(1_786_528_830)), "until 2026-08-12T10:00Z");
    }

    #[test]
    fn hostile_text_stays_on_its_line() {
        assert_eq!(printable("a\nb\u{1b}[31m\r\n", 100), "a b [31m");
        assert_eq!(printable("äöü", 5), "äö");
    }
}
