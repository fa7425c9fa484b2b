//! RDMA only: peers that do not keep to the protocol, strangers, what a connection leaves behind, and a network that fails. All of
//! it needs a device, and the last ones the two of `tests/rdma/network.sh` (`make rdma-test`).

#![cfg(feature = "rdma")]
// A test's helpers fail like the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burstfs_net::{
    ChannelLimits, Choice, Client, Network, NetworkConfig, Rdma, RdmaConfig, ServerLimits, TcpConfig, Transport,
    XidSource,
};
use burstfs_proto::frame::{DAMAGED, Header, Kind};
use burstfs_proto::hello::{Challenge, MAGIC, Opening, Proof, Refusal, Role, Side, Verdict, signed};
use burstfs_proto::{PROTOCOL_VERSION, Rpc, encode};
use burstfs_types::{ClientId, NodeIndex, Xid};
use burstfs_verbs::{Arena, ConnectionId, Depths, Device, Done, Endpoint, Event, ProtectionDomain, Purpose, Terms};
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use support::*;

const HELLO: u8 = 0;
const MESSAGE: u8 = 1;
const MORE: u8 = 1;
const WINDOW: u8 = 2;
const WRITTEN: u8 = 4;
const RECEIVES: u16 = 32;

/// A client's end, as a test writes its pieces. It never gives a receive back, and has more than it needs.
struct Raw {
    endpoint: Endpoint<bool>,
    address: SocketAddr,
}

