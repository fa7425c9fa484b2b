//! Requests to one MDT that many operations of one task make at about the same time, sent as one message.
//!
//! For whoever works on many files at once and does not mind who is first: the stager. The first request of a task's turn
//! waits until the other operations of the turn have made theirs, and takes them all along. Nothing waits for time.
//!
//! Owns the requests that wait for their turn. Invariant: where any waits there is a leader, whose turn has not ended; a
//! leader that is dropped fails the others.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_net::{Numbered, RpcError, XidSource};
use burstfs_proto::batch::{BATCH_REQUESTS_MAX, Batch, BatchedReply, BatchedRequest};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_types::limits;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::remote::{RemoteError, RemoteNode};

/// Bodies of one message's requests; what surrounds them is little.
const BODIES_MAX_BYTES: usize = limits::RPC_BODY_MAX_BYTES / 2;

type Answer = Result<MdsReply, RemoteError>;

struct Waiting {
    number: Numbered,
    opcode: u16,
    body: Vec<u8>,
    answer: oneshot::Sender<Option<Answer>>,
}

/// The requests to one node.
#[derive(Default)]
pub(super) struct Gatherer {
    waiting: Mutex<Vec<Waiting>>,
}

/// Whoever sends what waits. Dropped before that, it takes the others' requests with it.
struct Leader<'g>(Option<&'g Gatherer>);

impl Leader<'_> {
    /// All that waits. What comes from now on has another leader.
    fn take(&mut self) -> Vec<Waiting> {
        self.0.take().map(|gatherer| std::mem::take(&mut *gatherer.lock())).unwrap_or_default()
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.take();
    }
}

impl Gatherer {
    pub(super) async fn call(&self, remote: &RemoteNode, xids: &XidSource, request: MdsRequest) -> Answer {
        if !is_gathered(&request) {
            return remote.mds(request).await;
        }
        let (opcode, body) = (request.opcode(), request.encode());
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.lock();
            waiting.push(Waiting { number: xids.take(), opcode, body, answer });
            waiting.len() == 1
        };
        if is_first {
            let mut leader = Leader(Some(self));
            tokio::task::yield_now().await;
            join_all(messages(leader.take()).into_iter().map(|message| send(remote, message))).await;
        }
        match answered.await {
            Ok(Some(answer)) => answer,
            // Only what changes nothing is left out of an answer.
            Ok(None) => remote.mds(request).await,
            Err(_) => Err(RpcError::Closed.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that neither wait for other nodes nor have long bodies.
fn is_gathered(request: &MdsRequest) -> bool {
    matches!(
        request,
        MdsRequest::GetAttr(_)
            | MdsRequest::SetAttr(_)
            | MdsRequest::Lookup(_)
            | MdsRequest::Create(_)
            | MdsRequest::Open(_)
            | MdsRequest::Close(_)
            | MdsRequest::Readlink(_)
            | MdsRequest::Symlink(_)
            | MdsRequest::ListXattr(_)
    )
}

/// Cuts `waiting` into what one message each can carry.
fn messages(waiting: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let mut messages: Vec<Vec<Waiting>> = Vec::new();
    let mut bytes = 0;
    for one in waiting {
        bytes += one.body.len();
        match messages.last_mut() {
            Some(message) if message.len() < BATCH_REQUESTS_MAX && bytes <= BODIES_MAX_BYTES => message.push(one),
            _ => {
                bytes = one.body.len();
                messages.push(vec![one]);
            }
        }
    }
    messages
}

/// Sends one message, and gives each request its answer. Nobody who has stopped waiting for his is missed.
async fn send(remote: &RemoteNode, message: Vec<Waiting>) {
    let request =
        |one: &Waiting| BatchedRequest { xid: one.number.xid().0, opcode: one.opcode, body: one.body.clone() };
    let batch = Batch { requests: message.iter().map(request).collect() };
    let replies = match remote.batch(batch).await {
        Ok(replies) if replies.len() == message.len() => replies,
        Ok(_) => return,
        Err(error) => {
            message.into_iter().for_each(|one| drop(one.answer.send(Some(Err(error.clone())))));
            return;
        }
    };
    for (one, reply) in message.into_iter().zip(replies) {
        let answer = match reply {
            BatchedReply::Done(body) => {
                Some(MdsReply::decode(one.opcode, &body).map_err(|error| RpcError::from(error).into()))
            }
            BatchedReply::Refused(errno) => Some(Err(RpcError::Errno(errno).into())),
            BatchedReply::TooLong => None,
        };
        let _ = one.answer.send(answer);
    }
}
