//! Prints latency and throughput of calls over TCP on the loopback and in process. Figures for a person to look at.
//!
//! `cargo run --release -p burstfs-net --features testing --example speed`

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use burstfs_net::testing::Realm;
use burstfs_net::{
    Channel, ChannelLimits, Client, Deadline, Handler, Identity, InProcess, Peer, ServerConfig, ServerLimits, Tcp,
    TcpConfig, Transport, XidSource, serve,
};
use burstfs_proto::hello::Role;
use burstfs_proto::mds::GetAttr;
use burstfs_proto::oss::{Read, ReadDone, Write, WriteDone};
use burstfs_proto::service::{Bulk, Caller};
use burstfs_proto::{Rpc, encode};
use burstfs_types::{Attr, ClientId, Errno, FileKind, Ino, InstanceId, NodeIndex, ObjectId, StripeIndex, Timestamp};
use futures_util::future::try_join_all;

const MIB: usize = 1 << 20;
const SMALL_CALLS: usize = 20_000;
const BULK_CALLS: usize = 2_000;
const AT_ONCE: usize = 16;
const OBJECT: ObjectId = ObjectId { ino: Ino::ROOT, stripe: StripeIndex::new(0) };

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
    ) -> Result<Vec<u8>, Errno> {
        match opcode {
            GetAttr::OPCODE => Ok(encode(&attr())),
            Write::OPCODE => Ok(encode(&WriteDone { size: bulk.source_len() as u64 })),
            Read::OPCODE => {
                let len = bulk.sink_len();
                bulk.set_put_len(len);
                Ok(encode(&ReadDone { len: 0 }))
            }
            _ => Err(Errno::ENOSYS),
        }
    }
}

fn attr() -> Attr {
    let time = Timestamp { secs: 1_700_000_000, nanos: 1 };
    Attr {
        ino: Ino::ROOT,
        kind: FileKind::Directory,
        mode: 0o700,
        nlink: 2,
        uid: 1000,
        gid: 1000,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        layout: None,
    }
}

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let tcp = TcpConfig { client_pool_bytes: 64 * MIB, server_pool_bytes: 64 * MIB };
    measure(Arc::new(Tcp::new(tcp))).await?;
    measure(Arc::new(InProcess::new(64 * MIB))).await
}

async fn measure(transport: Arc<dyn Transport>) -> Result<(), Box<dyn Error>> {
    let instance = InstanceId::new("speed", 1, 0)?;
    let (realm, uid) = (Realm::new(), 1000);
    let listener = transport.bind(([127, 0, 0, 1], 0).into()).await?;
    let limits = ServerLimits::default();
    let config = ServerConfig { instance: instance.clone(), uid, auth: realm.member(uid), limits };
    let server = serve(listener, config, Arc::new(Nothing));
    let id = ClientId { node: NodeIndex::new(0), incarnation: 1 };
    let identity = Identity { instance, uid, role: Role::Node(id), auth: realm.member(uid) };
    let client = Client::new(transport.clone(), identity, XidSource::new(id), ChannelLimits::default());
    let channel = client.connect_once(server.address(), deadline()).await?;
    let name = transport.name();

    let mut times = Vec::with_capacity(SMALL_CALLS);
    for _ in 0..SMALL_CALLS {
        let start = Instant::now();
        channel.call(&GetAttr { ino: Ino::ROOT }, deadline()).await?;
        times.push(start.elapsed());
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    println!("{name}: small call, one at a time: median {:?}, 99 % {:?}", at(50), at(99));

    let per_second = rate(SMALL_CALLS, || get_attr(&channel));
    println!("{name}: small calls, {AT_ONCE} at once: {:.0}/s", per_second.await?);
    let per_second = rate(BULK_CALLS, || write(&client, &channel)).await?;
    println!("{name}: 1 MiB writes, {AT_ONCE} at once: {:.0} MiB/s", per_second);
    let per_second = rate(BULK_CALLS, || read(&client, &channel)).await?;
    println!("{name}: 1 MiB reads, {AT_ONCE} at once: {:.0} MiB/s", per_second);
    server.shutdown().await;
    Ok(())
}

async fn get_attr(channel: &Channel) -> Result<(), Box<dyn Error>> {
    channel.call(&GetAttr { ino: Ino::ROOT }, deadline()).await?;
    Ok(())
}

async fn write(client: &Client, channel: &Channel) -> Result<(), Box<dyn Error>> {
    let region = client.region(MIB).await?;
    channel.call_sending(&Write { object: OBJECT, offset: 0 }, region, deadline()).await?;
    Ok(())
}

async fn read(client: &Client, channel: &Channel) -> Result<(), Box<dyn Error>> {
    let region = client.region(MIB).await?;
    channel.call_receiving(&Read { object: OBJECT, offset: 0, len: 1 << 20 }, region, deadline()).await?;
    Ok(())
}

/// Runs `call` so many times, `AT_ONCE` at once: runs per second.
async fn rate<F: Future<Output = Result<(), Box<dyn Error>>>>(
    calls: usize,
    call: impl Fn() -> F,
) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    let lanes = (0..AT_ONCE).map(|_| async {
        for _ in 0..calls / AT_ONCE {
            call().await?;
        }
        Ok::<(), Box<dyn Error>>(())
    });
    try_join_all(lanes).await?;
    Ok((calls / AT_ONCE * AT_ONCE) as f64 / start.elapsed().as_secs_f64())
}
