//! What tests of several crates share: models that an implementation is run beside.
//!
//! A dev-dependency only: nothing that is installed contains it.

pub mod decoding;
pub mod namespace_model;
