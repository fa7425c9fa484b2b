//! Against a device: both ends of a connection in this process. Runs where there is one (`make rdma-test`), at the address
//! that `BURSTFS_RDMA_ADDRESS` names.

// A test's helpers fail like the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use burstfs_verbs::{
    Arena, Block, Completion, ConnectionId, Depths, Device, Done, Endpoint, Event, Exposure, Lent, ProtectionDomain,
    Purpose, Remote, SLAB_BYTES, Terms,
};

const DEPTHS: Depths = Depths { sends: 16, receives: 8, inline: 64 };
const ARENA_BYTES: usize = 16 << 20;
const LONG: Duration = Duration::from_secs(30);

fn device() -> Device {
    let address = std::env::var("BURSTFS_RDMA_ADDRESS").expect("BURSTFS_RDMA_ADDRESS").parse().unwrap();
    Device::at(address).unwrap()
}

fn wait(fd: BorrowedFd<'_>) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor that is open.
    unsafe { libc::poll(&mut poll, 1, 100) };
}

fn event(id: &mut ConnectionId) -> Event {
    use std::os::fd::AsFd;
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        if let Some(event) = id.event().unwrap() {
            return event;
        }
        wait(id.as_fd());
    }
    panic!("no event of the connection manager");
}

struct Side {
    endpoint: Endpoint<&'static str>,
    arena: Arena,
    pending: Vec<Completion<&'static str>>,
}

impl Side {
    fn new(id: ConnectionId, device: &Device, purpose: Purpose) -> Side {
        let domain = ProtectionDomain::new(device).unwrap();
        let arena = Arena::new(std::slice::from_ref(&domain), purpose, ARENA_BYTES).unwrap();
        let mut endpoint = Endpoint::new(id, &domain, DEPTHS).unwrap();
        for _ in 0..DEPTHS.receives {
            endpoint.receive(arena.take(4096).unwrap().unwrap(), "receive").unwrap();
        }
        Side { endpoint, arena, pending: vec![] }
    }

    fn block(&self, len: usize, fill: u8) -> Block {
        let mut block = self.arena.take(len).unwrap().unwrap();
        block.fill(fill);
        block
    }

    /// The next completion with this token.
    fn done(&mut self, token: &str) -> Completion<&'static str> {
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            self.pending.extend(self.endpoint.poll().unwrap());
            if let Some(at) = self.pending.iter().position(|done| done.token == token) {
                return self.pending.remove(at);
            }
            self.endpoint.arm().unwrap();
            self.pending.extend(self.endpoint.poll().unwrap());
            if !self.pending.iter().any(|done| done.token == token) {
                wait(self.endpoint.completion_fd());
            }
        }
        panic!("{token} never completed");
    }

    fn receives(&mut self, bytes: &[u8]) {
        let done = self.done("receive");
        let Ok(Done::Received(len)) = done.result else { panic!("{done:?}") };
        let block = done.block.unwrap();
        assert_eq!(&block[..len], bytes);
        self.endpoint.receive(block, "receive").unwrap();
    }
}

/// A client, whose memory can be exposed, and a server.
fn pair() -> (Side, Side) {
    let device = device();
    let mut listener = ConnectionId::new().unwrap();
    listener.bind(SocketAddr::new(device.address(), 0)).unwrap();
    listener.listen(4).unwrap();
    let address = listener.local_address().unwrap();
    let mut id = ConnectionId::new().unwrap();
    id.resolve_address(None, address, LONG).unwrap();
    assert!(matches!(event(&mut id), Event::AddressResolved));
    id.resolve_route(LONG).unwrap();
    assert!(matches!(event(&mut id), Event::RouteResolved));
    id.set_ack_timeout(14).unwrap();
    let mut client = Side::new(id, &device, Purpose::Exposable);
    let hello = Terms { private_data: b"hello", reads_served: 16, reads_made: 0 };
    client.endpoint.id().connect(hello).unwrap();
    let Event::Request(id, said, 16) = event(&mut listener) else { panic!("no request") };
    assert!(said.starts_with(b"hello"));
    id.set_ack_timeout(14).unwrap();
    let mut server = Side::new(id, &device, Purpose::Private);
    let welcome = Terms { private_data: b"welcome", reads_served: 0, reads_made: 16 };
    server.endpoint.id().accept(welcome).unwrap();
    let Event::Established(said) = event(client.endpoint.id()) else { panic!("not established") };
    assert!(said.starts_with(b"welcome"));
    assert!(matches!(event(server.endpoint.id()), Event::Established(_)));
    (client, server)
}

