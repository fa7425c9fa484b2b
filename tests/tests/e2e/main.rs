//! End-to-end tests on a real Slurm: what a user and an administrator see. Needs root; `make e2e` runs them.

#![allow(clippy::unwrap_used)]

mod cancel;
mod data;
mod isolation;
mod kills;
mod request;
mod slurm;
mod start;
