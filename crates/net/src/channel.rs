//! The RPC client.
//!
//! A [`Client`] is a process's side of all its conversations: who it is, its numbers, its transport. A [`Channel`] is the
//! conversation with one peer: many requests at once over one connection.
//!
//! A call is driven by its caller's task: it takes a place, a number, the connection, submits, and waits. When the
//! connection is lost the link gives the request back and the call submits it again under its number, on the next
//! connection, until its deadline. A caller that drops the call's future abandons the request: its number counts as
//! answered, its memory and its place in the bounds stay with the link until the late reply is there.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burstfs_proto::Rpc;
use burstfs_types::limits;
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout_at;

use crate::auth::Identity;
use crate::connect::Connector;
use crate::error::{ProtocolError, Remedy, RpcError, Waiting};
use crate::region::{Region, RegionTooLarge, Source};
use crate::transport::{ClientBulk, Link, Lost, LostCause, Outcome, Reply, Request, Ticket, Transport};
use crate::xid::XidSource;

/// After so many broken replies a request is not sent again: more of the same would follow.
const PROTOCOL_FAULTS_MAX: u32 = 3;

/// Until when a caller waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// In `time` from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    /// At `instant`.
    pub fn at(instant: Instant) -> Deadline {
        Deadline(instant)
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.0 <= Instant::now()
    }

    pub(crate) fn instant(self) -> tokio::time::Instant {
        self.0.into()
    }

    async fn bound<T>(self, waiting: Waiting, future: impl Future<Output = T>) -> Result<T, RpcError> {
        timeout_at(self.instant(), future).await.map_err(|_| RpcError::Timeout(waiting))
    }
}

/// What one channel may have in flight.
#[derive(Clone, Copy, Debug)]
pub struct ChannelLimits {
    /// Requests.
    pub requests_max: usize,
    /// Bytes of their bulk memory; at least one request's fit.
    pub bulk_bytes_max: usize,
}

impl Default for ChannelLimits {
    fn default() -> ChannelLimits {
        ChannelLimits { requests_max: 128, bulk_bytes_max: 32 << 20 }
    }
}

/// A process as a client of its instance. Clones are the same client.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    identity: Arc<Identity>,
    xids: XidSource,
    limits: ChannelLimits,
}

impl Client {
    /// A client with its numbers. A client of role `Node` numbers as the id that it names in its role.
    pub fn new(transport: Arc<dyn Transport>, identity: Identity, xids: XidSource, limits: ChannelLimits) -> Client {
        Client { transport, identity: Arc::new(identity), xids, limits }
    }

