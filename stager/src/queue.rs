//! The queue of staging work, as the engine sees it.

use async_trait::async_trait;
use burstfs_proto::stage::{Direction, Finished, Taken};
use thiserror::Error;

/// The queue cannot be reached and will not come back.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the queue of staging work is lost: {reason}")]
pub struct QueueLost {
    /// Why.
    pub reason: String,
}

/// Hands out work. Implemented over the MGS's `Take`; reconnects and resends on its own.
#[async_trait]
pub trait WorkQueue: Send + Sync + 'static {
    /// Hands in `finished`, and takes at most `max` items. With `max` 0 it answers at once, else it may wait a while for
    /// the first item (long poll) and answer with none. May be called while another call waits.
    async fn take(&self, direction: Direction, finished: Vec<Finished>, max: u32) -> Result<Taken, QueueLost>;
}
