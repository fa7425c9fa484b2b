//! Turns at this node's OST: who reads or writes much does not keep others waiting.
//!
//! Owns a number of places for transfers that are under way, and a queue for each client that waits for one. A place that becomes
//! free goes to the clients in turn, to each one's oldest request: so a client with one request waits for at most one of each other
//! client's, however many they have sent. Does not own threads, memory, or what a request does.
//!
//! Concurrency: the lock is held for a look. Whoever stops waiting is passed over when his turn comes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_types::ClientId;
use tokio::sync::oneshot;

/// The places of one OST. Clones share them.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Mutex<State>>);

struct State {
    free: usize,
    waiting: HashMap<ClientId, VecDeque<oneshot::Sender<Turn>>>,
    /// Clients that wait, the next one first.
    order: VecDeque<ClientId>,
}

/// A place; free again when dropped.
pub(crate) struct Turn {
    turns: Option<Turns>,
}

impl Turns {
    /// So many transfers at a time.
    pub(crate) fn new(places: usize) -> Turns {
        Turns(Arc::new(Mutex::new(State { free: places.max(1), waiting: HashMap::new(), order: VecDeque::new() })))
    }

    /// Waits for the client's turn.
    pub(crate) async fn take(&self, client: ClientId) -> Turn {
        let turn = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return self.turn();
            }
            let (tell, turn) = oneshot::channel();
            let queue = state.waiting.entry(client).or_default();
            queue.push_back(tell);
            if queue.len() == 1 {
                state.order.push_back(client);
            }
            turn
        };
        // Each sender is given a turn, or stays in its queue, which lives as long as this.
        turn.await.unwrap_or(Turn { turns: None })
    }

    fn turn(&self) -> Turn {
        Turn { turns: Some(self.clone()) }
    }

    /// Gives a place to the next who waits, or keeps it.
    fn give_back(&self) {
        loop {
            let Some(tell) = self.state().next() else { return };
            // Who has stopped waiting hands it back, and the next one is asked.
            match tell.send(self.turn()) {
                Ok(()) => return,
                Err(mut unheard) => drop(unheard.turns.take()),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is consistent at every instruction that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The oldest request of the client whose turn it is; `None` if nobody waits, and then there is one more free place.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let Some(client) = self.order.pop_front() else {
            self.free += 1;
            return None;
        };
        let queue = self.waiting.get_mut(&client)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.order.push_back(client);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use burstfs_types::NodeIndex;

    use super::*;

    type Taking<'t> = Pin<Box<dyn Future<Output = Turn> + 't>>;

    fn taking(turns: &Turns, node: u16) -> Taking<'_> {
        Box::pin(turns.take(client(node)))
    }

    /// The turn, if it has come.
    fn now(taking: &mut Taking<'_>) -> Option<Turn> {
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    fn client(node: u16) -> ClientId {
        ClientId { node: NodeIndex::new(node), incarnation: 1 }
    }

    #[test]
    fn who_asks_for_little_waits_for_little() {
        let turns = Turns::new(1);
        let mut current = now(&mut taking(&turns, 1));
        assert!(current.is_some());
        // Fifty of one client, then one of another, then fifty of a third.
        let asked: Vec<u16> = [vec![1; 50], vec![2], vec![3; 50]].concat();
        let mut waiting: Vec<_> = asked.iter().map(|node| (*node, taking(&turns, *node))).collect();
        assert!(waiting.iter_mut().all(|(_, taking)| now(taking).is_none()));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(current.take());
            let next = waiting.iter_mut().position(|(_, taking)| {
                current = now(taking);
                current.is_some()
            });
            order.push(waiting.remove(next.unwrap()).0);
        }
        assert_eq!(order[..6], [1, 2, 3, 1, 3, 1]);
        assert_eq!(order.len(), asked.len());
    }

    #[test]
    fn a_place_is_not_lost_with_who_waited_for_it() {
        let turns = Turns::new(2);
        let held = [now(&mut taking(&turns, 1)), now(&mut taking(&turns, 1))];
        let (mut gone, mut patient) = (taking(&turns, 2), taking(&turns, 2));
        assert!(now(&mut gone).is_none() && now(&mut patient).is_none());
        drop(gone);
        drop(held);
        // The one who did not wait any longer is passed over.
        let (patient, another) = (now(&mut patient), now(&mut taking(&turns, 3)));
        assert!(patient.is_some() && another.is_some() && now(&mut taking(&turns, 3)).is_none());
        drop((patient, another));
        let both = [now(&mut taking(&turns, 4)), now(&mut taking(&turns, 4))];
        assert!(both.iter().all(Option::is_some));
    }
}
