//! What calls cost over each transport, and what the bare socket below costs: the part of `make bench-net` that measures.
//!
//! `speed ADDRESS RUNS KIND...`, each kind one of `rdma` (the device that serves the address), `tcp`, `socket` and `inproc`. The kinds
//! take turns, RUNS times. Each figure is a line `KIND.NAME VALUE`; both ends are in this process, so that its CPU time is that of both.

use std::env;
use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use burstfs_net::testing::Realm;
use burstfs_net::{
    Channel, ChannelLimits, Client, ClientBulk, Deadline, Handler, Identity, InProcess, Peer, ServerConfig,
    ServerLimits, Tcp, TcpConfig, Transport, XidSource, serve,
};
use burstfs_proto::hello::Role;
use burstfs_proto::service::{Bulk, Caller};
use burstfs_types::{ClientId, Errno, InstanceId, NodeIndex};
use futures_util::future::try_join_all;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: usize = 1 << 20;
const POOL_BYTES: usize = 64 * MIB;
/// Bulk lengths.
const SIZES: [(usize, &str); 3] = [(4 << 10, "4k"), (64 << 10, "64k"), (MIB, "1m")];
/// Requests at once.
const DEPTHS: [usize; 2] = [1, 32];
/// How long each figure is measured for, about.
const TIME: Duration = Duration::from_millis(400);
/// How long nothing is done, to see what it costs.
const IDLE: Duration = Duration::from_secs(2);
/// The bare socket's reads and writes.
const CHUNK: usize = 256 << 10;

const EMPTY: u16 = 0x7f01;
const KEEP: u16 = 0x7f02;
const FILL: u16 = 0x7f03;

/// Does nothing but what the bytes themselves need.
struct Nothing;