    /// The channel to a peer, which is connected when first used and whenever the connection is lost.
    pub fn channel(&self, address: SocketAddr) -> Channel {
        let connector = Connector::new(self.transport.clone(), self.identity.clone(), address);
        let bytes = self.limits.bulk_bytes_max.clamp(limits::RPC_BULK_MAX_BYTES, Semaphore::MAX_PERMITS);
        Channel(Arc::new(Inner {
            connector,
            xids: self.xids.clone(),
            places: Arc::new(Semaphore::new(self.limits.requests_max.clamp(1, Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(bytes)),
        }))
    }

    /// Connects once: for a caller that does not know who listens there. `Refused(Instance)` and `Refused(Magic)` say that
    /// it is somebody else, `Unreachable` that it is nobody. The channel reconnects like any other.
    pub async fn connect_once(&self, address: SocketAddr, deadline: Deadline) -> Result<Channel, RpcError> {
        let channel = self.channel(address);
        channel.0.connector.link_once(deadline).await?;
        Ok(channel)
    }

    /// Memory for bulk data; waits until there is some.
    pub async fn region(&self, len: usize) -> Result<Region, RegionTooLarge> {
        self.transport.regions().region(len).await
    }

    /// A copy of `bytes` to be sent, in memory that the transport sends from if some is free; waits for nothing.
    pub fn copy_to_send(&self, bytes: &[u8]) -> Source {
        self.transport.regions().copy(bytes)
    }

    /// The client's numbers.
    pub fn xids(&self) -> &XidSource {
        &self.xids
    }
}

/// The way to one peer. Clones are the same channel; the last one to go closes it.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

struct Inner {
    connector: Connector,
    xids: XidSource,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Channel {
    /// A request without bulk data.
    pub async fn call<R: Rpc>(&self, request: &R, deadline: Deadline) -> Result<R::Reply, RpcError> {
        let reply = self.exchange(R::OPCODE, burstfs_proto::encode(request), ClientBulk::None, deadline).await?;
        Ok(burstfs_proto::decode(R::NAME, &reply.0)?)
    }

    /// A request that sends bulk data.
    pub async fn call_sending<R: Rpc>(
        &self,
        request: &R,
        source: impl Into<Source>,
        deadline: Deadline,
    ) -> Result<R::Reply, RpcError> {
        let bulk = ClientBulk::Source(source.into());
        let reply = self.exchange(R::OPCODE, burstfs_proto::encode(request), bulk, deadline).await?;
        Ok(burstfs_proto::decode(R::NAME, &reply.0)?)
    }

    /// A request that receives bulk data, at most what `sink` holds. The region comes back cut to what was received.
    pub async fn call_receiving<R: Rpc>(
        &self,
        request: &R,
        sink: Region,
        deadline: Deadline,
    ) -> Result<(R::Reply, Region), RpcError> {
        let bulk = ClientBulk::Sink(sink);
        let (body, region) = self.exchange(R::OPCODE, burstfs_proto::encode(request), bulk, deadline).await?;
        Ok((burstfs_proto::decode(R::NAME, &body)?, region.unwrap_or_default()))
    }

    /// A request as its opcode and body, for callers that have it as one of its service's enum: the reply's body, and the
    /// sink if one was lent.
    pub async fn exchange(
        &self,
        opcode: u16,
        body: impl Into<Bytes>,
        bulk: ClientBulk,
        deadline: Deadline,
    ) -> Result<(Bytes, Option<Region>), RpcError> {
        let body = body.into();
        check_lengths(&body, &bulk)?;
        let reply = tokio::select! {
            biased;
            reply = self.0.drive(opcode, body, bulk, deadline) => reply?,
            () = self.0.connector.closed() => return Err(RpcError::Closed),
        };
        Ok((reply.result.map_err(RpcError::Errno)?, reply.sink))
    }

    /// Where the peer is.
    pub fn address(&self) -> SocketAddr {
        self.0.connector.address()
    }

    /// Whether there is a connection just now.
    pub fn is_connected(&self) -> bool {
        self.0.connector.current().is_some()
    }

    /// Ends the channel: every call, also those that wait, fails with [`RpcError::Closed`]. For a peer that is known to be
    /// gone for good.
    pub fn close(&self) {
        self.0.connector.close();
    }
}

impl Inner {
    async fn drive(&self, opcode: u16, body: Bytes, bulk: ClientBulk, deadline: Deadline) -> Result<Reply, RpcError> {
        let ticket = self.ticket(&bulk, deadline).await?;
        let number = self.xids.take();
        let (xid, oldest) = (number.xid(), number.xid());
        let mut request = Request { xid, oldest, opcode, body, bulk, ticket };
        let mut faults = 0;
        loop {
            let link = self.connector.link(deadline).await?;
            request.oldest = self.xids.oldest_unanswered();
            let (done, outcome) = oneshot::channel::<Outcome>();
            link.submit(request, done);
            let outcome = deadline.bound(Waiting::Reply, outcome).await?;
            let lost: Lost = match outcome {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(lost)) => *lost,
                // The link's tasks are gone: the runtime is shutting down.
                Err(_) => return Err(RpcError::Closed),
            };
            if let LostCause::Protocol(error) = lost.cause {
                faults += 1;
                let error = RpcError::Protocol(error);
                if faults >= PROTOCOL_FAULTS_MAX || error.remedy() == Remedy::Fail {
                    return Err(error);
                }
            }
            request = lost.request;
        }
    }

    /// Waits for a place among the requests in flight.
    async fn ticket(&self, bulk: &ClientBulk, deadline: Deadline) -> Result<Ticket, RpcError> {
        if let Some(ticket) = self.try_ticket(bulk) {
            return Ok(ticket);
        }
        let before = self.connector.current().map(|link| (link.replies(), link));
        let waited = deadline.bound(Waiting::Place, self.wait_for_ticket(bulk)).await;
        if waited.is_err() {
            abandon_stuck(before);
        }
        waited?
    }

    fn try_ticket(&self, bulk: &ClientBulk) -> Option<Ticket> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let bytes = match bulk_bytes(bulk) {
            0 => None,
            bytes => Some(self.bytes.clone().try_acquire_many_owned(bytes).ok()?),
        };
        Some(Ticket::new(place, bytes))
    }

    async fn wait_for_ticket(&self, bulk: &ClientBulk) -> Result<Ticket, RpcError> {
        let closed = |_| RpcError::Closed;
        let place = self.places.clone().acquire_owned().await.map_err(closed)?;
        let bytes = match bulk_bytes(bulk) {
            0 => None,
            bytes => Some(self.bytes.clone().acquire_many_owned(bytes).await.map_err(closed)?),
        };
        Ok(Ticket::new(place, bytes))
    }
}

/// Ends a connection on which nothing was answered during a whole deadline while it was full: what waits there is sent
/// again on the next one, and what was abandoned lets go of its place.
fn abandon_stuck(before: Option<(u64, Arc<dyn Link>)>) {
    if let Some((replies, link)) = before
        && link.replies() == replies
    {
        link.close();
    }
}

fn bulk_bytes(bulk: &ClientBulk) -> u32 {
    u32::try_from(bulk.source_len() + bulk.sink_len()).unwrap_or(u32::MAX)
}

fn check_lengths(body: &[u8], bulk: &ClientBulk) -> Result<(), RpcError> {
    if body.len() > limits::RPC_BODY_MAX_BYTES {
        return Err(RpcError::Protocol(ProtocolError::BodyTooLong(body.len())));
    }
    let bulk_len = bulk.source_len() + bulk.sink_len();
    if bulk_len > limits::RPC_BULK_MAX_BYTES {
        return Err(RpcError::Protocol(ProtocolError::BulkTooLong(bulk_len)));
    }
    Ok(())
}
