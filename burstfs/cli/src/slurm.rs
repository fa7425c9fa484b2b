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
    let states = "--states=RUNNING,CONFIGURING,COMPLETING,SUSPENDED";
    let text = run("squeue", &["--noheader", states, "--format=%A|%u|%T|%N"])?;
    let mut jobs = text.lines().filter(|line| !line.ends_with('|')).map(parse_job).collect::<Result<Vec<_>, _>>()?;
    jobs.retain(|job| filter.accepts(job));
    if !jobs.is_empty() {
        let text = run("squeue", &["--noheader", states, "--Format=JobID:16,RestartCnt:16"])?;
        let counts = text.lines().map(parse_count).collect::<Result<HashMap<_, _>, _>>()?;
        for job in &mut jobs {
            job.restart_count = counts.get(&job.id).copied().unwrap_or_default();
        }
    }
    Ok(jobs)
}

/// The job `id`, which has left its nodes, as long as Slurm remembers it.
pub(crate) fn finished(id: u32) -> Result<Option<Job>, SlurmError> {
    Ok(show(id)?.and_then(|text| parse_shown(id, &text)))
}

/// Whether the job `id` waits to be started, again or for the first time.
pub(crate) fn is_pending(id: u32) -> Result<bool, SlurmError> {
    Ok(show(id)?.is_some_and(|text| text.split_whitespace().any(|word| word == "JobState=PENDING")))
}

/// What Slurm says of the job `id` behind the line with its name, which is the user's and could pass for anything else; `None`
/// when Slurm does not know the job. A path has a line of its own, and may have blanks.
fn show(id: u32) -> Result<Option<String>, SlurmError> {
    match run("scontrol", &["show", "job", &id.to_string()]) {
        Ok(text) => Ok(Some(without_name(&text).to_owned())),
        Err(SlurmError::Failed { message, .. }) if message.contains("Invalid job id") => Ok(None),
        Err(error) => Err(error),
    }
}

fn without_name(shown: &str) -> &str {
    shown.split_once('\n').map_or("", |(_, rest)| rest)
}

fn parse_shown(id: u32, text: &str) -> Option<Job> {
    let field = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key));
    Some(Job {
        id,
        user: field("UserId=")?.split('(').next()?.to_owned(),
        state: field("JobState=")?.to_owned(),
        hosts: hostlist::expand(field("NodeList=").filter(|list| *list != "(null)")?).ok()?,
        restart_count: field("Restarts=")?.parse().ok()?,
    })
}

impl Filter {
    pub(crate) fn accepts(&self, job: &Job) -> bool {
        (self.jobs.is_empty() || self.jobs.contains(&job.id))
            && (self.users.is_empty() || self.users.contains(&job.user))
            && (self.hosts.is_empty() || job.hosts.iter().any(|host| self.hosts.contains(host)))
    }
}

/// Where the job's output goes, and its working directory, as far as Slurm still knows the job.
pub(crate) fn places(job: u32) -> (Option<PathBuf>, Option<PathBuf>) {
    let text = show(job).ok().flatten().unwrap_or_default();
    (path_of(&text, "StdOut="), path_of(&text, "WorkDir="))
}

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
        let hosts = hostlist::expand(fields.next()?).ok()?;
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
        assert_eq!(parse_count("17              2               ").unwrap(), (17, 2));
    }

    #[test]
    fn reads_a_job_that_is_over() {
        let shown = "JobId=17 JobName=x UserId=root(0) JobState=PENDING\n   UserId=alice(7001) GroupId=a(7) MCS_label=N/A\n   \
                     JobState=COMPLETED Reason=None\n   Requeue=1 Restarts=1 BatchFlag=1\n   NodeList=node[1-2]\n   \
                     BatchHost=node1\n   WorkDir=/home/a b\n   StdOut=/home/a b/out\n";
        let shown = without_name(shown);
        let job = parse_shown(17, shown).unwrap();
        assert_eq!((job.user.as_str(), job.hosts.len(), job.restart_count), ("alice", 2, 1));
        assert_eq!(job.state, "COMPLETED", "what the job is called is nothing that Slurm says");
        assert_eq!(path_of(shown, "StdOut="), Some("/home/a b/out".into()));
        assert_eq!(path_of(shown, "WorkDir="), Some("/home/a b".into()));
        assert_eq!(parse_shown(17, "   NodeList=(null)"), None);
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
