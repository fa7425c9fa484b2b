//! The queue of staging work of one direction.

use std::collections::{BTreeMap, HashMap, VecDeque};

use burstfs_proto::service::Caller;
use burstfs_proto::stage::Item;
use burstfs_types::{NodeIndex, Xid};

#[derive(Clone, Debug)]
struct Taken {
    node: NodeIndex,
    incarnation: u64,
    item: Item,
}

/// Work that is waiting, and work that somebody has.
///
/// Invariants: an item is waiting, taken or finished, never two of these; it is finished once; an item with a place is
/// given to that node only.
#[derive(Debug)]
pub struct Queue {
    next_id: u64,
    waiting: HashMap<Option<NodeIndex>, VecDeque<(u64, Item)>>,
    taken: BTreeMap<u64, Taken>,
    /// What was given in answer to which request (node, incarnation, xid), until the node acknowledges the answer.
    given: BTreeMap<(NodeIndex, u64, Xid), Vec<u64>>,
    lost: Vec<NodeIndex>,
    nodes: usize,
}

impl Queue {
    /// An empty queue for `nodes` nodes, whose items are numbered from `first_id` on. A restarted node 0 starts another queue with a higher
    /// one, so that what is handed in for an item of the old queue is told apart and ignored.
    pub fn new(first_id: u64, nodes: usize) -> Queue {
        Queue {
            next_id: first_id,
            waiting: HashMap::new(),
            taken: BTreeMap::new(),
            given: BTreeMap::new(),
            lost: Vec::new(),
            nodes,
        }
    }

    /// Adds work. Returns the items that nobody can do, since their node was given up.
    pub fn push(&mut self, items: Vec<Item>) -> Vec<Item> {
        let is_lost = |item: &Item| item.place.is_some_and(|node| self.lost.contains(&node));
        let (undoable, items): (Vec<_>, Vec<_>) = items.into_iter().partition(is_lost);
        for item in items {
            let id = self.next_id;
            self.next_id += 1;
            self.waiting.entry(item.place).or_default().push_back((id, item));
        }
        undoable
    }

    /// At most `max` items for a node: first those that have their place there; of the others no more than its share, so
    /// that the first to ask does not leave the others idle. What an earlier incarnation of the node
    /// took is waiting again.
    pub fn take(&mut self, node: NodeIndex, incarnation: u64, max: usize) -> Vec<(u64, Item)> {
        if self.lost.contains(&node) {
            return Vec::new();
        }
        self.put_back(|taken| taken.node == node && taken.incarnation < incarnation);
        let share = self.share_of(node);
        let mut work = Vec::new();
        for place in [Some(node), None] {
            let Some(waiting) = self.waiting.get_mut(&place) else { continue };
            let room = if place.is_none() { share } else { max };
            let count = waiting.len().min(room).min(max - work.len());
            work.extend(waiting.drain(..count));
        }
        let taken = work.iter().map(|(id, item)| (*id, Taken { node, incarnation, item: item.clone() }));
        self.taken.extend(taken);
        work
    }

    /// How much more of the work that any node can do this one may have: an equal part of all that is not finished. One
    /// that has none may always take some, so that none is left to a node that does not ask.
    fn share_of(&self, node: NodeIndex) -> usize {
        let nodes = self.nodes.saturating_sub(self.lost.len()).max(1);
        let taken = self.taken.values().filter(|taken| taken.item.place.is_none());
        let (all, own) = taken.fold((0, 0), |(all, own), taken| (all + 1, own + usize::from(taken.node == node)));
        let waiting = self.waiting.get(&None).map_or(0, VecDeque::len);
        (waiting + all).div_ceil(nodes).saturating_sub(own)
    }

    /// As [`Queue::take`], for a request that may be sent again: a resend gets what the first was given and has not
    /// finished. Else the work of an answer that was lost would be taken by a node that does not know of it, for ever.
    pub fn take_once(&mut self, caller: Caller, max: usize) -> Vec<(u64, Item)> {
        let (node, incarnation) = (caller.client.node, caller.client.incarnation);
        let needed = (node, incarnation, caller.oldest_unanswered.min(caller.xid));
        let answered: Vec<_> = self.given.range((node, 0, Xid(0))..needed).map(|(request, _)| *request).collect();
        for request in answered {
            self.given.remove(&request);
        }
        let request = (node, incarnation, caller.xid);
        if let Some(ids) = self.given.get(&request) {
            let still_taken = |id: &u64| {
                let taken = self.taken.get(id)?;
                let is_holder = (taken.node, taken.incarnation) == (node, incarnation);
                is_holder.then(|| (*id, taken.item.clone()))
            };
            return ids.iter().filter_map(still_taken).collect();
        }
        let work = self.take(node, incarnation, max);
        // Nothing is no answer: the request may be waiting, and look again.
        if !work.is_empty() {
            self.given.insert(request, work.iter().map(|(id, _)| *id).collect());
        }
        work
    }

