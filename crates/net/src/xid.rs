//! A client's request numbers.
//!
//! One counter for all channels of a client, so that (client, xid) names a request at whatever server it arrives, and
//! so that the oldest unanswered one is known: replies to older ones need not be kept anywhere.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use burstfs_proto::service::Caller;
use burstfs_types::{ClientId, Xid};

/// Hands out xids. Clones share the counter.
#[derive(Clone, Debug)]
pub struct XidSource {
    client: ClientId,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    next: u64,
    waiting: BTreeSet<u64>,
}

impl XidSource {
    /// The numbers of `client`, from 1 on.
    pub fn new(client: ClientId) -> XidSource {
        XidSource { client, state: Arc::new(Mutex::new(State { next: 1, waiting: BTreeSet::new() })) }
    }

    /// Whose numbers they are.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// The next number; it counts as unanswered until the returned value is dropped.
    pub fn take(&self) -> Numbered {
        let xid = self.with(|state| {
            let xid = state.next;
            state.next += 1;
            state.waiting.insert(xid);
            xid
        });
        Numbered { xid: Xid(xid), source: self.clone() }
    }

    /// The oldest number that is unanswered; the next one where there is none.
    pub fn oldest_unanswered(&self) -> Xid {
        Xid(self.with(|state| state.waiting.first().copied().unwrap_or(state.next)))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Each change is complete at once, so a panic elsewhere cannot have left half of one.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request's number, unanswered for as long as this lives.
#[derive(Debug)]
pub struct Numbered {
    xid: Xid,
    source: XidSource,
}

impl Numbered {
    /// The number.
    pub fn xid(&self) -> Xid {
        self.xid
    }

    /// What a service is told about the request: also for a call to a service of the same process.
    pub fn caller(&self) -> Caller {
        Caller { client: self.source.client, xid: self.xid, oldest_unanswered: self.source.oldest_unanswered() }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.source.with(|state| state.waiting.remove(&self.xid.0));
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::NodeIndex;

    use super::*;

    #[test]
    fn the_oldest_unanswered_moves_with_the_answers() {
        let source = XidSource::new(ClientId { node: NodeIndex::new(0), incarnation: 1 });
        assert_eq!(source.oldest_unanswered(), Xid(1));
        let (first, second, third) = (source.take(), source.take(), source.clone().take());
        assert_eq!((first.xid(), second.xid(), third.xid()), (Xid(1), Xid(2), Xid(3)));
        drop(second);
        assert_eq!(third.caller().oldest_unanswered, Xid(1));
        drop(first);
        assert_eq!(third.caller().oldest_unanswered, Xid(3));
        drop(third);
        assert_eq!(source.oldest_unanswered(), Xid(4));
    }
}
