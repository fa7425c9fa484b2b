//! slurmstepd: whether a task may start, and what it finds in its environment.
//!
//! Root decides, from what root wrote on this node: the variables of the job are the user's, who can at most make his
//! own job fail or do without its file system.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use burstfs_config::{SiteConfig, SlurmConf};
use burstfs_spec::FOREIGN_VARIABLES;
use burstfs_types::{Code, Failure, InstanceId};
use serde::Deserialize;

use crate::host::{Host, names};
use crate::slurm;

/// The version of `outcome.json` that is understood.
const OUTCOME_VERSION: u32 = 1;

/// More than `burstfs-node` ever writes.
const OUTCOME_MAX_BYTES: u64 = 1 << 20;

/// `outcome.json`, as `burstfs-node` writes it.
#[derive(Deserialize)]
struct Outcome {
    version: u32,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Verdict {
    Ready {
        environment: BTreeMap<String, String>,
        #[serde(default)]
        warning: Option<Failure>,
    },
    Failed {
        failure: Failure,
    },
}

/// Removes from the job's environment what an `sbatch` within the job would take for options of its own; whether the
/// job asked for burstfs. The option alone does not say so: its last word may have been `none`.
pub(crate) fn disinherit(host: &dyn Host) -> bool {
    let is_requested = host.has_job_variable(names::IN_JOB);
    names::INHERITED.iter().for_each(|name| host.unset_job_variable(name));
    is_requested
}

/// The task must not start; the job's output says why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stopped;

/// Lets the task of a job with a file system start with its environment, and one that should have one but has not,
/// not at all. `is_requested` is what this step knows; a step within a batch script knows nothing.
pub(crate) fn admit(host: &dyn Host, config: &Path, is_requested: bool) -> Result<(), Stopped> {
    match environment(host, config, is_requested) {
        Ok((environment, warning)) => {
            // Once: not in each step of a batch script.
            if let Some(warning) = warning.filter(|_| is_requested) {
                host.tell(&format!("burstfs: warning: {warning}"));
            }
            for (name, value) in environment.iter().filter(|(name, _)| may_be_set(name)) {
                host.set_job_variable(name, value);
            }
            Ok(())
        }
        Err(failure) => {
            host.tell(&format!("burstfs: {failure}"));
            Err(Stopped)
        }
    }
}

/// Whether a job may have a variable from its file system.
fn may_be_set(name: &str) -> bool {
    name.starts_with("BURSTFS") || FOREIGN_VARIABLES.contains(&name)
}

/// What the task finds in its environment, and what it is told.
type Welcome = (BTreeMap<String, String>, Option<Failure>);

fn environment(host: &dyn Host, config: &Path, is_requested: bool) -> Result<Welcome, Failure> {
    let config = match SiteConfig::load(config) {
        Ok(config) => config,
        // A job that never heard of burstfs does not suffer from a broken configuration.
        Err(_) if !is_requested => return Ok(Welcome::default()),
        Err(error) => return Err(error.failure()),
    };
    let Some(instance) = find_instance(host, &config.run_dir) else {
        return if is_requested { Err(why_not_started()) } else { Ok(Welcome::default()) };
    };
    let outcome = read_outcome(&config.run_dir.join(instance.to_string()));
    match outcome.map_err(|why| Failure::new(Code::DaemonFailed, format!("{instance} on this node: {why}")))? {
        Verdict::Ready { environment, warning } => Ok((environment, warning)),
        Verdict::Failed { failure } => Err(failure),
    }
}

/// The job's instance on this node: the latest, or that of this run when the restart count says which. Slurm 22.05 says
/// 0 for every run, so 0 says nothing. An earlier run's instance is gone by now: Slurm requeues after the last epilog.
fn find_instance(host: &dyn Host, run_dir: &Path) -> Option<InstanceId> {
    let job_id = host.job_id()?;
    let mut instances: Vec<InstanceId> = std::fs::read_dir(run_dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|instance: &InstanceId| instance.job_id() == job_id)
        .collect();
    if instances.iter().any(|instance| instance.cluster() != instances[0].cluster()) {
        // Nodes of several clusters on one host: which is ours, Slurm's own file knows.
        let cluster = SlurmConf::load()?.cluster_name?;
        instances.retain(|instance| instance.cluster().eq_ignore_ascii_case(&cluster));
    }
    match host.restart_count() {
        Some(count @ 1..) => instances.into_iter().find(|instance| instance.restart_count() == count),
        Some(0) | None => instances.into_iter().max_by_key(InstanceId::restart_count),
    }
}

/// Without an outcome no prolog of burstfs ran: for which there may be a reason that can be seen from here.
fn why_not_started() -> Failure {
    let message = "no file system was started for this job on this node: neither Prolog= in slurm.conf nor plugstack.conf has \
                   burstfs's prolog run, or it failed; the logs of burstfs and of slurmd on the node say more";
    slurm::check_flags().err().unwrap_or_else(|| Failure::new(Code::DaemonFailed, message))
}

/// `directory` and its file must be root's, as everything is that root wrote there.
fn read_outcome(directory: &Path) -> Result<Verdict, String> {
    let owner = |metadata: std::fs::Metadata| if metadata.uid() == trusted_uid() { Ok(()) } else { Err("not root's") };
    let metadata = std::fs::symlink_metadata(directory).map_err(|error| error.to_string())?;
    owner(metadata)?;
    let path = directory.join("outcome.json");
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        ErrorKind::NotFound => "the start was not recorded; the log of burstfs there says why".to_owned(),
        _ => error.to_string(),
    })?;
    owner(file.metadata().map_err(|error| error.to_string())?)?;
    let mut text = String::new();
    file.by_ref().take(OUTCOME_MAX_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let outcome: Outcome = serde_json::from_str(&text).map_err(|error| format!("outcome.json: {error}"))?;
    match outcome.version {
        OUTCOME_VERSION => Ok(outcome.verdict),
        other => Err(format!("outcome.json has version {other}: plugin and burstfs-node are of different releases")),
    }
}

