//! The server's end of an RDMA connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::frame::{Header, Kind};
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError};
use burstfs_verbs::{Block, ConnectionId, Event, Remote};
use bytes::Bytes;
use futures_util::future::select_all;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info, warn};

use super::connection::{Cause, Outgoing, Returned, Role, Wire};
use super::handshake::{self, Events};
use super::wire::{self, CARRIED_MAX_BYTES, Carried, Message, Text, WRITTEN, oldest};
use super::{Rail, Side, unreachable};
use crate::auth::{Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::hello;
use crate::region::{Region, RegionPool};
use crate::reply_once::{Answer, ReplyOnce, ReplyPath};
use crate::server_memory::{Allowance, ServerMemory, check_source};
use crate::transport::{Admission, Ending, Exchange, Inbound, Incoming, Listener, ServerLink};

/// A listening identifier.
pub(super) struct RdmaListener {
    id: ConnectionId,
    events: Events,
    address: SocketAddr,
    side: Side,
    pool: RegionPool,
}

impl RdmaListener {
    pub(super) fn new(
        id: ConnectionId,
        address: SocketAddr,
        rail: &Rail,
        pool: &RegionPool,
    ) -> io::Result<RdmaListener> {
        let events = Events::of(&id)?;
        Ok(RdmaListener { id, events, address, side: rail.server.clone(), pool: pool.clone() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The listeners of all devices, as one.
pub(super) struct RailListeners {
    listeners: Vec<RdmaListener>,
    address: SocketAddr,
}

impl RailListeners {
    /// Of at least one.
    pub(super) fn new(listeners: Vec<RdmaListener>) -> RailListeners {
        let address = listeners.first().map_or(SocketAddr::from(([0, 0, 0, 0], 0)), RdmaListener::address);
        RailListeners { listeners, address }
    }
}

#[async_trait]
impl Listener for RailListeners {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>> {
        loop {
            let accepts = self.listeners.iter_mut().map(Listener::accept);
            let (accepted, at, rest) = select_all(accepts).await;
            drop(rest);
            match accepted {
                // A device that is gone takes only its own listener along.
                Err(error) if error.kind() == io::ErrorKind::NetworkDown && self.listeners.len() > 1 => {
                    warn!(address = %self.listeners[at].address, "an RDMA device is gone");
                    self.listeners.remove(at);
                }
                accepted => return accepted,
            }
        }
    }
}

#[async_trait]
impl Listener for RdmaListener {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>> {
        loop {
            match self.events.next(&mut self.id).await? {
                Event::Request(id, said, reads) => {
                    let origin = id.peer_address().ok_or(io::ErrorKind::AddrNotAvailable)?;
                    let (side, pool) = (self.side.clone(), self.pool.clone());
                    return Ok(Box::new(Stranger { id, said, reads, origin, address: self.address, side, pool }));
                }
                Event::DeviceRemoved => return Err(io::ErrorKind::NetworkDown.into()),
                event => debug!(?event, "RDMA listener"),
            }
        }
    }
}

struct Stranger {
    id: ConnectionId,
    said: Vec<u8>,
    reads: u8,
    origin: SocketAddr,
    address: SocketAddr,
    side: Side,
    pool: RegionPool,
}

#[async_trait]
impl Incoming for Stranger {
    fn origin(&self) -> SocketAddr {
        self.origin
    }

    async fn prove(
        self: Box<Self>,
        terms: &Terms,
        admission: Admission,
    ) -> Result<(Peer, Box<dyn ServerLink>), RpcError> {
        let Stranger { id, said, reads, origin, address, side, pool } = *self;
        let endpoint = handshake::accept(&side, id, &said, reads).await?;
        let wire = Wire::new(endpoint, &side.buffers, true).map_err(unreachable)?;
        tokio::spawn(wire.clone().run(Arc::new(Quiet)));
        // From here on dropping the link ends the connection.
        let link = RdmaServerLink { wire: wire.clone(), allowance: Allowance::new(admission, pool), origin };
        let hello = |mut stream| async move { hello::accept(&mut stream, terms, address).await };
        let peer = handshake::over(&wire, hello).await?;
        wire.proven();
        Ok((peer, Box::new(link)))
    }

    async fn refuse(self: Box<Self>, _refusal: Refusal) {
        // Without a connection there is no room for the reason. The client tries again as after `Refusal::Busy`, the only
        // reason for which nobody is heard.
        self.id.reject();
    }
}

/// A server's messages wait in the inbox for it, and it lends nothing.
struct Quiet;

impl Role for Quiet {
    fn message(&self, _wire: &Wire, message: Message) -> Result<(), ProtocolError> {
        let Header { xid, opcode, .. } = message.header;
        Err(ProtocolError::Direction { xid, opcode })
    }

    fn retracted(&self, _number: u64, _block: Option<Block>) {}

    fn ended(&self, _cause: &Cause, _returned: Returned) {}
}

struct RdmaServerLink {
    wire: Arc<Wire>,
    allowance: Allowance,
    origin: SocketAddr,
}

#[async_trait]
impl ServerLink for RdmaServerLink {
    async fn next(&mut self, place: OwnedSemaphorePermit) -> Result<Option<Inbound>, ProtocolError> {
        match self.wire.next_message().await? {
            Some(message) => self.request(message, place).map(Some),
            None => {
                info!(client = %self.origin, "the RDMA connection is over");
                Ok(None)
            }
        }
    }

    fn close(&mut self) {
        self.wire.close(Cause::Closed);
    }
}

impl Drop for RdmaServerLink {
    fn drop(&mut self) {
        self.wire.close(Cause::Closed);
    }
}

impl RdmaServerLink {
    fn request(&self, message: Message, place: OwnedSemaphorePermit) -> Result<Inbound, ProtocolError> {
        let Message { header, window, written, body, bulk } = message;
        let Header { xid, opcode, .. } = header;
        let (source_len, sink_len) = (header.bulk_len as usize, header.bulk_space as usize);
        if header.kind != Kind::Request || written {
            return Err(ProtocolError::Direction { xid, opcode });
        }
        if source_len > 0 && sink_len > 0 {
            return Err(ProtocolError::BothWays { xid, opcode });
        }
        if window.is_none() && sink_len > CARRIED_MAX_BYTES {
            return Err(ProtocolError::Piece("of a request without the window that its bulk data needs"));
        }
        let exchange = RdmaExchange {
            allowance: self.allowance.clone(),
            carried: bulk,
            crc: header.bulk_crc,
            memory: ServerMemory::new(source_len, sink_len),
            reply: ReplyOnce::new(xid, opcode, Back { wire: self.wire.clone(), window, held: vec![place] }),
        };
        Ok(Inbound { xid, oldest: oldest(&header), opcode, body, exchange: Box::new(exchange) })
    }
}

/// A request's memory here: a copy of the client's source, or what is to be written to its sink.
struct RdmaExchange {
    allowance: Allowance,
    /// The source, where it came with the request.
    carried: Bytes,
    /// Of the source, by the client.
    crc: u32,
    memory: ServerMemory,
    reply: ReplyOnce<Back>,
}

/// A reply's way back: the connection, the window on the client's memory, and what is let go of when the reply is away.
struct Back {
    wire: Arc<Wire>,
    window: Option<Remote>,
    held: Vec<OwnedSemaphorePermit>,
}

impl ReplyPath for Back {
    type Put = Region;

    fn send(self, answer: Answer, put: Region) {
        let header = answer.header(&put);
        let (mut flags, mut write, mut carried) = (0, None, Carried::Nothing);
        match self.window {
            Some(window) if put.len() > CARRIED_MAX_BYTES => {
                flags = WRITTEN;
                write = Some((put, window));
            }
            _ if !put.is_empty() => carried = Carried::Region(put),
            _ => {}
        }
        let text = Text::new(&header, answer.into_body(), carried);
        let outgoing = Outgoing { kind: wire::Kind::Message, flags, text, lend: None, write, held: self.held };
        // On a connection that is over nobody waits.
        let _ = self.wire.push(outgoing);
    }
}

impl RdmaExchange {
    /// Memory for the bulk data. The bounds of the connection and of all are waited for here, by the request alone.
    async fn take_memory(&mut self) -> Result<(), BulkError> {
        let (region, permit) = self.allowance.take(self.memory.needs()).await.ok_or(BulkError::Disconnected)?;
        self.memory.provide(region);
        if let Some(back) = self.reply.path_mut() {
            back.held.push(permit);
        }
        Ok(())
    }

    async fn get_source(&mut self) -> Result<(), BulkError> {
        let Some((wire, window)) = self.reply.path().and_then(|back| Some((&back.wire, back.window?))) else {
            self.memory.region().copy_from_slice(&self.carried);
            return Ok(());
        };
        let len = self.memory.source_len();
        let block = self.memory.region().take_block().ok_or(BulkError::Disconnected)?;
        let block = wire.read(block, len, window).await.map_err(|_| BulkError::Disconnected)?;
        self.memory.region().put_block(block);
        Ok(())
    }
}

#[async_trait]
impl Exchange for RdmaExchange {
    async fn prepare(&mut self) -> Result<(), BulkError> {
        if self.memory.needs() == 0 {
            return Ok(());
        }
        self.take_memory().await?;
        if self.memory.source_len() == 0 {
            return Ok(());
        }
        self.get_source().await?;
        check_source(self.crc, crc32c::crc32c(self.memory.region()))
    }

    fn bulk(&mut self) -> &mut dyn Bulk {
        &mut self.memory
    }

    fn end(self: Box<Self>, ending: Ending) {
        self.reply.end(ending, self.memory.into_put());
    }
}
