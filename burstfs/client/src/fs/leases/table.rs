//! What the kernel of this node may have in its caches, as a value without locks, clocks and messages.
//!
//! Time is in milliseconds since some moment; numbers of recalls order what was asked for before and after one.

use std::collections::HashMap;

use burstfs_proto::leases::{Leased, Part, TERM};
use burstfs_types::{Ino, Name};

const TERM_MS: u64 = TERM.as_millis() as u64;
/// Names of one directory that the kernel is allowed to keep: each has to be taken back by itself.
const NAMES_MAX: usize = 1 << 16;
/// So long after this node has changed an inode itself its attributes are not kept: the next change would only have to take them
/// back again.
const CALM_MS: u64 = 50;
/// By then a process that was told of a name has taken note of it.
const NOTED_MS: u64 = 1_000;

/// When, and behind which recall, something was asked of an MDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub(super) recalls: u64,
    pub(super) sent: u64,
}

/// What the kernel has of one inode.
#[derive(Default, Debug)]
struct Record {
    /// How often it was told of the inode and has not forgotten it. 0: it does not have it (but it always has the root).
    lookups: u64,
    /// It may have attributes until then.
    attributes_until: u64,
    /// It may have pages with a listing.
    has_listing: bool,
    /// This node has changed it: no attributes are kept before.
    calm_until: u64,
    /// It may have names until then, namely these: also that they are not there.
    names_until: u64,
    names: HashMap<Name, Told>,
}

/// What the kernel was told of a name.
#[derive(Clone, Copy, Debug)]
struct Told {
    at: u64,
    is_there: bool,
}

impl Told {
    /// Whether the kernel may be about to take note of it, without its lock on the directory. A name that is not there it looks up under
    /// the lock.
    fn is_new(self, now: u64) -> bool {
        self.is_there && self.at + NOTED_MS > now
    }
}

/// What has to be taken from the kernel.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Drops {
    /// Attributes; with the pages of the listing, where it has such.
    pub(super) attributes: Vec<(Ino, bool)>,
    /// Names.
    pub(super) entries: Vec<(Ino, Name)>,
    /// The kernel may be about to take note of one of the names for the second time, which it does without its lock on the directory.
    pub(super) has_new: bool,
}

impl Drops {
    pub(super) fn append(&mut self, mut other: Drops) {
        self.attributes.append(&mut other.attributes);
        self.entries.append(&mut other.entries);
        self.has_new |= other.has_new;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.entries.is_empty()
    }
}

/// The records of some inodes.
#[derive(Default, Debug)]
pub(super) struct Table {
    records: HashMap<Ino, Record>,
    /// The number of the latest recall, or own change, of any of them.
    recalled: u64,
}

impl Table {
    /// The kernel is told of an inode once more.
    pub(super) fn shown(&mut self, ino: Ino) {
        self.records.entry(ino).or_default().lookups += 1;
    }

    /// The kernel has forgotten `count` of the times that it was told.
    pub(super) fn forgotten(&mut self, ino: Ino, count: u64) {
        let Some(record) = self.records.get_mut(&ino) else { return };
        record.lookups = record.lookups.saturating_sub(count);
        if record.lookups == 0 && ino != Ino::ROOT {
            self.records.remove(&ino);
        }
    }

    /// Whether the kernel has the inode, or is about to.
    pub(super) fn is_shown(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.records.get(&ino).is_some_and(|record| record.lookups > 0)
    }

    /// For how long, ms, the kernel may keep attributes that were leased to this node with the answer to `ticket`'s request.
    pub(super) fn keep_attributes(&mut self, ticket: Ticket, ino: Ino, now: u64) -> u64 {
        let until = ticket.sent + TERM_MS;
        if self.recalled > ticket.recalls || until <= now {
            return 0;
        }
        let record = self.records.entry(ino).or_default();
        if now < record.calm_until {
            return 0;
        }
        // A listing that it has was good for as long as the attributes beside it.
        record.has_listing &= record.attributes_until > now;
        record.attributes_until = record.attributes_until.max(until);
        until - now
    }

    /// The same for what a name stands for, or that it is not there.
    pub(super) fn keep_entry(&mut self, ticket: Ticket, (parent, name): (Ino, &Name), is_there: bool, now: u64) -> u64 {
        let until = ticket.sent + TERM_MS;
        if self.recalled > ticket.recalls || until <= now {
            return 0;
        }
        let record = self.records.entry(parent).or_default();
        if record.names_until <= now {
            record.names.clear();
        }
        if record.names.len() >= NAMES_MAX && !record.names.contains_key(name) {
            return 0;
        }
        record.names.insert(name.clone(), Told { at: now, is_there });
        record.names_until = record.names_until.max(until);
        until - now
    }

    /// A directory is opened for listing: whether the kernel may keep what it reads, and whether it may use what it has kept.
    pub(super) fn keep_listing(&mut self, ino: Ino, now: u64) -> (bool, bool) {
        match self.records.get_mut(&ino) {
            Some(record) if record.attributes_until > now => (true, std::mem::replace(&mut record.has_listing, true)),
            _ => (false, false),
        }
    }

