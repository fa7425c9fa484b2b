//! TCP only: peers that do not keep to the protocol, on either side, and strangers.

// A test's helpers fail like the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use burstfs_net::{ProtocolError, RpcError, ServerLimits, Tcp, TcpConfig};
use burstfs_proto::frame::{DAMAGED, HEADER_LEN, Header, Kind};
use burstfs_proto::hello::{Challenge, MAGIC, Opening, Proof, Refusal, Role, Side, Verdict, signed};
use burstfs_proto::{PROTOCOL_VERSION, Rpc, encode};
use burstfs_types::{ClientId, NodeIndex, Xid, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One end of a connection, as a test writes its bytes.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr) -> Raw {
        Raw(TcpStream::connect(address).await.unwrap())
    }

    async fn say<M: Serialize>(&mut self, message: &M) {
        let body = encode(message);
        let len = u32::try_from(body.len()).unwrap();
        self.0.write_all(&[&len.to_le_bytes()[..], &body].concat()).await.unwrap();
    }

    async fn hear<M: DeserializeOwned>(&mut self) -> M {
        let heard = async {
            let mut body = vec![0; self.0.read_u32_le().await.unwrap() as usize];
            self.0.read_exact(&mut body).await.unwrap();
            burstfs_proto::decode("hello", &body).unwrap()
        };
        within("an answer", heard).await
    }

    /// Whether the other end ended the connection, whatever it said before.
    async fn ended(&mut self) {
        let mut sink = vec![0; 4096];
        let end = async { while let Ok(1..) = self.0.read(&mut sink).await {} };
        within("the end of the connection", end).await;
    }

    /// The client's side of a hello; ends before the proof where the server refuses.
    async fn challenge(&mut self, opening: &Opening) -> Challenge {
        self.say(opening).await;
        self.hear().await
    }

    async fn prove(&mut self, world: &World) -> (String, Verdict) {
        let opening = opening();
        let Challenge::Accepted { nonce, .. } = self.challenge(&opening).await else {
            panic!("refused");
        };
        let payload = signed(Side::Client, &instance(), &opening.nonce, &nonce, self.0.peer_addr().unwrap());
        let credential = world.member(UID).sign(&payload).await.unwrap();
        self.say(&Proof { credential: credential.clone() }).await;
        (credential, self.hear().await)
    }

    async fn proven(world: &World) -> Raw {
        let mut raw = Raw::connect(world.address).await;
        assert_eq!(raw.prove(world).await.1, Verdict::Welcome);
        raw
    }

    async fn reply(&mut self) -> Header {
        let mut head = [0; HEADER_LEN];
        self.0.read_exact(&mut head).await.unwrap();
        Header::decode(&head).unwrap()
    }

    async fn send(&mut self, header: &Header, rest: &[u8]) {
        // The other end may close while this is sent.
        let _ = self.0.write_all(&[&header.encode(), rest].concat()).await;
    }
}

fn opening() -> Opening {
    let role = Role::Node(ClientId { node: NodeIndex::new(9), incarnation: 1 });
    Opening { magic: MAGIC, version: PROTOCOL_VERSION, instance: instance(), role, nonce: [5; 16] }
}

fn request(opcode: u16) -> Header {
    Header { xid: Xid(1), opcode, kind: Kind::Request, status: 0, body_len: 0, bulk_len: 0, bulk_space: 0, bulk_crc: 0 }
}

/// That a well-behaved client is served all the while.
async fn still_serves(world: &World) {
    let channel = world.client(1).channel(world.address);
    assert_eq!(channel.call(&Echo { bytes: vec![1] }, soon()).await.unwrap(), [1]);
}

