//! The table of locks: who has which bytes of which file, and who waits for them. Pure.
//!
//! Invariants:
//! 1. No two owners have overlapping ranges of a file unless both are shared.
//! 2. An owner's ranges of a file do not overlap, and neighbours of one kind are one range.
//! 3. Nobody waits who could have what he asks for: the head of the queue first, then whoever fits beside it.
//! 4. A file without locks and waiters is not in the table.
//!
//! A waiter that would close a circle of waiters is refused, over all files of the MDT. A circle over several MDTs is not
//! seen.

use std::collections::{HashMap, HashSet};

use burstfs_proto::locks::{AwaitLocks, LockAnswer, LockHolder, LockKind, LockRange};
use burstfs_types::{ClientId, Errno, Ino};
use serde::{Deserialize, Serialize};

/// Locks of one file; each change writes the record of all of them.
const HELD_MAX: usize = 8_192;
/// Waiters of a client: all of them fit a message.
const WAITERS_MAX: usize = AwaitLocks::TICKETS_MAX;

/// Who has a lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) client: ClientId,
    /// The client's number for it.
    pub(crate) id: u64,
}

/// A lock that somebody has, or wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) owner: Owner,
    pub(crate) pid: u32,
    pub(crate) range: LockRange,
    pub(crate) kind: LockKind,
}

impl Held {
    fn excludes(&self, other: &Held) -> bool {
        let exclusive = self.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive;
        exclusive && self.owner != other.owner && self.range.overlaps(other.range)
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    ticket: u64,
    want: Held,
}

/// One file.
#[derive(Clone, Default, Debug)]
struct File {
    held: Vec<Held>,
    queue: Vec<Waiter>,
}

/// All files.
#[derive(Default)]
pub(crate) struct Table {
    files: HashMap<Ino, File>,
    /// Where each client's tickets wait.
    tickets: HashMap<ClientId, HashMap<u64, Ino>>,
}

/// A file as it was, for when a change cannot be stored.
pub(crate) struct Before(Ino, Option<File>);

impl Table {
    /// What `ino` has, as it is stored.
    pub(crate) fn held(&self, ino: Ino) -> &[Held] {
        self.files.get(&ino).map_or(&[], |file| &file.held)
    }

    /// Takes over what was stored.
    pub(crate) fn restore(&mut self, ino: Ino, held: Vec<Held>) {
        self.files.entry(ino).or_default().held = held;
        self.tidy(ino);
    }

    pub(crate) fn before(&self, ino: Ino) -> Before {
        Before(ino, self.files.get(&ino).cloned())
    }

    /// Undoes what happened to the file since.
    pub(crate) fn undo(&mut self, Before(ino, file): Before) {
        let now = self.files.remove(&ino).unwrap_or_default();
        now.queue.iter().for_each(|waiter| self.drop_ticket(waiter));
        let Some(file) = file else { return };
        for waiter in &file.queue {
            self.tickets.entry(waiter.want.owner.client).or_default().insert(waiter.ticket, ino);
        }
        self.files.insert(ino, file);
    }

    /// Who keeps `want` from being granted.
    pub(crate) fn holder(&self, ino: Ino, want: &Held) -> Option<LockHolder> {
        let held = self.held(ino).iter().filter(|held| held.excludes(want)).min_by_key(|held| held.range.first)?;
        let Held { owner, pid, range, kind } = *held;
        Some(LockHolder { range, kind, node: owner.client.node, pid })
    }

    /// Gives `want` to its owner, or lets it wait. EAGAIN where it would have to and may not, EDEADLK where it would wait
    /// for itself, ENOLCK beyond the limits. What the owner has had may have been what others wait for.
    pub(crate) fn set(&mut self, ino: Ino, want: Held, ticket: Option<u64>) -> Result<LockAnswer, Errno> {
        if self.held(ino).iter().any(|held| held.excludes(&want)) {
            return self.wait(ino, want, ticket.ok_or(Errno::EAGAIN)?);
        }
        if self.held(ino).len() >= HELD_MAX {
            return Err(Errno::ENOLCK);
        }
        if let Some(ticket) = ticket {
            self.leave(want.owner.client, ticket);
        }
        self.files.entry(ino).or_default().put(want);
        self.serve_queue(ino);
        Ok(LockAnswer::Granted)
    }

