//! Numbers for the requests to this node's own services.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_proto::service::Caller;
use burstfs_types::{ClientId, Xid};

/// Hands out xids and knows which are still waited for. Requests to other nodes get theirs from their connection.
pub(super) struct XidSource {
    client: ClientId,
    state: Mutex<State>,
}

struct State {
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// One request under way; dropping it says that its reply is no longer needed.
pub(super) struct LocalCall<'a> {
    source: &'a XidSource,
    pub(super) caller: Caller,
}

impl XidSource {
    pub(super) fn new(client: ClientId) -> XidSource {
        XidSource { client, state: Mutex::new(State { next: 1, unanswered: BTreeSet::new() }) }
    }

    pub(super) fn begin(&self) -> LocalCall<'_> {
        let mut state = self.lock();
        let xid = state.next;
        state.next += 1;
        state.unanswered.insert(xid);
        let oldest = state.unanswered.first().copied().unwrap_or(xid);
        let caller = Caller { client: self.client, xid: Xid(xid), oldest_unanswered: Xid(oldest) };
        LocalCall { source: self, caller }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Both fields are valid after every statement, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LocalCall<'_> {
    fn drop(&mut self) {
        self.source.lock().unanswered.remove(&self.caller.xid.0);
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::NodeIndex;

    use super::*;

    #[test]
    fn the_oldest_unanswered_stays_until_it_is_answered() {
        let source = XidSource::new(ClientId { node: NodeIndex::new(0), incarnation: 1 });
        let first = source.begin();
        let second = source.begin();
        assert_eq!((second.caller.xid, second.caller.oldest_unanswered), (Xid(2), Xid(1)));
        drop(first);
        assert_eq!(source.begin().caller.oldest_unanswered, Xid(2));
        drop(second);
        assert_eq!(source.begin().caller.oldest_unanswered, Xid(4));
    }
}
