//! What a transport offers: the traits that in-process, TCP and RDMA implement, and that `Channel` and `serve` use.
//!
//! Requests and replies are small messages. Bulk data is never part of them: a request lends memory of its client, a
//! source or a sink, and the server moves the bytes through [`Bulk`]. How is the transport's business: direct addressing,
//! a segment behind the message, or one-sided reads and writes at an address and key that travel with the request.
//!
//! Ownership of lent memory: from [`Link::submit`] on the link has the [`Request`] with its bulk memory, and gives it back
//! with the outcome: at the reply, or at the loss of the connection *when the server can no longer reach the memory*.
//! That a caller stopped waiting changes nothing of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::frame::{DAMAGED, Header};
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError};
use burstfs_types::{Errno, Xid};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::auth::{Identity, Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::region::{Region, RegionPool, Source};

/// A way to reach peers.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// Memory for clients' bulk data. Servers take theirs from elsewhere, or two nodes could wait for each other.
    fn regions(&self) -> &RegionPool;

    /// Connects once and goes through the hello. The caller bounds the time.
    async fn connect(&self, address: SocketAddr, identity: &Identity) -> Result<Arc<dyn Link>, RpcError>;

    /// Listens; port 0 takes any.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;
}

/// A client's end of a connection.
pub trait Link: Send + Sync + 'static {
    /// Sends a request. `done` hears of it exactly once. Does not block; the requests in flight are bounded above.
    fn submit(&self, request: Request, done: oneshot::Sender<Outcome>);

    /// Whether the connection is gone.
    fn is_closed(&self) -> bool;

    /// Replies that have arrived: whether a silent peer is stuck or only one request is slow.
    fn replies(&self) -> u64;

    /// Ends the connection; all requests are lost.
    fn close(&self);
}

/// What a channel's bounds gave to a request; goes back when the link is done with the request.
#[derive(Debug, Default)]
pub struct Ticket {
    _place: Option<OwnedSemaphorePermit>,
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    pub(crate) fn new(place: OwnedSemaphorePermit, bytes: Option<OwnedSemaphorePermit>) -> Ticket {
        Ticket { _place: Some(place), _bytes: bytes }
    }
}

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// Its number.
    pub xid: Xid,
    /// The oldest that the client waits for.
    pub oldest: Xid,
    /// Which RPC.
    pub opcode: u16,
    /// The encoded request.
    pub body: Bytes,
    /// Lent memory.
    pub bulk: ClientBulk,
    /// Its part of the channel's bounds.
    pub ticket: Ticket,
}

/// The memory that a client lends to one request.
#[derive(Debug, Default)]
pub enum ClientBulk {
    /// None.
    #[default]
    None,
    /// The server gets from it.
    Source(Source),
    /// The server puts into it.
    Sink(Region),
}

impl ClientBulk {
    /// Bytes that the server may get.
    pub fn source_len(&self) -> usize {
        if let ClientBulk::Source(source) = self { source.len() } else { 0 }
    }

    /// Bytes that the server may put.
    pub fn sink_len(&self) -> usize {
        if let ClientBulk::Sink(region) = self { region.len() } else { 0 }
    }
}

/// What comes of a request.
pub type Outcome = Result<Reply, Box<Lost>>;

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// The encoded reply, or the service's error.
    pub result: Result<Bytes, Errno>,
    /// The sink that was lent, cut to what was put.
    pub sink: Option<Region>,
}

/// A request without a reply: whether it ran is not known.
#[derive(Debug)]
pub struct Lost {
    /// Why.
    pub cause: LostCause,
    /// As it was submitted.
    pub request: Request,
}

/// Why a connection was lost.
#[derive(Clone, Debug)]
pub enum LostCause {
    /// The peer or the network ended it, or this side's [`Link::close`].
    Disconnected,
    /// The peer broke a rule.
    Protocol(ProtocolError),
}

/// Accepts connections.
#[async_trait]
pub trait Listener: Send + 'static {
    /// Where.
    fn address(&self) -> SocketAddr;

    /// The next stranger.
    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>>;
}

/// What a server gives to one connection.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Requests that are running or whose replies are not yet away.
    pub requests_max: usize,
    /// Bytes of bulk data of those.
    pub bulk_bytes_max: usize,
}

