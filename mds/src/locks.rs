//! Who may change what at the same time.
//!
//! Owns the stripes: an array of locks, each of which stands for the inodes whose number hashes to it, and guards what is
//! known of them in memory: what transactions over several MDTs hold, and opens.
//!
//! Invariants: an operation holds the stripes of all inodes that it changes, taken in ascending order, for no longer than
//! its batch; none is held across an await. What outlives an await is held: a name, or a whole inode with the names in it, by
//! one transaction at a time. Nobody else changes it. If it is promised to another MDT, nobody reads it either: it may have
//! changed already, by a decision that is still on its way.
//!
//! Failure: a panic elsewhere while a stripe is held leaves the stripe usable: the transaction behind it was not committed.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use burstfs_proto::mds::TxId;
use burstfs_types::{ClientId, Ino, Name};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::namespace::Opened;

/// Several times the threads that a node has for metadata; each takes some tens of bytes.
const STRIPES: usize = 256;

/// What an operation must have to itself.
#[derive(Default, Debug)]
pub(crate) struct Needs<'n> {
    /// Names in directories.
    pub(crate) names: Vec<(Ino, &'n Name)>,
    /// Inodes, with all names in them.
    pub(crate) whole: Vec<Ino>,
    /// Inodes, whatever becomes of names in them.
    pub(crate) inodes: Vec<Ino>,
}

impl Needs<'_> {
    /// The inodes whose stripes it takes.
    pub(crate) fn inos(&self) -> impl Iterator<Item = Ino> {
        let parents = self.names.iter().map(|(parent, _)| *parent);
        parents.chain(self.whole.iter().copied()).chain(self.inodes.iter().copied())
    }
}

/// Who holds something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    tx: TxId,
    is_promised: bool,
}

/// What is held of one inode.
#[derive(Default)]
struct Held {
    names: Vec<(Name, Holder)>,
    whole: Option<Holder>,
}

impl Held {
    fn holders(&self) -> impl Iterator<Item = Holder> {
        self.names.iter().map(|(_, holder)| *holder).chain(self.whole)
    }
}

/// What is known in memory of the inodes of one stripe.
#[derive(Default)]
pub(crate) struct Stripe {
    held: HashMap<Ino, Held>,
    opens: HashMap<Ino, OpenFile>,
}

/// Who has a file open.
#[derive(Default)]
struct OpenFile {
    by: Vec<OpenBy>,
    /// The directory that learns from it.
    teaches: Option<Ino>,
    /// Whether several clients had it open for writing at a time.
    was_shared: bool,
}

/// One client's opens.
struct OpenBy {
    client: ClientId,
    count: u32,
    /// Whether one of them was for writing.
    writes: bool,
}

impl OpenFile {
    fn writers(&self) -> usize {
        self.by.iter().filter(|by| by.writes).count()
    }
}

/// What a directory learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lesson {
    pub(crate) directory: Ino,
    /// Whether several clients write a file of it, or it was one.
    pub(crate) by_several: bool,
}

/// A file that a client had open when it was evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Forgotten {
    pub(crate) ino: Ino,
    /// Whether for writing.
    pub(crate) was_written: bool,
}

impl Stripe {
    fn holder_of_name(&self, parent: Ino, name: &Name) -> Option<Holder> {
        let names = &self.held.get(&parent)?.names;
        names.iter().find(|(held, _)| held == name).map(|(_, holder)| *holder)
    }

    fn holder_of_whole(&self, ino: Ino) -> Option<Holder> {
        self.held.get(&ino)?.whole
    }

    /// Whether another MDT decides what `name` in `parent` is.
    pub(crate) fn is_name_promised(&self, parent: Ino, name: &Name) -> bool {
        self.holder_of_name(parent, name).is_some_and(|holder| holder.is_promised)
    }

    /// Whether another MDT decides what becomes of `ino`, or of a name in it.
    pub(crate) fn is_promised(&self, ino: Ino) -> bool {
        self.held.get(&ino).is_some_and(|held| held.holders().any(|holder| holder.is_promised))
    }

