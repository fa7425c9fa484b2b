//! The clients of an MDT, and the replies that they may ask for again.
//!
//! Owns the reply cache in memory and its records' keys. A successful reply is stored in the batch of its effect, under a
//! slot that is used again once the client has acknowledged the reply: no record has to be removed. The reply to an open or
//! a close is kept in memory only, as its effect is. An error is kept in memory only, as it has no effect: a request that is
//! sent again after a restart runs anew.
//!
//! Invariants: a request runs at most once at a time, and after it has succeeded never again; one that the client has
//! acknowledged never runs at all, however late a copy arrives. There is one client for each node: the one with the newest
//! incarnation; requests of older ones are refused with ESTALE.
//!
//! Concurrency: a client's state has its own lock, held for a lookup or an insertion only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::service::Caller;
use burstfs_types::{ClientId, Errno, NodeIndex, Xid};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::record::{StoredReply, decode, encode, key};
use crate::store::{Engine, StoreError, Transaction};

/// One client.
pub(crate) struct Client {
    pub(crate) id: ClientId,
    is_evicted: AtomicBool,
    replies: Mutex<Replies>,
    finished: Notify,
}

struct Replies {
    /// Requests below are acknowledged.
    floor: Xid,
    kept: BTreeMap<Xid, Kept>,
    running: HashSet<Xid>,
    free_slots: Vec<u32>,
    slots: u32,
}

struct Kept {
    result: Result<MdsReply, Errno>,
    slot: Option<u32>,
}

impl Replies {
    fn new() -> Replies {
        let (kept, running) = (BTreeMap::new(), HashSet::new());
        Replies { floor: Xid(0), kept, running, free_slots: Vec::new(), slots: 0 }
    }

    fn take_slot(&mut self) -> u32 {
        self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        })
    }

    fn acknowledge_below(&mut self, oldest_unanswered: Xid) {
        if oldest_unanswered <= self.floor {
            return;
        }
        self.floor = oldest_unanswered;
        let unanswered = self.kept.split_off(&oldest_unanswered);
        let acknowledged = std::mem::replace(&mut self.kept, unanswered);
        self.free_slots.extend(acknowledged.into_values().filter_map(|kept| kept.slot));
    }
}

/// What to do with a replayable request.
pub(crate) enum Begin<'c> {
    /// Run it.
    Run(Running<'c>),
    /// It has run: this was the answer.
    Answer(Result<MdsReply, Errno>),
    /// It runs now, for a copy that came over another connection.
    Wait,
}

impl Client {
    fn new(id: ClientId) -> Client {
        Client { id, is_evicted: AtomicBool::new(false), replies: Mutex::new(Replies::new()), finished: Notify::new() }
    }

    fn replies(&self) -> MutexGuard<'_, Replies> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a newer incarnation has taken its place.
    pub(crate) fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Acquire)
    }

    /// Completes when any request that runs now ends.
    pub(crate) fn finished(&self) -> Notified<'_> {
        self.finished.notified()
    }

    /// Begins a request, or finds that it has begun before.
    pub(crate) fn begin(&self, caller: Caller) -> Begin<'_> {
        let mut replies = self.replies();
        replies.acknowledge_below(caller.oldest_unanswered);
        if let Some(kept) = replies.kept.get(&caller.xid) {
            return Begin::Answer(kept.result.clone());
        }
        if caller.xid < replies.floor {
            // The client has its answer and does not wait for this one.
            return Begin::Answer(Err(Errno::ECANCELED));
        }
        if !replies.running.insert(caller.xid) {
            return Begin::Wait;
        }
        let slot = replies.take_slot();
        Begin::Run(Running { client: self, xid: caller.xid, slot, result: None })
    }
}

/// A request that runs. Dropped without a result, as when its connection ends while another MDT is asked, it can be begun
/// again.
pub(crate) struct Running<'c> {
    client: &'c Client,
    xid: Xid,
    slot: u32,
    result: Option<Result<MdsReply, Errno>>,
}

