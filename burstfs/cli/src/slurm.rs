//! Which jobs there are, asked of Slurm with its own commands.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use burstfs_types::hostlist;
use serde::Serialize;
use thiserror::Error;

/// A job that has nodes, and so may have an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Job {
    /// Its number.
    pub id: u32,
    /// Its owner.
    pub user: String,
    /// Slurm's state.
    pub state: String,
    /// Its hosts, in Slurm's order.
    pub hosts: Vec<String>,
    /// How often it was requeued.
    pub restart_count: u32,
}

/// Which jobs are asked for; empty lists mean all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Filter {
    /// Job ids.
    pub jobs: Vec<u32>,
    /// User names.
    pub users: Vec<String>,
    /// Host names.
    pub hosts: Vec<String>,
}

/// Why Slurm could not be asked.
#[derive(Debug, Error)]
pub(crate) enum SlurmError {
    /// The program is not there.
    #[error("cannot run {program}: {source}; is Slurm's client installed, and on PATH?")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It said no.
    #[error("{program} failed: {message}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its words.
        message: String,
    },
    /// It said something else than expected.
    #[error("{program} answered \"{line}\", which cannot be understood")]
    Answer {
        /// Which.
        program: &'static str,
        /// The line.
        line: String,
    },
}

/// The jobs that have nodes now and match.
pub(crate) fn jobs(filter: &Filter) -> Result<Vec<Job>, SlurmError> {
    let states = ["--states=RUNNING,CONFIGURING,COMPLETING,SUSPENDED"];
    let mut jobs = list(&states)?;
    jobs.retain(|job| !job.hosts.is_empty() && filter.accepts(job));
    if !jobs.is_empty() {
        count_restarts(&mut jobs, &states)?;
    }
    Ok(jobs)
}

/// The job `id`, which has left its nodes, as long as Slurm remembers it.
pub(crate) fn finished(id: u32) -> Result<Option<Job>, SlurmError> {
    let Some(mut job) = one(id)?.filter(|job| !job.hosts.is_empty()) else { return Ok(None) };
    count_restarts(std::slice::from_mut(&mut job), &of_one(id))?;
    Ok(Some(job))
}

/// Whether the job `id` waits to be started, again or for the first time.
pub(crate) fn is_pending(id: u32) -> Result<bool, SlurmError> {
    Ok(one(id)?.is_some_and(|job| job.state == "PENDING"))
}

/// The job `id`, whatever has become of it; `None` when Slurm does not know it.
fn one(id: u32) -> Result<Option<Job>, SlurmError> {
    match list(&of_one(id)) {
        // All of an array may be listed.
        Ok(jobs) => Ok(jobs.into_iter().find(|job| job.id == id)),
        Err(SlurmError::Failed { message, .. }) if message.contains(NO_SUCH_JOB) => Ok(None),
        Err(error) => Err(error),
    }
}

fn of_one(id: u32) -> [String; 2] {
    ["--states=all".to_owned(), format!("--jobs={id}")]
}

/// Only fields that are Slurm's own are asked for: a name or a comment may have line breaks, and say anything. So who owns a job is
/// never read from `scontrol show job`.
fn list(selection: &[impl AsRef<str>]) -> Result<Vec<Job>, SlurmError> {
    squeue(selection, "--format=%A|%u|%T|%N")?.lines().map(parse_job).collect()
}

/// Sets the restart counts of `jobs`, which `selection` lists.
fn count_restarts(jobs: &mut [Job], selection: &[impl AsRef<str>]) -> Result<(), SlurmError> {
    let text = squeue(selection, "--Format=JobID:16,RestartCnt:16")?;
    let counts = text.lines().map(parse_count).collect::<Result<HashMap<_, _>, _>>()?;
    for job in jobs {
        job.restart_count = counts.get(&job.id).copied().unwrap_or_default();
    }
    Ok(())
}

fn squeue(selection: &[impl AsRef<str>], format: &str) -> Result<String, SlurmError> {
    let selection = selection.iter().map(AsRef::as_ref);
    let arguments: Vec<&str> = ["--noheader"].into_iter().chain(selection).chain([format]).collect();
    run("squeue", &arguments)
}

/// Slurm's words for a job that it does not know.
const NO_SUCH_JOB: &str = "Invalid job id";

