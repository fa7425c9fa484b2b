//! What Slurm and the user ask for, from the environment that the plugin sets, checked before anything is done with it.
//!
//! Slurm's own variables are trusted to be what slurmd says, but not to be well formed. `BURSTFS_SPEC` went through the
//! user's hands: it is parsed and checked again, and what it asks for is held against the site's limits.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use burstfs_node::description::{DESCRIPTION_VERSION, InstanceDescription, JobSpec};
use burstfs_types::{Code, Failure, InstanceId, hostlist};
use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::error::NodeError;
use crate::process;
use crate::settings::Settings;
use crate::store::{Launch, data_path};

/// The variables of a request. A function, so that a test needs no environment.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment; a value that is no text counts as absent.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Which job it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct JobKey {
    pub(crate) cluster: String,
    pub(crate) job_id: u32,
    /// Absent when slurmd does not say it.
    pub(crate) restart_count: Option<u32>,
}

impl JobKey {
    pub(crate) fn read(variables: Variables<'_>) -> Result<JobKey, NodeError> {
        let restart_count = match variables("SLURM_JOB_RESTART_COUNT") {
            None => None,
            Some(_) => Some(number(variables, "SLURM_JOB_RESTART_COUNT")?),
        };
        let key = JobKey {
            cluster: required(variables, "SLURM_CLUSTER_NAME")?,
            job_id: number(variables, "SLURM_JOB_ID")?,
            restart_count,
        };
        key.instance()?;
        Ok(key)
    }

    /// The instance of a start.
    pub(crate) fn instance(&self) -> Result<InstanceId, NodeError> {
        InstanceId::new(&self.cluster, self.job_id, self.restart_count.unwrap_or(0))
            .map_err(|error| NodeError::Usage(error.to_string()))
    }

    /// Whether `instance` is of this job, and of this run of it if that is known.
    pub(crate) fn covers(&self, instance: &InstanceId) -> bool {
        self.is_same_job(instance) && self.restart_count.is_none_or(|count| count == instance.restart_count())
    }

    /// Whether `instance` is of this job.
    pub(crate) fn is_same_job(&self, instance: &InstanceId) -> bool {
        instance.cluster() == self.cluster && instance.job_id() == self.job_id
    }
}

fn required(variables: Variables<'_>, name: &str) -> Result<String, NodeError> {
    let present = variables(name).filter(|value| !value.is_empty());
    present.ok_or_else(|| NodeError::Usage(format!("{name} is not set")))
}

fn number(variables: Variables<'_>, name: &str) -> Result<u32, NodeError> {
    let text = required(variables, name)?;
    text.parse().map_err(|_| NodeError::Usage(format!("{name}={text:?} is not a number")))
}

/// Everything about the instance that is to be started.
pub(crate) fn launch(variables: Variables<'_>, key: &JobKey, settings: &Settings) -> Result<Launch, Failure> {
    let refused = |error: NodeError| error.into_failure(Code::Request);
    let instance = key.instance().map_err(refused)?;
    let (uid, gid) =
        (number(variables, "SLURM_JOB_UID").map_err(refused)?, number(variables, "SLURM_JOB_GID").map_err(refused)?);
    let name = required(variables, "SLURM_JOB_USER").map_err(refused)?;
    let groups = check_user(uid, gid, &name)?;
    let nodes = hostlist::expand(&required(variables, "SLURM_NODELIST").map_err(refused)?)
        .map_err(|error| Failure::new(Code::Request, error.to_string()))?;
    let node = required(variables, "SLURMD_NODENAME").map_err(refused)?;
    let node_index = position(&nodes, &node)?;
    let spec = JobSpec::from_json(&required(variables, "BURSTFS_SPEC").map_err(refused)?)
        .map_err(|error| Failure::new(Code::Request, error.to_string()))?;
    check_retain(&spec, settings)?;
    let capacity_bytes = capacity(&spec, nodes.len(), settings)?;
    let absolute = |name: &str| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let description = InstanceDescription {
        version: DESCRIPTION_VERSION,
        uid,
        gid,
        user: name,
        nodes,
        node_index,
        spec,
        capacity_bytes,
        data_dir: data_path(&settings.nvme, &instance),
        mount: settings.mount_base.join(instance.job_id().to_string()),
        serves_mount: true,
        work_dir: absolute("SLURM_JOB_WORK_DIR").unwrap_or_else(|| PathBuf::from("/")),
        stdout: variables("SLURM_JOB_STDOUT").filter(|path| !path.is_empty()).map(PathBuf::from),
        slurm_conf: absolute("SLURM_CONF"),
        network: settings.network.clone(),
        timeouts: settings.timeouts.clone(),
        metadata: settings.metadata,
        restarted: false,
        incarnation: incarnation(),
        drains_alone: settings.drain.returns_node,
        held: None,
        job_end: None,
        instance,
    };
    Ok(launch_of(description, groups, settings))
}

