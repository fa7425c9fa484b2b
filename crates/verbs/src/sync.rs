//! What the parts that several threads share take their locks from, so that `tests/models.rs` can put loom's in their place.

pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
