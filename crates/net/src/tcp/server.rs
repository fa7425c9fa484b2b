//! The server's end of a TCP connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::frame::{Header, Kind};
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError};
use burstfs_types::Xid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info};

use super::prepare;
use super::queue::{Frame, Payload, Queue};
use super::wire::{Ended, Incoming as Reading, len};
use crate::auth::{Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::hello;
use crate::region::{Region, RegionPool};
use crate::reply_once::{Answer, ReplyOnce, ReplyPath};
use crate::server_memory::{Allowance, ServerMemory, check_source};
use crate::transport::{Admission, Ending, Exchange, Inbound, Incoming, Listener, ServerLink};

/// A listening socket.
pub(super) struct TcpAccept {
    listener: TcpListener,
    address: SocketAddr,
    pool: RegionPool,
}

impl TcpAccept {
    pub(super) fn new(listener: TcpListener, pool: RegionPool) -> io::Result<TcpAccept> {
        let address = listener.local_addr()?;
        Ok(TcpAccept { listener, address, pool })
    }
}

#[async_trait]
impl Listener for TcpAccept {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>> {
        let (stream, origin) = self.listener.accept().await?;
        Ok(Box::new(Stranger { stream, origin, pool: self.pool.clone() }))
    }
}

struct Stranger {
    stream: TcpStream,
    origin: SocketAddr,
    pool: RegionPool,
}

#[async_trait]
impl Incoming for Stranger {
    fn origin(&self) -> SocketAddr {
        self.origin
    }

    async fn prove(
        mut self: Box<Self>,
        terms: &Terms,
        admission: Admission,
    ) -> Result<(Peer, Box<dyn ServerLink>), RpcError> {
        let unreachable = |error: io::Error| RpcError::Unreachable(error.kind());
        prepare(&self.stream).map_err(unreachable)?;
        let local = self.stream.local_addr().map_err(unreachable)?;
        let peer = hello::accept(&mut self.stream, terms, local).await?;
        let (read, write) = self.stream.into_split();
        let queue = Arc::new(Queue::new(write));
        let writer = queue.clone();
        tokio::spawn(async move { writer.run().await });
        let link = TcpServerLink {
            incoming: Reading::new(read),
            queue,
            allowance: Allowance::new(admission, self.pool),
            origin: self.origin,
        };
        Ok((peer, Box::new(link)))
    }

    async fn refuse(mut self: Box<Self>, refusal: Refusal) {
        hello::refuse(&mut self.stream, refusal).await;
    }
}

struct TcpServerLink {
    incoming: Reading,
    queue: Arc<Queue>,
    allowance: Allowance,
    origin: SocketAddr,
}

#[async_trait]
impl ServerLink for TcpServerLink {
    async fn next(&mut self, place: OwnedSemaphorePermit) -> Result<Option<Inbound>, ProtocolError> {
        match self.request(place).await {
            Ok(inbound) => Ok(Some(inbound)),
            Err(Ended::Finished) => {
                debug!(client = %self.origin, "the client ended the connection");
                Ok(None)
            }
            Err(Ended::Lost(error)) => {
                info!(client = %self.origin, %error, "connection lost");
                Ok(None)
            }
            Err(Ended::Protocol(error)) => Err(error),
        }
    }

    fn close(&mut self) {
        self.queue.close();
    }
}

impl Drop for TcpServerLink {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl TcpServerLink {
    async fn request(&mut self, place: OwnedSemaphorePermit) -> Result<Inbound, Ended> {
        let header = self.incoming.header(Kind::Request).await?;
        let Header { xid, opcode, .. } = header;
        let (source_len, sink_len) = (len(header.bulk_len), len(header.bulk_space));
        if source_len > 0 && sink_len > 0 {
            return Err(ProtocolError::BothWays { xid, opcode }.into());
        }
        let body = self.incoming.body(&header).await?;
        let mut held = vec![place];
        let mut memory = ServerMemory::new(source_len, sink_len);
        // Waiting for it stops reading from this connection, and so its client.
        if memory.needs() > 0 {
            let exhausted = || Ended::Lost(io::ErrorKind::OutOfMemory.into());
            let (region, permit) = self.allowance.take(memory.needs()).await.ok_or_else(exhausted)?;
            memory.provide(region);
            held.push(permit);
        }
        let crc = if source_len > 0 { self.incoming.bulk(memory.region()).await? } else { header.bulk_crc };
        let reply = ReplyOnce::new(xid, opcode, Back { queue: self.queue.clone(), held });
        let crcs = (header.bulk_crc, crc);
        let exchange = TcpExchange { memory, crcs, reply };
        let oldest = Xid(xid.0.saturating_sub(u64::from(header.status)));
        Ok(Inbound { xid, oldest, opcode, body, exchange: Box::new(exchange) })
    }
}

/// A request's memory here: what came with it, or what goes back with its reply.
struct TcpExchange {
    memory: ServerMemory,
    /// Of what came with it: by the client, and by the bytes.
    crcs: (u32, u32),
    reply: ReplyOnce<Back>,
}

/// A reply's way back: the connection's queue, and what it lets go of when the reply is away.
struct Back {
    queue: Arc<Queue>,
    held: Vec<OwnedSemaphorePermit>,
}

impl ReplyPath for Back {
    type Put = Region;

    fn send(self, answer: Answer, put: Region) {
        let bulk = if put.is_empty() { Payload::None } else { Payload::Region(put) };
        let header = answer.header(bulk.bytes());
        self.queue.push(Frame::new(&header, answer.into_body(), bulk, self.held));
    }
}

#[async_trait]
impl Exchange for TcpExchange {
    async fn prepare(&mut self) -> Result<(), BulkError> {
        let (expected, actual) = self.crcs;
        check_source(expected, actual)
    }

    fn bulk(&mut self) -> &mut dyn Bulk {
        &mut self.memory
    }

    fn end(self: Box<Self>, ending: Ending) {
        self.reply.end(ending, self.memory.into_put());
    }
}
