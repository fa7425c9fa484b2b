//! What the privileged helper shares with other programs.
//!
//! Owns: the instance's description, the control protocol between the helper's supervisor and `burstfsd`, the journal
//! of steps of an instance on a node, and the outcome that a job's start reads. Does not own: anything privileged;
//! that is in the binary. [`description`], [`control`] and [`outcome`] are pure; [`journal`] is a file.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod control;
pub mod description;
pub mod journal;
pub mod outcome;
