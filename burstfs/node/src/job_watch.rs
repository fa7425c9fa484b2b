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

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;

use crate::question::{Answer, Question};

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
        self.question.as_ref().map(Question::pidfd)
    }

    /// Asks if it is time to, hears the answer if there is one; the job's state when it does not
    /// start any more, or does not run any more.
    pub(crate) fn look(&mut self, now: Duration) -> Option<String> {
        match &self.question {
            Some(question) => {
                let has_ended = question.has_ended(Duration::ZERO);
                if !has_ended && now < self.due {
                    return None;
                }
                self.due = now + self.interval;
                let question = self.question.take().filter(|_| has_ended)?;
                let answer = listed(self.job_id, question.answer()?)?;
                let is_news = |state: &&str| match self.aim {
                    Aim::Starting => !is_starting(state),
                    Aim::Running => is_over(state),
                };
                state_of(self.job_id, &answer).filter(is_news).map(str::to_owned)
            }
            None if now >= self.due => {
                self.question = Question::ask(squeue(self.job_id));
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
    let question = Question::ask(squeue(job_id))?;
    let question = question.has_ended(PATIENCE).then_some(question)?;
    let answer = listed(job_id, question.answer()?)?;
    state_of(job_id, &answer).filter(|state| is_over(state)).map(str::to_owned)
}

fn squeue(job_id: u32) -> Command {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--states=all", "--format=%A|%T", &format!("--jobs={job_id}")]);
    command
}

/// What `squeue` listed; `None` when it failed.
fn listed(job_id: u32, answer: Answer) -> Option<String> {
    match answer.has_succeeded {
        true => Some(answer.said),
        false => answer.complained.contains(NO_SUCH_JOB).then(|| format!("{job_id}|{FORGOTTEN}")),
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
