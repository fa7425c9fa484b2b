//! `burstfs-job-state JOBID`: what state Slurm has a job in, and how often it was requeued: `42|CANCELLED|0`.
//!
//! While a job's epilogs run it is COMPLETING, and `squeue` and `scontrol` say nothing else of it: what it will be afterwards (COMPLETED,
//! CANCELLED, TIMEOUT) is in the same field of Slurm's answer, but only the API shows it. Its exit code does not tell either: a script that was
//! cancelled, or has reached its time limit, may end with 0. So this asks by the API. It reads numbers only: a job's name and comment
//! are its user's.
//!
//! A program of its own, which `burstfs-node` runs: libslurm fits one major.minor of Slurm, it ends the process that uses it when it does not
//! like its configuration, and a node on which it is missing can do without the answer for as long as the data is kept.
//!
//! Exit status: 0 and the line, also for a job that Slurm does not know (`42|FORGOTTEN|0`); 1 and the reason when Slurm cannot be asked.

mod bindings;

use std::io::Error;
use std::process::ExitCode;

/// For a job that Slurm does not know, or knows no more.
const FORGOTTEN: &str = "FORGOTTEN";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [job] = arguments.as_slice() else { return usage() };
    let Ok(job) = job.parse() else { return usage() };
    match ask(job) {
        Ok(Some((state, restarts))) => println!("{job}|{state}|{restarts}"),
        Ok(None) => println!("{job}|{FORGOTTEN}|0"),
        Err(error) => {
            eprintln!("burstfs-job-state: Slurm does not say how job {job} is: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: burstfs-job-state JOBID");
    ExitCode::from(2)
}

/// State and restarts of a job; `None` when Slurm does not know it.
fn ask(job: u32) -> Result<Option<(&'static str, u32)>, Error> {
    // SAFETY: called once, before any other function of the library; null means that it finds its configuration itself.
    unsafe { bindings::slurm_init(std::ptr::null()) };
    let mut answer: *mut bindings::job_info_msg_t = std::ptr::null_mut();
    // SAFETY: `answer` takes a pointer to what the library allocates.
    if unsafe { bindings::slurm_load_job(&raw mut answer, job, 0) } != 0 {
        let error = Error::last_os_error();
        let is_unknown = error.raw_os_error() == i32::try_from(bindings::ESLURM_INVALID_JOB_ID).ok();
        return if is_unknown { Ok(None) } else { Err(error) };
    }
    // SAFETY: the library has succeeded, so this is one answer, which nobody else has, with so many records in its array.
    let found = unsafe {
        let records = match ((*answer).job_array.is_null(), (*answer).record_count) {
            (true, _) | (_, 0) => &[],
            (false, count) => std::slice::from_raw_parts((*answer).job_array, count as usize),
        };
        // Of an array all jobs may be in it.
        let own = records.iter().find(|record| record.job_id == job);
        own.map(|record| (record.job_state, u32::from(record.restart_cnt)))
    };
    // SAFETY: nothing of it is used any more.
    unsafe { bindings::slurm_free_job_info_msg(answer) };
    match found.map(|(state, restarts)| (name(state), restarts)) {
        None => Ok(None),
        Some((Some(name), restarts)) => Ok(Some((name, restarts))),
        Some((None, _)) => Err(Error::other("a state that this version does not know")),
    }
}

/// Slurm's word for what a job is, or will be when its epilogs have ended.
fn name(state: u32) -> Option<&'static str> {
    #[allow(clippy::unnecessary_cast, reason = "the type of the constants is bindgen's choice")]
    let name = match (state & bindings::JOB_STATE_BASE as u32) as bindings::job_states {
        bindings::JOB_PENDING => "PENDING",
        bindings::JOB_RUNNING => "RUNNING",
        bindings::JOB_SUSPENDED => "SUSPENDED",
        bindings::JOB_COMPLETE => "COMPLETED",
        bindings::JOB_CANCELLED => "CANCELLED",
        bindings::JOB_FAILED => "FAILED",
        bindings::JOB_TIMEOUT => "TIMEOUT",
        bindings::JOB_NODE_FAIL => "NODE_FAIL",
        bindings::JOB_PREEMPTED => "PREEMPTED",
        bindings::JOB_BOOT_FAIL => "BOOT_FAIL",
        bindings::JOB_DEADLINE => "DEADLINE",
        bindings::JOB_OOM => "OUT_OF_MEMORY",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_hide_the_state() {
        // As seen of jobs whose epilogs ran: JOB_COMPLETING is 0x8000.
        assert_eq!(name(0x8003), Some("COMPLETED"));
        assert_eq!(name(0x8004), Some("CANCELLED"));
        assert_eq!(name(0x8006), Some("TIMEOUT"));
        assert_eq!(name(0x8000), Some("PENDING"), "requeued");
        assert_eq!(name(0xff), None);
    }
}