    /// Takes back what is leased; `recall` is this recall's number.
    pub(super) fn recall(&mut self, lease: Leased, recall: u64, now: u64) -> Drops {
        self.recalled = self.recalled.max(recall);
        let mut drops = Drops::default();
        match lease.part {
            Part::Attributes => self.drop_attributes(lease.ino, now, &mut drops),
            Part::Entries => self.drop_entries(lease.ino, now, &mut drops),
        }
        drops
    }

    /// This node has changed an inode itself: the kernel knows it, but answers to what it has asked before may still be on
    /// their way to it.
    pub(super) fn changed(&mut self, ino: Ino, recall: u64, now: u64) -> Drops {
        self.recalled = self.recalled.max(recall);
        let mut drops = Drops::default();
        self.drop_attributes(ino, now, &mut drops);
        if let Some(record) = self.records.get_mut(&ino) {
            record.calm_until = now + CALM_MS;
        }
        drops
    }

    /// Whether the kernel may have `name`, and until when at most.
    pub(super) fn has_name(&self, parent: Ino, name: &Name, now: u64) -> Option<u64> {
        let record = self.records.get(&parent)?;
        (record.names_until > now && record.names.contains_key(name)).then_some(record.names_until)
    }

    /// A name that the kernel may have, to be taken.
    pub(super) fn drop_name(&mut self, parent: Ino, name: &Name, now: u64) -> Drops {
        let mut drops = Drops::default();
        let Some(record) = self.records.get_mut(&parent).filter(|record| record.names_until > now) else {
            return drops;
        };
        if let Some(told) = record.names.remove(name) {
            drops.has_new = told.is_new(now);
            drops.entries.push((parent, name.clone()));
        }
        drops
    }

    /// The kernel has given what it knows of another name to this one, until then. False when that is longer than this node's
    /// lease of the directory lasts.
    pub(super) fn adopt_name(&mut self, parent: Ino, name: &Name, until: u64, now: u64) -> bool {
        let Some(record) = self.records.get_mut(&parent) else { return false };
        let is_covered = record.names_until > now && record.names_until >= until;
        if is_covered {
            record.names.insert(name.clone(), Told { at: now, is_there: true });
        }
        is_covered
    }

    /// All that the kernel may have of inodes that `concerns`.
    pub(super) fn recall_all(&mut self, concerns: impl Fn(Ino) -> bool, recall: u64, now: u64) -> Drops {
        self.recalled = self.recalled.max(recall);
        let mut drops = Drops::default();
        let inos: Vec<Ino> = self.records.keys().copied().filter(|ino| concerns(*ino)).collect();
        for ino in inos {
            self.drop_attributes(ino, now, &mut drops);
            self.drop_entries(ino, now, &mut drops);
        }
        drops
    }

    fn drop_attributes(&mut self, ino: Ino, now: u64, drops: &mut Drops) {
        let Some(record) = self.records.get_mut(&ino) else { return };
        let has_listing = std::mem::take(&mut record.has_listing);
        if std::mem::take(&mut record.attributes_until) > now {
            drops.attributes.push((ino, has_listing));
        }
    }

