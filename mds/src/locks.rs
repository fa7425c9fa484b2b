//! Who may change what at the same time.
//!
//! Owns the stripes: an array of locks, each of which stands for the inodes whose number hashes to it, and guards what is
//! known of them in memory: names that are reserved while another MDT is asked, and opens.
//!
//! Invariants: an operation holds the stripes of all inodes that it changes, taken in ascending order, for no longer than
//! its transaction; none is held across an await. A name is reserved by at most one operation, which outlives the await.
//!
//! Failure: a panic elsewhere while a stripe is held leaves the stripe usable: the transaction behind it was not committed.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use burstfs_types::{ClientId, Ino, Name};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Several times the threads that a node has for metadata; each takes some tens of bytes.
const STRIPES: usize = 256;

/// What is known in memory of the inodes of one stripe.
#[derive(Default)]
pub(crate) struct Stripe {
    reserved: HashMap<Ino, Vec<Name>>,
    opens: HashMap<Ino, Vec<(ClientId, u32)>>,
}

impl Stripe {
    /// Forgets the opens of `client`; gives the inodes that it had open.
    pub(crate) fn forget_opens(&mut self, client: ClientId) -> Vec<Ino> {
        let mut forgotten = Vec::new();
        self.opens.retain(|ino, opens| {
            let before = opens.len();
            opens.retain(|(owner, _)| *owner != client);
            if opens.len() < before {
                forgotten.push(*ino);
            }
            !opens.is_empty()
        });
        forgotten
    }
}

/// The locks of one MDT.
pub(crate) struct Locks {
    stripes: Box<[RwLock<Stripe>]>,
    released: Notify,
}

impl Locks {
    pub(crate) fn new() -> Locks {
        Locks { stripes: (0..STRIPES).map(|_| RwLock::default()).collect(), released: Notify::new() }
    }