fn expose(side: &mut Side, lent: Lent, len: usize) -> Exposure {
    side.endpoint.expose(lent, 0..len).map_err(|error| error.0).unwrap()
}

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn messages_go_both_ways() {
    let (mut client, mut server) = pair();
    client.endpoint.send_inline(b"short", "sent").unwrap();
    server.receives(b"short");
    let block = server.block(4096, 7);
    server.endpoint.send(block.hold(), 3000, "sent").unwrap();
    client.receives(&[7; 3000]);
    assert!(client.done("sent").result.is_ok() && server.done("sent").result.is_ok());
    assert!(client.endpoint.send_inline(&[0; 5000], "sent").is_err());
    client.endpoint.probe("alive").unwrap();
    assert!(client.done("alive").result.is_ok());
    // The end of one side is seen by the other.
    let (flushed, exposed) = client.endpoint.close();
    assert_eq!((flushed.len(), exposed.len()), (DEPTHS.receives as usize, 0));
    assert!(matches!(event(server.endpoint.id()), Event::Disconnected));
}

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn the_server_reads_and_writes_what_is_exposed_until_it_is_invalid() {
    let (mut client, mut server) = pair();
    for (from, len) in [(0, 1), (0, 4096), (4096, 100_000), (0, 4 << 20)] {
        let mut source = client.block(from + len, 3);
        source[..from].fill(4);
        let part = from..from + len;
        let readable = client.endpoint.expose(Lent::Hold(source.hold()), part).map_err(|error| error.0).unwrap();
        let sink = client.block(len, 0);
        let writable = expose(&mut client, Lent::Block(sink), len);
        client.endpoint.send_inline(b"go", "sent").unwrap();
        server.receives(b"go");
        let target = server.block(len, 0);
        server.endpoint.read(target, len, readable.remote, "read").unwrap();
        let done = server.done("read");
        assert!(done.result.is_ok(), "{done:?}");
        assert!(done.block.unwrap()[..len].iter().all(|byte| *byte == 3));
        let answer = server.block(len, 9);
        server.endpoint.write(answer.hold(), len, writable.remote, "written").unwrap();
        server.endpoint.send_inline(b"done", "answered").unwrap();
        client.receives(b"done");
        assert!(server.done("written").result.is_ok() && server.done("answered").result.is_ok());
        client.endpoint.retract(writable, "retracted").unwrap();
        let done = client.done("retracted");
        assert!(done.result.is_ok(), "{done:?}");
        assert!(done.block.unwrap()[..len].iter().all(|byte| *byte == 9));
        client.endpoint.retract(readable, "retracted").unwrap();
        assert!(client.done("retracted").result.is_ok());
    }
    assert!(client.done("sent").result.is_ok());
}

