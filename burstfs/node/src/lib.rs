//! What the privileged helper shares with other programs.
//!
//! Owns: the instance's description, the control protocol between the helper's supervisor and `burstfsd`, the journal
//! of steps of an instance on a node, the outcome that a job's start reads, and how files are registered with the kernel for
//! passthrough ([`backing`]: both ends, so that the client's tests run the same code as root does). Does not own: anything
//! else that is privileged; that is in the binary. [`description`], [`held`], [`control`] and [`outcome`] are pure; [`journal`] is a
//! file.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backing;
pub mod control;
pub mod description;
pub mod held;
pub mod journal;
pub mod outcome;