impl Filter {
    pub(crate) fn accepts(&self, job: &Job) -> bool {
        (self.jobs.is_empty() || self.jobs.contains(&job.id))
            && (self.users.is_empty() || self.users.contains(&job.user))
            && (self.hosts.is_empty() || job.hosts.iter().any(|host| self.hosts.contains(host)))
    }
}

/// Where the job's output goes, and its working directory, as far as Slurm still knows the job. Its user may have made either up
/// (in the job's name), so whoever opens something there trusts nothing of it.
pub(crate) fn places(job: u32) -> (Option<PathBuf>, Option<PathBuf>) {
    let text = run("scontrol", &["show", "job", &job.to_string()]).unwrap_or_default();
    (path_of(&text, "StdOut="), path_of(&text, "WorkDir="))
}

/// A path has a line of its own, and may have blanks.
fn path_of(shown: &str, key: &str) -> Option<PathBuf> {
    shown.lines().find_map(|line| line.trim_start().strip_prefix(key)).map(PathBuf::from)
}

/// The value of `ClusterName` in Slurm's configuration.
pub(crate) fn cluster_name() -> Result<String, SlurmError> {
    let text = run("scontrol", &["show", "config"])?;
    let value = text.lines().find_map(|line| line.strip_prefix("ClusterName")?.split_once('=').map(|(_, value)| value));
    let missing = || SlurmError::Answer { program: "scontrol", line: "no ClusterName".to_owned() };
    value.map(|value| value.trim().to_owned()).ok_or_else(missing)
}

fn run(program: &'static str, arguments: &[&str]) -> Result<String, SlurmError> {
    let output =
        Command::new(program).args(arguments).output().map_err(|source| SlurmError::Run { program, source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(SlurmError::Failed { program, message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse_job(line: &str) -> Result<Job, SlurmError> {
    let parsed = || {
        let mut fields = line.split('|');
        let id = fields.next()?.parse().ok()?;
        let user = fields.next()?.to_owned();
        let state = fields.next()?.to_owned();
        let hosts = fields.next()?;
        let hosts = if hosts.is_empty() { Vec::new() } else { hostlist::expand(hosts).ok()? };
        Some(Job { id, user, state, hosts, restart_count: 0 })
    };
    parsed().ok_or_else(|| SlurmError::Answer { program: "squeue", line: line.to_owned() })
}

fn parse_count(line: &str) -> Result<(u32, u32), SlurmError> {
    let parsed = || {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    parsed().ok_or_else(|| SlurmError::Answer { program: "squeue", line: line.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_squeue() {
        let job = parse_job("17|alice|RUNNING|node[1-2]").unwrap();
        assert_eq!((job.id, job.user.as_str(), job.hosts.len()), (17, "alice", 2));
        assert!(parse_job("x|alice|RUNNING|node1").is_err());
        assert!(parse_job("17|alice|RUNNING|node[1-").is_err());
        let waits = parse_job("18|alice|PENDING|").unwrap();
        assert_eq!((waits.state.as_str(), waits.hosts.len()), ("PENDING", 0));
        assert_eq!(parse_count("17              2               ").unwrap(), (17, 2));
    }

    #[test]
    fn reads_where_a_job_writes() {
        let shown = "JobId=17 JobName=x\n   NodeList=node[1-2]\n   WorkDir=/home/a b\n   StdOut=/home/a b/out\n";
        assert_eq!(path_of(shown, "StdOut="), Some("/home/a b/out".into()));
        assert_eq!(path_of(shown, "WorkDir="), Some("/home/a b".into()));
        assert_eq!(path_of(shown, "StdErr="), None);
    }

    #[test]
    fn filters_combine() {
        let job = parse_job("17|alice|RUNNING|node[1-2]").unwrap();
        let filter = |jobs: &[u32], hosts: &[&str]| Filter {
            jobs: jobs.to_vec(),
            users: vec!["alice".to_owned()],
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        };
        assert!(filter(&[], &[]).accepts(&job));
        assert!(filter(&[17], &["node2"]).accepts(&job));
        assert!(!filter(&[18], &["node2"]).accepts(&job));
        assert!(!filter(&[17], &["node3"]).accepts(&job));
    }
}