impl Running<'_> {
    /// Adds the reply to the batch of its effect.
    pub(crate) fn store(&self, tx: &mut dyn Transaction, request: &MdsRequest, reply: &MdsReply) {
        let ClientId { node, incarnation } = self.client.id;
        let stored = StoredReply { incarnation, xid: self.xid, opcode: request.opcode(), body: reply.encode() };
        tx.put(key::reply(node, self.slot), encode(&stored));
    }

    /// Ends the request with `result`.
    pub(crate) fn finish(mut self, result: Result<MdsReply, Errno>) -> Result<MdsReply, Errno> {
        self.result = Some(result.clone());
        result
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut replies = self.client.replies();
        replies.running.remove(&self.xid);
        match self.result.take() {
            Some(result) => {
                // Without a stored reply the slot could be free at once; a slot costs nothing until it is written.
                replies.kept.insert(self.xid, Kept { result, slot: Some(self.slot) });
            }
            None => replies.free_slots.push(self.slot),
        }
        drop(replies);
        self.client.finished.notify_waiters();
    }
}

/// All clients.
pub(crate) struct Clients {
    by_node: RwLock<HashMap<NodeIndex, Arc<Client>>>,
    /// Nodes whose client was known before the MDT was opened, and may have files open that nobody remembers.
    survivors: Mutex<HashSet<NodeIndex>>,
    survivor_count: AtomicUsize,
}

/// A client that has taken the place of another, or is the first of its node.
pub(crate) struct Arrival {
    pub(crate) client: Arc<Client>,
    /// The one whose opens are to be forgotten.
    pub(crate) replaced: Option<Arc<Client>>,
}

impl Clients {
    /// Those that the store knows, with their replies.
    pub(crate) fn load(engine: &dyn Engine) -> Result<Clients, StoreError> {
        let mut clients = HashMap::new();
        for (key, value) in engine.scan(&[key::CLIENT], &key::after(&[key::CLIENT]), usize::MAX)? {
            let node = node_of(&key);
            let id = ClientId { node, incarnation: decode(&key, &value)? };
            clients.insert(node, Client::new(id));
        }
        for (key, value) in engine.scan(&[key::REPLY], &key::after(&[key::REPLY]), usize::MAX)? {
            let stored: StoredReply = decode(&key, &value)?;
            // A slot that the node's client has not used yet may have a reply to an earlier one.
            if let Some(client) = clients.get_mut(&node_of(&key))
                && client.id.incarnation == stored.incarnation
            {
                client.restore(slot_of(&key), &stored);
            }
        }
        let survivors: HashSet<NodeIndex> = clients.keys().copied().collect();
        for client in clients.values() {
            client.replies().find_free_slots();
        }
        Ok(Clients {
            by_node: RwLock::new(clients.into_iter().map(|(node, client)| (node, Arc::new(client))).collect()),
            survivor_count: AtomicUsize::new(survivors.len()),
            survivors: Mutex::new(survivors),
        })
    }

    /// The client `id` if it is the newest of its node that was seen; `None` if it is yet to [arrive](Clients::arrive).
    pub(crate) fn get(&self, id: ClientId) -> Result<Option<Arc<Client>>, Errno> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        match by_node.get(&id.node) {
            Some(client) if client.id == id => Ok(Some(Arc::clone(client))),
            Some(client) if client.id.incarnation > id.incarnation => Err(Errno::ESTALE),
            Some(_) | None => Ok(None),
        }
    }

    /// Takes in a new client and marks the one that it replaces as evicted.
    pub(crate) fn arrive(&self, engine: &dyn Engine, id: ClientId) -> Result<Result<Arrival, Errno>, StoreError> {
        let mut by_node = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_node.get(&id.node) {
            if known.id == id {
                return Ok(Ok(Arrival { client: Arc::clone(known), replaced: None }));
            }
            if known.id.incarnation > id.incarnation {
                return Ok(Err(Errno::ESTALE));
            }
        }
        engine.commit(vec![(key::client(id.node), Some(encode(&id.incarnation)))])?;
        let client = Arc::new(Client::new(id));
        let replaced = by_node.insert(id.node, Arc::clone(&client));
        if let Some(replaced) = &replaced {
            replaced.is_evicted.store(true, Ordering::Release);
        }
        Ok(Ok(Arrival { client, replaced }))
    }

    /// The newest client of a node, marked as evicted.
    pub(crate) fn lose(&self, node: NodeIndex) -> Option<Arc<Client>> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        let client = by_node.get(&node)?;
        client.is_evicted.store(true, Ordering::Release);
        Some(Arc::clone(client))
    }

    /// Says that the opens of `node`'s client from before the MDT was opened are over. True when it was the last of them.
    pub(crate) fn end_survivor(&self, node: NodeIndex) -> bool {
        let mut survivors = self.survivors.lock().unwrap_or_else(PoisonError::into_inner);
        let was_last = survivors.remove(&node) && survivors.is_empty();
        self.survivor_count.store(survivors.len(), Ordering::Release);
        was_last
    }

    /// Those that were known before the MDT was opened.
    pub(crate) fn known(&self) -> Vec<ClientId> {
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        by_node.values().map(|client| client.id).collect()
    }

    /// Whether there may be opens from before the MDT was opened.
    pub(crate) fn has_survivors(&self) -> bool {
        self.survivor_count.load(Ordering::Acquire) > 0
    }
}

