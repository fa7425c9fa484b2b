//! What Slurm says of the job, asked as the job's user.
//!
//! Only a start asks: to notice `scancel` while nodes wait for one another, and the reason of a node whose `burstfsd`
//! could not speak for itself (its `burstfs-node` leaves it in the job's AdminComment, which only root can set).

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use burstfs_node::description::InstanceDescription;
use burstfs_types::{Code, Failure};
use tokio::process::Command;

/// Between two questions.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer is waited for that can be done without.
const PATIENCE: Duration = Duration::from_secs(10);
/// What `burstfs-node` puts in front of its reason.
const COMMENT_PREFIX: &str = "burstfs: ";

/// A job as `scontrol show job` describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Job {
    state: String,
    admin_comment: String,
}

/// Comes back only when the start makes no sense any more: the job was cancelled or ended, or a node has left word that
/// it cannot start. A `slurmctld` that does not answer is asked again: its absence says nothing about the job.
pub(crate) async fn start_is_pointless(job_id: u32, restart_count: u32, slurm_conf: Option<&Path>) -> Failure {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        match show(job_id, slurm_conf).await.as_deref().and_then(parse) {
            Some(job) => {
                if let Some(failure) = verdict(&job, job_id, restart_count) {
                    return failure;
                }
            }
            None => tracing::debug!(job_id, "slurmctld does not answer about the job"),
        }
    }
}

fn verdict(job: &Job, job_id: u32, restart_count: u32) -> Option<Failure> {
    if let Some(failure) = reason_left_by_node(&job.admin_comment, restart_count) {
        return Some(failure);
    }
    // CONFIGURING and RUNNING are the states of a job whose prologs run; PENDING shows for a moment after a requeue.
    let is_starting = matches!(job.state.as_str(), "CONFIGURING" | "RUNNING" | "PENDING");
    let message = || format!("job {job_id} is {} while its file system starts", job.state);
    (!is_starting).then(|| Failure::new(Code::Cancelled, message()))
}

/// `burstfs: <restart count>: E201: text`: what a node's `burstfs-node` left, if it is about this run of the job.
fn reason_left_by_node(comment: &str, restart_count: u32) -> Option<Failure> {
    let (run, rest) = comment.strip_prefix(COMMENT_PREFIX)?.split_once(": ")?;
    let (code, message) = rest.split_once(": ")?;
    (run.parse() == Ok(restart_count)).then_some(())?;
    Some(Failure::new(code.parse().ok()?, message))
}

/// When the job's time limit is over; `None` when it has none, or Slurm does not answer.
pub(crate) async fn end_time(description: &InstanceDescription) -> Option<SystemTime> {
    let (id, slurm_conf) = (description.instance.job_id(), description.slurm_conf.clone());
    // Asked to its end, whoever still waits for it: slurmctld logs an error about a command that is killed in the middle.
    let asked = async move { tokio::time::timeout(PATIENCE, show(id, slurm_conf.as_deref())).await.ok().flatten() };
    parse_end(&tokio::spawn(asked).await.ok().flatten()?)
}

fn parse_end(text: &str) -> Option<SystemTime> {
    let field = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key));
    let has_limit = field("TimeLimit=").is_some_and(|limit| limit != "UNLIMITED");
    field("EndTime=").filter(|_| has_limit).and_then(|time| humantime::parse_rfc3339_weak(time).ok())
}

/// Writes a line into the job's output, as far as Slurm lets: while its script runs.
pub(crate) async fn notify(description: &InstanceDescription, line: &str) {
    let mut command = scontrol(description.slurm_conf.as_deref());
    command.args(["notify", &description.instance.job_id().to_string(), line]);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => tracing::info!("scontrol notify: slurmctld does not answer"),
        Ok(Ok(output)) if output.status.success() => {}
        Ok(Ok(output)) => tracing::info!("scontrol notify: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Ok(Err(error)) => tracing::info!("scontrol notify: {error}"),
    }
}

/// Has the job go back into the queue, held; the error is Slurm's, for instance of a job that cannot be requeued.
pub(crate) async fn requeue_held(description: &InstanceDescription) -> Result<(), String> {
    let mut command = scontrol(description.slurm_conf.as_deref());
    command.args(["requeuehold", &description.instance.job_id().to_string()]);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => Err("slurmctld does not answer".to_owned()),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
        Ok(Err(error)) => Err(error.to_string()),
    }
}

