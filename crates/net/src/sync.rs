//! What the parts that several threads share take their locks from, so that `tests/models.rs` can put loom's in their place.

#[cfg(feature = "rdma")]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(feature = "rdma")]
pub(crate) use std::sync::{Mutex, MutexGuard};

pub(crate) use tokio::sync::Notify;
