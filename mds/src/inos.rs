//! The numbers of new inodes.
//!
//! Invariant: a number is given out once in an instance's life. The store has a limit that is above all that were given out;
//! it rises by [`STRIDE`], so that a restart skips at most that many numbers of 2^48.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use burstfs_types::{Errno, Ino, MdtIndex};

use crate::namespace::OpError;
use crate::record::{decode, encode, key};
use crate::store::{Engine, StoreError};

const STRIDE: u64 = 1 << 16;

/// Gives out numbers.
pub(crate) struct Inos {
    mdt: MdtIndex,
    first: u64,
    next: AtomicU64,
    limit: AtomicU64,
    raising: Mutex<()>,
}

impl Inos {
    /// Goes on where the store's limit says; counter 1 of MDT 0 is the root's.
    pub(crate) fn load(engine: &dyn Engine, mdt: MdtIndex) -> Result<Inos, StoreError> {
        let stored = engine.get(key::INO_LIMIT)?;
        let limit = stored.map(|value| decode(key::INO_LIMIT, &value)).transpose()?.unwrap_or(2);
        Ok(Inos {
            mdt,
            first: limit,
            next: AtomicU64::new(limit),
            limit: AtomicU64::new(limit),
            raising: Mutex::new(()),
        })
    }

    /// Whether `ino` may have been made before the MDT was opened.
    pub(crate) fn is_from_before(&self, ino: Ino) -> bool {
        ino.counter() < self.first
    }

    /// Numbers from here on were never given out.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// A number that was never given out.
    pub(crate) fn take(&self, engine: &dyn Engine) -> Result<Ino, OpError> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        if counter >= self.limit() {
            self.raise_above(engine, counter)?;
        }
        Ok(Ino::new(self.mdt, counter).ok_or(Errno::ENOSPC)?)
    }

    fn raise_above(&self, engine: &dyn Engine, counter: u64) -> Result<(), StoreError> {
        let _raising = self.raising.lock().unwrap_or_else(PoisonError::into_inner);
        if counter < self.limit() {
            return Ok(());
        }
        let limit = counter.saturating_add(STRIDE);
        engine.commit(vec![(key::INO_LIMIT.to_vec(), Some(encode(&limit)))])?;
        self.limit.store(limit, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryEngine;

    #[test]
    fn numbers_rise_over_restarts_and_strides() {
        let engine = MemoryEngine::new();
        let mut last = 1;
        for _ in 0..3 {
            let inos = Inos::load(&engine, MdtIndex::new(7)).unwrap();
            for _ in 0..STRIDE + 5 {
                let ino = inos.take(&engine).unwrap();
                assert!(ino.counter() > last && ino.counter() < inos.limit());
                last = ino.counter();
            }
        }
    }

    #[test]
    fn no_number_is_given_when_the_limit_cannot_be_stored() {
        let engine = MemoryEngine::new();
        let inos = Inos::load(&engine, MdtIndex::new(0)).unwrap();
        engine.fail_after(0);
        assert!(matches!(inos.take(&engine), Err(OpError::Store(StoreError::Injected))));
    }
}
