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
    let path = format!("/proc/{thread}/status");
    loop {
        tokio::time::sleep(STEP).await;
        if fs::read_to_string(&path).is_ok_and(|status| has_signal(&status)) {
            return;
        }
    }
}

/// Whether `/proc/<thread>/status` has a signal that is pending, not blocked and not ignored.
fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let mask = |name| mask(name).unwrap_or(0);
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") != 0
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
    }
}
