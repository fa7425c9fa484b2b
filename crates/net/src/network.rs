//! A node's way to all others: RDMA to those that have it, when this node has it, and TCP to all.
//!
//! Both listen at one port number. Which peers can be reached by RDMA the caller says ([`Network::reach_by_rdma`]), as the
//! instance's map names them; a channel knows only the TCP address, and each connection is chosen anew: where RDMA does not
//! come through, the connection goes over TCP, with one line of the log, unless RDMA is required. Bulk memory is registered
//! where there is a device, and serves both.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::{info, warn};

use crate::auth::Identity;
use crate::error::{RpcError, Waiting};
#[cfg(feature = "rdma")]
use crate::rdma::{Rdma, RdmaConfig};
use crate::region::RegionPool;
use crate::tcp::{Tcp, TcpConfig};
use crate::transport::{Incoming, Link, Listener, Transport};

/// One attempt over RDMA, hello included, where TCP can be used as well: a port whose cable is out answers nothing.
#[cfg(feature = "rdma")]
const RDMA_ATTEMPT: Duration = Duration::from_secs(4);
/// After one that failed RDMA is not tried again for so long.
#[cfg(feature = "rdma")]
const RDMA_AGAIN: Duration = Duration::from_secs(60);

/// Which transports a node uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// RDMA where both ends have it, else TCP.
    Auto,
    /// RDMA between nodes, or nothing. The instance is found over TCP all the same.
    Rdma,
    /// TCP only.
    Tcp,
}

/// TCP, and RDMA where there is any. Clones are the same.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

/// Amounts of memory, as [`TcpConfig`] has them, and how many connections RDMA makes.
#[derive(Clone, Copy, Debug)]
pub struct NetworkConfig {
    /// Memory for both transports.
    pub memory: TcpConfig,
    /// RDMA connections to each peer over each pair of devices; at least one.
    pub rdma_connections: usize,
}

impl Default for NetworkConfig {
    fn default() -> NetworkConfig {
        NetworkConfig { memory: TcpConfig::default(), rdma_connections: 1 }
    }
}

struct Inner {
    tcp: Tcp,
    #[cfg(feature = "rdma")]
    rdma: Option<Rdma>,
    is_required: bool,
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    /// RDMA addresses, by the TCP address.
    rdma: HashMap<SocketAddr, Arc<[SocketAddr]>>,
    /// Peers to which TCP is used instead, as the log says, and since when.
    fallen_back: HashMap<SocketAddr, Instant>,
    /// Where this node listens for RDMA.
    listening: Vec<SocketAddr>,
}

impl Peers {
    #[cfg(feature = "rdma")]
    fn is_given_up(&self, peer: SocketAddr) -> bool {
        self.fallen_back.get(&peer).is_some_and(|since| since.elapsed() < RDMA_AGAIN)
    }
}

impl Network {
    /// A node's network. `addresses` are those of this node on the network that the others reach it by: RDMA goes through the
    /// devices that serve them. An error says why there is no RDMA though it is required; with [`Choice::Auto`] the log says it.
    pub fn open(choice: Choice, addresses: &[IpAddr], config: NetworkConfig) -> Result<Network, String> {
        let rdma = match choice {
            Choice::Tcp => None,
            Choice::Auto | Choice::Rdma => Some(open_rdma(addresses, config)),
        };
        let rdma = match rdma {
            Some(Ok(rdma)) => Some(rdma),
            Some(Err(reason)) if choice == Choice::Rdma => return Err(reason),
            Some(Err(reason)) => {
                info!("RDMA is not used on this node, TCP is: {reason}");
                None
            }
            None => None,
        };
        Ok(Network::new(rdma, choice == Choice::Rdma, config.memory))
    }

    #[cfg(feature = "rdma")]
    fn new(rdma: Option<Rdma>, is_required: bool, config: TcpConfig) -> Network {
        let tcp = match &rdma {
            Some(rdma) => Tcp::with_client_pool(rdma.regions().clone(), config),
            None => Tcp::new(config),
        };
        Network(Arc::new(Inner { tcp, rdma, is_required, peers: Mutex::default() }))
    }

    #[cfg(not(feature = "rdma"))]
    fn new(_none: Option<std::convert::Infallible>, is_required: bool, config: TcpConfig) -> Network {
        Network(Arc::new(Inner { tcp: Tcp::new(config), is_required, peers: Mutex::default() }))
    }

    /// Where this node listens for RDMA, device by device; nowhere, where it has none.
    pub fn rdma_addresses(&self) -> Vec<SocketAddr> {
        self.peers().listening.clone()
    }

