//! What Slurm says of the job while an instance lives on this node.
//!
//! While it starts: whether the job still does. The daemon of node 0 asks as well, and tells all others, so that this is seldom
//! the first to know: it ends the wait for a daemon that says nothing, or that waits for others in vain. Such a node would
//! keep a cancelled job from its end.
//!
//! While the job runs, seldom: whether it is over although no epilog came. A `slurmctld` that was killed before it had saved
//! its state has forgotten that the job has nodes, and ends nothing there.
//!
//! `squeue` is asked, since it prints just the fields that it is asked for: `scontrol show job` prints the job's name and comment,
//! which are the user's and may have line breaks, so that they could pass for Slurm's words.
//!
//! Owns the `squeue` that it runs, one at a time. Whoever uses it polls [`JobWatch::child`] and comes back at
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
/// Between two questions while the job runs.
const INTERVAL_RUNNING: Duration = Duration::from_secs(300);
/// The share of one node in the interval: all nodes of a job together ask 50 times a second at most.
const INTERVAL_PER_NODE: Duration = Duration::from_millis(20);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks from time to time.
#[derive(Debug)]
pub(crate) struct JobWatch {
    job_id: u32,
    aim: Aim,
    interval: Duration,
    /// When to ask next; while a question is open, when to give it up.
    due: Duration,
    question: Option<Question>,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aim {
    Starting,
    Running,
}

#[derive(Debug)]
struct Question {
    job_id: u32,
    child: Child,
    pidfd: OwnedFd,
}

impl JobWatch {
    /// Of a start on `nodes` nodes that begins `now`.
    pub(crate) fn of_start(job_id: u32, nodes: usize, now: Duration) -> JobWatch {
        let interval = INTERVAL.max(share(nodes));
        JobWatch { job_id, aim: Aim::Starting, interval, due: now + FIRST.max(interval), question: None }
    }

    /// Of a job that runs on `nodes` nodes.
    pub(crate) fn of_run(job_id: u32, nodes: usize, now: Duration) -> JobWatch {
        let interval = INTERVAL_RUNNING.max(share(nodes));
        JobWatch { job_id, aim: Aim::Running, interval, due: now + interval, question: None }
    }

    /// Whether it watches a job that runs.
    pub(crate) fn is_of_run(&self) -> bool {
        self.aim == Aim::Running
    }

    /// When [`JobWatch::look`] has something to do, at the latest.
    pub(crate) fn due(&self) -> Duration {
        self.due
    }

    /// Readable when an answer is there.
    pub(crate) fn child(&self) -> Option<BorrowedFd<'_>> {
        self.question.as_ref().map(|question| question.pidfd.as_fd())
    }

    /// Asks if it is time to, hears the answer if there is one; the job's state when it does not
    /// start any more, or does not run any more.
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
                let is_news = |state: &&str| match self.aim {
                    Aim::Starting => !is_starting(state),
                    Aim::Running => is_over(state),
                };
                state_of(self.job_id, &answer).filter(is_news).map(str::to_owned)
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

fn share(nodes: usize) -> Duration {
    INTERVAL_PER_NODE * u32::try_from(nodes).unwrap_or(u32::MAX)
}

/// The job's state, asked now, when it is over.
pub(crate) fn state_if_over(job_id: u32) -> Option<String> {
    let question = Question::ask(job_id)?;
    let has_ended = matches!(process::wait_readable(question.pidfd.as_fd(), Some(PATIENCE)), Ok(true));
    let answer = question.answer(has_ended)?;
    state_of(job_id, &answer).filter(|state| is_over(state)).map(str::to_owned)
}

impl Question {
    /// `squeue` finds Slurm's configuration as this process does, in its environment.
    fn ask(job_id: u32) -> Option<Question> {
        let mut command = Command::new("squeue");
        command.args(["--noheader", "--states=all", "--format=%A|%T", &format!("--jobs={job_id}")]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.inspect_err(|error| log::info!("cannot run squeue: {error}")).ok()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        match pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => Some(Question { job_id, child, pidfd }),
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
        let (mut said, mut complained) = (String::new(), String::new());
        self.child.stdout.take()?.read_to_string(&mut said).ok()?;
        self.child.stderr.take()?.read_to_string(&mut complained).ok()?;
        match self.child.wait().ok()?.success() {
            true => Some(said),
            false => complained.contains(NO_SUCH_JOB).then(|| format!("{}|{FORGOTTEN}", self.job_id)),
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Nothing happens to one that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of an array all jobs may be listed.
fn state_of(job_id: u32, listed: &str) -> Option<&str> {
    let mut jobs = listed.lines().filter_map(|line| line.split_once('|'));
    jobs.find_map(|(id, state)| (id.trim().parse() == Ok(job_id)).then_some(state.trim()))
}

/// Slurm's words for a job that it does not know.
const NO_SUCH_JOB: &str = "Invalid job id";
/// As the state of such a job.
const FORGOTTEN: &str = "FORGOTTEN";

/// Slurm has ended the job on all nodes that it believes the job has. A job that is COMPLETING still has epilogs to come.
fn is_over(state: &str) -> bool {
    const OVER: [&str; 11] = [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
        FORGOTTEN,
    ];
    OVER.contains(&state)
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
        assert_eq!(state_of(7, "6|RUNNING\n7|COMPLETING\n"), Some("COMPLETING"));
        assert_eq!(state_of(17, "7|RUNNING\n"), None);
        assert_eq!(state_of(7, "slurm_load_jobs error\n"), None);
        assert!(is_starting("RUNNING") && !is_starting("CANCELLED") && !is_starting(FORGOTTEN));
        assert!(is_over("CANCELLED") && is_over(FORGOTTEN));
        assert!(["RUNNING", "COMPLETING", "PENDING", "SUSPENDED"].iter().all(|state| !is_over(state)));
    }

    #[test]
    fn many_nodes_ask_seldom() {
        assert_eq!(JobWatch::of_start(1, 4, Duration::ZERO).due(), Duration::from_secs(2));
        assert_eq!(JobWatch::of_start(1, 1_000, Duration::ZERO).due(), Duration::from_secs(20));
        assert_eq!(JobWatch::of_run(1, 4, Duration::ZERO).due(), Duration::from_secs(300));
    }
}
