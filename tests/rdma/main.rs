//! Instances of several nodes over RDMA, in the emulated machine of `make rdma-test`: real daemons, started as Slurm's prologs start
//! them, with FUSE mounts, on soft-RoCE devices. All nodes are on one machine with one network namespace, as these devices want
//! it; each has its own configuration and directories.
//!
//! Needs that machine: everything is ignored elsewhere.

mod instance;
mod machine;
mod network;
mod posix;
mod three_nodes;
mod two_devices;

use std::time::Instant;

use anyhow::{Context, Result};

/// A part of a test, with the time that it took.
fn step<T>(what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = act().with_context(|| what.to_owned())?;
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}
