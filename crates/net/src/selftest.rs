//! A process that talks to itself through an RDMA device: whether RDMA works on this machine, as far as one machine can tell.
//!
//! Everything is as between two nodes, from the connection manager to the proof of identity, the windows and the credits; only the
//! wire is missing, or the port's own loop. The bytes that come back are compared.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use burstfs_proto::hello::Role;
use burstfs_proto::service::{Bulk, Caller};
use burstfs_types::{ClientId, Errno, InstanceId, NodeIndex};
use thiserror::Error;

use crate::auth::{Authenticator, Identity, Peer};
use crate::channel::{Channel, ChannelLimits, Client, Deadline};
use crate::error::RpcError;
use crate::rdma::{Rdma, RdmaConfig};
use crate::server::{Handler, ServerConfig, ServerLimits, serve};
use crate::transport::{ClientBulk, Transport};
use crate::xid::XidSource;

const ECHO: u16 = 0x7f01;
const KEEP: u16 = 0x7f02;
const FILL: u16 = 0x7f03;
const SMALL_CALLS: u32 = 200;
const BULK_CALLS: u32 = 16;
const BULK_BYTES: usize = 1 << 20;
const TIME: Duration = Duration::from_secs(60);
const POOL_BYTES: usize = 16 << 20;

/// What was seen.
#[derive(Clone, Debug)]
pub struct RdmaReport {
    /// The device's name.
    pub device: String,
    /// Of an empty request, one at a time: the mean.
    pub round_trip: Duration,
    /// Bytes per second that the server read, one megabyte at a time.
    pub read_per_second: f64,
    /// Bytes per second that the server wrote.
    pub written_per_second: f64,
}

/// What does not work.
#[derive(Debug, Error)]
pub enum RdmaFault {
    /// There is no device to use.
    #[error("{0}")]
    Unusable(String),
    /// The port could not be taken.
    #[error("cannot listen over RDMA: {0}")]
    Listen(std::io::Error),
    /// A request failed.
    #[error("{what}: {error}")]
    Call {
        /// Which.
        what: &'static str,
        /// How.
        error: RpcError,
    },
    /// Wrong bytes.
    #[error("the {0} are not the ones that were sent: this device or its driver is broken")]
    WrongBytes(&'static str),
}

/// Talks to itself through the device that serves `address`, as `uid`.
pub async fn rdma(address: IpAddr, uid: u32, auth: Arc<dyn Authenticator>) -> Result<RdmaReport, RdmaFault> {
    let config = RdmaConfig { client_pool_bytes: POOL_BYTES, server_pool_bytes: POOL_BYTES, connections: 1 };
    let transport = Rdma::open(&[address], config).map_err(|reason| RdmaFault::Unusable(reason.to_string()))?;
    let device = transport.devices().join(", ");
    let listener = transport.bind(SocketAddr::new(address, 0)).await.map_err(RdmaFault::Listen)?;
    let instance = InstanceId::new("selftest", 1, 0).map_err(|error| RdmaFault::Unusable(error.to_string()))?;
    let limits = ServerLimits::default();
    let server = ServerConfig { instance: instance.clone(), uid, auth: auth.clone(), limits };
    let server = serve(listener, server, Arc::new(Mirror));
    let id = ClientId { node: NodeIndex::new(0), incarnation: 1 };
    let identity = Identity { instance, uid, role: Role::Node(id), auth };
    let client = Client::new(Arc::new(transport), identity, XidSource::new(id), ChannelLimits::default());
    let connected = client.connect_once(server.address(), Deadline::after(TIME)).await;
    let channel = connected.map_err(|error| RdmaFault::Call { what: "connecting", error })?;
    let report = RdmaReport {
        device,
        round_trip: small(&channel).await?,
        read_per_second: keep(&client, &channel).await?,
        written_per_second: fill(&client, &channel).await?,
    };
    server.shutdown().await;
    Ok(report)
}

async fn small(channel: &Channel) -> Result<Duration, RdmaFault> {
    let start = Instant::now();
    for call in 0..SMALL_CALLS {
        let body = call.to_le_bytes().to_vec();
        let answer = channel.exchange(ECHO, body.clone(), ClientBulk::None, Deadline::after(TIME)).await;
        let (answer, _) = answer.map_err(|error| RdmaFault::Call { what: "a small request", error })?;
        if answer[..] != body[..] {
            return Err(RdmaFault::WrongBytes("bytes of a message"));
        }
    }
    Ok(start.elapsed() / SMALL_CALLS)
}

async fn keep(client: &Client, channel: &Channel) -> Result<f64, RdmaFault> {
    let start = Instant::now();
    for call in 0..BULK_CALLS {
        let Ok(mut region) = client.region(BULK_BYTES).await else {
            return Err(RdmaFault::Unusable("the pool of memory is too small".to_owned()));
        };
        pattern(&mut region, call);
        let crc = crc32c::crc32c(&region);
        let bulk = ClientBulk::Source(region.into());
        let answer = channel.exchange(KEEP, Vec::new(), bulk, Deadline::after(TIME)).await;
        let (answer, _) = answer.map_err(|error| RdmaFault::Call { what: "reading a megabyte", error })?;
        if answer[..] != crc.to_le_bytes() {
            return Err(RdmaFault::WrongBytes("bytes that the server read"));
        }
    }
    Ok(rate(start))
}

async fn fill(client: &Client, channel: &Channel) -> Result<f64, RdmaFault> {
    let mut expected = vec![0; BULK_BYTES];
    let start = Instant::now();
    for call in 0..BULK_CALLS {
        let Ok(region) = client.region(BULK_BYTES).await else {
            return Err(RdmaFault::Unusable("the pool of memory is too small".to_owned()));
        };
        let body = call.to_le_bytes().to_vec();
        let answer = channel.exchange(FILL, body, ClientBulk::Sink(region), Deadline::after(TIME)).await;
        let (_, sink) = answer.map_err(|error| RdmaFault::Call { what: "writing a megabyte", error })?;
        pattern(&mut expected, call);
        if sink.is_none_or(|sink| sink[..] != expected[..]) {
            return Err(RdmaFault::WrongBytes("bytes that the server wrote"));
        }
    }
    Ok(rate(start))
}

fn rate(start: Instant) -> f64 {
    f64::from(BULK_CALLS) * BULK_BYTES as f64 / start.elapsed().as_secs_f64()
}

fn pattern(bytes: &mut [u8], seed: u32) {
    let mut value = seed.wrapping_mul(2_654_435_761) | 1;
    for chunk in bytes.chunks_mut(4) {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
    }
}

/// Answers what it is asked.
struct Mirror;

#[async_trait]
impl Handler for Mirror {
    async fn handle(
        &self,
        _peer: &Peer,
        _caller: Caller,
        opcode: u16,
        body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> Result<Vec<u8>, Errno> {
        match opcode {
            ECHO => Ok(body.to_vec()),
            KEEP => Ok(crc32c::crc32c(bulk.source().unwrap_or_default()).to_le_bytes().to_vec()),
            FILL => {
                let seed = body.try_into().map(u32::from_le_bytes).map_err(|_| Errno::EINVAL)?;
                let len = bulk.sink_len();
                pattern(bulk.sink().unwrap_or_default(), seed);
                bulk.set_put_len(len);
                Ok(Vec::new())
            }
            _ => Err(Errno::ENOSYS),
        }
    }
}
