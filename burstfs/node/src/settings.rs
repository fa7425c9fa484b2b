//! What the helper needs of the site's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use burstfs_config::{DrainNode, SiteConfig};
use burstfs_node::description::{Network, Timeouts};
use burstfs_types::MetadataPolicy;

use crate::error::NodeError;
use crate::store::DrainRules;

/// The site's choices.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) nvme: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) mount_base: PathBuf,
    pub(crate) daemon: PathBuf,
    pub(crate) job_state: PathBuf,
    pub(crate) default_bytes_per_node: u64,
    pub(crate) max_bytes_per_node: Option<u64>,
    pub(crate) network: Network,
    pub(crate) timeouts: Timeouts,
    pub(crate) metadata: MetadataPolicy,
    pub(crate) drain: DrainRules,
    pub(crate) retain_max: Duration,
}

impl Settings {
    /// Reads the configuration; root believes it only when nobody else could have written it.
    pub(crate) fn load(path: &Path) -> Result<Settings, NodeError> {
        let config = SiteConfig::load(path).map_err(|error| error.failure())?;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(Settings {
            nvme: config.nvme,
            run_dir: config.run_dir,
            log_dir: config.log_dir,
            mount_base: config.mount_base,
            daemon: config.programs.daemon,
            job_state: config.programs.job_state,
            default_bytes_per_node: config.default_capacity.bytes(),
            max_bytes_per_node: config.max_per_node.map(|size| size.bytes()),
            network: Network {
                mgs_port_base: config.network.mgs_port_base,
                mgs_port_count: config.network.mgs_port_count,
                transport: config.network.transport,
                interfaces: config.network.interfaces,
                rdma_connections: config.network.rdma_connections,
                memory_bytes: config.network.memory.bytes(),
            },
            timeouts: Timeouts {
                start_ms: millis(config.timeouts.start),
                no_progress_ms: millis(config.timeouts.no_progress),
                silence_ms: millis(config.timeouts.silence),
            },
            metadata: config.metadata,
            drain: DrainRules {
                retry_ms: millis(config.drain.retry),
                returns_node: config.drain.node == DrainNode::Return,
            },
            retain_max: config.drain.retain_max,
        })
    }
}
