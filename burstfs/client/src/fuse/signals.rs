//! Whether a process that waits for an answer has got a signal.
//!
//! The kernel would say so with INTERRUPT, which fuser answers before anybody sees it; from then on the kernel asks no more, and the
//! process sleeps until it has its answer, whatever is sent to it. Its signals stay pending meanwhile, and can be read.

use std::fs;
use std::time::Duration;

/// How often one is looked at: what a user who presses a key does not notice.
const STEP: Duration = Duration::from_millis(100);

/// Completes when the thread, numbered as the mount's PID namespace does, has a signal that it would take. Never where it cannot
/// be seen from here.
pub(super) async fn signalled(thread: u32) {
    until(thread, has_signal).await;
}

/// The same for a signal that ends the thread. Calls that no signal with a handler may cut short wait for this one, as with a
/// network file system's.
pub(super) async fn killed(thread: u32) {
    until(thread, is_killed).await;
}

async fn until(thread: u32, is_so: fn(&str) -> bool) {
    let path = format!("/proc/{thread}/status");
    loop {
        tokio::time::sleep(STEP).await;
        if fs::read_to_string(&path).is_ok_and(|status| is_so(&status)) {
            return;
        }
    }
}

/// Whether `/proc/<thread>/status` has a signal that is pending, not blocked and not ignored.
fn has_signal(status: &str) -> bool {
    pending(status) & !mask(status, "SigBlk:") & !mask(status, "SigIgn:") != 0
}

/// Whether it has SIGKILL pending: the kernel gives it to every thread that any signal ends.
fn is_killed(status: &str) -> bool {
    pending(status) & (1 << (libc::SIGKILL - 1)) != 0
}

fn pending(status: &str) -> u64 {
    mask(status, "SigPnd:") | mask(status, "ShdPnd:")
}

fn mask(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: &str, shared: &str, blocked: &str, ignored: &str) -> String {
        format!(
            "Name:\tcat\nSigQ:\t1/95\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n"
        )
    }

    #[test]
    fn signals_that_would_be_taken() {
        let none = "0000000000000000";
        assert!(!has_signal(&status(none, none, none, none)));
        assert!(has_signal(&status("0000000000000100", none, none, none)));
        assert!(has_signal(&status(none, "0000000000000002", none, none)));
        assert!(!has_signal(&status(none, "0000000000000002", "0000000000000002", none)));
        assert!(!has_signal(&status(none, "0000000000000002", none, "0000000000000002")));
        assert!(!has_signal("nothing of it"));
        let (kill, alarm) = ("0000000000000100", "0000000000002000");
        assert!(is_killed(&status(kill, none, none, none)) && is_killed(&status(none, kill, none, none)));
        assert!(!is_killed(&status(none, alarm, none, none)) && !is_killed("nothing of it"));
    }
}
