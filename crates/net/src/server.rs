//! The RPC server: accepts connections, lets in who proves to be of the instance, and runs requests.
//!
//! ```text
//!   accept loop --- stranger --> connection task: hello, then one request after the other is read
//!                                  `--> a task for each request: Handler, reply
//! ```
//!
//! The requests of a connection run concurrently; how many, and with how much bulk data, is bounded: at the bound the
//! connection is not read, so that the client waits. A place is free again when its reply is written. Nothing that one
//! connection does ends another, or the accept loop.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use burstfs_proto::hello::Refusal;
use burstfs_proto::service::{Bulk, BulkError, Caller};
use burstfs_types::{ClientId, Errno, InstanceId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::auth::{Authenticator, Peer, Terms};
use crate::error::{ProtocolError, RpcError};
use crate::resends::{Clients, Requests};
use crate::transport::{Admission, Ending, Inbound, Incoming, Listener, ServerLink};

/// After an error of `accept` (no file descriptors, for one), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// At most one line of the log about strangers in this time.
const STRANGER_LOG_EVERY: Duration = Duration::from_secs(1);

/// What answers requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request: the encoded reply, or an errno. Whether `peer` may ask for it is the handler's to say. It is
    /// not stopped when the connection is lost. A handler that blocks its thread holds up others: it should leave that to
    /// threads for blocking work.
    async fn handle(
        &self,
        peer: &Peer,
        caller: Caller,
        opcode: u16,
        body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> Result<Vec<u8>, Errno>;
}

/// Whom a server lets in, and its bounds.
#[derive(Clone)]
pub struct ServerConfig {
    /// Clients of this instance.
    pub instance: InstanceId,
    /// Of this user, or root.
    pub uid: u32,
    /// How identity is proved.
    pub auth: Arc<dyn Authenticator>,
    /// Bounds.
    pub limits: ServerLimits,
}

/// A server's bounds.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// How long a stranger may take to prove who he is.
    pub hello_timeout: Duration,
    /// Strangers at a time; more are refused as [`Refusal::Busy`], or dropped when that is too much too.
    pub strangers_max: usize,
    /// Requests of one connection that run, or whose replies are not yet written.
    pub requests_max: usize,
    /// Bytes of their bulk data.
    pub bulk_bytes_max: usize,
    /// How long [`ServerHandle::shutdown`] waits for requests that run.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            hello_timeout: Duration::from_secs(5),
            strangers_max: 256,
            requests_max: 256,
            bulk_bytes_max: 64 << 20,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Starts a server. Needs a runtime around it.
pub fn serve(listener: Box<dyn Listener>, config: ServerConfig, handler: Arc<dyn Handler>) -> ServerHandle {
    let address = listener.address();
    let limits = config.limits;
    let (stop, stopping) = watch::channel(false);
    let shared = Arc::new(Shared {
        terms: Terms { instance: config.instance, uid: config.uid, auth: config.auth },
        limits,
        handler,
        stopping,
        clients: Clients::default(),
        strangers: Arc::new(Semaphore::new(limits.strangers_max)),
        refused: Arc::new(Semaphore::new(limits.strangers_max)),
        connections: Mutex::default(),
        next_connection: AtomicU64::new(0),
        log: LogGate::default(),
    });
    let accepting = tokio::spawn(shared.clone().accept(listener));
    ServerHandle { address, shared, stop, accepting: tokio::sync::Mutex::new(accepting) }
}

/// A running server; stops at once when dropped.
pub struct ServerHandle {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    accepting: tokio::sync::Mutex<JoinHandle<()>>,
}

impl ServerHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Clients that are connected, one entry for each connection.
    pub fn peers(&self) -> Vec<Peer> {
        self.shared.connections().values().map(|connection| connection.peer).collect()
    }

    /// Cuts the connections of a client. It may connect again.
    pub fn disconnect(&self, client: ClientId) {
        self.disconnect_where(|peer| peer.client == client);
    }

    /// Cuts all connections. Clients may connect again.
    pub fn disconnect_all(&self) {
        self.disconnect_where(|_| true);
    }

    /// Takes no more connections and requests, lets those that run end and their replies go out, and closes. The address is
    /// free when it returns.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let mut accepting = self.accepting.lock().await;
        if !accepting.is_finished() {
            // An error is a panic of the accept loop, which has then ended too.
            let _ = (&mut *accepting).await;
        }
    }

    fn disconnect_where(&self, chosen: impl Fn(&Peer) -> bool) {
        for connection in self.shared.connections().values().filter(|connection| chosen(&connection.peer)) {
            connection.cut.notify_one();
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.accepting.get_mut().abort();
    }
}

