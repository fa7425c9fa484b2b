//! The transport within one process: what tests and model clusters run on, with the semantics of the others.
//!
//! The hello goes through a pipe, the same as over TCP. A request and the memory lent to it are then handed over as they
//! are, and the server reaches the memory directly. As with one-sided RDMA, that memory cannot be taken away from a
//! service that uses it: after a lost connection a request comes back when the service is done with it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError, in_bounds};
use burstfs_types::{Errno, limits};
use bytes::Bytes;
use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::auth::{Identity, Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::hello;
use crate::region::RegionPool;
use crate::reply_once::{Answer, ReplyOnce, ReplyPath};
use crate::transport::{
    Admission, ClientBulk, Ending, Exchange, Inbound, Incoming, Link, Listener, Lost, LostCause, Outcome, Refused,
    Reply, Request, ServerLink, Transport, put_at,
};

const CLIENT_PORT: u16 = 1;

/// A network of its own inside this process. Clones are the same network.
#[derive(Clone)]
pub struct InProcess {
    listeners: Arc<Mutex<HashMap<SocketAddr, mpsc::UnboundedSender<Knock>>>>,
    pool: RegionPool,
}

impl InProcess {
    /// A network whose clients' bulk data takes at most `pool_bytes`.
    pub fn new(pool_bytes: usize) -> InProcess {
        InProcess { listeners: Arc::default(), pool: RegionPool::new(pool_bytes) }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<SocketAddr, mpsc::UnboundedSender<Knock>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for InProcess {
    fn name(&self) -> &'static str {
        "in-process"
    }

    fn regions(&self) -> &RegionPool {
        &self.pool
    }

    async fn connect(&self, address: SocketAddr, identity: &Identity) -> Result<Arc<dyn Link>, RpcError> {
        let refused = || RpcError::Unreachable(io::ErrorKind::ConnectionRefused);
        let listener = self.listeners().get(&address).cloned().ok_or_else(refused)?;
        let (mut ours, theirs) = tokio::io::duplex(limits::HELLO_MAX_BYTES);
        let (requests, inbound) = mpsc::unbounded_channel();
        let wire = Arc::new(Wire::default());
        let knock = Knock { stream: theirs, address, requests: inbound, wire: wire.clone() };
        listener.send(knock).map_err(|_| refused())?;
        hello::open(&mut ours, identity, address).await?;
        Ok(Arc::new(InProcessLink { requests, wire }))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let mut listeners = self.listeners();
        let mut address = address;
        if address.port() == 0 {
            let free = (CLIENT_PORT + 1..u16::MAX).find(|port| !listeners.contains_key(&(address.ip(), *port).into()));
            address.set_port(free.ok_or(io::ErrorKind::AddrInUse)?);
        }
        if listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, knocks) = mpsc::unbounded_channel();
        listeners.insert(address, sender);
        Ok(Box::new(InProcessListener { network: self.clone(), address, knocks }))
    }
}

/// Somebody who connects.
struct Knock {
    stream: DuplexStream,
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Flight>,
    wire: Arc<Wire>,
}

/// What both ends of a connection share.
#[derive(Default)]
struct Wire {
    cut: watch::Sender<bool>,
    replies: AtomicU64,
}

impl Wire {
    fn cut(&self) {
        self.cut.send_replace(true);
    }

    fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }
}

/// A request in flight; dropped on the way, it is lost.
struct Flight {
    inner: Option<(Request, oneshot::Sender<Outcome>)>,
    wire: Arc<Wire>,
}

impl Flight {
    fn answer(mut self, result: Result<Bytes, Errno>, put_len: usize) {
        if self.wire.is_cut() {
            return;
        }
        let Some((mut request, done)) = self.inner.take() else {
            return;
        };
        let put_len = if result.is_ok() { put_len } else { 0 };
        let sink = match std::mem::take(&mut request.bulk) {
            ClientBulk::Sink(mut region) => {
                region.truncate(put_len);
                Some(region)
            }
            ClientBulk::None | ClientBulk::Source(_) => None,
        };
        drop(request);
        self.wire.replies.fetch_add(1, Ordering::Relaxed);
        // A caller that has stopped waiting is no error.
        let _ = done.send(Ok(Reply { result, sink }));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some((request, done)) = self.inner.take() {
            let _ = done.send(Err(Box::new(Lost { cause: LostCause::Disconnected, request })));
        }
    }
}

struct InProcessLink {
    requests: mpsc::UnboundedSender<Flight>,
    wire: Arc<Wire>,
}

impl Link for InProcessLink {
    fn submit(&self, request: Request, done: oneshot::Sender<Outcome>) {
        let flight = Flight { inner: Some((request, done)), wire: self.wire.clone() };
        if !self.wire.is_cut() {
            // A server that is gone gives it back, and so it is lost.
            let _ = self.requests.send(flight);
        }
    }

