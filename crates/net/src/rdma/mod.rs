//! The transport over RDMA: reliable connections of InfiniBand or RoCE.
//!
//! ```text
//!   client                                              server
//!     request (SEND)  --------------------------------->  receive, task, memory of the server's pool
//!       with a window on its source or sink    <--------  RDMA READ of the source
//!                                              <--------  RDMA WRITE into the sink, then
//!     reply           <---------------------------------  the reply (SEND)
//!     window invalid, memory back to the caller
//! ```
//!
//! The messages are those of TCP, in pieces that fit a receive (`wire`); small bulk data goes with them. A peer's device reaches
//! memory of a client only, only through a window that one request opened for it on one connection, and only until the
//! reply; the memory itself is registered without any right for others. A server registers nothing that could be reached.
//! No message ever finds no receive posted (`credits`).
//!
//! Owns: the device, one protection domain for each direction, the registered pools. A connection that fails ends alone
//! (`connection`). A dead peer is noticed by the device: what is sent is acknowledged or fails after a few seconds, and where
//! nothing is sent a probe is, every five seconds.

mod client;
mod connection;
mod credits;
mod handshake;
mod server;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_verbs::{Arena, ConnectionId, Device, ProtectionDomain, Purpose, SLAB_BYTES, Unusable, VerbsError};
use tokio::io::unix::AsyncFd;

use crate::auth::Identity;
use crate::error::RpcError;
use crate::region::RegionPool;
use crate::transport::{Link, Listener, Transport};

/// Buffers of messages, all connections of one direction together.
const BUFFERS_MAX_BYTES: usize = 512 << 20;
/// A client's copies of bytes that are not in registered memory.
const COPIES_MAX_BYTES: usize = 32 << 20;

/// Amounts of memory. It is registered, and so locked, in steps of 8 MiB when it is first used.
#[derive(Clone, Copy, Debug)]
pub struct RdmaConfig {
    /// For the bulk data of this process's requests.
    pub client_pool_bytes: usize,
    /// For the bulk data of requests to this process's servers, all connections together.
    pub server_pool_bytes: usize,
}

impl Default for RdmaConfig {
    fn default() -> RdmaConfig {
        RdmaConfig { client_pool_bytes: 128 << 20, server_pool_bytes: 128 << 20 }
    }
}

/// RDMA over one device. Clones share it, and the memory.
#[derive(Clone)]
pub struct Rdma {
    address: IpAddr,
    client: Side,
    server: Side,
    client_pool: RegionPool,
    copies: RegionPool,
    server_pool: RegionPool,
}

/// What the connections of one direction share.
#[derive(Clone)]
struct Side {
    domain: ProtectionDomain,
    buffers: Arena,
}

impl Side {
    fn new(device: &Device) -> Result<Side, Unusable> {
        let domain = ProtectionDomain::new(device)?;
        let buffers = arena(&domain, Purpose::Private, BUFFERS_MAX_BYTES)?;
        Ok(Side { domain, buffers })
    }
}

impl Rdma {
    /// Opens the device that serves `address` of this machine, and registers some memory; says why where that does not go.
    pub fn open(address: IpAddr, config: RdmaConfig) -> Result<Rdma, Unusable> {
        let device = Device::at(address)?;
        let (client, server) = (Side::new(&device)?, Side::new(&device)?);
        let pool = |side: &Side, purpose, bytes| {
            Ok::<_, Unusable>(RegionPool::registered(arena(&side.domain, purpose, bytes)?, bytes))
        };
        Ok(Rdma {
            address,
            client_pool: pool(&client, Purpose::Exposable, config.client_pool_bytes)?,
            copies: pool(&client, Purpose::Exposable, COPIES_MAX_BYTES)?,
            server_pool: pool(&server, Purpose::Private, config.server_pool_bytes)?,
            client,
            server,
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        self.client.domain.device().name()
    }

    /// Memory for the bulk data of requests to this process's servers.
    pub fn server_regions(&self) -> &RegionPool {
        &self.server_pool
    }
}

#[async_trait]
impl Transport for Rdma {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn regions(&self) -> &RegionPool {
        &self.client_pool
    }

    async fn connect(&self, address: SocketAddr, identity: &Identity) -> Result<Arc<dyn Link>, RpcError> {
        client::connect(self, address, identity).await
    }

    /// Listens at the device's address, whichever is asked for; the port is the one asked for.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        const BACKLOG: i32 = 1024;
        let id = ConnectionId::new().map_err(reason)?;
        id.bind(SocketAddr::new(self.address, address.port())).map_err(reason)?;
        id.listen(BACKLOG).map_err(reason)?;
        let address = id.local_address().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Box::new(server::RdmaListener::new(id, address, self)?))
    }
}

/// An arena; the limit of locked memory is told apart from other reasons.
fn arena(domain: &ProtectionDomain, purpose: Purpose, bytes: usize) -> Result<Arena, Unusable> {
    let lock = |error: VerbsError| {
        if error.is_memory_lock_limit() { Unusable::MemoryLock(error) } else { Unusable::Failed(error) }
    };
    Arena::new(domain, purpose, bytes.max(SLAB_BYTES)).map_err(lock)
}

/// What waits for a descriptor of the device's, over a descriptor of its own.
fn readiness(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: an owned descriptor is open, and the same, until it is dropped, which `AsyncFd` does after it took it out.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn reason(error: VerbsError) -> io::Error {
    error.error
}

fn unreachable(error: io::Error) -> RpcError {
    RpcError::Unreachable(error.kind())
}