fn launch_of(description: InstanceDescription, groups: Vec<u32>, settings: &Settings) -> Launch {
    Launch {
        description,
        groups,
        nvme: settings.nvme.clone(),
        mount_base: settings.mount_base.clone(),
        daemon: settings.daemon.clone(),
        job_state: settings.job_state.clone(),
        drain: settings.drain,
        boot_id: process::boot_id(),
    }
}

/// The launch of an instance that was started before this boot, from what root wrote then: to drain what is left of it. The
/// site may have changed its mind about time-outs; the user may be no more.
pub(crate) fn launch_again(description: InstanceDescription, settings: &Settings) -> Result<Launch, Failure> {
    let groups = check_user(description.uid, description.gid, &description.user)?;
    let description = InstanceDescription {
        data_dir: data_path(&settings.nvme, &description.instance),
        mount: settings.mount_base.join(description.instance.job_id().to_string()),
        network: settings.network.clone(),
        timeouts: settings.timeouts.clone(),
        ..description
    };
    Ok(launch_of(description, groups, settings))
}

fn check_retain(spec: &JobSpec, settings: &Settings) -> Result<(), Failure> {
    let too_long = spec.stage_out.iter().map(|stage| stage.retain).find(|it| it.as_duration() > settings.retain_max);
    match too_long {
        None => Ok(()),
        Some(retain) => {
            let max = settings.retain_max.as_secs();
            Err(Failure::new(
                Code::Request,
                format!("retain={retain} is longer than the {max} s that this site allows"),
            ))
        }
    }
}

/// Which life of a daemon begins now.
pub(crate) fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn position(nodes: &[String], node: &str) -> Result<u16, Failure> {
    let index = nodes.iter().position(|name| name == node);
    let index = index.and_then(|index| u16::try_from(index).ok());
    index.ok_or_else(|| Failure::new(Code::Request, format!("{node} is not in the job's list of nodes")))
}

fn capacity(spec: &JobSpec, nodes: usize, settings: &Settings) -> Result<u64, Failure> {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let bytes = spec.bytes_per_node(nodes, settings.default_bytes_per_node);
    match settings.max_bytes_per_node {
        Some(max) if bytes > max => {
            Err(Failure::new(Code::CapacityTooLarge, format!("{bytes} bytes on each node; the site allows {max}")))
        }
        _ => Ok(bytes),
    }
}