#[cfg(not(test))]
fn trusted_uid() -> u32 {
    0
}

/// Tests write the outcome themselves.
#[cfg(test)]
fn trusted_uid() -> u32 {
    // SAFETY: cannot fail and has no preconditions.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::host::fake::FakeHost;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Node {
            let directory = tempfile::tempdir().unwrap();
            let text = format!("run_dir = {:?}", directory.path().join("run"));
            fs::write(directory.path().join("burstfs.toml"), text).unwrap();
            Node(directory)
        }

        fn config(&self) -> PathBuf {
            self.0.path().join("burstfs.toml")
        }

        fn outcome(&self, instance: &str, text: &str) {
            let directory = self.0.path().join("run").join(instance);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("outcome.json"), text).unwrap();
        }

        fn ready(&self, instance: &str) {
            let environment = format!(r#"{{"BURSTFS":"/burstfs/{instance}","TMPDIR":"/t","LD_PRELOAD":"x"}}"#);
            let head = format!(r#"{{"version":1,"instance":"{instance}","state":"ready","#);
            self.outcome(instance, &format!(r#"{head}"environment":{environment}}}"#));
        }

        fn admit(&self, restart_count: Option<u32>, is_requested: bool) -> (Result<(), Stopped>, FakeHost) {
            let host = FakeHost { job_id: Some(42), restart_count, ..FakeHost::default() };
            (admit(&host, &self.config(), is_requested), host)
        }
    }

    #[test]
    fn a_ready_instance_gives_its_environment() {
        let node = Node::new();
        node.ready("vc.42.0");
        node.ready("vc.421.0");
        for is_requested in [true, false] {
            let (result, host) = node.admit(Some(0), is_requested);
            assert_eq!(result, Ok(()));
            let job = host.job.borrow();
            assert_eq!(job.get("BURSTFS").map(String::as_str), Some("/burstfs/vc.42.0"));
            assert_eq!(job.keys().collect::<Vec<_>>(), ["BURSTFS", "TMPDIR"]);
        }
    }

    #[test]
    fn what_is_to_be_told_is_told_to_the_batch_script_only() {
        let node = Node::new();
        let warning = r#"{"code":"E207","message":"stage_in: /in/a: Permission denied"}"#;
        let text =
            format!(r#"{{"version":1,"instance":"vc.42.0","state":"ready","environment":{{}},"warning":{warning}}}"#);
        node.outcome("vc.42.0", &text);
        let (result, host) = node.admit(None, true);
        assert_eq!(result, Ok(()));
        assert_eq!(host.text(), "burstfs: warning: E207: stage_in: /in/a: Permission denied");
        assert_eq!(node.admit(None, false).1.text(), "");
    }

    #[test]
    fn a_failed_one_stops_the_task_with_its_reason() {
        let node = Node::new();
        let text = r#"{"version":1,"instance":"vc.42.0","state":"failed","failure":{"code":"E201","message":"no /l"}}"#;
        node.outcome("vc.42.0", text);
        let (result, host) = node.admit(None, false);
        assert_eq!((result, host.text().as_str()), (Err(Stopped), "burstfs: E201: no /l"));
    }

    #[test]
    fn none_at_all_stops_only_who_asked() {
        let node = Node::new();
        assert_eq!(node.admit(None, false).0, Ok(()));
        let (result, host) = node.admit(None, true);
        assert_eq!(result, Err(Stopped));
        assert!(host.text().contains("E203: no file system was started"), "{}", host.text());
        fs::write(node.config(), "broken").unwrap();
        assert_eq!(node.admit(None, false).0, Ok(()));
        assert!(node.admit(None, true).1.text().contains("E120"));
    }

    #[test]
    fn an_earlier_run_is_not_taken_for_this_one() {
        let node = Node::new();
        node.ready("vc.42.0");
        assert_eq!(node.admit(Some(1), true).0, Err(Stopped));
        node.ready("vc.42.1");
        assert_eq!(node.admit(Some(1), true).1.job.borrow().get("BURSTFS").unwrap(), "/burstfs/vc.42.1");
        for unknown in [None, Some(0)] {
            assert_eq!(node.admit(unknown, true).1.job.borrow().get("BURSTFS").unwrap(), "/burstfs/vc.42.1");
        }
    }

    #[test]
    fn an_outcome_that_cannot_be_read_stops_the_task() {
        for text in ["", "{", r#"{"version":2,"state":"ready","environment":{}}"#, r#"{"version":1,"state":"x"}"#] {
            let node = Node::new();
            node.outcome("vc.42.0", text);
            assert_eq!(node.admit(None, false).0, Err(Stopped), "{text}");
        }
        let node = Node::new();
        fs::create_dir_all(node.0.path().join("run/vc.42.0")).unwrap();
        assert!(node.admit(None, false).1.text().contains("was not recorded"));
    }

    #[test]
    fn nested_jobs_do_not_inherit() {
        let host = FakeHost::default();
        assert!(!disinherit(&host));
        host.set_job_variable(names::OPTION_IN_JOB, "none");
        assert!(!disinherit(&host));
        for name in names::INHERITED.into_iter().chain(["MINE"]) {
            host.set_job_variable(name, "x");
        }
        assert!(disinherit(&host));
        assert_eq!(host.job.borrow().keys().collect::<Vec<_>>(), ["MINE"]);
    }
}