impl Raw {
    async fn event(id: &mut ConnectionId) -> Event {
        let next = async {
            loop {
                if let Some(event) = id.event().unwrap() {
                    return event;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within("an event of the connection manager", next).await
    }

    /// Connects, up to the point where the hello begins; `None` where the server refuses.
    async fn try_connect(address: SocketAddr, said: &[u8]) -> Option<Raw> {
        let device = Device::at(rdma_address()).unwrap();
        let domain = ProtectionDomain::new(&device).unwrap();
        let mut id = ConnectionId::new().unwrap();
        id.resolve_address(None, address, Duration::from_secs(3)).unwrap();
        assert!(matches!(Raw::event(&mut id).await, Event::AddressResolved));
        id.resolve_route(Duration::from_secs(3)).unwrap();
        assert!(matches!(Raw::event(&mut id).await, Event::RouteResolved));
        let arena = Arena::new(std::slice::from_ref(&domain), Purpose::Private, 1).unwrap();
        let depths = Depths { sends: 256, receives: 64, inline: 256 };
        let mut endpoint = Endpoint::new(id, &domain, depths).unwrap();
        for _ in 0..depths.receives {
            endpoint.receive(arena.take(4096).unwrap().unwrap(), true).unwrap();
        }
        endpoint.id().connect(Terms { private_data: said, reads_served: 16, reads_made: 0 }).unwrap();
        match Raw::event(endpoint.id()).await {
            Event::Established(_) => Some(Raw { endpoint, address }),
            Event::Rejected => None,
            event => panic!("{event:?}"),
        }
    }

    async fn connect(address: SocketAddr) -> Raw {
        Raw::try_connect(address, &private_data()).await.expect("refused")
    }

    /// The same as soon as there is a place for a stranger.
    async fn patiently(address: SocketAddr) -> Raw {
        let connected = async {
            loop {
                if let Some(raw) = Raw::try_connect(address, &private_data()).await {
                    return raw;
                }
            }
        };
        within("a place for a stranger", connected).await
    }

    fn piece(&mut self, kind: u8, flags: u8, given_back: u16, rest: &[u8]) {
        let [low, high] = given_back.to_le_bytes();
        let piece = [&[kind, flags, low, high, 0, 0, 0, 0][..], rest].concat();
        // The other end may have closed while this is sent.
        let _ = self.endpoint.send_inline(&piece, false);
    }

    fn request(&mut self, flags: u8, header: &Header, rest: &[u8]) {
        self.piece(MESSAGE, flags, 0, &[&header.encode()[..], rest].concat());
    }

    /// The next piece without its prefix; `None` when the connection is over.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        let heard = async {
            loop {
                for done in self.endpoint.poll().unwrap() {
                    match (done.result, done.token) {
                        (Ok(Done::Received(len)), true) => return Some(done.block.unwrap()[8..len].to_vec()),
                        (Err(_), _) => return None,
                        _ => {}
                    }
                }
                if let Some(Event::Disconnected) = self.endpoint.id().event().unwrap() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within("an answer, or the end", heard).await
    }

    async fn hear_hello<M: DeserializeOwned>(&mut self) -> M {
        let mut bytes = Vec::new();
        loop {
            bytes.extend(self.hear().await.expect("a hello"));
            if let Some((len, rest)) = bytes.split_first_chunk::<4>()
                && rest.len() >= u32::from_le_bytes(*len) as usize
            {
                return burstfs_proto::decode("hello", rest).unwrap();
            }
        }
    }

    fn say_hello<M: Serialize>(&mut self, message: &M) {
        let body = encode(message);
        let bytes = [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat();
        for piece in bytes.chunks(200) {
            self.piece(HELLO, 0, 0, piece);
        }
    }

    async fn proven(world: &World) -> Raw {
        let mut raw = Raw::connect(world.address).await;
        let role = Role::Node(ClientId { node: NodeIndex::new(9), incarnation: 1 });
        let opening = Opening { magic: MAGIC, version: PROTOCOL_VERSION, instance: instance(), role, nonce: [5; 16] };
        raw.say_hello(&opening);
        let Challenge::Accepted { nonce, .. } = raw.hear_hello().await else { panic!("refused") };
        let payload = signed(Side::Client, &instance(), &opening.nonce, &nonce, raw.address);
        raw.say_hello(&Proof { credential: world.member(UID).sign(&payload).await.unwrap() });
        assert_eq!(raw.hear_hello::<Verdict>().await, Verdict::Welcome);
        raw
    }

    async fn ended(mut self) {
        while self.hear().await.is_some() {}
    }

    /// Sends the same request again and again, without regard to what the server gives back, until the connection is over. Each
    /// goes when there is room for it in this end's own queue: what finds none is not sent, and would be no flood.
    async fn flood(mut self, header: &Header, rest: &[u8]) {
        while !self.is_over() {
            if self.endpoint.room() > 0 {
                self.request(0, header, rest);
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn is_over(&mut self) -> bool {
        let has_failed = self.endpoint.poll().unwrap().iter().any(|done| done.result.is_err());
        has_failed || matches!(self.endpoint.id().event().unwrap(), Some(Event::Disconnected))
    }
}

fn private_data() -> Vec<u8> {
    [&b"bfsR"[..], &PROTOCOL_VERSION.to_le_bytes(), &RECEIVES.to_le_bytes(), &1_u16.to_le_bytes()].concat()
}

fn header(opcode: u16, body: &[u8]) -> Header {
    Header {
        xid: Xid(1),
        opcode,
        kind: Kind::Request,
        status: 0,
        body_len: u32::try_from(body.len()).unwrap(),
        bulk_len: 0,
        bulk_space: 0,
        bulk_crc: 0,
    }
}

/// That a well-behaved client is served all the while.
async fn still_serves(world: &World) {
    let channel = world.client(1).channel(world.address);
    assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an RDMA device (make rdma-test)"]
async fn a_client_that_breaks_the_protocol_loses_its_connection_only() {
    let world = World::new(rdma()).await;
    let body = encode(&Store { pieces: 1 });
    let store = header(Store::OPCODE, &body);
    type Lie = fn(&mut Raw, &Header, &[u8]);
    let lies: [(&str, Lie); 13] = [
        ("an unknown kind", |raw, _, _| raw.piece(9, 0, 0, &[0; 40])),
        ("unknown flags", |raw, store, body| raw.request(0x80, store, body)),
        ("more given back than taken", |raw, _, _| raw.piece(2, 0, RECEIVES + 1, &[])),
        ("a hello after the hello", |raw, _, _| raw.piece(HELLO, 0, 0, &[1; 10])),
        ("a piece without a header", |raw, _, _| raw.piece(MESSAGE, 0, 0, &[1; 10])),
        ("a body over the limit", |raw, store, body| raw.request(0, &Header { body_len: u32::MAX, ..*store }, body)),
        ("a body that ends early", |raw, store, body| raw.request(0, &Header { body_len: 50, ..*store }, body)),
        ("a body that goes on", |raw, store, body| raw.request(MORE, store, body)),
        ("too much bulk data carried", |raw, store, body| {
            raw.request(MORE, &Header { bulk_len: 5000, ..*store }, body)
        }),
        ("a reply", |raw, store, body| raw.request(0, &Header { kind: Kind::Reply, ..*store }, body)),
        ("bulk data that was written", |raw, store, body| raw.request(WRITTEN, store, body)),
        ("a sink without a window", |raw, store, body| raw.request(0, &Header { bulk_space: 1 << 20, ..*store }, body)),
        ("a window that is none", |raw, store, body| {
            let window = [&0x7000_0000_u64.to_le_bytes()[..], &0x1234_u32.to_le_bytes()].concat();
            raw.request(WINDOW, &Header { bulk_len: 1 << 20, ..*store }, &[&window, body].concat());
        }),
    ];
    for (what, lie) in lies {
        let mut raw = Raw::proven(&world).await;
        lie(&mut raw, &store, &body);
        within(what, raw.ended()).await;
    }
    still_serves(&world).await;
    // Only the one that is served.
    assert_eq!(world.service.log.lock().unwrap().len(), 1);
    // More messages than there are receives: the sender's own device ends his connection.
    let block = encode(&Block { key: 1 });
    let raw = Raw::proven(&world).await;
    within("the flood's end", raw.flood(&header(Block::OPCODE, &block), &block)).await;
    still_serves(&world).await;
    world.service.open(1);
    // A right request, for the proof that those were refused for their faults.
    let mut raw = Raw::proven(&world).await;
    let (right, bulk) = (crc32c::crc32c(&[7; 100]), [&body[..], &[7; 100]].concat());
    // One whose bulk data was damaged on its way is told so, and nothing else is lost.
    for (bulk_crc, status, told) in [(1, DAMAGED, right), (right, 0, 0)] {
        raw.request(0, &Header { bulk_len: 100, bulk_crc, ..store }, &bulk);
        let reply = raw.hear().await.unwrap();
        let reply = Header::decode(reply.first_chunk().unwrap()).unwrap();
        assert_eq!((reply.kind, reply.status, reply.xid, reply.bulk_crc), (Kind::Reply, status, Xid(1), told));
    }
    drop(raw);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an RDMA device (make rdma-test)"]
async fn strangers_end_only_their_connection_and_do_not_lock_others_out() {
    // Long enough for three connections, however slow the machine is.
    let limits = ServerLimits { hello_timeout: Duration::from_secs(8), strangers_max: 2, ..ServerLimits::default() };
    let world = World::with(rdma(), limits).await;
    // Another build, or somebody else altogether.
    assert!(Raw::try_connect(world.address, b"something else").await.is_none());
    let mut garbage = Raw::connect(world.address).await;
    garbage.piece(HELLO, 0, 0, b"\x10\0\0\0GET / HTTP/1.1\r\n\r\n");
    assert_eq!(garbage.hear_hello::<Challenge>().await, Challenge::Refused(Refusal::Magic));
    garbage.ended().await;
    // A request before the proof is not run.
    let mut early = Raw::connect(world.address).await;
    let body = encode(&Echo { bytes: vec![1] });
    early.request(0, &header(Echo::OPCODE, &body), &body);
    early.ended().await;
    assert_eq!(world.service.log.lock().unwrap().len(), 0);
    // Silent ones take all places for strangers, until their time is over.
    let (first, second) = (Raw::patiently(world.address).await, Raw::patiently(world.address).await);
    assert!(Raw::try_connect(world.address, &private_data()).await.is_none());
    still_serves(&world).await;
    first.ended().await;
    second.ended().await;
    world.end().await;
}

/// What the kernel counts of this machine's devices: protection domains, queues, registrations and the like.
fn resources() -> String {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPin")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an RDMA device (make rdma-test)"]
async fn hundreds_of_connections_leave_nothing_behind() {
    const AT_ONCE: usize = 10;
    let world = World::new(rdma()).await;
    still_serves(&world).await;
    no_connection_is_left().await;
    let (before, pinned) = (resources(), pinned_kib());
    for _ in 0..30 {
        let calls = (0..AT_ONCE).map(|node| {
            let client = world.client(u16::try_from(node).unwrap());
            async move {
                let channel = client.channel(world.address);
                assert_eq!(channel.call(&Echo { bytes: vec![2] }, soon()).await.unwrap(), [2]);
                if node % 2 == 0 {
                    channel.close();
                }
            }
        });
        join_all(calls).await;
    }
    eventually("all connections are gone", || world.server().peers().is_empty()).await;
    let patient = Instant::now() + Duration::from_secs(60);
    while resources() != before && Instant::now() < patient {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(resources(), before);
    assert_eq!(pinned_kib(), pinned);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an RDMA device (make rdma-test)"]
async fn the_selftest_passes_here_and_says_what_is_wrong_elsewhere() {
    let realm = burstfs_net::testing::Realm::new();
    let report = burstfs_net::selftest::rdma(rdma_address(), UID, realm.member(UID)).await.unwrap();
    assert!(report.device.starts_with("rxe") && report.read_per_second > 0.0 && report.written_per_second > 0.0);
    let wrong = burstfs_net::selftest::rdma([127, 0, 0, 1].into(), UID, realm.member(UID)).await.unwrap_err();
    assert!(wrong.to_string().contains("127.0.0.1"), "{wrong}");
}

/// Connections of this machine's soft devices that have a QP.
fn queue_pairs() -> usize {
    let output = Command::new("rdma").args(["resource", "show", "qp"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.contains("type RC")).count()
}

/// Waits until the kernel has taken apart what was before, at both ends: that goes on when nobody waits for it any more.
async fn no_connection_is_left() {
    eventually("no connection is left", || queue_pairs() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an RDMA device (make rdma-test)"]
async fn a_network_uses_rdma_where_both_ends_have_it_and_tcp_elsewhere() {
    let memory = TcpConfig { client_pool_bytes: 16 << 20, server_pool_bytes: 16 << 20 };
    let config = NetworkConfig { memory, rdma_connections: 1 };
    let open = |choice| Network::open(choice, &[rdma_address()], config).unwrap();
    let there = open(Choice::Auto);
    let world = World::new(Arc::new(there.clone())).await;
    let [rdma] = there.rdma_addresses()[..] else { panic!("one address") };
    let bytes = pattern(100_000);
    let call = async |network: &Network| {
        let identity = world.identity(6);
        let Role::Node(id) = identity.role else { panic!("a command") };
        let client = Client::new(Arc::new(network.clone()), identity, XidSource::new(id), ChannelLimits::default());
        let channel = client.channel(world.address);
        let mut region = client.region(bytes.len()).await.unwrap();
        region.copy_from_slice(&bytes);
        let deadline = burstfs_net::Deadline::after(Duration::from_secs(20));
        let sent = channel.call_sending(&Store { pieces: 1 }, region, deadline).await;
        (sent.map(|sent| assert_eq!(sent, stored(&bytes))), queue_pairs())
    };
    no_connection_is_left().await;
    // Nobody said that the peer has RDMA; it has, at the wrong place; it has, but this side is to use TCP.
    let (auto, tcp) = (open(Choice::Auto), open(Choice::Tcp));
    for (network, rdma) in [(&auto, vec![]), (&auto, vec![SocketAddr::new(rdma.ip(), 1)]), (&tcp, vec![rdma])] {
        network.reach_by_rdma(world.address, &rdma);
        let (sent, pairs) = call(network).await;
        assert_eq!((sent.is_ok(), pairs), (true, 0), "{rdma:?}");
    }
    auto.reach_by_rdma(world.address, &[rdma]);
    let (sent, pairs) = call(&auto).await;
    assert!(sent.is_ok() && pairs > 0);
    // Where RDMA is required there is no other way.
    let required = open(Choice::Rdma);
    required.reach_by_rdma(world.address, &[SocketAddr::new(rdma.ip(), 1)]);
    assert!(call(&required).await.0.is_err());
    world.end().await;
}

/// The far end of the pair, and the near one.
fn far() -> (IpAddr, IpAddr) {
    ([10, 99, 0, 2].into(), [10, 99, 0, 1].into())
}

fn open(address: IpAddr) -> Arc<dyn Transport> {
    let config = RdmaConfig { client_pool_bytes: 16 << 20, server_pool_bytes: 16 << 20, connections: 1 };
    Arc::new(Rdma::open(&[address], config).unwrap())
}

fn far_client(world: &World) -> Client {
    let identity = world.identity(5);
    let Role::Node(id) = identity.role else { panic!("a command") };
    Client::new(open(far().0), identity, XidSource::new(id), ChannelLimits::default())
}

/// Connected queue pairs of a device.
fn queue_pairs_of(device: &str) -> usize {
    let output =
        Command::new("rdma").args(["resource", "show", "qp", "link", &format!("{device}/1")]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("type RC") && line.contains("state RTS")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two RDMA devices (make rdma-test)"]
async fn connections_are_spread_over_all_devices_and_as_many_as_configured() {
    const CONNECTIONS: usize = 2;
    no_connection_is_left().await;
    let rails = [far().1, far().0];
    let memory = TcpConfig { client_pool_bytes: 16 << 20, server_pool_bytes: 16 << 20 };
    let config = NetworkConfig { memory, rdma_connections: CONNECTIONS };
    let there = Network::open(Choice::Rdma, &rails, config).unwrap();
    let world = World::new(Arc::new(there.clone())).await;
    assert_eq!(there.rdma_addresses().iter().map(|address| address.ip()).collect::<Vec<_>>(), rails);
    let here = Network::open(Choice::Rdma, &rails, config).unwrap();
    here.reach_by_rdma(world.address, &there.rdma_addresses());
    let identity = world.identity(6);
    let Role::Node(id) = identity.role else { panic!("a command") };
    let client = Client::new(Arc::new(here), identity, XidSource::new(id), ChannelLimits::default());
    let channel = client.channel(world.address);
    let bytes = pattern(200_000);
    // One after the other, so that each lane has its turn, and at once.
    for _ in 0..8 {
        let sent = channel.call_sending(&Store { pieces: 1 }, client.copy_to_send(&bytes), soon()).await.unwrap();
        assert_eq!(sent, stored(&bytes));
    }
    let fetches = (0..8).map(|_| async {
        let sink = client.region(bytes.len()).await.unwrap();
        channel.call_receiving(&Fetch { len: bytes.len(), pieces: 1 }, sink, soon()).await.unwrap().1
    });
    assert!(join_all(fetches).await.iter().all(|fetched| fetched[..] == bytes[..]));
    // Both ends are here.
    let now = ["rxe1", "rxe2"].map(queue_pairs_of);
    assert_eq!(now, [2 * CONNECTIONS; 2]);
    drop((channel, client));
    no_connection_is_left().await;
    world.end().await;
}

/// Runs a line of shell with the functions of the guest's network.
fn network(line: &str) {
    let script = format!(". \"$BURSTFS_RDMA_NETWORK\"; {line}");
    assert!(Command::new("bash").args(["-c", &script]).status().unwrap().success(), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two RDMA devices (make rdma-test)"]
async fn a_cut_link_is_noticed_and_what_waited_goes_on_after_it() {
    assert_eq!(rdma_address(), far().1);
    let world = World::new(open(far().1)).await;
    let client = far_client(&world);
    let channel = client.channel(world.address);
    let sink = client.region(1 << 20).await.unwrap();
    let patient = burstfs_net::Deadline::after(Duration::from_secs(120));
    let mut call = Box::pin(channel.call_receiving(&Block { key: 1 }, sink, patient));
    tokio::select! {
        answer = &mut call => panic!("{answer:?}"),
        () = world.service.started(1) => {}
    }
    network("network_cut");
    // Nobody sends anything: only the heartbeats, on both sides.
    let noticed = async {
        while channel.is_connected() || !world.server().peers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answer = &mut call => panic!("{answer:?}"),
        noticed = tokio::time::timeout(Duration::from_secs(60), noticed) => noticed.unwrap(),
    }
    network("network_mend");
    world.service.open(1);
    assert_eq!(call.await.unwrap().0, 2);
    let runs = world.service.runs_of(1);
    assert_eq!(runs[0].xid, runs[1].xid);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two RDMA devices (make rdma-test)"]
async fn loss_and_delay_only_slow_it_down() {
    let world = World::new(open(far().1)).await;
    let client = far_client(&world);
    let channel = client.channel(world.address);
    network("tc qdisc add dev v1 root netem loss 1% delay 1ms");
    let bytes = pattern(256 << 10);
    let patient = || burstfs_net::Deadline::after(Duration::from_secs(120));
    for _ in 0..8 {
        let sent = channel.call_sending(&Store { pieces: 1 }, bytes.clone(), patient());
        let fetch = async {
            let sink = client.region(bytes.len()).await.unwrap();
            channel.call_receiving(&Fetch { len: bytes.len(), pieces: 1 }, sink, patient()).await
        };
        let (sent, fetched) = tokio::join!(sent, fetch);
        assert_eq!(sent.unwrap(), stored(&bytes));
        assert!(fetched.unwrap().1[..] == bytes[..]);
        assert_eq!(channel.call(&Echo { bytes: vec![3] }, patient()).await.unwrap(), [3]);
    }
    network("tc qdisc del dev v1 root");
    world.end().await;
}
