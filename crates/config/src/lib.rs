//! The site's configuration: `burstfs.toml`, written by an administrator, and what burstfs needs of `slurm.conf`.
//!
//! Owns the keys, their defaults and their checks, and the site's profiles. Does not own what the programs do with a
//! value. A [`SiteConfig`] is valid however it was made; every error names the file, the line and the key, and says
//! what to do. Root trusts the file, so a root caller refuses one that anybody else could have written.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod profile;
mod slurm;
mod trust;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burstfs_spec::{CreateItems, ProfileError, Profiles, Size, Transport};
use burstfs_types::MetadataPolicy;
use burstfs_types::shards::SHARDS_MAX;
use serde::{Deserialize, Serialize};

pub use error::{ConfigError, Problem};
pub use profile::Profile;
pub use slurm::{REQUEST_IN_PROLOG, SlurmConf};

/// Where the file is unless somebody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/burstfs/burstfs.toml";

/// More than any site writes, little enough to read without thinking.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// With it `burstfsd` stays below 256 MiB under full load.
const MEMORY_DEFAULT: Size = Size::from_mib(128);
/// A quarter of it takes the largest transfer twice.
const MEMORY_MIN: Size = Size::from_mib(32);

/// All of `burstfs.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteConfig {
    /// The directory on each node's NVMe below which instances live.
    #[serde(with = "values::absolute_path")]
    pub nvme: PathBuf,
    /// What a node knows of its instances until it is switched off.
    #[serde(with = "values::absolute_path")]
    pub run_dir: PathBuf,
    /// One log per instance.
    #[serde(with = "values::absolute_path")]
    pub log_dir: PathBuf,
    /// Instances are mounted at `<mount_base>/<job id>`.
    #[serde(with = "values::absolute_path")]
    pub mount_base: PathBuf,
    /// What a job that does not say gets on each node.
    #[serde(with = "values::size")]
    pub default_capacity: Size,
    /// The most that a job can ask for on each node; `None`: what the NVMe has.
    #[serde(with = "values::optional_size", skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<Size>,
    /// What is executed.
    pub programs: Programs,
    /// How the nodes find and reach one another.
    pub network: Network,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// How metadata is spread over the nodes of a job.
    pub metadata: MetadataPolicy,
    /// What becomes of a node while a job's output is drained, and when it cannot be.
    pub drain: Drain,
    /// By name: `create` keys that a job asks for with one word.
    pub profiles: BTreeMap<String, Profile>,
}

/// `[programs]`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Programs {
    /// `burstfs-node`
    #[serde(with = "values::absolute_path")]
    pub node: PathBuf,
    /// `burstfsd`
    #[serde(with = "values::absolute_path")]
    pub daemon: PathBuf,
    /// `burstfs-job-state`, which is asked how a job ended.
    #[serde(with = "values::absolute_path")]
    pub job_state: PathBuf,
}

/// More to one peer over one pair of devices than anybody has found a use for; each has queues and buffers.
const RDMA_CONNECTIONS_MAX: u16 = 16;

/// `[network]`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The first port that an MGS may use.
    pub mgs_port_base: u16,
    /// How many ports from there on.
    pub mgs_port_count: u16,
    /// What the nodes talk over when the job does not say.
    pub transport: Transport,
    /// Network interfaces that the nodes reach one another by, the same on every node; RDMA uses the devices of all of them.
    /// With none, the one on the way to a job's first node.
    pub interfaces: Vec<String>,
    /// RDMA connections from a node to each other one, over each pair of devices.
    pub rdma_connections: u16,
    /// Memory of one `burstfsd` for data that is on its way between nodes.
    #[serde(with = "values::size")]
    pub memory: Size,
}

/// `[timeouts]`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until all nodes of an instance have joined.
    #[serde(with = "values::duration")]
    pub start: Duration,
    /// Of a staging or a drain without any progress.
    #[serde(with = "values::duration")]
    pub no_progress: Duration,
    /// Of a node while its instance lives: then it is lost. Longer than a daemon takes to be started again.
    #[serde(with = "values::duration")]
    pub silence: Duration,
}

/// `[drain]`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Whether the nodes wait for the drain.
    pub node: DrainNode,
    /// How long what cannot be drained is tried again before it is held and the node returned.
    #[serde(with = "values::duration")]
    pub retry: Duration,
    /// The most that a job may ask for with `retain`.
    #[serde(with = "values::duration")]
    pub retain_max: Duration,
}

/// What a node does while output is drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainNode {
    /// The epilog waits: the node has no other job meanwhile, and dependent jobs find the output drained.
    #[default]
    Wait,
    /// The epilog returns at once: the drain goes on beside the node's next job.
    Return,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain { node: DrainNode::Wait, retry: Duration::from_secs(30), retain_max: Duration::from_secs(7 * 86_400) }
    }
}

impl Default for SiteConfig {
    fn default() -> SiteConfig {
        SiteConfig {
            nvme: "/local/burstfs".into(),
            run_dir: "/run/burstfs".into(),
            log_dir: "/var/log/burstfs".into(),
            mount_base: "/burstfs".into(),
            default_capacity: values::gib(10),
            max_per_node: None,
            programs: Programs::default(),
            network: Network::default(),
            timeouts: Timeouts::default(),
            metadata: MetadataPolicy::default(),
            drain: Drain::default(),
            profiles: BTreeMap::new(),
        }
    }
}