struct Shared {
    terms: Terms,
    limits: ServerLimits,
    handler: Arc<dyn Handler>,
    stopping: watch::Receiver<bool>,
    clients: Clients,
    /// Places for those who have not proved who they are.
    strangers: Arc<Semaphore>,
    /// Places for those who are told that there is no such place.
    refused: Arc<Semaphore>,
    connections: Mutex<HashMap<u64, Connection>>,
    next_connection: AtomicU64,
    log: LogGate,
}

struct Connection {
    peer: Peer,
    cut: Arc<Notify>,
}

impl Shared {
    /// The accept loop; ends when the server stops, with all of its connections.
    async fn accept(self: Arc<Self>, mut listener: Box<dyn Listener>) {
        let mut stopping = self.stopping.clone();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(incoming) => self.clone().receive(incoming, &mut connections),
                Err(error) => {
                    self.log.warn(|more| warn!(%error, more, "cannot accept a connection"));
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Starts a stranger's connection, or its refusal.
    fn receive(self: Arc<Self>, incoming: Box<dyn Incoming>, connections: &mut JoinSet<()>) {
        if let Ok(place) = self.strangers.clone().try_acquire_owned() {
            connections.spawn(self.connection(incoming, place));
            return;
        }
        let origin = incoming.origin();
        self.log.warn(|more| warn!(%origin, more, "refused: too many connections wait for their proof"));
        if let Ok(place) = self.refused.clone().try_acquire_owned() {
            connections.spawn(async move {
                // Whether he heard it in time is his business.
                let _ = timeout(self.limits.hello_timeout, incoming.refuse(Refusal::Busy)).await;
                drop(place);
            });
        }
    }

    async fn connection(self: Arc<Self>, incoming: Box<dyn Incoming>, stranger: OwnedSemaphorePermit) {
        let origin = incoming.origin();
        let admission =
            Admission { requests_max: self.limits.requests_max, bulk_bytes_max: self.limits.bulk_bytes_max };
        let proved = {
            let mut stopping = self.stopping.clone();
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                proved = timeout(self.limits.hello_timeout, incoming.prove(&self.terms, admission)) => proved,
            }
        };
        drop(stranger);
        match proved {
            Ok(Ok((peer, link))) => {
                debug!(%origin, client = %peer.client, role = ?peer.role, uid = peer.uid, "connected");
                self.serve(peer, origin, link).await;
            }
            Ok(Err(error)) => self.log_refused(origin, &error),
            Err(_) => self.log.warn(|more| warn!(%origin, more, "closed: no proof of identity in time")),
        }
    }

    fn log_refused(&self, origin: SocketAddr, error: &RpcError) {
        match error {
            // Ports are shared between instances, and a client may go away whenever it likes.
            RpcError::Refused(Refusal::Instance) => info!(%origin, "refused: a client of another instance"),
            RpcError::Closed | RpcError::Unreachable(_) => debug!(%origin, "gone before it proved who it is"),
            RpcError::Refused(_)
            | RpcError::Unauthenticated(_)
            | RpcError::Errno(_)
            | RpcError::Timeout(_)
            | RpcError::Protocol(_) => self.log.warn(|more| warn!(%origin, %error, more, "refused a connection")),
        }
    }

    async fn serve(self: Arc<Self>, peer: Peer, origin: SocketAddr, mut link: Box<dyn ServerLink>) {
        let registered = Registered::new(&self, peer);
        let requests_max = u32::try_from(self.limits.requests_max.max(1)).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(requests_max as usize));
        let requests = self.clients.requests(peer.client);
        let mut stopping = self.stopping.clone();
        let stopped = loop {
            tokio::select! {
                biased;
                () = registered.cut.notified() => break false,
                _ = stopping.wait_for(|stop| *stop) => break true,
                inbound = next(&mut link, &places) => match inbound {
                    Ok(Some(inbound)) => {
                        tokio::spawn(self.clone().run(peer, requests.clone(), inbound));
                    }
                    Ok(None) => break false,
                    Err(error) => {
                        warn!(%origin, client = %peer.client, %error, "connection closed: the client broke the protocol");
                        break false;
                    }
                },
            }
        };
        if stopped {
            let all_done = places.acquire_many(requests_max);
            if timeout(self.limits.drain_timeout, all_done).await.is_err() {
                info!(%origin, client = %peer.client, "closed with requests that still run");
            }
        }
        link.close();
    }