    /// Says where the peer of a TCP address listens for RDMA; nowhere, where it does not.
    pub fn reach_by_rdma(&self, tcp: SocketAddr, rdma: &[SocketAddr]) {
        let mut peers = self.peers();
        peers.fallen_back.remove(&tcp);
        match rdma {
            [] => peers.rdma.remove(&tcp),
            rdma => peers.rdma.insert(tcp, rdma.into()),
        };
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection over RDMA, where the peer has it; `None` where TCP is to be used.
    #[cfg(feature = "rdma")]
    async fn connect_by_rdma(
        &self,
        address: SocketAddr,
        identity: &Identity,
    ) -> Option<Result<Arc<dyn Link>, RpcError>> {
        let rdma = self.0.rdma.as_ref()?;
        let there = self.peers().rdma.get(&address).cloned()?;
        if self.0.is_required {
            return Some(rdma.connect_to(&there, identity).await);
        }
        if self.peers().is_given_up(address) {
            return None;
        }
        let late = RpcError::Timeout(Waiting::Connection);
        match tokio::time::timeout(RDMA_ATTEMPT, rdma.connect_to(&there, identity)).await.unwrap_or(Err(late)) {
            Err(error @ (RpcError::Unreachable(_) | RpcError::Timeout(_))) => {
                if self.peers().fallen_back.insert(address, Instant::now()).is_none() {
                    warn!(peer = %address, %error, "RDMA does not come through to this peer, TCP is used");
                }
                None
            }
            connected => {
                self.peers().fallen_back.remove(&address);
                Some(connected)
            }
        }
    }

    #[cfg(not(feature = "rdma"))]
    async fn connect_by_rdma(
        &self,
        _address: SocketAddr,
        _identity: &Identity,
    ) -> Option<Result<Arc<dyn Link>, RpcError>> {
        None
    }

    /// Listens for RDMA at the port that TCP has, or at any where that is taken.
    #[cfg(feature = "rdma")]
    async fn listen_for_rdma(&self, tcp: SocketAddr) -> io::Result<Option<Box<dyn Listener>>> {
        let Some(rdma) = &self.0.rdma else { return Ok(None) };
        let (addresses, listener) = rdma.listen(tcp.port())?;
        self.peers().listening = addresses;
        Ok(Some(listener))
    }

    #[cfg(not(feature = "rdma"))]
    async fn listen_for_rdma(&self, _tcp: SocketAddr) -> io::Result<Option<Box<dyn Listener>>> {
        Ok(None)
    }
}

#[cfg(feature = "rdma")]
fn open_rdma(addresses: &[IpAddr], config: NetworkConfig) -> Result<Rdma, String> {
    let TcpConfig { client_pool_bytes, server_pool_bytes } = config.memory;
    let config = RdmaConfig { client_pool_bytes, server_pool_bytes, connections: config.rdma_connections };
    let rdma = Rdma::open(addresses, config).map_err(|reason| reason.to_string())?;
    let devices = rdma.devices().join(", ");
    info!(devices, ?addresses, "RDMA is used to peers that have it");
    Ok(rdma)
}

#[cfg(not(feature = "rdma"))]
fn open_rdma(_addresses: &[IpAddr], _config: NetworkConfig) -> Result<std::convert::Infallible, String> {
    Err("burstfs was built without RDMA".to_owned())
}

#[async_trait]
impl Transport for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    fn regions(&self) -> &RegionPool {
        self.0.tcp.regions()
    }

    async fn connect(&self, address: SocketAddr, identity: &Identity) -> Result<Arc<dyn Link>, RpcError> {
        match self.connect_by_rdma(address, identity).await {
            Some(connected) => connected,
            None => self.0.tcp.connect(address, identity).await,
        }
    }

    /// Listens for TCP there, and for RDMA at this node's device.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let tcp = self.0.tcp.bind(address).await?;
        Ok(match self.listen_for_rdma(tcp.address()).await? {
            Some(rdma) => Box::new(Both { tcp, rdma }),
            None => tcp,
        })
    }
}

/// Both listeners, as one: what is resent over the other transport meets its original at the same server.
struct Both {
    tcp: Box<dyn Listener>,
    rdma: Box<dyn Listener>,
}

#[async_trait]
impl Listener for Both {
    fn address(&self) -> SocketAddr {
        self.tcp.address()
    }

    async fn accept(&mut self) -> io::Result<Box<dyn Incoming>> {
        tokio::select! {
            accepted = self.tcp.accept() => accepted,
            accepted = self.rdma.accept() => accepted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MEMORY: TcpConfig = TcpConfig { client_pool_bytes: 1 << 20, server_pool_bytes: 1 << 20 };
    const CONFIG: NetworkConfig = NetworkConfig { memory: MEMORY, rdma_connections: 1 };

    #[tokio::test]
    async fn without_a_device_auto_is_tcp_and_rdma_says_why() {
        // The loopback is served by no device, on any machine.
        let here = Ipv4Addr::LOCALHOST.into();
        let auto = Network::open(Choice::Auto, &[here], CONFIG).unwrap();
        let listener = auto.bind(SocketAddr::new(here, 0)).await.unwrap();
        assert_ne!(listener.address().port(), 0);
        assert_eq!(auto.rdma_addresses(), []);
        let refused = Network::open(Choice::Rdma, &[here], CONFIG).err().unwrap();
        assert!(!refused.is_empty());
        assert!(Network::open(Choice::Tcp, &[], CONFIG).is_ok());
    }
}