impl Client {
    fn restore(&mut self, slot: u32, stored: &StoredReply) {
        let replies = self.replies.get_mut().unwrap_or_else(PoisonError::into_inner);
        replies.slots = replies.slots.max(slot + 1);
        if let Ok(reply) = MdsReply::decode(stored.opcode, &stored.body) {
            replies.kept.insert(stored.xid, Kept { result: Ok(reply), slot: Some(slot) });
        }
    }
}

impl Replies {
    fn find_free_slots(&mut self) {
        let used: HashSet<u32> = self.kept.values().filter_map(|kept| kept.slot).collect();
        self.free_slots = (0..self.slots).filter(|slot| !used.contains(slot)).collect();
    }
}

fn node_of(key: &[u8]) -> NodeIndex {
    let bytes = key.get(1..3).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    NodeIndex::new(u16::from_be_bytes(bytes))
}

fn slot_of(key: &[u8]) -> u32 {
    let bytes = key.get(3..7).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    u32::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(xid: u64, oldest_unanswered: u64) -> Caller {
        let client = ClientId { node: NodeIndex::new(0), incarnation: 1 };
        Caller { client, xid: Xid(xid), oldest_unanswered: Xid(oldest_unanswered) }
    }

    #[test]
    fn a_copy_waits_while_the_first_runs_and_then_gets_its_reply() {
        let client = Client::new(caller(0, 0).client);
        let Begin::Run(running) = client.begin(caller(5, 5)) else { panic!("must run") };
        assert!(matches!(client.begin(caller(5, 5)), Begin::Wait));
        running.finish(Ok(MdsReply::Unlink(()))).unwrap();
        assert!(matches!(client.begin(caller(5, 5)), Begin::Answer(Ok(MdsReply::Unlink(())))));
    }

    #[test]
    fn a_request_that_was_given_up_can_be_begun_again() {
        let client = Client::new(caller(0, 0).client);
        drop(client.begin(caller(5, 5)));
        assert!(matches!(client.begin(caller(5, 5)), Begin::Run(_)));
    }

    #[test]
    fn an_acknowledged_request_never_runs() {
        let client = Client::new(caller(0, 0).client);
        let Begin::Run(running) = client.begin(caller(5, 5)) else { panic!("must run") };
        assert_eq!(running.finish(Err(Errno::ENOENT)), Err(Errno::ENOENT));
        assert!(matches!(client.begin(caller(6, 6)), Begin::Run(_)));
        assert!(matches!(client.begin(caller(5, 5)), Begin::Answer(Err(Errno::ECANCELED))));
    }

    #[test]
    fn slots_are_used_again() {
        let client = Client::new(caller(0, 0).client);
        for xid in 1..100 {
            let Begin::Run(running) = client.begin(caller(xid, xid)) else { panic!("must run") };
            running.finish(Ok(MdsReply::Unlink(()))).unwrap();
        }
        assert_eq!(client.replies().slots, 1);
    }
}
