//! What the end-to-end tests and the benches stand on: the virtual cluster, jobs on it, and what must hold after each test.
//!
//! Owns: the handle of the cluster (`tests/cluster/cluster` does the work), submission and observation of jobs, the check
//! that nothing of an instance is left. Does not own: anything of burstfs; it is only seen from outside here, as users and
//! administrators see it.
//!
//! Concurrency: one [`scenario`] at a time; there is one cluster.
//!
//! Failure: a scenario that fails keeps its logs in `target/e2e/<name>` and leaves the cluster fit for the next one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
mod clean;
mod cluster;
pub mod fio;
mod job;
mod logs;
pub mod meter;
mod receipt;
mod scenario;
mod tree;
mod wait;

pub use cluster::{Cluster, NODES};
pub use job::{Job, JobBuilder, Refusal};
pub use receipt::Receipt;
pub use scenario::{Scenario, scenario};
pub use tree::{Tree, bytes_of, fill_file};
pub use wait::{SOON, wait_for, wait_until};
