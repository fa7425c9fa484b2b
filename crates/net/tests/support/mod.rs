//! A service for tests, and peers to call it.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_net::testing::Realm;
use burstfs_net::{
    Authenticator, ChannelLimits, Client, Deadline, Handler, Identity, Peer, ServerConfig, ServerHandle, ServerLimits,
    Tcp, TcpConfig, Transport, XidSource, serve,
};
use burstfs_proto::hello::Role;
use burstfs_proto::service::{Bulk, Caller};
use burstfs_proto::{Class, Rpc, Service, decode, encode};
use burstfs_types::{ClientId, Errno, InstanceId, NodeIndex, Xid};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub const UID: u32 = 1234;

/// The deadline of a call that is to succeed.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// The deadline of a call that is to fail by it.
pub fn shortly() -> Deadline {
    Deadline::after(Duration::from_millis(100))
}

macro_rules! rpc {
    ($name:ident { $($field:ident: $of:ty),* } -> $reply:ty, $opcode:literal) => {
        #[derive(Clone, Debug, Serialize, Deserialize)]
        pub struct $name { $(pub $field: $of),* }

        impl Rpc for $name {
            type Reply = $reply;
            const OPCODE: u16 = $opcode;
            const NAME: &'static str = stringify!($name);
            const CLASS: Class = Class::Replayable;
            const SERVICE: Service = Service::Mds;
        }
    };
}

rpc!(Echo { bytes: Vec<u8> } -> Vec<u8>, 0x01f0);
rpc!(Store { pieces: usize } -> (usize, u32), 0x01f1);
rpc!(Fetch { len: usize, pieces: usize } -> usize, 0x01f2);
rpc!(Block { key: u32 } -> usize, 0x01f3);
rpc!(Refuse {} -> (), 0x01f4);
rpc!(WhoAmI {} -> (u32, Role), 0x01f5);
rpc!(Panic {} -> (), 0x01f6);

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// The service.
pub struct TestService {
    /// Runs of `Block`, in the order of their start.
    pub runs: watch::Sender<Vec<(u32, Caller)>>,
    open: watch::Sender<HashMap<u32, bool>>,
    pub log: Mutex<Vec<Xid>>,
}

impl TestService {
    pub fn new() -> Arc<TestService> {
        Arc::new(TestService {
            runs: watch::Sender::new(vec![]),
            open: watch::Sender::new(HashMap::new()),
            log: Mutex::default(),
        })
    }

    /// Lets all `Block`s of `key` go, now and later.
    pub fn open(&self, key: u32) {
        self.open.send_modify(|open| {
            open.insert(key, true);
        });
    }

    /// Waits until `Block` was started `count` times.
    pub async fn started(&self, count: usize) {
        self.runs.subscribe().wait_for(|runs| runs.len() >= count).await.unwrap();
    }

    pub fn runs_of(&self, key: u32) -> Vec<Caller> {
        self.runs.borrow().iter().filter(|run| run.0 == key).map(|run| run.1).collect()
    }
}

#[async_trait]
impl Handler for TestService {
    async fn handle(
        &self,
        peer: &Peer,
        caller: Caller,
        opcode: u16,
        body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> Result<Vec<u8>, Errno> {
        self.log.lock().unwrap().push(caller.xid);
        match opcode {
            Echo::OPCODE => {
                let echo: Echo = decode(Echo::NAME, body).unwrap();
                Ok(encode(&echo.bytes))
            }
            Store::OPCODE => {
                let store: Store = decode(Store::NAME, body).unwrap();
                let mut got = vec![0; bulk.source_len()];
                let piece = got.len().div_ceil(store.pieces).max(1);
                for (at, target) in got.chunks_mut(piece).enumerate() {
                    bulk.get(at * piece, target).await.unwrap();
                }
                assert!(bulk.get(got.len(), &mut [0]).await.is_err());
                assert!(bulk.source().is_none_or(|source| source == got));
                Ok(encode(&(got.len(), crc(&got))))
            }
            Fetch::OPCODE => {
                let fetch: Fetch = decode(Fetch::NAME, body).unwrap();
                let bytes = pattern(fetch.len.min(bulk.sink_len()));
                assert!(bulk.put(bulk.sink_len(), &[1]).await.is_err());
                if fetch.pieces == 0 {
                    bulk.sink().unwrap()[..bytes.len()].copy_from_slice(&bytes);
                    bulk.set_put_len(bytes.len());
                } else {
                    let piece = bytes.len().div_ceil(fetch.pieces).max(1);
                    for (at, source) in bytes.chunks(piece).enumerate() {
                        bulk.put(at * piece, source).await.unwrap();
                    }
                }
                Ok(encode(&bytes.len()))
            }
            Block::OPCODE => {
                let block: Block = decode(Block::NAME, body).unwrap();
                self.runs.send_modify(|runs| runs.push((block.key, caller)));
                let mut open = self.open.subscribe();
                open.wait_for(|open| open.get(&block.key) == Some(&true)).await.unwrap();
                Ok(encode(&self.runs_of(block.key).len()))
            }
            Refuse::OPCODE => Err(Errno::ENOSPC),
            WhoAmI::OPCODE => Ok(encode(&(peer.uid, peer.role))),
            Panic::OPCODE => panic!("as asked"),
            other => panic!("opcode {other:#06x}"),
        }
    }
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc: u32, byte| crc.rotate_left(5).wrapping_add(u32::from(*byte)))
}