    fn wait(&mut self, ino: Ino, want: Held, ticket: u64) -> Result<LockAnswer, Errno> {
        let client = want.owner.client;
        if self.is_waiting(client, ticket) {
            return Ok(LockAnswer::Waits);
        }
        if self.closes_a_circle(ino, &want) {
            return Err(Errno::EDEADLK);
        }
        if self.waiting(client) >= WAITERS_MAX {
            return Err(Errno::ENOLCK);
        }
        self.files.entry(ino).or_default().queue.push(Waiter { ticket, want });
        self.tickets.entry(client).or_default().insert(ticket, ino);
        Ok(LockAnswer::Waits)
    }

    /// Takes `range` of the file from `owner`.
    pub(crate) fn clear(&mut self, ino: Ino, owner: Owner, range: LockRange) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        file.cut(owner, range);
        self.serve_queue(ino);
        self.tidy(ino);
    }

    /// Takes a ticket out of its queue; false if it is in none.
    pub(crate) fn leave(&mut self, client: ClientId, ticket: u64) -> bool {
        let Some(ino) = self.tickets.get(&client).and_then(|tickets| tickets.get(&ticket)).copied() else {
            return false;
        };
        if let Some(file) = self.files.get_mut(&ino) {
            let is_it = |waiter: &Waiter| (waiter.want.owner.client, waiter.ticket) == (client, ticket);
            let left: Vec<_> = file.queue.extract_if(.., |waiter| is_it(waiter)).collect();
            left.iter().for_each(|waiter| self.drop_ticket(waiter));
        }
        self.tidy(ino);
        true
    }

    /// Whether the ticket waits.
    pub(crate) fn is_waiting(&self, client: ClientId, ticket: u64) -> bool {
        self.tickets.get(&client).is_some_and(|tickets| tickets.contains_key(&ticket))
    }

    /// How many tickets of a client wait.
    pub(crate) fn waiting(&self, client: ClientId) -> usize {
        self.tickets.get(&client).map_or(0, HashMap::len)
    }

    /// The files on which a client has locks, or waits for some.
    pub(crate) fn files_of(&self, client: ClientId) -> Vec<Ino> {
        let is_in = |file: &File| {
            file.held.iter().any(|held| held.owner.client == client)
                || file.queue.iter().any(|waiter| waiter.want.owner.client == client)
        };
        self.files.iter().filter(|(_, file)| is_in(file)).map(|(ino, _)| *ino).collect()
    }

    /// Takes everything of `client` from a file.
    pub(crate) fn forget(&mut self, ino: Ino, client: ClientId) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        file.held.retain(|held| held.owner.client != client);
        let left: Vec<_> = file.queue.extract_if(.., |waiter| waiter.want.owner.client == client).collect();
        left.iter().for_each(|waiter| self.drop_ticket(waiter));
        self.serve_queue(ino);
        self.tidy(ino);
    }

    fn serve_queue(&mut self, ino: Ino) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        // Who is served may give up more than he gets (an exclusive lock for a shared one), and then others are served, too.
        let (mut served, mut is_anybody_served) = (Vec::new(), true);
        while is_anybody_served {
            is_anybody_served = false;
            for waiter in std::mem::take(&mut file.queue) {
                if file.held.len() >= HELD_MAX || file.held.iter().any(|held| held.excludes(&waiter.want)) {
                    file.queue.push(waiter);
                } else {
                    file.put(waiter.want);
                    served.push(waiter);
                    is_anybody_served = true;
                }
            }
        }
        served.iter().for_each(|waiter| self.drop_ticket(waiter));
    }

    fn drop_ticket(&mut self, waiter: &Waiter) {
        let client = waiter.want.owner.client;
        let Some(tickets) = self.tickets.get_mut(&client) else { return };
        tickets.remove(&waiter.ticket);
        if tickets.is_empty() {
            self.tickets.remove(&client);
        }
    }

    fn tidy(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(|file| file.held.is_empty() && file.queue.is_empty()) {
            self.files.remove(&ino);
        }
    }

    /// Whether somebody for whom `want` would wait waits, over any number of others, for the owner of `want`.
    fn closes_a_circle(&self, ino: Ino, want: &Held) -> bool {
        let mut waiting: HashMap<Owner, Vec<(Ino, Held)>> = HashMap::new();
        for (ino, file) in &self.files {
            for waiter in &file.queue {
                waiting.entry(waiter.want.owner).or_default().push((*ino, waiter.want));
            }
        }
        let (mut seen, mut open) = (HashSet::new(), vec![(ino, *want)]);
        while let Some((ino, want_of)) = open.pop() {
            for held in self.held(ino).iter().filter(|held| held.excludes(&want_of)) {
                if held.owner == want.owner {
                    return true;
                }
                if seen.insert(held.owner) {
                    open.extend(waiting.get(&held.owner).into_iter().flatten());
                }
            }
        }
        false
    }
}