    fn is_closed(&self) -> bool {
        self.wire.is_cut() || self.requests.is_closed()
    }

    fn replies(&self) -> u64 {
        self.wire.replies.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.wire.cut();
    }
}

struct InProcessListener {
    network: InProcess,
    address: SocketAddr,
    knocks: mpsc::UnboundedReceiver<Knock>,
}

impl Drop for InProcessListener {
    fn drop(&mut self) {
        self.network.listeners().remove(&self.address);
    }
}

#[async_trait]
impl Listener for InProcessListener {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>> {
        match self.knocks.recv().await {
            Some(knock) => Ok(Box::new(knock)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

#[async_trait]
impl Incoming for Knock {
    fn origin(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, CLIENT_PORT).into()
    }

    async fn prove(
        mut self: Box<Self>,
        terms: &Terms,
        _admission: Admission,
    ) -> Result<(Peer, Box<dyn ServerLink>), RpcError> {
        let peer = hello::accept(&mut self.stream, terms, self.address).await?;
        let cut = self.wire.cut.subscribe();
        Ok((peer, Box::new(InProcessServerLink { requests: self.requests, wire: self.wire, cut })))
    }

    async fn refuse(mut self: Box<Self>, refusal: Refusal) {
        hello::refuse(&mut self.stream, refusal).await;
    }
}

struct InProcessServerLink {
    requests: mpsc::UnboundedReceiver<Flight>,
    wire: Arc<Wire>,
    cut: watch::Receiver<bool>,
}

#[async_trait]
impl ServerLink for InProcessServerLink {
    async fn next(&mut self, place: OwnedSemaphorePermit) -> Result<Option<Inbound>, ProtocolError> {
        let received = tokio::select! {
            biased;
            _ = self.cut.wait_for(|cut| *cut) => None,
            flight = self.requests.recv() => flight,
        };
        let Some(flight) = received else {
            return Ok(None);
        };
        let Some((request, _)) = &flight.inner else {
            return Ok(None);
        };
        let (xid, oldest, opcode, body) = (request.xid, request.oldest, request.opcode, request.body.clone());
        let exchange = InProcessExchange { reply: ReplyOnce::new(xid, opcode, flight), put_len: 0, _place: place };
        Ok(Some(Inbound { xid, oldest, opcode, body, exchange: Box::new(exchange) }))
    }

    fn close(&mut self) {
        self.wire.cut();
    }
}

impl Drop for InProcessServerLink {
    fn drop(&mut self) {
        self.wire.cut();
    }
}

struct InProcessExchange {
    reply: ReplyOnce<Flight>,
    put_len: usize,
    _place: OwnedSemaphorePermit,
}

impl InProcessExchange {
    fn source_bytes(&self) -> &[u8] {
        match self.reply.path().and_then(|flight| flight.inner.as_ref()) {
            Some((Request { bulk: ClientBulk::Source(source), .. }, _)) => source,
            _ => &[],
        }
    }

    fn sink_bytes(&mut self) -> &mut [u8] {
        match self.reply.path_mut().and_then(|flight| flight.inner.as_mut()) {
            Some((Request { bulk: ClientBulk::Sink(region), .. }, _)) => region,
            _ => &mut [],
        }
    }
}

impl ReplyPath for Flight {
    /// Bytes that are in the sink.
    type Put = usize;

    fn send(self, answer: Answer, put_len: usize) {
        // The bytes are the client's own: they cannot be damaged on their way.
        let errno = |refused| match refused {
            Refused::Errno(errno) => errno,
            Refused::Damaged { .. } => Errno::EIO,
        };
        self.answer(answer.result.map_err(errno), put_len);
    }
}

impl Exchange for InProcessExchange {
    fn bulk(&mut self) -> &mut dyn Bulk {
        self
    }

    fn end(self: Box<Self>, ending: Ending) {
        self.reply.end(ending, self.put_len);
    }
}

#[async_trait]
impl Bulk for InProcessExchange {
    fn source_len(&self) -> usize {
        self.source_bytes().len()
    }

    fn sink_len(&self) -> usize {
        match self.reply.path().and_then(|flight| flight.inner.as_ref()) {
            Some((request, _)) => request.bulk.sink_len(),
            None => 0,
        }
    }

    fn source(&self) -> Option<&[u8]> {
        Some(self.source_bytes())
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(self.sink_bytes())
    }

    fn set_put_len(&mut self, len: usize) {
        self.put_len = len.min(self.sink_len());
    }

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), self.source_len())?;
        into.copy_from_slice(&self.source_bytes()[offset..offset + into.len()]);
        Ok(())
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), self.sink_len())?;
        let mut put_len = self.put_len;
        put_at(self.sink_bytes(), &mut put_len, offset, from);
        self.put_len = put_len;
        Ok(())
    }
}
