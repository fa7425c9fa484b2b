//! The engine for tests: a map in memory, with copies of its state and faults on request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::{Change, Engine, Pair, StoreError};

/// Keeps everything in memory. Clones share their contents, so that an MDT can be "restarted" on a clone.
#[derive(Clone)]
pub struct MemoryEngine {
    map: Arc<RwLock<BTreeMap<Vec<u8>, Vec<u8>>>>,
    commits_left: Arc<AtomicU64>,
}

impl Default for MemoryEngine {
    fn default() -> MemoryEngine {
        MemoryEngine::new()
    }
}

impl MemoryEngine {
    /// An empty one.
    pub fn new() -> MemoryEngine {
        MemoryEngine { map: Arc::default(), commits_left: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// A copy that shares nothing with this one: what a crash at this moment would leave.
    pub fn snapshot(&self) -> MemoryEngine {
        let copy = MemoryEngine::new();
        *copy.map.write().unwrap_or_else(PoisonError::into_inner) = self.read().clone();
        copy
    }

    /// Lets the next `commits` succeed and all later ones fail with [`StoreError::Injected`].
    pub fn fail_after(&self, commits: u64) {
        self.commits_left.store(commits, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read().get(key).cloned())
    }

    fn scan(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= until {
            return Ok(Vec::new());
        }
        let map = self.read();
        let range = map.range(from.to_vec()..until.to_vec());
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let left = self.commits_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(StoreError::Injected);
        }
        self.commits_left.store(left - 1, Ordering::Relaxed);
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }
}