#[async_trait]
impl Handler for Nothing {
    async fn handle(
        &self,
        _peer: &Peer,
        _caller: Caller,
        opcode: u16,
        _body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> std::result::Result<Vec<u8>, Errno> {
        match opcode {
            EMPTY | KEEP => Ok(Vec::new()),
            FILL => {
                let len = bulk.sink_len();
                bulk.set_put_len(len);
                Ok(Vec::new())
            }
            _ => Err(Errno::ENOSYS),
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, runs, kinds @ ..] = arguments.as_slice() else {
        return Err("speed ADDRESS RUNS rdma|tcp|socket|inproc...".into());
    };
    let (address, runs): (IpAddr, u32) = (address.parse()?, runs.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for _ in 0..runs {
        for kind in kinds {
            match kind.as_str() {
                "socket" => socket(address)?,
                _ => runtime.block_on(calls(kind, transport(kind, address)?, address))?,
            }
        }
    }
    Ok(())
}

fn transport(kind: &str, address: IpAddr) -> Result<Arc<dyn Transport>> {
    match kind {
        "tcp" => Ok(Arc::new(Tcp::new(TcpConfig { client_pool_bytes: POOL_BYTES, server_pool_bytes: POOL_BYTES }))),
        "inproc" => Ok(Arc::new(InProcess::new(POOL_BYTES))),
        "rdma" => rdma(address),
        _ => Err(format!("{kind}: rdma, tcp, socket or inproc").into()),
    }
}

#[cfg(feature = "rdma")]
fn rdma(address: IpAddr) -> Result<Arc<dyn Transport>> {
    let memory =
        burstfs_net::RdmaConfig { client_pool_bytes: POOL_BYTES, server_pool_bytes: POOL_BYTES, connections: 1 };
    Ok(Arc::new(burstfs_net::Rdma::open(&[address], memory)?))
}

#[cfg(not(feature = "rdma"))]
fn rdma(_address: IpAddr) -> Result<Arc<dyn Transport>> {
    Err("this was built without RDMA".into())
}

fn figure(kind: &str, name: &str, value: f64) {
    println!("{kind}.{name} {value:.3}");
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// One end that calls, and one that answers.
struct Pair {
    client: Client,
    channel: Channel,
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

impl Pair {
    async fn empty(&self) -> Result<()> {
        self.channel.exchange(EMPTY, Vec::new(), ClientBulk::None, deadline()).await?;
        Ok(())
    }

    /// The server gets the bytes.
    async fn keep(&self, len: usize) -> Result<()> {
        let region = self.client.region(len).await?;
        self.channel.exchange(KEEP, Vec::new(), ClientBulk::Source(region.into()), deadline()).await?;
        Ok(())
    }

    /// The server puts the bytes.
    async fn fill(&self, len: usize) -> Result<()> {
        let region = self.client.region(len).await?;
        self.channel.exchange(FILL, Vec::new(), ClientBulk::Sink(region), deadline()).await?;
        Ok(())
    }
}

async fn calls(kind: &str, transport: Arc<dyn Transport>, address: IpAddr) -> Result<()> {
    let instance = InstanceId::new("speed", 1, 0)?;
    let (realm, uid) = (Realm::new(), 1000);
    let listener = transport.bind(SocketAddr::new(address, 0)).await?;
    let limits = ServerLimits::default();
    let config = ServerConfig { instance: instance.clone(), uid, auth: realm.member(uid), limits };
    let server = serve(listener, config, Arc::new(Nothing));
    let id = ClientId { node: NodeIndex::new(0), incarnation: 1 };
    let identity = Identity { instance, uid, role: Role::Node(id), auth: realm.member(uid) };
    let client = Client::new(transport, identity, XidSource::new(id), ChannelLimits::default());
    let channel = client.connect_once(server.address(), deadline()).await?;
    let pair = Pair { client, channel };
    small_calls(kind, &pair).await?;
    for (len, name) in SIZES {
        bulk_calls(kind, &pair, len, name).await?;
    }
    let before = cpu_time();
    tokio::time::sleep(IDLE).await;
    figure(kind, "idle_cpu", (cpu_time() - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0);
    server.shutdown().await;
    Ok(())
}

async fn small_calls(kind: &str, pair: &Pair) -> Result<()> {
    let (mut times, start) = (Vec::new(), Instant::now());
    while start.elapsed() < TIME {
        let call = Instant::now();
        pair.empty().await?;
        times.push(call.elapsed());
    }
    times.sort();
    figure(kind, "round_trip", times[times.len() / 2].as_secs_f64() * 1e6);
    for depth in DEPTHS {
        let rate = rate(depth, || pair.empty()).await?;
        figure(kind, &format!("per_second_{depth}"), rate.per_second);
        figure(kind, &format!("cpu_{depth}"), rate.cpu.as_secs_f64() * 1e6);
    }
    Ok(())
}

async fn bulk_calls(kind: &str, pair: &Pair, len: usize, name: &str) -> Result<()> {
    // The first ones map memory.
    let most = DEPTHS.into_iter().max().unwrap_or(1);
    try_join_all((0..most).map(|_| pair.keep(len))).await?;
    let report = |way: &str, depth: usize, rate: &Rate| {
        let mib_per_second = rate.per_second * len as f64 / MIB as f64;
        figure(kind, &format!("{way}_{name}_{depth}"), mib_per_second);
        figure(kind, &format!("{way}_cpu_{name}_{depth}"), rate.cpu.as_secs_f64() * 1e6);
    };
    for depth in DEPTHS {
        report("write", depth, &rate(depth, || pair.keep(len)).await?);
        report("read", depth, &rate(depth, || pair.fill(len)).await?);
    }
    Ok(())
}

struct Rate {
    per_second: f64,
    /// Processor time of one.
    cpu: Duration,
}

/// Runs `call` again and again, so many at once.
async fn rate<F: Future<Output = Result<()>>>(depth: usize, call: impl Fn() -> F) -> Result<Rate> {
    let (start, cpu) = (Instant::now(), cpu_time());
    let lanes = (0..depth).map(|_| async {
        let mut done = 0_u32;
        while start.elapsed() < TIME {
            call().await?;
            done += 1;
        }
        Ok::<u32, Box<dyn Error>>(done)
    });
    let done: u32 = try_join_all(lanes).await?.into_iter().sum();
    let per_second = f64::from(done) / start.elapsed().as_secs_f64();
    Ok(Rate { per_second, cpu: (cpu_time() - cpu) / done.max(1) })
}

/// What the kernel's sockets do, with a thread at each end.
fn socket(address: IpAddr) -> Result<()> {
    figure("socket", "round_trip", socket_round_trip(address)?.as_secs_f64() * 1e6);
    for (len, name) in SIZES {
        figure("socket", &format!("stream_{name}"), socket_stream(address, len)?);
    }
    Ok(())
}

/// A byte to the other end and back, the median.
fn socket_round_trip(address: IpAddr) -> Result<Duration> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
    let there = listener.local_addr()?;
    let other = thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut byte = [0];
        while socket.read(&mut byte)? == 1 {
            socket.write_all(&byte)?;
        }
        Ok(())
    });
    let mut socket = TcpStream::connect(there)?;
    socket.set_nodelay(true)?;
    let (mut times, mut byte, start) = (Vec::new(), [0], Instant::now());
    while start.elapsed() < TIME {
        let call = Instant::now();
        socket.write_all(&byte)?;
        socket.read_exact(&mut byte)?;
        times.push(call.elapsed());
    }
    drop(socket);
    other.join().map_err(|_| "the other end panicked")??;
    times.sort();
    Ok(times[times.len() / 2])
}

/// MiB per second, one way. Both ends go through as much memory as the requests do that are under way at a time: what is sent from one
/// place again and again comes from the processor's cache.
fn socket_stream(address: IpAddr, len: usize) -> Result<f64> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
    let there = listener.local_addr()?;
    let memory = || vec![1_u8; len * DEPTHS.into_iter().max().unwrap_or(1)];
    let mut into = memory();
    let other = thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        for part in (0..into.len()).step_by(CHUNK.min(into.len())).cycle() {
            let end = into.len().min(part + CHUNK);
            if socket.read(&mut into[part..end])? == 0 {
                break;
            }
        }
        socket.write_all(&[1])
    });
    let (from, mut socket) = (memory(), TcpStream::connect(there)?);
    socket.set_nodelay(true)?;
    let (mut sent, start) = (0_u32, Instant::now());
    for bytes in from.chunks(len).cycle() {
        socket.write_all(bytes)?;
        sent += 1;
        if start.elapsed() >= TIME {
            break;
        }
    }
    socket.shutdown(Shutdown::Write)?;
    socket.read_exact(&mut [0])?;
    let rate = f64::from(sent) * len as f64 / MIB as f64 / start.elapsed().as_secs_f64();
    other.join().map_err(|_| "the other end panicked")??;
    Ok(rate)
}
