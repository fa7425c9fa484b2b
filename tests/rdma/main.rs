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