    /// An item is done. False when it was done before, or is not of this queue: what came of it does not count again.
    pub fn finish(&mut self, id: u64) -> bool {
        self.taken.remove(&id).is_some()
    }

    /// A node will not come back: what it had is waiting again, and what only it can do is returned.
    pub fn lose(&mut self, node: NodeIndex) -> Vec<Item> {
        if !self.lost.contains(&node) {
            self.lost.push(node);
        }
        self.put_back(|taken| taken.node == node);
        let undoable = self.waiting.remove(&Some(node)).unwrap_or_default();
        undoable.into_iter().map(|(_, item)| item).collect()
    }

    /// Whether nothing is waiting and nobody has anything.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.waiting.values().all(VecDeque::is_empty)
    }

    /// What waits and `is_wanted` is given before all else that waits at its place.
    pub fn hasten(&mut self, is_wanted: impl Fn(&Item) -> bool) {
        for waiting in self.waiting.values_mut() {
            let (first, rest): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|(_, item)| is_wanted(item));
            waiting.extend(first.into_iter().chain(rest));
        }
    }

    /// Takes back what waits and is not wanted any more.
    pub fn withdraw(&mut self, is_unwanted: impl Fn(&Item) -> bool) -> Vec<Item> {
        let mut withdrawn = Vec::new();
        for waiting in self.waiting.values_mut() {
            let (out, rest): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|(_, item)| is_unwanted(item));
            waiting.extend(rest);
            withdrawn.extend(out.into_iter().map(|(_, item)| item));
        }
        withdrawn
    }

    /// Whether there is something for `node`.
    pub fn has_work_for(&self, node: NodeIndex) -> bool {
        [Some(node), None].iter().any(|place| self.waiting.get(place).is_some_and(|waiting| !waiting.is_empty()))
    }

    fn put_back(&mut self, is_abandoned: impl Fn(&Taken) -> bool) {
        let abandoned: Vec<u64> =
            self.taken.iter().filter(|(_, taken)| is_abandoned(taken)).map(|(id, _)| *id).collect();
        for id in abandoned {
            if let Some(Taken { item, .. }) = self.taken.remove(&id) {
                self.waiting.entry(item.place).or_default().push_front((id, item));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use burstfs_types::ClientId;
    use proptest::prelude::*;

    use super::*;

    fn item(place: Option<u16>, body: u8) -> Item {
        Item { place: place.map(NodeIndex::new), body: vec![body] }
    }

    fn node(index: u16) -> NodeIndex {
        NodeIndex::new(index)
    }

    #[test]
    fn places_are_kept() {
        let mut queue = Queue::new(1, 1);
        assert!(queue.push(vec![item(Some(1), 1), item(None, 2)]).is_empty());
        assert_eq!(queue.take(node(0), 1, 9), [(2, item(None, 2))]);
        assert!(!queue.has_work_for(node(0)));
        assert!(queue.has_work_for(node(1)));
        assert_eq!(queue.take(node(1), 1, 9), [(1, item(Some(1), 1))]);
        assert!(!queue.is_empty());
        assert!(queue.finish(1) && queue.finish(2) && queue.is_empty());
    }

    #[test]
    fn work_for_any_node_is_shared() {
        let mut queue = Queue::new(1, 3);
        queue.push((0..6).map(|body| item(None, body)).chain([item(Some(0), 6)]).collect());
        let taken = queue.take(node(0), 1, 9);
        assert_eq!(taken.len(), 1 + 2);
        assert_eq!(queue.take(node(0), 1, 9), [], "the others have not had theirs");
        assert_eq!(queue.take(node(1), 1, 9).len(), 2);
        taken.iter().for_each(|(id, _)| assert!(queue.finish(*id)));
        assert_eq!(queue.take(node(0), 1, 9).len(), 2, "who has finished his may have what nobody takes");
    }

    #[test]
    fn what_somebody_waits_for_is_given_first() {
        let mut queue = Queue::new(1, 1);
        queue.push((1..5).map(|body| item(None, body)).collect());
        queue.hasten(|item| item.body[0] > 2 && item.body[0] != 4);
        let order: Vec<u8> = queue.take(node(0), 1, 9).iter().map(|(_, item)| item.body[0]).collect();
        assert_eq!(order, [3, 1, 2, 4]);
    }

    #[test]
    fn what_is_withdrawn_is_given_to_nobody_and_what_somebody_has_stays_his() {
        let mut queue = Queue::new(1, 2);
        queue.push(vec![item(Some(0), 1), item(Some(0), 2), item(None, 1), item(Some(1), 3)]);
        let had = queue.take(node(0), 1, 1);
        assert_eq!(had[0].1, item(Some(0), 1));
        assert_eq!(queue.withdraw(|item| item.body == [1]), [item(None, 1)]);
        assert!(queue.finish(had[0].0));
        let left: Vec<Item> = queue.take(node(0), 1, 9).into_iter().map(|(_, item)| item).collect();
        assert_eq!(left, [item(Some(0), 2)]);
    }

    #[test]
    fn a_second_word_does_not_count() {
        let mut queue = Queue::new(100, 1);
        queue.push(vec![item(None, 1)]);
        queue.take(node(0), 1, 1);
        assert!(!queue.finish(7), "an item of another queue");
        assert!(queue.finish(100));
        assert!(!queue.finish(100));
    }

    #[test]
    fn a_restarted_node_gets_its_work_again() {
        let mut queue = Queue::new(1, 1);
        queue.push(vec![item(Some(0), 1)]);
        let first = queue.take(node(0), 1, 9);
        assert_eq!(queue.take(node(0), 1, 9), []);
        assert_eq!(queue.take(node(0), 2, 9), first);
    }

    #[test]
    fn work_of_a_lost_node_goes_elsewhere_or_comes_back() {
        let mut queue = Queue::new(1, 1);
        queue.push(vec![item(Some(1), 1), item(None, 2)]);
        queue.take(node(1), 1, 9);
        assert_eq!(queue.lose(node(1)), [item(Some(1), 1)]);
        assert_eq!(queue.take(node(1), 1, 9), []);
        assert_eq!(queue.take(node(0), 1, 9), [(2, item(None, 2))]);
        assert_eq!(queue.push(vec![item(Some(1), 3)]), [item(Some(1), 3)]);
    }

    fn caller(index: u16, xid: u64, oldest: u64) -> Caller {
        let client = ClientId { node: node(index), incarnation: 1 };
        Caller { client, xid: Xid(xid), oldest_unanswered: Xid(oldest) }
    }

    #[test]
    fn a_request_that_is_sent_again_gets_the_same_work() {
        let mut queue = Queue::new(1, 1);
        assert_eq!(queue.take_once(caller(0, 7, 7), 2), []);
        queue.push(vec![item(None, 1), item(None, 2), item(None, 3)]);
        let first = queue.take_once(caller(0, 7, 7), 2);
        assert_eq!(first.len(), 2);
        assert_eq!(queue.take_once(caller(0, 7, 7), 2), first);
        assert!(queue.finish(1));
        assert_eq!(queue.take_once(caller(0, 7, 7), 2), first[1..], "what is finished is not given again");
        assert_eq!(queue.take_once(caller(0, 8, 7), 2), [(3, item(None, 3))]);
        assert_eq!(queue.given.len(), 2);
        assert_eq!(queue.take_once(caller(0, 9, 9), 2), []);
        assert!(queue.given.is_empty(), "what the node has acknowledged is not kept");
    }

    proptest! {
        /// Two nodes take until there is nothing left, over a network that loses answers: they end, and each item was
        /// done once.
        #[test]
        fn lost_answers_lose_no_work(count in 0_u8..20, is_lost in proptest::collection::vec(any::<bool>(), 0..60)) {
            let mut queue = Queue::new(1, 1);
            queue.push((0..count).map(|body| item(None, body)).collect());
            let mut is_lost = is_lost.into_iter();
            let (mut done, mut xids) = (HashSet::new(), [1_u64; 2]);
            let mut turn = 0;
            while !queue.is_empty() {
                prop_assert!(turn < 1_000);
                let index = turn % 2;
                let xid = xids[index];
                let work = queue.take_once(caller(index as u16, xid, xid), 3);
                turn += 1;
                if is_lost.next().unwrap_or(false) {
                    continue;
                }
                xids[index] += 1;
                for (id, item) in work {
                    prop_assert!(queue.finish(id));
                    prop_assert!(done.insert(item.body));
                }
            }
            prop_assert_eq!(done.len(), usize::from(count));
        }

        /// Whatever nodes do, each item is finished or returned as undoable exactly once.
        #[test]
        fn nothing_is_lost_or_doubled(
            places in proptest::collection::vec(proptest::option::of(0_u16..3), 1..20),
            steps in proptest::collection::vec((0_u16..3, 0_u8..4), 0..60),
        ) {
            let mut queue = Queue::new(0, 1);
            let mut done = HashSet::new();
            let mut held: Vec<(u16, u64, Item)> = Vec::new();
            let mut incarnations = [1_u64; 3];
            let items: Vec<Item> = places.iter().zip(0..).map(|(place, body)| item(*place, body)).collect();
            queue.push(items.clone());
            for (index, action) in steps {
                match action {
                    0 => incarnations[usize::from(index)] += 1,
                    1 if index > 0 => for item in queue.lose(node(index)) {
                        prop_assert!(done.insert(item.body));
                    },
                    2 => if let Some((_, id, item)) = held.pop() && queue.finish(id) {
                        prop_assert!(done.insert(item.body));
                    },
                    _ => for (id, item) in queue.take(node(index), incarnations[usize::from(index)], 3) {
                        held.push((index, id, item));
                    },
                }
            }
            for index in 1..3 {
                for item in queue.lose(node(index)) {
                    prop_assert!(done.insert(item.body));
                }
            }
            for (id, item) in queue.take(node(0), u64::MAX, usize::MAX) {
                prop_assert!(queue.finish(id));
                prop_assert!(done.insert(item.body));
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(done.len(), items.len());
        }
    }
}
