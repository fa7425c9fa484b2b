//! The server's end of a TCP connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::frame::{Header, Kind};
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError, in_bounds};
use burstfs_types::{Errno, Xid, limits};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info};

use super::prepare;
use super::queue::{Frame, Payload, Queue};
use super::wire::{Ended, Incoming as Reading, len, wire_len};
use crate::auth::{Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::hello;
use crate::region::{Region, RegionPool};
use crate::reply_once::{Answer, ReplyOnce, ReplyPath};
use crate::transport::{Admission, Exchange, Inbound, Incoming, Listener, ServerLink, put_at};

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
            bytes: Arc::new(Semaphore::new(admission.bulk_bytes_max.max(limits::RPC_BULK_MAX_BYTES))),
            pool: self.pool,
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
    /// What this connection's bulk data may still take.
    bytes: Arc<Semaphore>,
    pool: RegionPool,
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
        let mut memory = self.memory(source_len.max(sink_len), &mut held).await?;
        let crc = if source_len > 0 { self.incoming.bulk(&mut memory).await? } else { header.bulk_crc };
        let reply = ReplyOnce::new(xid, opcode, Back { queue: self.queue.clone(), held });
        let crcs = (header.bulk_crc, crc);
        let exchange = TcpExchange { memory, is_source: source_len > 0, crcs, put_len: 0, reply };
        let oldest = Xid(xid.0.saturating_sub(u64::from(header.status)));
        Ok(Inbound { xid, oldest, opcode, body, exchange: Box::new(exchange) })
    }

    /// Memory for a request's bulk data. Waiting for it stops reading from this connection, and so its client.
    async fn memory(&self, len: usize, held: &mut Vec<OwnedSemaphorePermit>) -> Result<Region, Ended> {
        if len == 0 {
            return Ok(Region::default());
        }
        let exhausted = || Ended::Lost(io::ErrorKind::OutOfMemory.into());
        let permits = wire_len(len);
        held.push(self.bytes.clone().acquire_many_owned(permits).await.map_err(|_| exhausted())?);
        self.pool.region(len).await.map_err(|_| exhausted())
    }
}

/// A request's memory here: what came with it, or what goes back with its reply.
struct TcpExchange {
    memory: Region,
    is_source: bool,
    /// Of what came with it: by the client, and by the bytes.
    crcs: (u32, u32),
    put_len: usize,
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
        if expected == actual { Ok(()) } else { Err(BulkError::Damaged { expected, actual }) }
    }

    fn reply(self: Box<Self>, result: Result<Vec<u8>, Errno>) {
        let TcpExchange { memory, is_source, put_len, reply, .. } = *self;
        let mut put = if is_source { Region::default() } else { memory };
        put.truncate(put_len);
        reply.send(result, put);
    }

    fn damaged(self: Box<Self>, actual: u32) {
        self.reply.damaged(actual);
    }

    fn discard(self: Box<Self>) {
        self.reply.discard();
    }

    fn bulk(&mut self) -> &mut dyn Bulk {
        self
    }
}

#[async_trait]
impl Bulk for TcpExchange {
    fn source_len(&self) -> usize {
        if self.is_source { self.memory.len() } else { 0 }
    }

    fn sink_len(&self) -> usize {
        if self.is_source { 0 } else { self.memory.len() }
    }

    fn source(&self) -> Option<&[u8]> {
        Some(if self.is_source { &self.memory } else { &[] })
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(if self.is_source { &mut [] } else { &mut self.memory })
    }

    fn set_put_len(&mut self, len: usize) {
        self.put_len = len.min(self.sink_len());
    }

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), self.source_len())?;
        into.copy_from_slice(&self.memory[offset..offset + into.len()]);
        Ok(())
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), self.sink_len())?;
        put_at(&mut self.memory, &mut self.put_len, offset, from);
        Ok(())
    }
}
