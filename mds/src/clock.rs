//! What time it is, for the driver; operations are told.

use std::time::{SystemTime, UNIX_EPOCH};

use burstfs_types::Timestamp;

/// A source of the time.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The node's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 is set wrong: its files are then as old as the epoch.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { secs: since_epoch.as_secs().try_into().unwrap_or(i64::MAX), nanos: since_epoch.subsec_nanos() }
    }
}
