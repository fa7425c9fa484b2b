//! The table: who has which leases until when, as a value without locks, clocks and messages.
//!
//! Time is in milliseconds since some moment. A lease counts as ended for the MDT a little later than for its client, whose term
//! begins before its request is here.

use std::collections::HashMap;

use burstfs_proto::leases::{Leased, TERM};
use burstfs_types::ClientId;

/// For differences between the clocks of two machines over one term.
const MARGIN_MS: u64 = 1_000;
/// How long a lease counts here.
pub(super) const TERM_MS: u64 = TERM.as_millis() as u64 + MARGIN_MS;
/// After a recall nobody is given the lease for so long; doubled by each recall that follows soon.
const CALM_FIRST_MS: u32 = 100;
const CALM_LAST_MS: u32 = 10_000;

/// One client's lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    client: ClientId,
    until: u64,
    is_recalled: bool,
}

/// All that is known of one part of an inode.
#[derive(Default, Debug)]
struct State {
    holders: Vec<Holder>,
    /// Nobody is given a lease before.
    calm_from: u64,
    calm_ms: u32,
    /// Nobody is ever given a lease.
    is_barred: bool,
}

impl State {
    fn expire(&mut self, now: u64) {
        self.holders.retain(|holder| holder.until > now);
    }

    /// Takes note that one node changes what another one has: what goes back and forth is not leased at all.
    fn note_conflict(&mut self, now: u64) {
        let is_soon = now < self.calm_from + 2 * u64::from(self.calm_ms);
        self.calm_ms = if is_soon { (self.calm_ms * 2).min(CALM_LAST_MS) } else { CALM_FIRST_MS };
        self.calm_from = now + u64::from(self.calm_ms);
    }

    fn is_forgettable(&self, now: u64) -> bool {
        self.holders.is_empty() && !self.is_barred && now >= self.calm_from + 2 * u64::from(self.calm_ms)
    }
}

/// A lease that is to be recalled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Conflict {
    pub(super) lease: Leased,
    pub(super) client: ClientId,
    /// When it ends by itself.
    pub(super) until: u64,
}

/// The leases of some of an MDT's inodes.
#[derive(Debug)]
pub(super) struct Table {
    states: HashMap<Leased, State>,
    /// How many of them there may be.
    states_max: usize,
    /// How many there are when the next look for forgettable ones is worth its time.
    sweep_at: usize,
}

impl Table {
    /// An empty one, for at most so many inodes' parts.
    pub(super) fn new(states_max: usize) -> Table {
        Table { states: HashMap::new(), states_max, sweep_at: states_max.min(1_024) }
    }

    /// Gives `client` a lease, or goes on with the one that it has. False: it must not keep anything.
    pub(super) fn grant(&mut self, lease: Leased, client: ClientId, now: u64) -> bool {
        if !self.states.contains_key(&lease) && !self.has_room(now) {
            return false;
        }
        let state = self.states.entry(lease).or_default();
        state.expire(now);
        if state.is_barred || now < state.calm_from || state.holders.iter().any(|holder| holder.is_recalled) {
            return false;
        }
        let until = now + TERM_MS;
        match state.holders.iter_mut().find(|holder| holder.client == client) {
            Some(holder) => holder.until = until,
            None => state.holders.push(Holder { client, until, is_recalled: false }),
        }
        true
    }

