//! End-to-end tests on a real Slurm: what a user and an administrator see. Needs root; `make e2e` runs them.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod arrivals;
mod cancel;
mod data;
mod hold;
mod isolation;
mod job_end;
mod kills;
mod layout;
mod on_error;
mod passthrough;
mod power;
mod request;
mod rounds;
mod slurm;
mod staging;
mod start;
mod verify;
mod walltime;