    /// For reading one inode or directory.
    pub(crate) fn read(&self, ino: Ino) -> RwLockReadGuard<'_, Stripe> {
        self.stripes[stripe_of(ino)].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For changing `inos`.
    pub(crate) fn write(&self, inos: impl IntoIterator<Item = Ino>) -> Locked<'_> {
        let mut indices: Vec<usize> = inos.into_iter().map(stripe_of).collect();
        indices.sort_unstable();
        indices.dedup();
        let lock = |index| (index, self.stripe(index));
        Locked { guards: indices.into_iter().map(lock).collect() }
    }

    /// Every stripe, one after the other.
    pub(crate) fn each(&self) -> impl Iterator<Item = Locked<'_>> {
        (0..STRIPES).map(|index| Locked { guards: vec![(index, self.stripe(index))] })
    }

    fn stripe(&self, index: usize) -> RwLockWriteGuard<'_, Stripe> {
        self.stripes[index].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when any reservation made before this call or after it ends.
    pub(crate) fn released(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// Reserves `entries`, whose directories are locked.
    pub(crate) fn reserve(&self, locked: &mut Locked<'_>, entries: &[(Ino, &Name)]) -> Reservation<'_> {
        let entries: Vec<(Ino, Name)> = entries.iter().map(|(parent, name)| (*parent, (*name).clone())).collect();
        for (parent, name) in &entries {
            if let Some(stripe) = locked.stripe_mut(*parent) {
                stripe.reserved.entry(*parent).or_default().push(name.clone());
            }
        }
        Reservation { locks: self, entries }
    }
}

fn stripe_of(ino: Ino) -> usize {
    // Fibonacci hashing: neighbours in number are not neighbours in stripe. The top 8 bits are below STRIPES.
    (ino.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

/// Stripes that are held for writing.
pub(crate) struct Locked<'l> {
    guards: Vec<(usize, RwLockWriteGuard<'l, Stripe>)>,
}

impl Locked<'_> {
    fn stripe(&self, ino: Ino) -> Option<&Stripe> {
        let index = stripe_of(ino);
        self.guards.iter().find(|(held, _)| *held == index).map(|(_, guard)| &**guard)
    }

    fn stripe_mut(&mut self, ino: Ino) -> Option<&mut Stripe> {
        let index = stripe_of(ino);
        self.guards.iter_mut().find(|(held, _)| *held == index).map(|(_, guard)| &mut **guard)
    }

    /// Forgets the opens of `client` in the stripes held.
    pub(crate) fn forget_opens(&mut self, client: ClientId) -> Vec<Ino> {
        self.guards.iter_mut().flat_map(|(_, stripe)| stripe.forget_opens(client)).collect()
    }

    /// Whether the entry `name` of `parent` is reserved.
    pub(crate) fn is_reserved(&self, parent: Ino, name: &Name) -> bool {
        let names = self.stripe(parent).and_then(|stripe| stripe.reserved.get(&parent));
        names.is_some_and(|names| names.contains(name))
    }

    /// Whether any entry of `directory` is reserved.
    pub(crate) fn has_reserved(&self, directory: Ino) -> bool {
        self.stripe(directory).is_some_and(|stripe| stripe.reserved.contains_key(&directory))
    }

    /// Opens of `ino` by `client`.
    pub(crate) fn opens_by(&self, ino: Ino, client: ClientId) -> u32 {
        let opens = self.opens(ino).iter();
        opens.filter(|(owner, _)| *owner == client).map(|(_, count)| count).sum()
    }

    /// Opens of `ino` by everybody. A stripe that is not held would be a bug; "open" is then the answer that destroys nothing.
    pub(crate) fn opens_by_all(&self, ino: Ino) -> u32 {
        if self.stripe(ino).is_none() {
            return u32::MAX;
        }
        self.opens(ino).iter().map(|(_, count)| count).sum()
    }

    fn opens(&self, ino: Ino) -> &[(ClientId, u32)] {
        self.stripe(ino).and_then(|stripe| stripe.opens.get(&ino)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn add_open(&mut self, ino: Ino, client: ClientId) {
        let Some(stripe) = self.stripe_mut(ino) else { return };
        let opens = stripe.opens.entry(ino).or_default();
        match opens.iter_mut().find(|(owner, _)| *owner == client) {
            Some((_, count)) => *count += 1,
            None => opens.push((client, 1)),
        }
    }

    pub(crate) fn remove_open(&mut self, ino: Ino, client: ClientId) {
        let Some(stripe) = self.stripe_mut(ino) else { return };
        let Some(opens) = stripe.opens.get_mut(&ino) else { return };
        for (owner, count) in opens.iter_mut() {
            if *owner == client {
                *count = count.saturating_sub(1);
            }
        }
        opens.retain(|(_, count)| *count > 0);
        if opens.is_empty() {
            stripe.opens.remove(&ino);
        }
    }
}

/// Names that nobody else changes while this lives.
pub(crate) struct Reservation<'l> {
    locks: &'l Locks,
    entries: Vec<(Ino, Name)>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        for (parent, name) in &self.entries {
            let mut locked = self.locks.write([*parent]);
            let Some(stripe) = locked.stripe_mut(*parent) else { continue };
            let Some(names) = stripe.reserved.get_mut(parent) else { continue };
            names.retain(|reserved| reserved != name);
            if names.is_empty() {
                stripe.reserved.remove(parent);
            }
        }
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::NodeIndex;

    use super::*;

    fn ino(raw: u64) -> Ino {
        Ino::from_raw(raw).unwrap()
    }

    #[test]
    fn a_reservation_ends_with_its_guard() {
        let (locks, name) = (Locks::new(), Name::new("a").unwrap());
        let mut locked = locks.write([ino(7)]);
        let reservation = locks.reserve(&mut locked, &[(ino(7), &name)]);
        assert!(locked.is_reserved(ino(7), &name) && locked.has_reserved(ino(7)));
        drop(locked);
        drop(reservation);
        assert!(!locks.write([ino(7)]).has_reserved(ino(7)));
    }

    #[test]
    fn opens_are_counted_by_client() {
        let locks = Locks::new();
        let client = |node| ClientId { node: NodeIndex::new(node), incarnation: 1 };
        let mut locked = locks.write([ino(7), ino(8), ino(7)]);
        locked.add_open(ino(7), client(1));
        locked.add_open(ino(7), client(1));
        locked.add_open(ino(7), client(2));
        locked.remove_open(ino(7), client(1));
        assert_eq!((locked.opens_by(ino(7), client(1)), locked.opens_by_all(ino(7))), (1, 2));
        assert_eq!(locked.forget_opens(client(1)), [ino(7)]);
        assert_eq!(locked.opens_by_all(ino(7)), 1);
    }
}