    fn has_room(&mut self, now: u64) -> bool {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| {
                state.expire(now);
                !state.is_forgettable(now)
            });
            self.sweep_at = (self.states.len() * 2).clamp(1_024, usize::MAX).min(self.states_max.max(1));
        }
        self.states.len() < self.states_max
    }

    /// The leases that have to end before `by` changes this. Nobody gets one from now on until they have ended, and for a while
    /// longer.
    pub(super) fn recall(&mut self, lease: Leased, by: Option<ClientId>, now: u64, conflicts: &mut Vec<Conflict>) {
        let Some(state) = self.states.get_mut(&lease) else { return };
        state.expire(now);
        let before = conflicts.len();
        let mut is_new = false;
        for holder in state.holders.iter_mut().filter(|holder| Some(holder.client) != by) {
            is_new |= !std::mem::replace(&mut holder.is_recalled, true);
            conflicts.push(Conflict { lease, client: holder.client, until: holder.until });
        }
        if is_new && conflicts.len() > before {
            state.note_conflict(now);
        }
    }

    /// The end of one client's lease.
    pub(super) fn end(&mut self, lease: Leased, client: ClientId) {
        if let Some(state) = self.states.get_mut(&lease) {
            state.holders.retain(|holder| holder.client != client);
        }
    }

    /// The same for one that was recalled, and only that one: an answer that comes late ends no lease that was given since.
    pub(super) fn end_recalled(&mut self, of: &Conflict) {
        if let Some(state) = self.states.get_mut(&of.lease) {
            state.holders.retain(|holder| (holder.client, holder.until) != (of.client, of.until));
        }
    }

    /// Whether a lease that was recalled has not ended.
    pub(super) fn has(&self, of: &Conflict, now: u64) -> bool {
        let holders = self.states.get(&of.lease).map_or(&[][..], |state| &state.holders);
        holders.iter().any(|holder| (holder.client, holder.until) == (of.client, of.until) && of.until > now)
    }

    /// The end of all of one client's leases.
    pub(super) fn forget(&mut self, client: ClientId) {
        for state in self.states.values_mut() {
            state.holders.retain(|holder| holder.client != client);
        }
    }

    /// Says that this is never to be leased again.
    pub(super) fn bar(&mut self, lease: Leased) {
        self.states.entry(lease).or_default().is_barred = true;
    }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::leases::Part;
    use burstfs_types::{Ino, NodeIndex};

    use super::*;

    fn client(node: u16) -> ClientId {
        ClientId { node: NodeIndex::new(node), incarnation: 1 }
    }

    fn lease(raw: u64) -> Leased {
        Leased { ino: Ino::from_raw(raw).unwrap(), part: Part::Attributes }
    }

    fn recalled(table: &mut Table, by: u16, now: u64) -> Vec<u16> {
        let mut conflicts = Vec::new();
        table.recall(lease(1), Some(client(by)), now, &mut conflicts);
        conflicts.iter().map(|conflict| conflict.client.node.get()).collect()
    }

    #[test]
    fn a_change_recalls_the_leases_of_others() {
        let mut table = Table::new(10);
        for node in 0..3 {
            assert!(table.grant(lease(1), client(node), 0));
        }
        assert_eq!(recalled(&mut table, 1, 1), [0, 2]);
        // Until they have ended nobody gets one, not even who has one.
        assert!(!table.grant(lease(1), client(1), TERM_MS - 1));
        table.end(lease(1), client(0));
        table.end(lease(1), client(2));
        assert_eq!(recalled(&mut table, 1, 2), []);
        assert_eq!(recalled(&mut table, 0, 2), [1]);
    }

    #[test]
    fn a_lease_ends_by_itself() {
        let mut table = Table::new(10);
        assert!(table.grant(lease(1), client(0), 0));
        assert_eq!(recalled(&mut table, 1, TERM_MS - 1), [0]);
        let conflict = Conflict { lease: lease(1), client: client(0), until: TERM_MS };
        assert!(table.has(&conflict, TERM_MS - 1) && !table.has(&conflict, TERM_MS));
        assert_eq!(recalled(&mut table, 1, TERM_MS), []);
        assert!(table.grant(lease(1), client(2), TERM_MS + u64::from(CALM_FIRST_MS)));
    }

    #[test]
    fn a_late_answer_ends_no_lease_that_was_given_since() {
        let mut table = Table::new(10);
        assert!(table.grant(lease(1), client(0), 0));
        let mut conflicts = Vec::new();
        // Two changes wait for one lease.
        table.recall(lease(1), Some(client(1)), 1, &mut conflicts);
        table.recall(lease(1), Some(client(2)), 1, &mut conflicts);
        table.end_recalled(&conflicts[0]);
        let again = 1 + u64::from(CALM_FIRST_MS);
        assert!(table.grant(lease(1), client(0), again));
        table.end_recalled(&conflicts[1]);
        assert!(!table.has(&conflicts[1], again));
        assert_eq!(recalled(&mut table, 1, again), [0]);
    }

    #[test]
    fn what_goes_back_and_forth_is_not_leased_for_longer_and_longer() {
        let mut table = Table::new(10);
        let (mut now, mut waited) = (0, Vec::new());
        for _ in 0..9 {
            while !table.grant(lease(1), client(0), now) {
                now += 50;
            }
            waited.push(now);
            assert_eq!(recalled(&mut table, 1, now), [0]);
            table.end(lease(1), client(0));
        }
        let pauses: Vec<u64> = waited.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
        now += 60_000;
        assert!(table.grant(lease(1), client(0), now));
        assert_eq!(recalled(&mut table, 1, now), [0]);
        table.end(lease(1), client(0));
        assert!(table.grant(lease(1), client(0), now + 100));
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_for_itself() {
        let mut table = Table::new(2_000);
        let granted = (1..=3_000).filter(|raw| table.grant(lease(*raw), client(0), 0)).count();
        assert_eq!(granted, 2_000);
        assert!(table.grant(lease(5_000), client(0), TERM_MS));
        assert!(table.states.len() < 10);
    }

    #[test]
    fn what_is_barred_and_who_is_gone() {
        let mut table = Table::new(10);
        assert!(table.grant(lease(1), client(0), 0));
        table.forget(client(0));
        assert_eq!(recalled(&mut table, 1, 0), []);
        table.bar(lease(1));
        assert!(!table.grant(lease(1), client(0), TERM_MS * 100));
    }
}