/// The user's groups, when the user is who Slurm says. `burstfsd` never runs as root.
fn check_user(uid: u32, gid: u32, name: &str) -> Result<Vec<u32>, Failure> {
    let refused = |message: String| Failure::new(Code::Request, message);
    if uid == 0 {
        return Err(refused("jobs of root get no burst buffer: nothing of it runs as root".to_owned()));
    }
    let user = User::from_uid(Uid::from_raw(uid))
        .map_err(|error| refused(format!("cannot look up user {uid} on this node: {error}")))?
        .ok_or_else(|| refused(format!("this node does not know user {uid}")))?;
    if user.name != name {
        return Err(refused(format!("user {uid} is {} on this node and not {name:?}", user.name)));
    }
    let c_name = CString::new(user.name).map_err(|error| refused(error.to_string()))?;
    let groups = getgrouplist(&c_name, Gid::from_raw(gid))
        .map_err(|error| refused(format!("cannot look up the groups of {name}: {error}")))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use burstfs_node::description::{Network, Timeouts};
    use std::time::Duration;

    use burstfs_spec::{Accumulator, NoProfiles, Transport};

    use super::*;
    use crate::store::DrainRules;

    fn settings() -> Settings {
        Settings {
            nvme: "/local/burstfs".into(),
            run_dir: "/run/burstfs".into(),
            log_dir: "/var/log/burstfs".into(),
            mount_base: "/burstfs".into(),
            daemon: "/usr/sbin/burstfsd".into(),
            job_state: "/usr/sbin/burstfs-job-state".into(),
            default_bytes_per_node: 1 << 30,
            max_bytes_per_node: Some(1 << 40),
            network: Network {
                mgs_port_base: 1,
                mgs_port_count: 1,
                transport: Transport::Auto,
                interfaces: vec![],
                rdma_connections: 1,
                memory_bytes: 1,
            },
            timeouts: Timeouts { start_ms: 1, no_progress_ms: 1, silence_ms: 1 },
            metadata: burstfs_types::MetadataPolicy::default(),
            drain: DrainRules { retry_ms: 1, returns_node: false },
            retain_max: Duration::from_secs(7 * 86_400),
        }
    }

    fn spec(directive: &str) -> String {
        let mut accumulator = Accumulator::default();
        accumulator.add(directive, &NoProfiles).unwrap();
        accumulator.finish().unwrap().unwrap().to_json().unwrap()
    }

    /// A good request with one variable changed (or taken away).
    fn request(name: &str, value: Option<&str>) -> Result<Launch, String> {
        let spec = spec("4GiB");
        let lookup = |asked: &str| {
            if asked == name {
                return value.map(str::to_owned);
            }
            let value = match asked {
                "SLURM_CLUSTER_NAME" => "vc",
                "SLURM_JOB_ID" => "42",
                "SLURM_JOB_UID" | "SLURM_JOB_GID" => "65534",
                "SLURM_JOB_USER" => "nobody",
                "SLURM_NODELIST" => "n[1-4]",
                "SLURMD_NODENAME" => "n3",
                "SLURM_JOB_WORK_DIR" => "/home/nobody",
                "BURSTFS_SPEC" => &spec,
                _ => return None,
            };
            Some(value.to_owned())
        };
        let key = JobKey::read(&lookup).map_err(|error| error.to_string())?;
        launch(&lookup, &key, &settings()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_good_request() {
        let launch = request("", None).unwrap();
        let description = &launch.description;
        assert_eq!(description.instance.to_string(), "vc.42.0");
        assert_eq!((description.node_index, description.capacity_bytes), (2, 1 << 30));
        assert_eq!(description.data_dir.to_str(), Some("/local/burstfs/vc.42.0/data"));
        assert_eq!(launch.cgroup_name(), "n3.vc.42.0");
        assert_eq!(launch.groups, [65534]);
    }

    #[test]
    fn what_is_refused() {
        for (name, value, expected) in [
            ("SLURM_JOB_UID", Some("0"), "E209"),
            ("SLURM_JOB_UID", Some("-1"), "E209"),
            ("SLURM_JOB_UID", Some("4294967295"), "E209"),
            ("SLURM_JOB_USER", Some("root"), "E209"),
            ("SLURM_JOB_USER", None, "E209"),
            ("SLURM_NODELIST", Some("n[1-"), "E209"),
            ("SLURMD_NODENAME", Some("elsewhere"), "E209"),
            ("BURSTFS_SPEC", Some("{}"), "E209"),
            ("BURSTFS_SPEC", Some("{\"version\":1,\"create\":{\"evil\":1}}"), "E209"),
            ("BURSTFS_SPEC", Some(&spec("8TiB")), "E113"),
            ("SLURM_CLUSTER_NAME", Some("../.."), "not an instance"),
            ("SLURM_JOB_ID", Some("0"), "not an instance"),
            ("SLURM_JOB_ID", Some("1; rm"), "not a number"),
            ("SLURM_JOB_RESTART_COUNT", Some("x"), "not a number"),
        ] {
            let error = request(name, value).unwrap_err();
            assert!(error.contains(expected), "{name}={value:?}: {error}");
        }
    }

    #[test]
    fn a_stop_without_restart_count_covers_all_runs() {
        let key = JobKey { cluster: "vc".into(), job_id: 4, restart_count: None };
        let covers = |key: &JobKey, name: &str| key.covers(&name.parse().unwrap());
        assert!(covers(&key, "vc.4.0") && covers(&key, "vc.4.7"));
        assert!(!covers(&key, "vc.40.0") && !covers(&key, "vd.4.0"));
        let second = JobKey { restart_count: Some(1), ..key };
        assert!(!covers(&second, "vc.4.0") && covers(&second, "vc.4.1"));
    }
}
