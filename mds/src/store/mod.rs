//! Where an MDT's records are: an ordered map from bytes to bytes that changes in atomic batches.
//!
//! Owns the [`Engine`] trait with its two implementations and the [`Transaction`] over one of them. Knows nothing of
//! what the records mean.
//!
//! Invariants: a batch is applied whole or not at all; a transaction sees its own writes, and is given up by dropping it.
//!
//! Concurrency: an engine is shared by threads. A transaction takes no locks and sees later commits of others for keys that
//! it has not read: whoever runs it holds the locks that make it serializable (`crate::mdt`).
//!
//! Failure: whatever the engine says becomes a [`StoreError`], and the transaction is void.

mod memory;
mod rocks;

use std::collections::BTreeMap;

use burstfs_types::Errno;
use thiserror::Error;

use crate::record::key;

pub use memory::MemoryEngine;
pub use rocks::RocksEngine;

/// Why a record could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// RocksDB says so.
    #[error("RocksDB: {0}")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The device is full.
    #[error("RocksDB: no space left on the device: {0}")]
    NoSpace(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record's bytes are not what was written.
    #[error("the record {key} does not decode: {source}")]
    Corrupt {
        /// Its key, escaped.
        key: String,
        /// What the codec says.
        source: postcard::Error,
    },
    /// A fault that a test asked for.
    #[error("an injected fault")]
    Injected,
}

impl StoreError {
    /// What the user's system call sees of it.
    pub fn errno(&self) -> Errno {
        match self {
            StoreError::NoSpace(_) => Errno::ENOSPC,
            StoreError::Engine(_) | StoreError::Corrupt { .. } | StoreError::Injected => Errno::EIO,
        }
    }
}

/// One change of a batch: the key and its new value, or `None` to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// A key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map on some medium.
pub trait Engine: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The first `limit` pairs with `from <= key < until`, in order.
    fn scan(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;

    /// Applies all changes, or none. They survive the death of the process, not of the machine.
    fn commit(&self, batch: Vec<Change>) -> Result<(), StoreError>;
}

/// Calls `visit` for each pair whose key begins with `prefix`, in order, reading a page at a time.
pub(crate) fn for_each(
    engine: &dyn Engine,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    const PAGE: usize = 1_024;
    let until = key::after(prefix);
    let mut from = prefix.to_vec();
    loop {
        let page = engine.scan(&from, &until, PAGE)?;
        for (key, value) in &page {
            visit(key, value)?;
        }
        match page.last() {
            // The next key there can be.
            Some((last, _)) if page.len() == PAGE => from = [last, &[0][..]].concat(),
            Some(_) | None => return Ok(()),
        }
    }
}

/// What an operation sees of the store.
pub trait Transaction {
    /// The value of `key`, with the transaction's own writes.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The first `limit` pairs with `from <= key < until`, in order, with the transaction's own writes.
    fn scan(&mut self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;

    /// Sets `key`.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);

    /// Removes `key`.
    fn delete(&mut self, key: Vec<u8>);
}

struct Slot {
    value: Option<Vec<u8>>,
    is_written: bool,
}

/// A [`Transaction`] that keeps what it read and wrote in memory until it is committed.
pub struct Overlay<'e> {
    engine: &'e dyn Engine,
    slots: BTreeMap<Vec<u8>, Slot>,
}

impl<'e> Overlay<'e> {
    /// An empty transaction on `engine`.
    pub fn new(engine: &'e dyn Engine) -> Overlay<'e> {
        Overlay { engine, slots: BTreeMap::new() }
    }

    /// Applies what was written. Nothing reaches the engine when nothing was.
    pub fn commit(self) -> Result<(), StoreError> {
        let written = self.slots.into_iter().filter(|(_, slot)| slot.is_written);
        let batch: Vec<Change> = written.map(|(key, slot)| (key, slot.value)).collect();
        if batch.is_empty() { Ok(()) } else { self.engine.commit(batch) }
    }
}

impl Transaction for Overlay<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(slot) = self.slots.get(key) {
            return Ok(slot.value.clone());
        }
        let value = self.engine.get(key)?;
        self.slots.insert(key.to_vec(), Slot { value: value.clone(), is_written: false });
        Ok(value)
    }

    fn scan(&mut self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= until {
            return Ok(Vec::new());
        }
        let mine = || self.slots.range(from.to_vec()..until.to_vec()).filter(|(_, slot)| slot.is_written);
        let removed = mine().filter(|(_, slot)| slot.value.is_none()).count();
        // So many that `limit` remain when all that was removed here is among them.
        let stored = self.engine.scan(from, until, limit.saturating_add(removed))?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        for (key, slot) in mine() {
            match &slot.value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.slots.insert(key, Slot { value: Some(value), is_written: true });
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.slots.insert(key, Slot { value: None, is_written: true });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on_both(test: impl Fn(&dyn Engine)) {
        test(&MemoryEngine::new());
        let dir = tempfile::tempdir().unwrap();
        test(&RocksEngine::open(dir.path()).unwrap());
    }

    #[test]
    fn a_dropped_transaction_leaves_nothing() {
        on_both(|engine| {
            let mut tx = Overlay::new(engine);
            tx.put(b"a".to_vec(), b"1".to_vec());
            drop(tx);
            assert_eq!(engine.get(b"a").unwrap(), None);
        });
    }

    #[test]
    fn a_transaction_sees_its_own_writes() {
        on_both(|engine| {
            engine.commit(vec![(b"a".to_vec(), Some(b"1".to_vec())), (b"b".to_vec(), Some(b"2".to_vec()))]).unwrap();
            let mut tx = Overlay::new(engine);
            tx.delete(b"a".to_vec());
            tx.put(b"c".to_vec(), b"3".to_vec());
            assert_eq!(tx.get(b"a").unwrap(), None);
            assert_eq!(tx.scan(b"a", b"z", 1).unwrap(), [(b"b".to_vec(), b"2".to_vec())]);
            assert_eq!(tx.scan(b"a", b"z", 9).unwrap().len(), 2);
            tx.commit().unwrap();
            assert_eq!(engine.scan(b"a", b"z", 9).unwrap().len(), 2);
        });
    }

    #[test]
    fn rocksdb_keeps_what_was_committed_over_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(dir.path()).unwrap();
        engine.commit(vec![(b"a".to_vec(), Some(b"1".to_vec()))]).unwrap();
        drop(engine);
        assert_eq!(RocksEngine::open(dir.path()).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The overlay's scan against applying everything to a map first.
        #[test]
        fn a_scan_is_that_of_the_committed_state(
            stored: BTreeMap<u8, u8>,
            writes in prop::collection::vec((any::<u8>(), any::<Option<u8>>()), 0..40),
            from: u8, until: u8, limit in 0_usize..20,
        ) {
            let engine = MemoryEngine::new();
            engine.commit(stored.iter().map(|(k, v)| (vec![*k], Some(vec![*v]))).collect()).unwrap();
            let mut tx = Overlay::new(&engine);
            let mut expected = stored;
            for (key, value) in writes {
                match value {
                    Some(value) => { tx.put(vec![key], vec![value]); expected.insert(key, value); }
                    None => { tx.delete(vec![key]); expected.remove(&key); }
                }
            }
            let expected: Vec<Pair> = expected.into_iter().filter(|(k, _)| (from..until).contains(k)).take(limit)
                .map(|(k, v)| (vec![k], vec![v])).collect();
            prop_assert_eq!(tx.scan(&[from], &[until], limit).unwrap(), expected);
        }
    }
}