impl Default for Programs {
    fn default() -> Programs {
        Programs {
            node: "/usr/local/sbin/burstfs-node".into(),
            daemon: "/usr/local/libexec/burstfs/burstfsd".into(),
            job_state: "/usr/local/libexec/burstfs/burstfs-job-state".into(),
        }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network {
            mgs_port_base: 27_400,
            mgs_port_count: 512,
            transport: Transport::Auto,
            interfaces: Vec::new(),
            rdma_connections: 1,
            memory: MEMORY_DEFAULT,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            start: Duration::from_secs(60),
            no_progress: Duration::from_secs(600),
            silence: Duration::from_secs(30),
        }
    }
}

impl SiteConfig {
    /// Reads and checks the file. When root calls, nobody else may be able to write the file, nor to put another in
    /// its place.
    pub fn load(path: &Path) -> Result<SiteConfig, ConfigError> {
        let at = |problem| ConfigError::new(path, problem);
        let mut file = File::open(path).map_err(|error| at(Problem::Unreadable(error)))?;
        if rustix::process::geteuid().is_root() {
            trust::check(&file, path).map_err(at)?;
        }
        let mut text = String::new();
        let read = file.by_ref().take(FILE_MAX_BYTES + 1).read_to_string(&mut text);
        let bytes = read.map_err(|error| at(Problem::Unreadable(error)))?;
        if bytes as u64 > FILE_MAX_BYTES {
            return Err(at(Problem::TooLarge));
        }
        SiteConfig::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<SiteConfig, ConfigError> {
        let config: SiteConfig =
            toml::from_str(text).map_err(|error| ConfigError::in_text(path, text, error.span(), error.message()))?;
        match config.contradiction() {
            None => Ok(config),
            Some((key, message)) => Err(ConfigError::in_text(path, text, find_key(text, key), &message)),
        }
    }

    /// The configuration as a file, defaults spelled out.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self)
            .map_err(|error| ConfigError::new(Path::new("burstfs.toml"), Problem::Invalid(error.to_string())))
    }

    /// What is wrong between keys: the key to look at, and the reason.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let network = &self.network;
        let last_port = u32::from(network.mgs_port_base) + u32::from(network.mgs_port_count);
        if network.mgs_port_count == 0 || network.mgs_port_base < 1024 || last_port > 65_536 {
            let message = "the ports must lie from 1024 to 65535, and there must be at least one";
            return Some(("mgs_port_base", message.to_owned()));
        }
        if let Some(name) = network.interfaces.iter().find(|name| !is_interface_name(name)) {
            return Some(("interfaces", format!("{name:?} is no name of a network interface; as in: ip link")));
        }
        if !(1..=RDMA_CONNECTIONS_MAX).contains(&network.rdma_connections) {
            return Some(("rdma_connections", format!("one to {RDMA_CONNECTIONS_MAX} connections are possible")));
        }
        if network.memory < MEMORY_MIN {
            let message =
                format!("{} is too little for one large transfer each way; {MEMORY_MIN} is the least", network.memory);
            return Some(("memory", message));
        }
        if let Some(max) = self.max_per_node.filter(|max| *max < self.default_capacity) {
            let message =
                format!("{} is above max_per_node, {max}; lower one or raise the other", self.default_capacity);
            return Some(("default_capacity", message));
        }
        let Timeouts { start, no_progress, silence } = self.timeouts;
        let zero = [("start", start), ("no_progress", no_progress), ("silence", silence)];
        if let Some((key, _)) = zero.into_iter().find(|(_, timeout)| timeout.is_zero()) {
            return Some((key, "a time-out of nothing would always have passed; say for instance \"60s\"".to_owned()));
        }
        let shards = self.metadata.split_shards;
        if !(2..=SHARDS_MAX).contains(&usize::from(shards)) {
            return Some(("split_shards", format!("a directory is spread over 2 to {SHARDS_MAX} nodes, not {shards}")));
        }
        if self.drain.retain_max < Duration::from_secs(1) {
            return Some(("retain_max", "nothing could be kept at all; say for instance \"7days\"".to_owned()));
        }
        self.profiles.keys().find_map(|name| Some(("profiles", profile::check_name(name).err()?)))
    }
}

/// What the kernel takes as one: IFNAMSIZ with its NUL is 16.
fn is_interface_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 16 && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// Where `key` is set, or the start of its table.
fn find_key(text: &str, key: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start().trim_start_matches('[');
        if bare.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '.'])) {
            return Some(start..start + line.trim_end().len());
        }
        start += line.len();
    }
    None
}

impl Profiles for SiteConfig {
    fn profile(&self, name: &str) -> Result<CreateItems, ProfileError> {
        match self.profiles.get(name) {
            Some(profile) => Ok(profile.items().clone()),
            None => Err(ProfileError::Unknown { known: self.profiles.keys().cloned().collect() }),
        }
    }
}

#[cfg(test)]
mod tests;