/// What paths of a request may need to know of the job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Names {
    /// `%x`
    pub(crate) job_name: Option<String>,
    /// `%A`; absent for a job that is in no array.
    pub(crate) array_job_id: Option<String>,
    /// `%a`; likewise.
    pub(crate) array_task_id: Option<String>,
}

/// The job's names; `None` when Slurm does not answer.
pub(crate) async fn names(job_id: u32, slurm_conf: Option<&Path>) -> Option<Names> {
    show(job_id, slurm_conf).await.map(|text| parse_names(&text))
}

fn parse_names(text: &str) -> Names {
    let first_line = text.lines().next().unwrap_or_default();
    let field = |key: &str| first_line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
    Names {
        // The name is the line's last field, and may have blanks.
        job_name: first_line.split_once("JobName=").map(|(_, name)| name.trim_end().to_owned()),
        array_job_id: field("ArrayJobId="),
        array_task_id: field("ArrayTaskId="),
    }
}

async fn show(job_id: u32, slurm_conf: Option<&Path>) -> Option<String> {
    let mut command = scontrol(slurm_conf);
    command.args(["show", "job", &job_id.to_string()]);
    let output = command.output().await.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `scontrol`, which prints times in UTC.
fn scontrol(slurm_conf: Option<&Path>) -> Command {
    let mut command = Command::new("scontrol");
    command.stdin(Stdio::null()).kill_on_drop(true).env("TZ", "UTC").env_remove("SLURM_TIME_FORMAT");
    if let Some(path) = slurm_conf {
        command.env("SLURM_CONF", path);
    }
    command
}

fn parse(text: &str) -> Option<Job> {
    let line_of = |key: &str| text.lines().find_map(|line| line.trim_start().strip_prefix(key));
    let state = line_of("JobState=")?.split_whitespace().next()?.to_owned();
    Some(Job { state, admin_comment: line_of("AdminComment=").unwrap_or_default().trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "JobId=7 JobName=x\n   UserId=alice(7001) GroupId=alice(7001)\n   JobState=RUNNING Reason=Prolog\n   \
                         AdminComment=burstfs: 1: E201: node3: /local is not there \n   Power=\n";

    #[test]
    fn reads_state_and_comment() {
        let job = parse(SHOWN).unwrap();
        assert_eq!(job.state, "RUNNING");
        assert_eq!(job.admin_comment, "burstfs: 1: E201: node3: /local is not there");
    }

    #[test]
    fn reads_the_time_limit() {
        let text = "   RunTime=00:00:01 TimeLimit=00:01:00 TimeMin=N/A\n   StartTime=2026-11-26T22:05:27 EndTime=2026-11-26T22:06:27";
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_730_787);
        assert_eq!(parse_end(text), Some(end));
        assert_eq!(parse_end(&text.replace("00:01:00", "UNLIMITED")), None);
        assert_eq!(parse_end(&text.replace("EndTime=2026", "EndTime=Unknown")), None);
        assert_eq!(parse_end(""), None);
    }

    #[test]
    fn reads_names() {
        let names = parse_names("JobId=9 ArrayJobId=7 ArrayTaskId=2 JobName=two words\n   UserId=x\n");
        assert_eq!(names.job_name.as_deref(), Some("two words"));
        assert_eq!((names.array_job_id.as_deref(), names.array_task_id.as_deref()), (Some("7"), Some("2")));
        assert_eq!(parse_names(SHOWN).array_job_id, None);
    }

    #[test]
    fn a_comment_of_another_run_does_not_count() {
        let job = parse(SHOWN).unwrap();
        let failure = verdict(&job, 7, 1).unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (Code::NvmeMissing, "node3: /local is not there"));
        assert_eq!(verdict(&job, 7, 0), None);
    }

    #[test]
    fn a_cancelled_job_does_not_start() {
        let job = Job { state: "CANCELLED".into(), admin_comment: String::new() };
        assert_eq!(verdict(&job, 7, 0).unwrap().code, Code::Cancelled);
    }
}
