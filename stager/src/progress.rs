//! One node's figures of one direction.

use std::sync::atomic::{AtomicU64, Ordering};

use burstfs_proto::mgs::StageFigures;

/// Counters that the engine raises and anybody reads. Totals are what was found so far.
#[derive(Debug, Default)]
pub struct Progress {
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    files_total: AtomicU64,
    files_done: AtomicU64,
    files_failed: AtomicU64,
}

impl Progress {
    /// All figures now; not a snapshot of one instant.
    pub fn figures(&self) -> StageFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StageFigures {
            bytes_total: read(&self.bytes_total),
            bytes_done: read(&self.bytes_done),
            files_total: read(&self.files_total),
            files_done: read(&self.files_done),
            files_failed: read(&self.files_failed),
        }
    }

    pub(crate) fn found(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn done(&self, bytes: u64) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Shows bytes of a file that is under way.
    pub(crate) fn show_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what [`Progress::show_bytes`] showed.
    pub(crate) fn hide_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.files_failed.fetch_add(1, Ordering::Relaxed);
    }
}
