//! The transport over TCP.
//!
//! A message is the header of `burstfs_proto::frame`, its body, and the bulk segment with its checksum. Bulk data is
//! read straight into its region and written from it. A connection has one reading task; whoever sends tries to write at
//! once, on his own thread, and leaves what the socket does not take to the connection's writing task (`queue`).
//!
//! A dead peer is noticed by TCP itself: keep-alive probes where nothing is sent, the user time-out where something is.

mod client;
mod queue;
mod server;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream};

use crate::auth::Identity;
use crate::error::RpcError;
use crate::hello;
use crate::region::RegionPool;
use crate::transport::{Link, Listener, Transport};

const LISTEN_BACKLOG: u32 = 1024;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent data may stay unacknowledged, or a full receiver full.
const USER_TIMEOUT_MS: u32 = 25_000;

/// Amounts of memory.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// For the bulk data of this process's requests.
    pub client_pool_bytes: usize,
    /// For the bulk data of requests to this process's servers, all connections together.
    pub server_pool_bytes: usize,
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig { client_pool_bytes: 128 << 20, server_pool_bytes: 128 << 20 }
    }
}

/// TCP. Clones share the memory.
#[derive(Clone, Debug)]
pub struct Tcp {
    client_pool: RegionPool,
    server_pool: RegionPool,
}

impl Tcp {
    /// A transport with its memory.
    pub fn new(config: TcpConfig) -> Tcp {
        Tcp {
            client_pool: RegionPool::new(config.client_pool_bytes),
            server_pool: RegionPool::new(config.server_pool_bytes),
        }
    }

    /// A transport whose clients take their memory from a pool that another transport uses, too.
    #[cfg(feature = "rdma")]
    pub(crate) fn with_client_pool(client_pool: RegionPool, config: TcpConfig) -> Tcp {
        Tcp { client_pool, server_pool: RegionPool::new(config.server_pool_bytes) }
    }

    /// Memory for the bulk data of requests to this process's servers.
    pub fn server_regions(&self) -> &RegionPool {
        &self.server_pool
    }
}

#[async_trait]
impl Transport for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn regions(&self) -> &RegionPool {
        &self.client_pool
    }

    async fn connect(&self, address: SocketAddr, identity: &Identity) -> Result<Arc<dyn Link>, RpcError> {
        let unreachable = |error: io::Error| RpcError::Unreachable(error.kind());
        let mut stream = TcpStream::connect(address).await.map_err(unreachable)?;
        prepare(&stream).map_err(unreachable)?;
        let server = stream.peer_addr().map_err(unreachable)?;
        hello::open(&mut stream, identity, server).await?;
        Ok(client::start(stream, server))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted daemon takes its port again while connections of its former life are in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(LISTEN_BACKLOG)?;
        Ok(Box::new(server::TcpAccept::new(listener, self.server_pool.clone())?))
    }
}

/// Sets what every connection has.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}