    fn drop_entries(&mut self, ino: Ino, now: u64, drops: &mut Drops) {
        let Some(record) = self.records.get_mut(&ino) else { return };
        let names = std::mem::take(&mut record.names);
        if std::mem::take(&mut record.names_until) > now {
            drops.has_new |= names.values().any(|told| told.is_new(now));
            drops.entries.extend(names.into_keys().map(|name| (ino, name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ino(raw: u64) -> Ino {
        Ino::from_raw(raw).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn lease(raw: u64, part: Part) -> Leased {
        Leased { ino: ino(raw), part }
    }

    const FIRST: Ticket = Ticket { recalls: 0, sent: 1_000 };

    #[test]
    fn what_is_kept_ends_with_the_term_that_began_before_the_request() {
        let mut table = Table::default();
        table.shown(ino(7));
        assert_eq!(table.keep_attributes(FIRST, ino(7), 1_200), TERM_MS - 200);
        assert_eq!(table.keep_attributes(FIRST, ino(7), 1_000 + TERM_MS), 0);
        // By then nothing has to be taken from the kernel.
        assert_eq!(table.recall(lease(7, Part::Attributes), 1, 1_000 + TERM_MS), Drops::default());
    }

    #[test]
    fn a_recall_takes_what_is_kept_and_what_is_on_its_way() {
        let mut table = Table::default();
        assert!(table.keep_entry(FIRST, (ino(7), &name("a")), true, 1_000) > 0);
        assert!(table.keep_attributes(FIRST, ino(7), 1_000) > 0);
        assert_eq!(table.recall(lease(7, Part::Entries), 1, 1_100).entries, [(ino(7), name("a"))]);
        assert_eq!(table.recall(lease(7, Part::Attributes), 2, 1_100).attributes, [(ino(7), false)]);
        assert_eq!(table.keep_entry(FIRST, (ino(7), &name("b")), true, 1_100), 0);
        assert_eq!(table.keep_attributes(FIRST, ino(7), 1_100), 0);
        let later = Ticket { recalls: 2, sent: 1_200 };
        assert!(table.keep_entry(later, (ino(7), &name("b")), true, 1_200) > 0);
        assert!(table.keep_attributes(later, ino(7), 1_200) > 0);
    }

    #[test]
    fn names_of_a_lease_that_is_over_are_not_taken_again() {
        let mut table = Table::default();
        table.keep_entry(FIRST, (ino(7), &name("a")), true, 1_000);
        let later = Ticket { recalls: 0, sent: 2_000 + TERM_MS };
        table.keep_entry(later, (ino(7), &name("b")), true, later.sent);
        assert_eq!(table.recall(lease(7, Part::Entries), 1, later.sent).entries, [(ino(7), name("b"))]);
    }

    #[test]
    fn a_name_that_is_there_is_new_for_a_while_and_one_that_is_not_never() {
        for (is_there, after, has_new) in [(true, 0, true), (true, NOTED_MS, false), (false, 0, false)] {
            let mut table = Table::default();
            table.keep_entry(FIRST, (ino(7), &name("a")), is_there, 1_000);
            let drops = table.recall(lease(7, Part::Entries), 1, 1_000 + after);
            assert_eq!((drops.entries.len(), drops.has_new), (1, has_new), "{is_there} {after}");
        }
    }

    #[test]
    fn own_changes_keep_attributes_out_for_a_moment() {
        let mut table = Table::default();
        table.shown(ino(7));
        assert!(table.keep_attributes(FIRST, ino(7), 1_000) > 0);
        assert_eq!(table.changed(ino(7), 1, 1_010).attributes, [(ino(7), false)]);
        let ticket = Ticket { recalls: 1, sent: 1_011 };
        assert_eq!(table.keep_attributes(ticket, ino(7), 1_011), 0);
        assert_eq!(table.changed(ino(7), 2, 1_012), Drops::default());
        let ticket = Ticket { recalls: 2, sent: 1_100 };
        assert!(table.keep_attributes(ticket, ino(7), 1_100) > 0);
    }

    #[test]
    fn a_listing_is_kept_beside_attributes_that_never_ended() {
        let mut table = Table::default();
        assert_eq!(table.keep_listing(ino(7), 1_000), (false, false));
        table.keep_attributes(FIRST, ino(7), 1_000);
        assert_eq!(table.keep_listing(ino(7), 1_000), (true, false));
        assert_eq!(table.keep_listing(ino(7), 1_000), (true, true));
        assert_eq!(table.recall(lease(7, Part::Attributes), 1, 1_001).attributes, [(ino(7), true)]);
        assert_eq!(table.keep_listing(ino(7), 1_001), (false, false));
        let later = Ticket { recalls: 1, sent: 2_000 };
        table.keep_attributes(later, ino(7), 2_000);
        assert_eq!(table.keep_listing(ino(7), 2_000), (true, false));
        let after_a_gap = Ticket { recalls: 1, sent: 3_000 + TERM_MS };
        table.keep_attributes(after_a_gap, ino(7), 3_000 + TERM_MS);
        assert_eq!(table.keep_listing(ino(7), 3_000 + TERM_MS), (true, false));
    }

    #[test]
    fn a_name_that_moves_takes_its_time_along() {
        let mut table = Table::default();
        table.keep_entry(FIRST, (ino(7), &name("a")), true, 1_000);
        let until = table.has_name(ino(7), &name("a"), 1_000).unwrap();
        assert!(!table.adopt_name(ino(8), &name("b"), until, 1_000));
        table.keep_entry(Ticket { recalls: 0, sent: 900 }, (ino(8), &name("b")), true, 1_000);
        assert!(!table.adopt_name(ino(8), &name("b"), until, 1_000));
        table.keep_entry(FIRST, (ino(8), &name("c")), true, 1_000);
        assert!(table.adopt_name(ino(8), &name("b"), until, 1_000));
    }

    #[test]
    fn what_the_kernel_has_forgotten_is_forgotten() {
        let mut table = Table::default();
        table.shown(ino(7));
        table.shown(ino(7));
        table.forgotten(ino(7), 1);
        assert!(table.is_shown(ino(7)) && table.is_shown(Ino::ROOT));
        table.forgotten(ino(7), 1);
        assert!(!table.is_shown(ino(7)) && table.records.is_empty());
    }

    #[test]
    fn all_of_one_mdt_is_taken_at_once() {
        let mut table = Table::default();
        table.keep_entry(FIRST, (ino(7), &name("a")), true, 1_000);
        table.keep_attributes(FIRST, ino(8), 1_000);
        let drops = table.recall_all(|of| of == ino(8), 1, 1_001);
        assert_eq!(drops, Drops { attributes: vec![(ino(8), false)], ..Drops::default() });
        assert_eq!(table.keep_attributes(FIRST, ino(8), 1_001), 0);
    }
}
