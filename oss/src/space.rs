//! The OST's share of the capacity.
//!
//! One counter: what is charged for the objects, plus what operations under way have reserved. An operation reserves the
//! worst case, a fresh block for each that it touches. Only where that does not fit does it ask the file system which of
//! the blocks are there already, with all other operations ended ([`Space::reserve_exactly`]), so that a refusal is never
//! due to somebody's worst case.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Share and counter.
pub(crate) struct Space {
    capacity: u64,
    committed: AtomicU64,
    /// Held shared from an operation's reservation to its settlement.
    gate: RwLock<()>,
}

/// Bytes set aside for one operation; what [`Space::settle`] does not take goes back on drop.
pub(crate) struct Reservation<'a> {
    space: &'a Space,
    bytes: u64,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Space {
    /// A share of `capacity` bytes of which `used` are charged for objects.
    pub(crate) fn new(capacity: u64, used: u64) -> Space {
        Space { capacity, committed: AtomicU64::new(used), gate: RwLock::new(()) }
    }

    /// The share, bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes charged or reserved.
    pub(crate) fn used(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Sets `bytes` aside if the share has them.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<Reservation<'_>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        // Not `then_some`: a reservation that is made and dropped gives back what it never had.
        self.commit(bytes).then(|| Reservation { space: self, bytes, _gate: gate })
    }

    /// Waits until no reservation is out, asks `needed` for the exact figure, and sets that aside if the share has it.
    pub(crate) fn reserve_exactly<E>(
        &self,
        needed: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Option<Reservation<'_>>, E> {
        let alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = needed()?;
        if !self.commit(bytes) {
            return Ok(None);
        }
        drop(alone);
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(Reservation { space: self, bytes, _gate: gate }))
    }

    fn commit(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| bytes == 0 || *sum <= self.capacity);
        self.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Replaces a charge of `before` bytes, and the operation's reservation, by a charge of `after`.
    pub(crate) fn settle(&self, before: u64, after: u64, reservation: Option<Reservation<'_>>) {
        let reserved = reservation.map_or(0, |mut reservation| std::mem::take(&mut reservation.bytes));
        self.replace(before.saturating_add(reserved), after);
    }

    /// One step, so that nobody sees the sum without one of its parts. Saturates: a file system that frees what it had
    /// not shown as allocated must not wrap the counter around.
    fn replace(&self, before: u64, after: u64) {
        let change = |used: u64| Some(used.saturating_sub(before).saturating_add(after));
        let _ = self.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.replace(self.bytes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_come_out_of_the_share_and_go_back() {
        let space = Space::new(100, 40);
        let held = space.reserve(60).unwrap();
        assert!(space.reserve(1).is_none());
        space.settle(10, 30, Some(held));
        assert_eq!(space.used(), 60);
        drop(space.reserve(40));
        assert_eq!(space.used(), 60);
        assert!(space.reserve_exactly(|| Ok::<_, ()>(41)).unwrap().is_none());
        assert!(space.reserve_exactly(|| Ok::<_, ()>(40)).unwrap().is_some());
    }

    #[test]
    fn nothing_is_always_had() {
        assert!(Space::new(0, 8).reserve(0).is_some());
    }
}
