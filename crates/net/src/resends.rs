//! Keeps a request that was sent again apart from its original, on one server.
//!
//! A client that lost its connection sends a request again while the server may still be running it for the lost
//! connection. The reply cache of the services answers a resend *after* the original; this here makes it so that it is
//! after: a resend waits for its original to end. And it drops what a client has given up: such a request, left over from
//! a lost connection, could otherwise run after the client went on and its reply-cache entry is gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use burstfs_types::{ClientId, Xid};
use tokio::sync::oneshot;

/// The requests of all clients of one server.
#[derive(Default)]
pub(crate) struct Clients {
    by_id: Mutex<HashMap<ClientId, Weak<Requests>>>,
}

impl Clients {
    /// The requests of `client`, over all of its connections.
    pub(crate) fn requests(&self, client: ClientId) -> Arc<Requests> {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = by_id.get(&client).and_then(Weak::upgrade) {
            return requests;
        }
        by_id.retain(|_, requests| requests.strong_count() > 0);
        let requests = Arc::new(Requests::default());
        by_id.insert(client, Arc::downgrade(&requests));
        requests
    }
}

/// The requests of one client. Lives as long as a connection or a running request of it.
#[derive(Default)]
pub(crate) struct Requests {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests below were answered or given up.
    oldest: u64,
    /// Those that run, with resends that wait for their end.
    running: HashMap<u64, Vec<oneshot::Sender<()>>>,
}

impl Requests {
    /// Starts a request, once no other run of it is left. `None` when the client does not wait for it any more.
    pub(crate) async fn start(self: &Arc<Self>, xid: Xid, oldest: Xid) -> Option<Running> {
        loop {
            let ended = {
                let mut state = self.state();
                state.oldest = state.oldest.max(oldest.0);
                if xid.0 < state.oldest {
                    return None;
                }
                match state.running.entry(xid.0) {
                    Entry::Vacant(entry) => {
                        entry.insert(Vec::new());
                        return Some(Running { requests: self.clone(), xid });
                    }
                    Entry::Occupied(mut entry) => {
                        let (sender, ended) = oneshot::channel();
                        entry.get_mut().push(sender);
                        ended
                    }
                }
            };
            // Closed without a word is an end too.
            let _ = ended.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run of a request; ends when dropped.
pub(crate) struct Running {
    requests: Arc<Requests>,
    xid: Xid,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The senders are dropped with the entry, which wakes those that wait.
        self.requests.state().running.remove(&self.xid.0);
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::NodeIndex;
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_resend_waits_for_its_original_and_a_given_up_request_does_not_run() {
        let clients = Clients::default();
        let client = ClientId { node: NodeIndex::new(1), incarnation: 1 };
        let requests = clients.requests(client);
        let original = requests.start(Xid(5), Xid(5)).await.unwrap();
        let again = clients.requests(client);
        let mut resend = Box::pin(again.start(Xid(5), Xid(5)));
        assert!(resend.as_mut().now_or_never().is_none());
        drop(original);
        assert!(resend.await.is_some());
        assert!(requests.start(Xid(6), Xid(6)).await.is_some());
        assert!(requests.start(Xid(5), Xid(5)).await.is_none());
    }
}