    /// Whether somebody holds `ino`, or a name in it.
    pub(crate) fn is_held(&self, ino: Ino) -> bool {
        self.held.contains_key(&ino)
    }

    /// Whether somebody has `ino` open for writing, or had until he closes what he has open of it.
    pub(crate) fn is_open_for_writing(&self, ino: Ino) -> bool {
        self.opens.get(&ino).is_some_and(|open| open.writers() > 0)
    }

    /// Forgets the opens of `client`; gives the inodes that it had open.
    fn forget_opens(&mut self, client: ClientId) -> Vec<Forgotten> {
        let mut forgotten = Vec::new();
        self.opens.retain(|ino, open| {
            for gone in open.by.extract_if(.., |by| by.client == client) {
                forgotten.push(Forgotten { ino: *ino, was_written: gone.writes });
            }
            !open.by.is_empty()
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

    /// Completes when anything that is held at this call, or later, is given back.
    pub(crate) fn released(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// Says that something was given back.
    pub(crate) fn notify_released(&self) {
        self.released.notify_waiters();
    }

    /// Holds what `tx`, coordinated here, needs; its stripes are locked.
    pub(crate) fn hold(&self, locked: &mut Locked<'_>, tx: TxId, needs: &Needs<'_>) -> Hold<'_> {
        locked.take(Holder { tx, is_promised: false }, needs);
        let names = needs.names.iter().map(|(parent, name)| (*parent, (*name).clone())).collect();
        Hold { locks: self, tx, names, whole: needs.whole.clone() }
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
    pub(crate) fn forget_opens(&mut self, client: ClientId) -> Vec<Forgotten> {
        self.guards.iter_mut().flat_map(|(_, stripe)| stripe.forget_opens(client)).collect()
    }

    /// Whether another one than `tx` holds something of what is needed.
    pub(crate) fn is_held_by_other(&self, needs: &Needs<'_>, tx: Option<TxId>) -> bool {
        let is_other = |holder: Option<Holder>| holder.is_some_and(|holder| Some(holder.tx) != tx);
        let name = |(parent, name): &(Ino, &Name)| {
            self.stripe(*parent).is_some_and(|stripe| {
                is_other(stripe.holder_of_name(*parent, name)) || is_other(stripe.holder_of_whole(*parent))
            })
        };
        let whole = |ino: &Ino| {
            let held = self.stripe(*ino).and_then(|stripe| stripe.held.get(ino));
            held.is_some_and(|held| held.holders().any(|holder| is_other(Some(holder))))
        };
        let inode = |ino: &Ino| self.stripe(*ino).is_some_and(|stripe| is_other(stripe.holder_of_whole(*ino)));
        needs.names.iter().any(name) || needs.whole.iter().any(whole) || needs.inodes.iter().any(inode)
    }

    /// Holds what is needed of `tx`, which another MDT decides.
    pub(crate) fn promise(&mut self, tx: TxId, needs: &Needs<'_>) {
        self.take(Holder { tx, is_promised: true }, needs);
    }

    fn take(&mut self, holder: Holder, needs: &Needs<'_>) {
        for (parent, name) in &needs.names {
            if let Some(stripe) = self.stripe_mut(*parent) {
                stripe.held.entry(*parent).or_default().names.push(((*name).clone(), holder));
            }
        }
        for ino in &needs.whole {
            if let Some(stripe) = self.stripe_mut(*ino) {
                stripe.held.entry(*ino).or_default().whole = Some(holder);
            }
        }
    }

    /// Gives back what `tx` holds. [`Locks::notify_released`] then tells those who wait.
    pub(crate) fn release(&mut self, tx: TxId, needs: &Needs<'_>) {
        for ino in needs.inos() {
            let Some(stripe) = self.stripe_mut(ino) else { continue };
            let Some(held) = stripe.held.get_mut(&ino) else { continue };
            held.names.retain(|(_, holder)| holder.tx != tx);
            held.whole.take_if(|holder| holder.tx == tx);
            if held.names.is_empty() && held.whole.is_none() {
                stripe.held.remove(&ino);
            }
        }
    }

    /// Opens of `ino` by `client`.
    pub(crate) fn opens_by(&self, ino: Ino, client: ClientId) -> u32 {
        self.opens(ino).iter().filter(|by| by.client == client).map(|by| by.count).sum()
    }

    /// Opens of `ino` by everybody. A stripe that is not held would be a bug; "open" is then the answer that destroys nothing.
    pub(crate) fn opens_by_all(&self, ino: Ino) -> u32 {
        if self.stripe(ino).is_none() {
            return u32::MAX;
        }
        self.opens(ino).iter().map(|by| by.count).sum()
    }

    /// As [`Stripe::is_open_for_writing`]. A stripe that is not held would be a bug; "open" is then the answer.
    pub(crate) fn is_open_for_writing(&self, ino: Ino) -> bool {
        self.stripe(ino).is_none_or(|stripe| stripe.is_open_for_writing(ino))
    }

    /// Clients that have `ino` open for writing.
    pub(crate) fn writers(&self, ino: Ino) -> u32 {
        u32::try_from(self.opens(ino).iter().filter(|by| by.writes).count()).unwrap_or(u32::MAX)
    }

    fn opens(&self, ino: Ino) -> &[OpenBy] {
        self.stripe(ino).and_then(|stripe| stripe.opens.get(&ino)).map_or(&[], |open| open.by.as_slice())
    }

    /// Registers an open; what follows from it for a directory.
    pub(crate) fn add_open(&mut self, opened: Opened, client: ClientId) -> Option<Lesson> {
        let open = self.stripe_mut(opened.ino)?.opens.entry(opened.ino).or_default();
        open.teaches = opened.teaches;
        match open.by.iter_mut().find(|by| by.client == client) {
            Some(by) => {
                by.count += 1;
                by.writes |= opened.writes;
            }
            None => open.by.push(OpenBy { client, count: 1, writes: opened.writes }),
        }
        if open.was_shared || open.writers() < 2 {
            return None;
        }
        open.was_shared = true;
        open.teaches.map(|directory| Lesson { directory, by_several: true })
    }

    /// Takes an open back; what follows from it for a directory.
    pub(crate) fn remove_open(&mut self, ino: Ino, client: ClientId) -> Option<Lesson> {
        let stripe = self.stripe_mut(ino)?;
        let open = stripe.opens.get_mut(&ino)?;
        let was_written = open.writers() > 0;
        for by in open.by.iter_mut().filter(|by| by.client == client) {
            by.count = by.count.saturating_sub(1);
        }
        open.by.retain(|by| by.count > 0);
        if !open.by.is_empty() {
            return None;
        }
        let closed = stripe.opens.remove(&ino)?;
        let directory = closed.teaches.filter(|_| was_written && !closed.was_shared)?;
        Some(Lesson { directory, by_several: false })
    }
}

/// What the coordinator of a transaction holds of its own, until this is dropped.
pub(crate) struct Hold<'l> {
    locks: &'l Locks,
    tx: TxId,
    names: Vec<(Ino, Name)>,
    whole: Vec<Ino>,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let names = self.names.iter().map(|(parent, name)| (*parent, name)).collect();
        let needs = Needs { names, whole: std::mem::take(&mut self.whole), inodes: Vec::new() };
        self.locks.write(needs.inos()).release(self.tx, &needs);
        self.locks.notify_released();
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::NodeIndex;

    use super::*;

    fn ino(raw: u64) -> Ino {
        Ino::from_raw(raw).unwrap()
    }

    fn tx(number: u64) -> TxId {
        TxId::new(ino(number))
    }

    #[test]
    fn what_is_held_ends_with_its_guard() {
        let (locks, a, b) = (Locks::new(), Name::new("a").unwrap(), Name::new("b").unwrap());
        let name = |name| Needs { names: vec![(ino(7), name)], ..Needs::default() };
        let whole = Needs { whole: vec![ino(7)], ..Needs::default() };
        let inode = Needs { inodes: vec![ino(7)], ..Needs::default() };
        let mut locked = locks.write([ino(7)]);
        let hold = locks.hold(&mut locked, tx(1), &name(&a));
        assert!(locked.is_held_by_other(&name(&a), None) && locked.is_held_by_other(&whole, Some(tx(2))));
        assert!(!locked.is_held_by_other(&name(&a), Some(tx(1))));
        assert!(!locked.is_held_by_other(&name(&b), None) && !locked.is_held_by_other(&inode, None));
        drop(locked);
        drop(hold);
        assert!(!locks.write([ino(7)]).is_held_by_other(&whole, None));
    }

    #[test]
    fn what_is_promised_is_not_read() {
        let (locks, a, b) = (Locks::new(), Name::new("a").unwrap(), Name::new("b").unwrap());
        let needs = Needs { names: vec![(ino(7), &a)], whole: vec![ino(8)], ..Needs::default() };
        let mut locked = locks.write(needs.inos());
        locked.promise(tx(1), &needs);
        locked.release(tx(2), &needs);
        drop(locked);
        let stripe = locks.read(ino(7));
        assert!(stripe.is_name_promised(ino(7), &a) && stripe.is_promised(ino(7)));
        assert!(!stripe.is_name_promised(ino(7), &b));
        drop(stripe);
        assert!(locks.read(ino(8)).is_promised(ino(8)));
        assert!(locks.write([ino(8)]).is_held_by_other(&Needs { inodes: vec![ino(8)], ..Needs::default() }, None));
    }

    #[test]
    fn opens_are_counted_by_client() {
        let locks = Locks::new();
        let client = |node| ClientId { node: NodeIndex::new(node), incarnation: 1 };
        let mut locked = locks.write([ino(7), ino(8), ino(7)]);
        let opened = Opened { ino: ino(7), writes: false, teaches: None };
        locked.add_open(Opened { writes: true, ..opened }, client(1));
        locked.add_open(opened, client(1));
        locked.add_open(opened, client(2));
        locked.remove_open(ino(7), client(1));
        assert!(locked.is_open_for_writing(ino(7)), "which of the two was closed is not known");
        assert_eq!((locked.opens_by(ino(7), client(1)), locked.opens_by_all(ino(7))), (1, 2));
        assert_eq!(locked.forget_opens(client(1)), [Forgotten { ino: ino(7), was_written: true }]);
        assert_eq!(locked.opens_by_all(ino(7)), 1);
        assert!(!locked.is_open_for_writing(ino(7)));
    }

    #[test]
    fn a_directory_learns_of_writers_at_a_time() {
        let locks = Locks::new();
        let client = |node| ClientId { node: NodeIndex::new(node), incarnation: 1 };
        let lesson = |by_several| Some(Lesson { directory: ino(3), by_several });
        let mut locked = locks.write([ino(7)]);
        let write = Opened { ino: ino(7), writes: true, teaches: Some(ino(3)) };
        let read = Opened { writes: false, ..write };
        // One after the other, with a reader beside.
        for node in [1, 2] {
            assert_eq!((locked.add_open(write, client(node)), locked.add_open(read, client(3))), (None, None));
            assert_eq!(locked.writers(ino(7)), 1);
            assert_eq!(locked.remove_open(ino(7), client(3)), None);
            assert_eq!(locked.remove_open(ino(7), client(node)), lesson(false));
        }
        // A reader has nothing to teach.
        assert_eq!((locked.add_open(read, client(1)), locked.remove_open(ino(7), client(1))), (None, None));
        // Both at a time, said once.
        assert_eq!((locked.add_open(write, client(1)), locked.add_open(write, client(2))), (None, lesson(true)));
        assert_eq!(locked.add_open(write, client(3)), None);
        for node in [1, 2, 3] {
            assert_eq!(locked.remove_open(ino(7), client(node)), None);
        }
    }
}