pub fn stored(bytes: &[u8]) -> (usize, u32) {
    (bytes.len(), crc(bytes))
}

pub fn instance() -> InstanceId {
    InstanceId::new("vc", 42, 0).unwrap()
}

pub fn tcp() -> Arc<dyn Transport> {
    Arc::new(Tcp::new(TcpConfig { client_pool_bytes: 64 << 20, server_pool_bytes: 64 << 20 }))
}

/// RDMA over the device of the address that `BURSTFS_RDMA_ADDRESS` names.
#[cfg(feature = "rdma")]
pub fn rdma() -> Arc<dyn Transport> {
    rdma_over(&[rdma_address()], 1)
}

/// RDMA over the devices of these addresses, with so many connections over each.
#[cfg(feature = "rdma")]
pub fn rdma_over(addresses: &[IpAddr], connections: usize) -> Arc<dyn Transport> {
    let config = burstfs_net::RdmaConfig { client_pool_bytes: 64 << 20, server_pool_bytes: 64 << 20, connections };
    Arc::new(burstfs_net::Rdma::open(addresses, config).unwrap())
}

pub fn rdma_address() -> IpAddr {
    std::env::var("BURSTFS_RDMA_ADDRESS").expect("BURSTFS_RDMA_ADDRESS").parse().unwrap()
}

/// A server and what is needed to be its client.
pub struct World {
    pub transport: Arc<dyn Transport>,
    pub realm: Realm,
    pub service: Arc<TestService>,
    pub server: Option<ServerHandle>,
    pub address: SocketAddr,
}

impl World {
    pub async fn new(transport: Arc<dyn Transport>) -> World {
        World::with(transport, ServerLimits::default()).await
    }

    pub async fn with(transport: Arc<dyn Transport>, limits: ServerLimits) -> World {
        let (realm, service) = (Realm::new(), TestService::new());
        let host = if transport.name() == "rdma" { rdma_address() } else { Ipv4Addr::LOCALHOST.into() };
        let mut world = World { transport, realm, service, server: None, address: SocketAddr::new(host, 0) };
        world.start(limits).await;
        world
    }

    /// Starts the server, again at its address if it had one.
    pub async fn start(&mut self, limits: ServerLimits) {
        let listener = self.transport.bind(self.address).await.unwrap();
        self.address = listener.address();
        let config = ServerConfig { instance: instance(), uid: UID, auth: self.realm.member(UID), limits };
        self.server = Some(serve(listener, config, self.service.clone()));
    }

    pub fn server(&self) -> &ServerHandle {
        self.server.as_ref().unwrap()
    }

    pub fn identity(&self, node: u16) -> Identity {
        let client = ClientId { node: NodeIndex::new(node), incarnation: 7 };
        Identity { instance: instance(), uid: UID, role: Role::Node(client), auth: self.realm.member(UID) }
    }

    pub fn client_as(&self, identity: Identity, limits: ChannelLimits) -> Client {
        let client = match identity.role {
            Role::Node(client) => client,
            Role::Command => ClientId { node: NodeIndex::new(0), incarnation: 0 },
        };
        Client::new(self.transport.clone(), identity, XidSource::new(client), limits)
    }

    pub fn client(&self, node: u16) -> Client {
        self.client_as(self.identity(node), ChannelLimits::default())
    }

    pub fn member(&self, uid: u32) -> Arc<dyn Authenticator> {
        self.realm.member(uid)
    }

    /// Ends everything, and checks that no memory is left lent.
    pub async fn end(self) {
        if let Some(server) = self.server {
            server.shutdown().await;
        }
        let transport = self.transport;
        eventually("all regions are back", || transport.regions().in_use_bytes() == 0).await;
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let held = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(what, held).await;
}

/// Fails when `future` takes so long that it will never end.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("never: {what}"),
    }
}
