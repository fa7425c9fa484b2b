//! How the job ended, asked of Slurm while its epilogs run: `burstfs-job-state` knows what the job will be called afterwards, which neither
//! `squeue` nor the variables of an epilog say (its exit code is 0 also for a script that ends well after `scancel`, or at its time limit).
//!
//! Asked by one node of the job, once for each time that its daemon needs to know and the journal does not. A `slurmctld` that does not
//! answer in time says nothing, and nor does one that has forgotten the job: what depends on the answer is kept until there is one.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use burstfs_types::JobEnd;

use crate::log;
use crate::question::{Answer, Question};

/// How long the question may take: libslurm tries for as long as Slurm's MessageTimeout.
const PATIENCE: Duration = Duration::from_secs(30);

/// The question, while it is open.
#[derive(Debug)]
pub(crate) struct JobEndQuestion {
    job_id: u32,
    restart_count: u32,
    due: Duration,
    question: Question,
}

impl JobEndQuestion {
    /// Asks `program` about a run of a job. `None` when it cannot be run.
    pub(crate) fn ask(program: &Path, job_id: u32, restart_count: u32, now: Duration) -> Option<JobEndQuestion> {
        let mut command = Command::new(program);
        command.arg(job_id.to_string());
        Some(JobEndQuestion { job_id, restart_count, due: now + PATIENCE, question: Question::ask(command)? })
    }

    /// Readable when the answer is there.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.question.pidfd()
    }

    /// When it is given up.
    pub(crate) fn due(&self) -> Duration {
        self.due
    }

    /// Whether [`JobEndQuestion::answer`] can be called: the answer is there, or will not come.
    pub(crate) fn is_over(&self, now: Duration) -> bool {
        now >= self.due || self.question.has_ended(Duration::ZERO)
    }

    /// How the job ended; `None` when Slurm does not say, which is put into the log.
    pub(crate) fn answer(self) -> Option<JobEnd> {
        let has_ended = self.question.has_ended(Duration::ZERO);
        let said = if has_ended { self.question.answer() } else { None };
        let judged = match &said {
            Some(Answer { has_succeeded: true, said, .. }) => judge(said, self.job_id, self.restart_count),
            Some(Answer { complained, .. }) => Err(complained.trim().escape_debug().to_string()),
            None => Err("slurmctld does not answer".to_owned()),
        };
        judged.inspect_err(|why| log::info!("it is not known how the job ended: {why}")).ok()
    }
}

/// What `42|CANCELLED|0` says of the run `restart_count` of the job `job_id`.
fn judge(said: &str, job_id: u32, restart_count: u32) -> Result<JobEnd, String> {
    let nonsense = || format!("{said:?} is not about the job");
    let (id, rest) = said.trim_end().split_once('|').ok_or_else(nonsense)?;
    let (state, restarts) = rest.split_once('|').ok_or_else(nonsense)?;
    let restarts: u32 = restarts.parse().map_err(|_| nonsense())?;
    if id.parse() != Ok(job_id) {
        return Err(nonsense());
    }
    match state {
        FORGOTTEN => Err("Slurm has forgotten the job".to_owned()),
        // Requeued: this run came to nothing, whatever the next one does.
        _ if restarts > restart_count => Ok(JobEnd::Failure),
        "COMPLETED" => Ok(JobEnd::Success),
        "FAILED" | "CANCELLED" | "TIMEOUT" | "NODE_FAIL" | "OUT_OF_MEMORY" | "PREEMPTED" | "DEADLINE" | "BOOT_FAIL" => {
            Ok(JobEnd::Failure)
        }
        other => Err(format!("the job is {}, and has not ended", other.escape_debug())),
    }
}

/// The word for a job that Slurm does not know.
const FORGOTTEN: &str = "FORGOTTEN";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_what_slurm_calls_completed() {
        assert_eq!(judge("42|COMPLETED|0\n", 42, 0), Ok(JobEnd::Success));
        for state in
            ["FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL"]
        {
            assert_eq!(judge(&format!("42|{state}|0\n"), 42, 0), Ok(JobEnd::Failure), "{state}");
        }
    }

    #[test]
    fn a_run_that_was_requeued_has_failed_whatever_the_next_one_does() {
        for state in ["PENDING", "RUNNING", "COMPLETED"] {
            assert_eq!(judge(&format!("42|{state}|2\n"), 42, 1), Ok(JobEnd::Failure), "{state}");
        }
        assert_eq!(judge("42|COMPLETED|2\n", 42, 2), Ok(JobEnd::Success));
    }

    #[test]
    fn nothing_is_concluded_from_anything_else() {
        for said in [
            "",
            "42",
            "42|COMPLETED",
            "42|COMPLETED|",
            "43|COMPLETED|0",
            "42|FORGOTTEN|0",
            "42|RUNNING|0",
            "42|PENDING|0",
            "42|completed|0",
        ] {
            assert!(judge(said, 42, 0).is_err(), "{said}");
        }
    }

    #[test]
    fn a_program_that_fails_or_is_missing_says_nothing() {
        let ask = |program: &str| JobEndQuestion::ask(Path::new(program), 42, 0, Duration::ZERO);
        assert!(ask("/nowhere/burstfs-job-state").is_none());
        for program in ["/bin/false", "/bin/echo"] {
            let question = ask(program).unwrap();
            assert!(question.question.has_ended(PATIENCE));
            assert_eq!(question.answer(), None, "{program}");
        }
    }
}
