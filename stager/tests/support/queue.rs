//! The queue of node 0, in memory, with places.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use burstfs_proto::stage::{Direction, Finished, Item, Taken};
use burstfs_stager::{Ledger, QueueLost, RoundTally, WorkQueue};
use burstfs_types::NodeIndex;
use tokio::sync::Notify;

struct State {
    ready: VecDeque<Item>,
    taken: HashMap<u64, Item>,
    next: u64,
}

pub struct Shared {
    state: Mutex<State>,
    changed: Notify,
    records: Records,
    nodes: u16,
}

/// Who takes the records.
pub enum Records {
    Ledger(Arc<Ledger>),
    Tally(Mutex<RoundTally>),
}

impl Records {
    fn accept(&self, records: &[Vec<u8>]) {
        match self {
            Records::Ledger(ledger) => ledger.accept(records),
            Records::Tally(tally) => tally.lock().unwrap().accept(records),
        }
    }
}

pub struct NodeQueue {
    shared: Arc<Shared>,
    node: NodeIndex,
}

impl Shared {
    pub fn new(seed: Vec<Item>, records: Records, nodes: u16) -> Arc<Shared> {
        let state = Mutex::new(State { ready: seed.into(), taken: HashMap::new(), next: 0 });
        Arc::new(Shared { state, changed: Notify::new(), records, nodes })
    }

    /// The tally of a round.
    pub fn tally(&self) -> &Mutex<RoundTally> {
        match &self.records {
            Records::Tally(tally) => tally,
            Records::Ledger(_) => panic!("no round"),
        }
    }

    pub fn node(self: &Arc<Shared>, node: NodeIndex) -> Arc<NodeQueue> {
        Arc::new(NodeQueue { shared: self.clone(), node })
    }

    fn hand_in(&self, finished: Vec<Finished>) {
        let mut state = self.state.lock().unwrap();
        for done in finished {
            assert!(state.taken.remove(&done.id).is_some(), "an item that nobody has");
            self.records.accept(&done.records);
            for item in done.items {
                assert!(item.body.len() < 1 << 20, "an item of {} bytes", item.body.len());
                assert!(item.place.is_none_or(|place| place.get() < self.nodes));
                state.ready.push_back(item);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn pick(&self, node: NodeIndex, max: u32) -> Option<Taken> {
        let mut state = self.state.lock().unwrap();
        if state.ready.is_empty() && state.taken.is_empty() {
            return Some(Taken::Over);
        }
        let mut work = Vec::new();
        let mut rest = VecDeque::new();
        while let Some(item) = state.ready.pop_front() {
            if work.len() < max as usize && item.place.is_none_or(|place| place == node) {
                state.next += 1;
                let id = state.next;
                state.taken.insert(id, item.clone());
                work.push((id, item));
            } else {
                rest.push_back(item);
            }
        }
        state.ready = rest;
        (!work.is_empty() || max == 0).then_some(Taken::Work(work))
    }
}

#[async_trait]
impl WorkQueue for NodeQueue {
    async fn take(&self, _: Direction, finished: Vec<Finished>, max: u32) -> Result<Taken, QueueLost> {
        if !finished.is_empty() {
            self.shared.hand_in(finished);
        }
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(taken) = self.shared.pick(self.node, max) {
                return Ok(taken);
            }
            changed.await;
        }
    }
}