#[tokio::test]
async fn whatever_a_stranger_says_ends_only_his_connection() {
    let world = World::new(tcp()).await;
    let long = u32::try_from(limits::HELLO_MAX_BYTES).unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 9000], &long.to_le_bytes()] {
        let mut raw = Raw::connect(world.address).await;
        raw.0.write_all(garbage).await.unwrap();
        assert_eq!(raw.hear::<Challenge>().await, Challenge::Refused(Refusal::Magic));
        drop(raw);
    }
    let mut raw = Raw::connect(world.address).await;
    let refused = raw.challenge(&Opening { version: 99, ..opening() }).await;
    assert_eq!(refused, Challenge::Refused(Refusal::Version { ours: PROTOCOL_VERSION, theirs: 99 }));
    still_serves(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_credential_is_good_for_one_connection() {
    let world = World::new(tcp()).await;
    let (used, verdict) = Raw::connect(world.address).await.prove(&world).await;
    assert_eq!(verdict, Verdict::Welcome);
    for credential in [used, String::new(), "x".repeat(3000)] {
        let mut raw = Raw::connect(world.address).await;
        assert!(matches!(raw.challenge(&opening()).await, Challenge::Accepted { .. }));
        raw.say(&Proof { credential }).await;
        assert!(matches!(raw.hear::<Verdict>().await, Verdict::Refused(Refusal::Credential(_))));
    }
    // Both messages together are too long: no credential of any length is read.
    let mut raw = Raw::connect(world.address).await;
    raw.challenge(&opening()).await;
    raw.say(&Proof { credential: "x".repeat(limits::HELLO_MAX_BYTES) }).await;
    assert_eq!(raw.hear::<Verdict>().await, Verdict::Refused(Refusal::Magic));
    still_serves(&world).await;
    world.end().await;
}

#[tokio::test]
async fn a_relay_gets_nowhere() {
    let world = World::new(tcp()).await;
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap();
    let server = world.address;
    let relaying = tokio::spawn(async move {
        let (mut from, _) = relay.accept().await.unwrap();
        let mut to = TcpStream::connect(server).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    });
    let refused = world.client(1).connect_once(address, soon()).await.err().unwrap();
    assert!(matches!(refused, RpcError::Unauthenticated(_)), "{refused:?}");
    within("the relay's end", relaying).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn strangers_who_say_nothing_are_closed_and_do_not_lock_others_out() {
    let limits = ServerLimits { hello_timeout: Duration::from_secs(1), strangers_max: 2, ..ServerLimits::default() };
    let world = World::with(tcp(), limits).await;
    let (mut silent, mut slow) = (Raw::connect(world.address).await, Raw::connect(world.address).await);
    let dripping = tokio::spawn(async move {
        // One byte after the other: each in time, all together not.
        let mut written = 0;
        while slow.0.write_all(&[0]).await.is_ok() {
            written += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if written == 4 {
                slow.ended().await;
                break;
            }
        }
    });
    let mut third = Raw::connect(world.address).await;
    assert_eq!(third.hear::<Challenge>().await, Challenge::Refused(Refusal::Busy));
    // A client of the instance is told the same, and tries again until there is a place.
    still_serves(&world).await;
    silent.ended().await;
    within("the slow one's end", dripping).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_loses_its_connection_only() {
    let transport = Tcp::new(TcpConfig { client_pool_bytes: 8 << 20, server_pool_bytes: 8 << 20 });
    let memory = transport.server_regions().clone();
    let world = World::new(Arc::new(transport)).await;
    let body = encode(&Store { pieces: 1 });
    let body_len = u32::try_from(body.len()).unwrap();
    let bulk = [&body[..], &[7; 100]].concat();
    let store = Header { body_len, bulk_len: 100, ..request(Store::OPCODE) };
    let broken = [
        (Header { body_len: u32::MAX, ..store }, &bulk[..]),
        (Header { bulk_len: u32::MAX, ..store }, &bulk),
        (Header { bulk_space: u32::MAX, ..store }, &bulk),
        (Header { kind: Kind::Reply, ..store }, &bulk),
        (Header { bulk_space: 100, ..store }, &bulk),
    ];
    for (header, rest) in broken {
        let mut raw = Raw::proven(&world).await;
        raw.send(&header, rest).await;
        raw.ended().await;
        still_serves(&world).await;
    }
    // Lengths that say more than what comes: the message never ends, until the connection does.
    for header in [Header { body_len: 1 << 20, ..store }, Header { bulk_len: 4 << 20, ..store }] {
        let mut raw = Raw::proven(&world).await;
        raw.send(&header, &bulk).await;
        still_serves(&world).await;
        raw.0.shutdown().await.unwrap();
        raw.ended().await;
    }
    // A right one, for the proof that those were refused for their faults.
    let mut raw = Raw::proven(&world).await;
    raw.send(&Header { bulk_crc: crc32c::crc32c(&[7; 100]), ..store }, &bulk).await;
    let reply = raw.reply().await;
    assert_eq!((reply.kind, reply.status, reply.xid), (Kind::Reply, 0, Xid(1)));
    // Seven clients that were served meanwhile, and this one: no other reached the service.
    assert_eq!(world.service.log.lock().unwrap().len(), 7 + 1);
    drop(raw);
    eventually("the server's memory is back", || memory.in_use_bytes() == 0).await;
    world.end().await;
}

#[tokio::test]
async fn bulk_data_that_was_damaged_never_reaches_the_service() {
    let world = World::new(tcp()).await;
    let body = encode(&Store { pieces: 1 });
    let bulk = [&body[..], &[7; 100]].concat();
    let (body_len, right) = (u32::try_from(body.len()).unwrap(), crc32c::crc32c(&[7; 100]));
    let mut raw = Raw::proven(&world).await;
    // The client hears what came, and sends it again on the same connection.
    for (bulk_crc, status, told) in [(right ^ 1, DAMAGED, right), (0, DAMAGED, right), (right, 0, 0)] {
        raw.send(&Header { body_len, bulk_len: 100, bulk_crc, ..request(Store::OPCODE) }, &bulk).await;
        let reply = raw.reply().await;
        assert_eq!((reply.status, reply.xid, reply.bulk_crc), (status, Xid(1), told));
        let mut rest = vec![0; reply.body_len as usize];
        raw.0.read_exact(&mut rest).await.unwrap();
    }
    assert_eq!(world.service.log.lock().unwrap().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_client_that_reads_no_replies_is_not_read_either() {
    let limits = ServerLimits { requests_max: 4, ..ServerLimits::default() };
    let world = World::with(tcp(), limits).await;
    let mut raw = Raw::proven(&world).await;
    let body = encode(&Echo { bytes: vec![3; 900_000] });
    let header = Header { body_len: u32::try_from(body.len()).unwrap(), ..request(Echo::OPCODE) };
    // Far more than all buffers of both sockets hold.
    let flood = async {
        for xid in 1..100 {
            raw.0.write_all(&Header { xid: Xid(xid), ..header }.encode()).await.unwrap();
            raw.0.write_all(&body).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), flood).await.is_err());
    assert!(world.service.log.lock().unwrap().len() < 50);
    still_serves(&world).await;
    drop(raw);
    world.end().await;
}

/// A server that goes through the hello, then sends what `reply` makes of each request's header.
async fn lying_server<F>(world: &World, reply: F) -> SocketAddr
where
    F: Fn(Header) -> (Header, Vec<u8>) + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let auth = world.member(UID);
    tokio::spawn(async move {
        loop {
            let mut raw = Raw(listener.accept().await.unwrap().0);
            let opening: Opening = raw.hear().await;
            let nonce = [6; 16];
            let credential =
                auth.sign(&signed(Side::Server, &instance(), &opening.nonce, &nonce, address)).await.unwrap();
            raw.say(&Challenge::Accepted { nonce, credential }).await;
            raw.hear::<Proof>().await;
            raw.say(&Verdict::Welcome).await;
            let mut head = [0; HEADER_LEN];
            while raw.0.read_exact(&mut head).await.is_ok() {
                let header = Header::decode(&head).unwrap();
                let mut body = vec![0; (header.body_len + header.bulk_len) as usize];
                raw.0.read_exact(&mut body).await.unwrap();
                let (header, rest) = reply(Header { kind: Kind::Reply, status: 0, body_len: 0, bulk_len: 0, ..header });
                raw.send(&header, &rest).await;
            }
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_given_up_after_some_tries() {
    type Lie = fn(Header) -> (Header, Vec<u8>);
    type Expected = fn(&ProtocolError) -> bool;
    let world = World::new(tcp()).await;
    let client = world.client(1);
    let lies: [(Lie, Expected); 6] = [
        (
            |header| (Header { bulk_len: 101, bulk_space: 0, ..header }, vec![0; 101]),
            |error| matches!(error, ProtocolError::Overrun { len: 101, room: 100, .. }),
        ),
        (
            |header| (Header { bulk_len: 100, bulk_space: 0, bulk_crc: 1, ..header }, vec![0; 100]),
            |error| matches!(error, ProtocolError::Checksum { expected: 1, len: 100, .. }),
        ),
        (
            |header| (Header { xid: Xid(77), ..header }, vec![]),
            |error| matches!(error, ProtocolError::UnknownReply { xid: Xid(77), .. }),
        ),
        (
            |header| (Header { opcode: 1, ..header }, vec![]),
            |error| matches!(error, ProtocolError::UnknownReply { opcode: 1, .. }),
        ),
        (
            |header| (Header { kind: Kind::Request, ..header }, vec![]),
            |error| matches!(error, ProtocolError::Direction { .. }),
        ),
        (|header| (Header { body_len: u32::MAX, ..header }, vec![]), |error| matches!(error, ProtocolError::Header(_))),
    ];
    for (lie, expected) in lies {
        let channel = client.channel(lying_server(&world, lie).await);
        let sink = client.region(100).await.unwrap();
        let error = channel.call_receiving(&Fetch { len: 100, pieces: 1 }, sink, soon()).await.unwrap_err();
        assert!(matches!(&error, RpcError::Protocol(error) if expected(error)), "{error:?}");
    }
    // One that says that each time something else arrived.
    let lie: Lie = |header| (Header { status: DAMAGED, bulk_crc: 5, ..header }, vec![]);
    let channel = client.channel(lying_server(&world, lie).await);
    let error = channel.call_sending(&Store { pieces: 1 }, vec![1; 100], soon()).await.unwrap_err();
    let expected = crc32c::crc32c(&[1; 100]);
    let is_told = |error: &ProtocolError| match error {
        ProtocolError::Checksum { len: 100, expected: told, actual: 5, .. } => *told == expected,
        _ => false,
    };
    assert!(matches!(&error, RpcError::Protocol(error) if is_told(error)), "{error:?}");
    // A body that is not the reply's.
    let lie: Lie = |header| (Header { body_len: 3, ..header }, vec![0xff; 3]);
    let channel = client.channel(lying_server(&world, lie).await);
    let error = channel.call(&WhoAmI {}, soon()).await.unwrap_err();
    assert!(matches!(error, RpcError::Protocol(ProtocolError::Reply(_))), "{error:?}");
    world.end().await;
}

#[tokio::test]
async fn what_was_damaged_once_is_sent_again() {
    let world = World::new(tcp()).await;
    let client = world.client(1);
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let (fetched, stored) = (encode(&100_usize), encode(&(100_usize, 0_u32)));
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let server = lying_server(&world, move |header| {
        let is_first = count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        match (header.opcode, is_first) {
            (Fetch::OPCODE, _) => {
                let bulk_crc = if is_first { 1 } else { crc32c::crc32c(&[9; 100]) };
                let header = Header { body_len: len(&fetched), bulk_len: 100, bulk_crc, ..header };
                (header, [&fetched[..], &[9; 100]].concat())
            }
            (_, true) => (Header { status: DAMAGED, bulk_crc: 5, ..header }, vec![]),
            (_, false) => (Header { body_len: len(&stored), ..header }, stored.clone()),
        }
    })
    .await;
    let channel = client.channel(server);
    let sink = client.region(100).await.unwrap();
    let (_, region) = channel.call_receiving(&Fetch { len: 100, pieces: 1 }, sink, soon()).await.unwrap();
    assert_eq!((&region[..], seen.load(Ordering::Relaxed)), (&[9; 100][..], 2));
    drop(region);
    channel.call_sending(&Store { pieces: 1 }, vec![1; 100], soon()).await.unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 4);
    world.end().await;
}

#[tokio::test]
async fn a_listener_of_something_else_is_told_apart() {
    let world = World::new(tcp()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let other = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        Raw(stream).ended().await;
    });
    let refused = world.client(1).connect_once(address, soon()).await.err().unwrap();
    assert!(matches!(refused, RpcError::Refused(Refusal::Magic)), "{refused:?}");
    other.await.unwrap();
    world.end().await;
}
