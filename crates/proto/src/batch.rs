//! Several requests to one MDT in one message.
//!
//! Each keeps its own number, so a batch that is sent again does nothing twice: the MDT answers what it has done from its
//! reply cache, one request after the other.

use burstfs_types::{Errno, Xid, limits};
use serde::{Deserialize, Serialize};

use crate::Class;
use crate::mds::MdsRequest;
use crate::service::{Caller, MetadataService};

rpcs! {
    /// A request about several others.
    BatchRequest,
    /// Its answer.
    BatchReply, Batch;
    /// Runs the requests in their order. One that is refused does not stop the others.
    0x0501 Idempotent Batch(Batch) -> Vec<BatchedReply>;
}

/// The most requests of one batch. The longest reply of a request that changes something (attributes with a layout of
/// 2,048 stripes) fits that often into one body.
pub const BATCH_REQUESTS_MAX: usize = 128;

/// Where replies that only read end in one body; those to changes may come behind it.
const READ_REPLIES_MAX_BYTES: usize = limits::RPC_BODY_MAX_BYTES / 4;

/// Requests to the MDT of the node that gets them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// At most [`BATCH_REQUESTS_MAX`].
    pub requests: Vec<BatchedRequest>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BatchedRequest {
    /// Its number, of the same client as the batch's.
    pub xid: u64,
    /// Of the metadata service.
    pub opcode: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// What came of one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BatchedReply {
    /// The reply's body.
    Done(Vec<u8>),
    /// The service's error.
    Refused(Errno),
    /// A reply that only reads did not fit behind the others: ask for it alone.
    TooLong,
}

/// Has `service` answer a batch of `caller`. EINVAL when it is too long.
pub async fn run(service: &dyn MetadataService, caller: Caller, batch: Batch) -> Result<Vec<BatchedReply>, Errno> {
    if batch.requests.len() > BATCH_REQUESTS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut replies = Vec::with_capacity(batch.requests.len());
    let mut room = READ_REPLIES_MAX_BYTES;
    for request in batch.requests {
        let reply = run_one(service, caller, &request, room).await;
        if let BatchedReply::Done(body) = &reply {
            room = room.saturating_sub(body.len());
        }
        replies.push(reply);
    }
    Ok(replies)
}

async fn run_one(service: &dyn MetadataService, caller: Caller, request: &BatchedRequest, room: usize) -> BatchedReply {
    let caller = Caller { xid: Xid(request.xid), ..caller };
    let Ok(request) = MdsRequest::decode(request.opcode, &request.body) else {
        return BatchedReply::Refused(Errno::EPROTO);
    };
    let is_reading = request.class() == Class::ReadOnly;
    match service.call(caller, request).await {
        Err(errno) => BatchedReply::Refused(errno),
        Ok(reply) => match reply.encode() {
            body if is_reading && body.len() > room => BatchedReply::TooLong,
            body => BatchedReply::Done(body),
        },
    }
}
