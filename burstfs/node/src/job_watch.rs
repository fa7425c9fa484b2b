//! Whether the job still starts, asked of Slurm while a start goes on.
//!
//! The daemon of node 0 asks as well, and tells all others, so that this is seldom the first to know: it ends the wait for
//! a daemon that says nothing, or that waits for others in vain. Such a node would keep a cancelled job from its end.
//!
//! Owns the `scontrol` that it runs, one at a time. Whoever uses it polls [`JobWatch::child`] and comes back at
//! [`JobWatch::due`]. A `slurmctld` that does not answer is asked again: its absence says nothing about the job.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

/// An ordinary start is over by then.
const FIRST: Duration = Duration::from_secs(2);
/// Between two questions on a small job.
const INTERVAL: Duration = Duration::from_secs(2);
/// The share of one node in the interval: all nodes of a job together ask 50 times a second at most.
const INTERVAL_PER_NODE: Duration = Duration::from_millis(20);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks from time to time.
#[derive(Debug)]
pub(crate) struct JobWatch {
    job_id: u32,
    interval: Duration,
    /// When to ask next; while a question is open, when to give it up.
    due: Duration,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    child: Child,
    pidfd: OwnedFd,
}

impl JobWatch {
    /// Of a start on `nodes` nodes that begins `now`.
    pub(crate) fn new(job_id: u32, nodes: usize, now: Duration) -> JobWatch {
        let interval = INTERVAL.max(INTERVAL_PER_NODE * u32::try_from(nodes).unwrap_or(u32::MAX));
        JobWatch { job_id, interval, due: now + FIRST.max(interval), question: None }
    }

    /// When [`JobWatch::look`] has something to do, at the latest.
    pub(crate) fn due(&self) -> Duration {
        self.due
    }

    /// Readable when an answer is there.
    pub(crate) fn child(&self) -> Option<BorrowedFd<'_>> {
        self.question.as_ref().map(|question| question.pidfd.as_fd())
    }

    /// Asks if it is time to, hears the answer if there is one; the job's state when it does not start any more.
    pub(crate) fn look(&mut self, now: Duration) -> Option<String> {
        match &self.question {
            Some(question) => {
                let has_ended =
                    matches!(process::wait_readable(question.pidfd.as_fd(), Some(Duration::ZERO)), Ok(true));
                if !has_ended && now < self.due {
                    return None;
                }
                self.due = now + self.interval;
                let answer = self.question.take()?.answer(has_ended)?;
                state_of(&answer).filter(|state| !is_starting(state)).map(str::to_owned)
            }
            None if now >= self.due => {
                self.question = Question::ask(self.job_id);
                self.due = now + if self.question.is_some() { PATIENCE } else { self.interval };
                None
            }
            None => None,
        }
    }
}

impl Question {
    /// `scontrol` finds Slurm's configuration as this process does, in its environment.
    fn ask(job_id: u32) -> Option<Question> {
        let mut command = Command::new("scontrol");
        command.args(["show", "job", &job_id.to_string()]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.inspect_err(|error| log::info!("cannot run scontrol: {error}")).ok()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        match pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => Some(Question { child, pidfd }),
            Some(Err(_)) | None => {
                let _ = child.kill();
                let _ = child.wait();
                None
            }
        }
    }

    /// What it said; `None` when it failed or is given up. What it says fits into a pipe, so that it ends by itself.
    fn answer(mut self, has_ended: bool) -> Option<String> {
        if !has_ended {
            return None;
        }
        let mut said = Vec::new();
        self.child.stdout.take()?.read_to_end(&mut said).ok()?;
        let status = self.child.wait().ok()?;
        status.success().then(|| String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Nothing happens to one that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn state_of(shown: &str) -> Option<&str> {
    let line = shown.lines().find_map(|line| line.trim_start().strip_prefix("JobState="));
    line?.split_whitespace().next()
}

/// CONFIGURING and RUNNING are the states of a job whose prologs run; PENDING shows for a moment after a requeue.
fn is_starting(state: &str) -> bool {
    matches!(state, "CONFIGURING" | "RUNNING" | "PENDING")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_state() {
        let shown = "JobId=7 JobName=JobState=x\n   UserId=alice(7001)\n   JobState=COMPLETING Reason=None\n";
        assert_eq!(state_of(shown), Some("COMPLETING"));
        assert_eq!(state_of("slurm_load_jobs error\n"), None);
        assert!(is_starting("RUNNING") && !is_starting("CANCELLED"));
    }

    #[test]
    fn many_nodes_ask_seldom() {
        assert_eq!(JobWatch::new(1, 4, Duration::ZERO).due(), Duration::from_secs(2));
        assert_eq!(JobWatch::new(1, 1_000, Duration::ZERO).due(), Duration::from_secs(20));
    }
}