    async fn run(self: Arc<Self>, peer: Peer, requests: Arc<Requests>, inbound: Inbound) {
        let Inbound { xid, oldest, opcode, body, mut exchange } = inbound;
        let Some(running) = requests.start(xid, oldest).await else {
            // Its caller does not wait any more. Its link does: what the request lent comes back with the reply.
            return exchange.end(Ending::Reply(Err(Errno::EINTR)));
        };
        match exchange.prepare().await {
            Ok(()) => {}
            Err(error @ BulkError::Damaged { actual, .. }) => {
                let len = exchange.bulk().source_len();
                warn!(client = %peer.client, %xid, opcode, len, %error, "bulk data was damaged on its way; it is asked for again");
                return exchange.end(Ending::Damaged { actual });
            }
            // Without its connection nobody waits for the reply; what has run not at all is sent again.
            Err(BulkError::Disconnected | BulkError::OutOfBounds { .. }) => return exchange.end(Ending::Discard),
        }
        let caller = Caller { client: peer.client, xid, oldest_unanswered: oldest };
        let result = self.handler.handle(&peer, caller, opcode, &body, exchange.bulk()).await;
        exchange.end(Ending::Reply(result));
        drop(running);
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next request, once there is a place for it.
async fn next(link: &mut Box<dyn ServerLink>, places: &Arc<Semaphore>) -> Result<Option<Inbound>, ProtocolError> {
    match places.clone().acquire_owned().await {
        Ok(place) => link.next(place).await,
        // Never closed.
        Err(_) => Ok(None),
    }
}

/// A connection's entry in the server's list, for as long as this lives.
struct Registered {
    shared: Arc<Shared>,
    number: u64,
    cut: Arc<Notify>,
}

impl Registered {
    fn new(shared: &Arc<Shared>, peer: Peer) -> Registered {
        let number = shared.next_connection.fetch_add(1, Ordering::Relaxed);
        let cut = Arc::new(Notify::new());
        shared.connections().insert(number, Connection { peer, cut: cut.clone() });
        Registered { shared: shared.clone(), number, cut }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.number);
    }
}

/// Keeps strangers from filling the log.
#[derive(Default)]
struct LogGate {
    state: Mutex<(Option<Instant>, u64)>,
}

impl LogGate {
    /// Logs with the number of lines that were left out before, or leaves this one out.
    fn warn(&self, log: impl FnOnce(u64)) {
        let left_out = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0.is_some_and(|last| last.elapsed() < STRANGER_LOG_EVERY) {
                state.1 += 1;
                return;
            }
            state.0 = Some(Instant::now());
            std::mem::take(&mut state.1)
        };
        log(left_out);
    }
}
