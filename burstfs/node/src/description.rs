//! Everything that a node's `burstfsd` needs to know about its instance.
//!
//! Made by the privileged helper from what Slurm and the site's configuration say, after validation; `burstfsd` reads no
//! configuration file and no environment.

use std::path::PathBuf;

use burstfs_types::{InstanceId, JobEnd, MetadataPolicy};
use serde::{Deserialize, Serialize};

use burstfs_spec::{TimeSpan, Transport};

pub use burstfs_spec::JobSpec;

use crate::held::Held;

/// The version of [`InstanceDescription`] that this build writes and reads.
pub const DESCRIPTION_VERSION: u32 = 1;

/// One instance as one node sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceDescription {
    /// [`DESCRIPTION_VERSION`].
    pub version: u32,
    /// The instance.
    pub instance: InstanceId,
    /// The job's user; never 0.
    pub uid: u32,
    /// The job's primary group.
    pub gid: u32,
    /// The name of `uid`.
    pub user: String,
    /// The nodes of the job, sorted as Slurm does; node 0 carries the MGS.
    pub nodes: Vec<String>,
    /// This node's place in `nodes`.
    pub node_index: u16,
    /// What the user asked for, in its canonical JSON, which is checked again when it is read.
    #[serde(with = "canonical")]
    pub spec: JobSpec,
    /// This node's share of the capacity.
    pub capacity_bytes: u64,
    /// The user's directory on the NVMe; `mdt/`, `ost/`, `stage/` and `mgs/` go there.
    pub data_dir: PathBuf,
    /// Where the file system is mounted.
    pub mount: PathBuf,
    /// Whether `burstfsd` gets a `/dev/fuse` descriptor. Without one it serves the other nodes, and drains.
    pub serves_mount: bool,
    /// The job's working directory.
    pub work_dir: PathBuf,
    /// Where the job's output goes, as Slurm says (may contain patterns).
    pub stdout: Option<PathBuf>,
    /// Slurm's configuration file, for `scontrol`.
    pub slurm_conf: Option<PathBuf>,
    /// How nodes find and reach one another.
    pub network: Network,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How metadata is spread over the nodes.
    pub metadata: MetadataPolicy,
    /// Whether an earlier `burstfsd` of this instance ran on this node: its targets are there and are to be opened.
    pub restarted: bool,
    /// Which life of this node's `burstfsd` this is: nanoseconds since the epoch.
    pub incarnation: u64,
    /// Whether the drain goes on beside the node's next job: the site does not let epilogs wait for it.
    pub drains_alone: bool,
    /// What is held, when this life is one that tries to drain it; `None` for the lives until the job's end.
    pub held: Option<Held>,
    /// How the job ended, if it has and this node knows.
    pub job_end: Option<JobEnd>,
}

impl InstanceDescription {
    /// This node's name.
    pub fn node_name(&self) -> &str {
        self.nodes.get(usize::from(self.node_index)).map_or("?", String::as_str)
    }

    /// How long what cannot be drained is kept: the longest that a directive asks for.
    pub fn retain(&self) -> TimeSpan {
        self.spec.stage_out.iter().map(|stage| stage.retain).max().unwrap_or(TimeSpan::DAY)
    }
}

/// How nodes find and reach one another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The first port that an MGS may use.
    pub mgs_port_base: u16,
    /// How many ports from there on.
    pub mgs_port_count: u16,
    /// What the nodes talk over when the job does not say.
    pub transport: Transport,
    /// Network interfaces of each node that others reach it by; with none, the one on the way to the first node.
    pub interfaces: Vec<String>,
    /// RDMA connections to each peer over each pair of devices.
    pub rdma_connections: u16,
    /// Memory of one `burstfsd` for data that is on its way, bytes.
    pub memory_bytes: u64,
}

/// How long to wait for what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    /// Until all nodes have joined.
    pub start_ms: u64,
    /// Without any progress of a staging or a drain.
    pub no_progress_ms: u64,
    /// Without a word from a node, until it is lost.
    pub silence_ms: u64,
}

/// A specification as the text of its canonical JSON.
mod canonical {
    use burstfs_spec::JobSpec;
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(spec: &JobSpec, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&spec.to_json().map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobSpec, D::Error> {
        JobSpec::from_json(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use burstfs_spec::{Accumulator, NoProfiles};

    use super::*;

    #[test]
    fn survives_its_json() {
        let mut accumulator = Accumulator::default();
        accumulator.add("4TiB layout=local", &NoProfiles).unwrap();
        let description = InstanceDescription {
            version: DESCRIPTION_VERSION,
            instance: "vc.42.0".parse().unwrap(),
            uid: 1000,
            gid: 100,
            user: "alice".into(),
            nodes: vec!["n1".into(), "n2".into()],
            node_index: 1,
            spec: accumulator.finish().unwrap().unwrap(),
            capacity_bytes: 2 << 40,
            data_dir: "/local/burstfs/vc.42.0/data".into(),
            mount: "/burstfs/42".into(),
            serves_mount: true,
            work_dir: "/home/alice".into(),
            stdout: Some("/home/alice/slurm-%j.out".into()),
            slurm_conf: None,
            network: Network {
                mgs_port_base: 27400,
                mgs_port_count: 512,
                transport: Transport::Auto,
                interfaces: vec!["ib0".into()],
                rdma_connections: 1,
                memory_bytes: 192 << 20,
            },
            timeouts: Timeouts { start_ms: 60_000, no_progress_ms: 600_000, silence_ms: 30_000 },
            metadata: MetadataPolicy::default(),
            restarted: false,
            incarnation: 1,
            drains_alone: false,
            held: None,
            job_end: None,
        };
        assert_eq!(description.retain(), TimeSpan::DAY);
        let text = serde_json::to_string(&description).unwrap();
        assert_eq!(serde_json::from_str::<InstanceDescription>(&text).unwrap(), description);
        assert_eq!(description.node_name(), "n2");
    }
}