impl File {
    /// Gives `new` to its owner in place of what he has of its bytes.
    fn put(&mut self, mut new: Held) {
        self.cut(new.owner, new.range);
        self.held.retain(|held| {
            let is_neighbour = held.owner == new.owner && held.kind == new.kind && touches(held.range, new.range);
            if is_neighbour {
                new.range.first = new.range.first.min(held.range.first);
                new.range.last = new.range.last.max(held.range.last);
            }
            !is_neighbour
        });
        self.held.push(new);
    }

    /// Takes `range` from `owner`; what he has on both sides of it is two locks then.
    fn cut(&mut self, owner: Owner, range: LockRange) {
        let mut rest = Vec::new();
        self.held.retain(|held| {
            let is_cut = held.owner == owner && held.range.overlaps(range);
            if is_cut {
                let below = range.first.checked_sub(1).filter(|last| *last >= held.range.first);
                let above = range.last.checked_add(1).filter(|first| *first <= held.range.last);
                let piece = |range| Held { range, ..*held };
                rest.extend(below.map(|last| piece(LockRange { last, ..held.range })));
                rest.extend(above.map(|first| piece(LockRange { first, ..held.range })));
            }
            !is_cut
        });
        self.held.extend(rest);
    }
}

/// Whether one range begins right behind the other.
fn touches(one: LockRange, other: LockRange) -> bool {
    one.last.checked_add(1) == Some(other.first) || other.last.checked_add(1) == Some(one.first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burstfs_types::NodeIndex;
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 24;

    fn ino(raw: u64) -> Ino {
        Ino::from_raw(raw).unwrap()
    }

    fn owner(n: u64) -> Owner {
        // Two owners on each of the clients.
        let client = ClientId { node: NodeIndex::new((n / 2) as u16), incarnation: 1 };
        Owner { client, id: n }
    }

    fn want(n: u64, first: u64, last: u64, kind: LockKind) -> Held {
        Held { owner: owner(n), pid: 1, range: LockRange { first, last }, kind }
    }

    /// What each owner has of each byte of a file.
    type Bytes = BTreeMap<(u64, u64), LockKind>;

    fn bytes_of(table: &Table, file: u64) -> Bytes {
        let expand = |held: &Held| {
            let (id, kind) = (held.owner.id, held.kind);
            (held.range.first..=held.range.last).map(move |byte| ((id, byte), kind))
        };
        table.held(ino(file)).iter().flat_map(expand).collect()
    }

    fn check(table: &Table) {
        for (number, file) in &table.files {
            assert!(!file.held.is_empty() || !file.queue.is_empty(), "invariant 4");
            for (n, held) in file.held.iter().enumerate() {
                for other in &file.held[n + 1..] {
                    assert!(!held.excludes(other), "invariant 1: {held:?} {other:?}");
                    let is_apart = !held.range.overlaps(other.range)
                        && (held.kind != other.kind || !touches(held.range, other.range));
                    assert!(held.owner != other.owner || is_apart, "invariant 2: {held:?} {other:?}");
                }
            }
            for waiter in &file.queue {
                assert!(file.held.iter().any(|held| held.excludes(&waiter.want)), "invariant 3: {waiter:?}");
                assert_eq!(table.tickets[&waiter.want.owner.client].get(&waiter.ticket), Some(number));
            }
        }
        let queued: usize = table.files.values().map(|file| file.queue.len()).sum();
        assert_eq!(queued, tickets(table));
    }

    fn tickets(table: &Table) -> usize {
        table.tickets.values().map(HashMap::len).sum()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set { file: u64, owner: u64, range: (u64, u64), kind: LockKind, waits: bool },
        Clear { file: u64, owner: u64, range: (u64, u64) },
        Leave { nth: usize },
        Forget { client: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..BYTES, 0..BYTES).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let kind = prop_oneof![Just(LockKind::Shared), Just(LockKind::Exclusive)];
        let (file, owner) = (1..4_u64, 0..6_u64);
        prop_oneof![
            6 => (file.clone(), owner.clone(), range(), kind, any::<bool>())
                .prop_map(|(file, owner, range, kind, waits)| Step::Set { file, owner, range, kind, waits }),
            4 => (file, owner, range()).prop_map(|(file, owner, range)| Step::Clear { file, owner, range }),
            1 => (0..8_usize).prop_map(|nth| Step::Leave { nth }),
            1 => (0..3_u64).prop_map(|client| Step::Forget { client }),
        ]
    }

    /// What a byte-by-byte model gives an owner.
    fn give(model: &mut Bytes, id: u64, range: LockRange, kind: Option<LockKind>) {
        for byte in range.first..=range.last {
            match kind {
                Some(kind) => drop(model.insert((id, byte), kind)),
                None => drop(model.remove(&(id, byte))),
            }
        }
    }

    fn is_free(model: &Bytes, want: &Held) -> bool {
        model.iter().all(|((id, byte), kind)| {
            let is_in = (want.range.first..=want.range.last).contains(byte);
            *id == want.owner.id || !is_in || (*kind, want.kind) == (LockKind::Shared, LockKind::Shared)
        })
    }

    proptest! {
        #[test]
        fn bytes_belong_to_whom_the_model_gives_them(steps in prop::collection::vec(step(), 1..60)) {
            let mut table = Table::default();
            let mut models: BTreeMap<u64, Bytes> = BTreeMap::new();
            let mut queue: Vec<(u64, u64, Held)> = Vec::new();
            for (ticket, step) in (0_u64..).zip(steps) {
                match step {
                    Step::Set { file, owner: id, range: (first, last), kind, waits } => {
                        let want = want(id, first, last, kind);
                        let model = models.entry(file).or_default();
                        match table.set(ino(file), want, waits.then_some(ticket)) {
                            Ok(LockAnswer::Granted) => {
                                prop_assert!(is_free(model, &want));
                                give(model, id, want.range, Some(kind));
                            }
                            Ok(LockAnswer::Waits) => {
                                prop_assert!(waits && !is_free(model, &want));
                                queue.push((ticket, file, want));
                            }
                            Err(errno) => {
                                let expected = if waits { Errno::EDEADLK } else { Errno::EAGAIN };
                                prop_assert!(errno == expected && !is_free(model, &want));
                            }
                        }
                    }
                    Step::Clear { file, owner: id, range: (first, last) } => {
                        let range = LockRange { first, last };
                        table.clear(ino(file), owner(id), range);
                        give(models.entry(file).or_default(), id, range, None);
                    }
                    Step::Leave { nth } => {
                        if let Some(nth) = nth.checked_rem(queue.len()) {
                            let (ticket, _, want) = queue.remove(nth);
                            prop_assert!(table.leave(want.owner.client, ticket));
                        }
                    }
                    Step::Forget { client } => {
                        let gone = owner(client * 2).client;
                        for ino in table.files_of(gone) {
                            table.forget(ino, gone);
                        }
                        models.values_mut().for_each(|model| model.retain(|(id, _), _| id / 2 != client));
                        queue.retain(|(_, _, want)| want.owner.client != gone);
                    }
                }
                let mut waiting = usize::MAX;
                while queue.len() < waiting {
                    waiting = queue.len();
                    queue.retain(|(_, file, want)| {
                        let model = models.entry(*file).or_default();
                        let is_served = is_free(model, want);
                        if is_served {
                            give(model, want.owner.id, want.range, Some(want.kind));
                        }
                        !is_served
                    });
                }
                prop_assert_eq!(tickets(&table), queue.len());
                prop_assert!(queue.iter().all(|(ticket, _, want)| table.is_waiting(want.owner.client, *ticket)));
                check(&table);
                for (file, model) in &models {
                    prop_assert_eq!(&bytes_of(&table, *file), model);
                }
            }
        }

        #[test]
        fn what_is_undone_has_not_been(steps in prop::collection::vec(step(), 1..30), last in step()) {
            let mut table = Table::default();
            for (ticket, step) in (0_u64..).zip(steps.into_iter().chain([last])) {
                let Step::Set { file, owner, range: (first, last), kind, .. } = step else { continue };
                let (before, waiting) = (table.before(ino(file)), table.tickets.clone());
                let held = table.held(ino(file)).to_vec();
                let _ = table.set(ino(file), want(owner, first, last, kind), Some(ticket));
                table.undo(before);
                prop_assert_eq!(table.held(ino(file)), &held[..]);
                prop_assert_eq!(&table.tickets, &waiting);
                let _ = table.set(ino(file), want(owner, first, last, kind), Some(ticket));
                check(&table);
            }
        }
    }

    #[test]
    fn a_circle_of_waiters_is_refused() {
        let mut table = Table::default();
        let all = |n| want(n, 0, u64::MAX, LockKind::Exclusive);
        for n in 0..3 {
            assert_eq!(table.set(ino(n + 1), all(n), Some(n)), Ok(LockAnswer::Granted));
        }
        assert_eq!(table.set(ino(2), all(0), Some(10)), Ok(LockAnswer::Waits));
        assert_eq!(table.set(ino(3), all(1), Some(11)), Ok(LockAnswer::Waits));
        assert_eq!(table.set(ino(1), all(2), Some(12)), Err(Errno::EDEADLK));
        assert_eq!(table.set(ino(1), all(2), None), Err(Errno::EAGAIN));
        table.clear(ino(2), owner(1), LockRange::ALL);
        assert!(!table.is_waiting(owner(0).client, 10) && table.is_waiting(owner(1).client, 11));
    }

    #[test]
    fn two_readers_that_both_want_to_write_are_a_circle() {
        let mut table = Table::default();
        for n in [0, 2] {
            assert_eq!(table.set(ino(1), want(n, 0, 9, LockKind::Shared), None), Ok(LockAnswer::Granted));
        }
        assert_eq!(table.set(ino(1), want(0, 0, 9, LockKind::Exclusive), Some(1)), Ok(LockAnswer::Waits));
        assert_eq!(table.set(ino(1), want(2, 5, 5, LockKind::Exclusive), Some(2)), Err(Errno::EDEADLK));
    }

    #[test]
    fn a_request_that_comes_again_changes_nothing() {
        let mut table = Table::default();
        let (first, second) = (want(0, 0, 9, LockKind::Exclusive), want(2, 0, 9, LockKind::Exclusive));
        assert_eq!(table.set(ino(1), first, Some(1)), Ok(LockAnswer::Granted));
        assert_eq!(table.set(ino(1), first, Some(1)), Ok(LockAnswer::Granted));
        assert_eq!(table.set(ino(1), second, Some(2)), Ok(LockAnswer::Waits));
        assert_eq!(table.set(ino(1), second, Some(2)), Ok(LockAnswer::Waits));
        table.clear(ino(1), owner(0), LockRange::ALL);
        assert_eq!(table.set(ino(1), second, Some(2)), Ok(LockAnswer::Granted));
        assert_eq!(table.held(ino(1)), [second]);
    }
}
