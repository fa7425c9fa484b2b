//! One OST through its service: against a model, at the end of its space, under concurrency, and with hostile requests.

// clippy.toml allows it in tests, but does not see the helpers of a test binary as such.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod appends;
mod capacity;
mod hostile;
mod lent;
mod model;
mod readahead;
mod support;