/// A connection that has not proved itself.
#[async_trait]
pub trait Incoming: Send + 'static {
    /// Where it comes from, for the log.
    fn origin(&self) -> SocketAddr;

    /// The server's side of the hello. The caller bounds the time.
    async fn prove(
        self: Box<Self>,
        terms: &Terms,
        admission: Admission,
    ) -> Result<(Peer, Box<dyn ServerLink>), RpcError>;

    /// Turns it away.
    async fn refuse(self: Box<Self>, refusal: Refusal);
}

/// A server's end of a connection.
#[async_trait]
pub trait ServerLink: Send + 'static {
    /// The next request; `None` when the client ended the connection or it was lost. `place` is held until the reply is
    /// away. An error ends the connection too.
    async fn next(&mut self, place: OwnedSemaphorePermit) -> Result<Option<Inbound>, ProtocolError>;

    /// Ends the connection at once.
    fn close(&mut self);
}

/// A request that has arrived.
pub struct Inbound {
    /// Its number.
    pub xid: Xid,
    /// The oldest that the client waits for.
    pub oldest: Xid,
    /// Which RPC.
    pub opcode: u16,
    /// The encoded request.
    pub body: Bytes,
    /// Its bulk memory, and the way of its reply.
    pub exchange: Box<dyn Exchange>,
}

/// One request's bulk memory, and the way of its reply. Dropped without a reply, it answers `EIO`.
#[async_trait]
pub trait Exchange: Send + 'static {
    /// Makes the bulk memory ready for the service; called once, before anything else. May wait for memory of the server's.
    /// [`BulkError::Damaged`] when what the client sent is not what it says it sent: the service then never sees it.
    async fn prepare(&mut self) -> Result<(), BulkError> {
        Ok(())
    }

    /// For the service.
    fn bulk(&mut self) -> &mut dyn Bulk;

    /// Ends the request.
    fn end(self: Box<Self>, ending: Ending);
}

/// How a request ends at its server.
#[derive(Debug)]
pub enum Ending {
    /// With a reply; after an error nothing that was put counts.
    Reply(Result<Vec<u8>, Errno>),
    /// Its bulk data came with this checksum, which is not the one that the client gave: nothing was run, and it may send the request
    /// again.
    Damaged {
        /// Of the bytes that came.
        actual: u32,
    },
    /// Without an answer: nobody waits.
    Discard,
}

/// What a server has to say of a request that brought no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The service's word.
    Errno(Errno),
    /// Its bulk data came with this checksum.
    Damaged { actual: u32 },
}

impl Refused {
    /// The reply's status and checksum.
    pub(crate) fn on_wire(self) -> (u32, u32) {
        match self {
            Refused::Errno(errno) => (errno.raw().unsigned_abs(), 0),
            Refused::Damaged { actual } => (DAMAGED, actual),
        }
    }
}

/// A reply without its bulk data: the body, or the service's error; an error of the protocol where the server says that what
/// `sent` has of bulk data did not arrive.
pub(crate) fn result_of(
    header: &Header,
    body: Bytes,
    sent: &ClientBulk,
) -> Result<Result<Bytes, Errno>, ProtocolError> {
    match (header.status, sent) {
        (0, _) => Ok(Ok(body)),
        (DAMAGED, ClientBulk::Source(source)) => {
            Err(checksum_error(header, source.len(), (source.crc(), header.bulk_crc)))
        }
        (errno, _) => Ok(Err(Errno::from_raw(i32::try_from(errno).unwrap_or(Errno::EIO.raw())))),
    }
}

/// That `len` bytes of bulk data are not what their checksum says.
pub(crate) fn checksum_error(header: &Header, len: usize, (expected, actual): (u32, u32)) -> ProtocolError {
    ProtocolError::Checksum { xid: header.xid, opcode: header.opcode, len, expected, actual }
}

/// Puts `from` at `offset`. What lies between the bytes put so far and these becomes zeros: the memory may hold another
/// request's bytes.
pub(crate) fn put_at(memory: &mut [u8], put_len: &mut usize, offset: usize, from: &[u8]) {
    if offset > *put_len {
        memory[*put_len..offset].fill(0);
    }
    let end = offset + from.len();
    memory[offset..end].copy_from_slice(from);
    *put_len = end.max(*put_len);
}
