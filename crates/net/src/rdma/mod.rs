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
//! Owns: the devices, one protection domain of each for each direction, the registered pools. A peer is reached over as many
//! connections as the configuration says, and over all devices that both have (`lanes`). A connection that fails ends alone
//! (`connection`). A dead peer is noticed by the device: what is sent is acknowledged or fails after a few seconds, and where
//! nothing is sent a probe is, every five seconds.

mod client;
mod connection;
mod credits;
mod handshake;
mod lane_table;
mod lanes;
mod server;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_verbs::{Arena, ConnectionId, Device, ProtectionDomain, Purpose, SLAB_BYTES, Unusable, VerbsError};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::auth::Identity;
use crate::error::RpcError;
use crate::region::RegionPool;
use crate::transport::{Link, Listener, Transport};

/// Buffers of messages, all connections of one direction together.
const BUFFERS_MAX_BYTES: usize = 512 << 20;
/// A client's copies of bytes that are not in registered memory.
const COPIES_MAX_BYTES: usize = 32 << 20;

/// Amounts of memory, which is registered, and so locked, in steps of 8 MiB when it is first used; and how many connections.
#[derive(Clone, Copy, Debug)]
pub struct RdmaConfig {
    /// For the bulk data of this process's requests.
    pub client_pool_bytes: usize,
    /// For the bulk data of requests to this process's servers, all connections together.
    pub server_pool_bytes: usize,
    /// To each peer over each pair of devices; at least one.
    pub connections: usize,
}

impl Default for RdmaConfig {
    fn default() -> RdmaConfig {
        RdmaConfig { client_pool_bytes: 128 << 20, server_pool_bytes: 128 << 20, connections: 1 }
    }
}

/// RDMA over one device or several. Clones share them, and the memory.
#[derive(Clone)]
pub struct Rdma {
    rails: Arc<[Rail]>,
    connections: usize,
    client_pool: RegionPool,
    copies: RegionPool,
    server_pool: RegionPool,
}

/// One device, by the address that it serves.
struct Rail {
    address: IpAddr,
    client: Side,
    server: Side,
}

/// What the connections of one direction over one device share.
#[derive(Clone)]
struct Side {
    domain: ProtectionDomain,
    buffers: Arena,
}

impl Side {
    fn new(device: &Device) -> Result<Side, Unusable> {
        let domain = ProtectionDomain::new(device)?;
        let buffers = arena(slice::from_ref(&domain), Purpose::Private, BUFFERS_MAX_BYTES)?;
        Ok(Side { domain, buffers })
    }
}

impl Rail {
    fn open(address: IpAddr) -> Result<Rail, Unusable> {
        let device = Device::at(address)?;
        Ok(Rail { address, client: Side::new(&device)?, server: Side::new(&device)? })
    }

    fn listen(&self, port: u16) -> io::Result<(ConnectionId, SocketAddr)> {
        const BACKLOG: i32 = 1024;
        let id = ConnectionId::new().map_err(reason)?;
        id.bind(SocketAddr::new(self.address, port)).map_err(reason)?;
        id.listen(BACKLOG).map_err(reason)?;
        let address = id.local_address().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((id, address))
    }
}

impl Rdma {
    /// Opens the devices that serve these addresses of this machine, and registers some memory. One of several that cannot be
    /// used is left out, with a line of the log; says why where none can.
    pub fn open(addresses: &[IpAddr], config: RdmaConfig) -> Result<Rdma, Unusable> {
        let (mut rails, mut unusable) = (Vec::new(), Vec::new());
        for address in addresses {
            match Rail::open(*address) {
                Ok(rail) => rails.push(rail),
                Err(reason) => unusable.push(reason),
            }
        }
        if rails.is_empty() {
            return Err(unusable.into_iter().next().unwrap_or(Unusable::NoDevice));
        }
        for reason in unusable {
            warn!("one of this node's RDMA devices is not used: {reason}");
        }
        let domains = |side: fn(&Rail) -> &Side| rails.iter().map(|rail| side(rail).domain.clone()).collect::<Vec<_>>();
        let (client, server) = (domains(|rail| &rail.client), domains(|rail| &rail.server));
        let pool = |domains: &[ProtectionDomain], purpose, bytes| {
            Ok::<_, Unusable>(RegionPool::registered(arena(domains, purpose, bytes)?, bytes))
        };
        Ok(Rdma {
            client_pool: pool(&client, Purpose::Exposable, config.client_pool_bytes)?,
            copies: pool(&client, Purpose::Exposable, COPIES_MAX_BYTES)?,
            server_pool: pool(&server, Purpose::Private, config.server_pool_bytes)?,
            connections: config.connections.max(1),
            rails: rails.into(),
        })
    }

    /// The devices' names.
    pub fn devices(&self) -> Vec<&str> {
        self.rails.iter().map(|rail| rail.client.domain.device().name()).collect()
    }

    /// Memory for the bulk data of requests to this process's servers.
    pub fn server_regions(&self) -> &RegionPool {
        &self.server_pool
    }

    /// Listens over each device, at `port` where that is free there, else at any; where, and for whom.
    pub fn listen(&self, port: u16) -> io::Result<(Vec<SocketAddr>, Box<dyn Listener>)> {
        let mut listeners = Vec::new();
        for rail in self.rails.iter() {
            let (id, address) = rail.listen(port).or_else(|_| rail.listen(0))?;
            listeners.push(server::RdmaListener::new(id, address, rail, &self.server_pool)?);
        }
        let addresses = listeners.iter().map(server::RdmaListener::address).collect();
        Ok((addresses, Box::new(server::RailListeners::new(listeners))))
    }

    /// The link to a peer that listens at these addresses.
    pub async fn connect_to(&self, there: &[SocketAddr], identity: &Identity) -> Result<Arc<dyn Link>, RpcError> {
        lanes::connect(self, there, identity).await
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
        self.connect_to(&[address], identity).await
    }

    /// Listens at the first device's address, whichever is asked for; the port is the one asked for.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let Some(rail) = self.rails.first() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let (id, address) = rail.listen(address.port())?;
        Ok(Box::new(server::RdmaListener::new(id, address, rail, &self.server_pool)?))
    }
}

/// An arena; the limit of locked memory is told apart from other reasons.
fn arena(domains: &[ProtectionDomain], purpose: Purpose, bytes: usize) -> Result<Arena, Unusable> {
    let lock = |error: VerbsError| {
        if error.is_memory_lock_limit() { Unusable::MemoryLock(error) } else { Unusable::Failed(error) }
    };
    Arena::new(domains, purpose, bytes.max(SLAB_BYTES)).map_err(lock)
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