/// What the server tries with a key, on a connection of its own each time: it fails, and the client's bytes stay.
fn refused(what: &str, act: impl Fn(&mut Side, &mut Side, Exposure) -> Remote, len: usize, write: bool) {
    let (mut client, mut server) = pair();
    let sink = client.block(8192, 1);
    let exposure = expose(&mut client, Lent::Block(sink), 4096);
    let remote = act(&mut client, &mut server, exposure);
    let block = server.block(8192, 2);
    match write {
        true => server.endpoint.write(block.hold(), len, remote, "tried").unwrap(),
        false => server.endpoint.read(block, len, remote, "tried").unwrap(),
    }
    let result = server.done("tried").result;
    eprintln!("{what}: {result:?}");
    assert!(result.is_err_and(|error| error.is_remote_access()), "{what}");
    let (_, exposed) = client.endpoint.close();
    for (_, lent) in exposed {
        let Lent::Block(block) = lent else { panic!("a hold") };
        assert!(block.iter().all(|byte| *byte == 1));
    }
}

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn keys_are_good_for_their_range_their_access_their_time_and_their_peer() {
    let right = |_: &mut Side, _: &mut Side, exposure: Exposure| exposure.remote;
    // A soft device checks the bounds of the registration that a window is in, others those of the window.
    let beyond = |_: &mut Side, _: &mut Side, it: Exposure| Remote {
        address: it.remote.address + SLAB_BYTES as u64,
        ..it.remote
    };
    refused("memory beyond", beyond, 16, true);
    refused("another access", right, 16, false);
    refused("an older key", |_, _, it| Remote { key: it.remote.key ^ 1, ..it.remote }, 16, true);
    refused("another key", |_, _, it| Remote { key: it.remote.key ^ 0x100, ..it.remote }, 16, true);
    let retracted = |client: &mut Side, _: &mut Side, exposure: Exposure| {
        client.endpoint.retract(exposure, "retracted").unwrap();
        assert!(client.done("retracted").result.is_ok());
        exposure.remote
    };
    refused("after its time", retracted, 16, true);
    let (mut other, _server) = pair();
    let sink = other.block(4096, 5);
    let foreign = expose(&mut other, Lent::Block(sink), 4096);
    other.endpoint.send_inline(b"bound", "sent").unwrap();
    assert!(other.done("sent").result.is_ok());
    refused("a key of another connection", move |_, _, _| foreign.remote, 16, true);
}

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn memory_of_another_domain_and_private_memory_are_not_accepted() {
    let (mut client, mut server) = pair();
    let foreign = server.block(4096, 0);
    assert!(client.endpoint.send(foreign.hold(), 10, "sent").is_err());
    assert!(server.endpoint.expose(Lent::Hold(foreign.hold()), 0..10).is_err());
    let own = client.block(4096, 0);
    assert!(client.endpoint.expose(Lent::Hold(own.hold()), 0..4097).is_err());
    client.endpoint.send(own.hold(), 10, "sent").unwrap();
    server.receives(&[0; 10]);
}

/// So many of the machine's huge pages are taken, or `None` where it has no such pages.
fn huge_pages_taken() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some(field("HugePages_Total:")? - field("HugePages_Free:")? + field("HugePages_Rsvd:")?)
}

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn memory_is_of_huge_pages_where_some_are_set_aside() {
    const HUGE_PAGE_BYTES: usize = 2 << 20;
    let pages = |count: u64| std::fs::write("/proc/sys/vm/nr_hugepages", count.to_string()).unwrap();
    let domain = ProtectionDomain::new(&device()).unwrap();
    let of_a_slab = (SLAB_BYTES / HUGE_PAGE_BYTES) as u64;
    // Enough for one of two slabs: the other is of ordinary pages, and serves as well.
    pages(of_a_slab + 1);
    assert_eq!(huge_pages_taken(), Some(0));
    let arena = Arena::new(std::slice::from_ref(&domain), Purpose::Private, 2 * SLAB_BYTES).unwrap();
    assert_eq!(huge_pages_taken(), Some(of_a_slab));
    let blocks: Vec<Block> = std::iter::from_fn(|| arena.take(4 << 20).unwrap()).collect();
    assert_eq!((blocks.len(), huge_pages_taken()), (4, Some(of_a_slab)));
    drop((blocks, arena));
    assert_eq!(huge_pages_taken(), Some(0));
    pages(0);
}
