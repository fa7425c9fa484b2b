//! An instance in this process: an MDT and an OST per node, and clients that reach their own node's directly and the
//! others' over the in-process network.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_client::fs::{ClientFs, Leases, Node, RemoteNode, Targets};
use burstfs_mds::{Checker, Mdt, MdtConfig, MemoryEngine, ObjectRemover, Peers, SystemClock, Violation};
use burstfs_net::testing::Realm;
use burstfs_net::{
    Channel, ChannelLimits, Client, ClientBulk, Deadline, Handler, Identity, InProcess, Peer, ServerConfig,
    ServerHandle, ServerLimits, Transport, XidSource, serve,
};
use burstfs_oss::{Options, Ost};
use burstfs_proto::Class;
use burstfs_proto::batch::{self, BatchReply, BatchRequest};
use burstfs_proto::hello::Role;
use burstfs_proto::leases::{LeaseReply, LeaseRequest, Recall};
use burstfs_proto::mds::{MdsReply, MdsRequest, Orphan};
use burstfs_proto::oss::{List, OssReply, OssRequest, Remove, Statfs};
use burstfs_proto::service::{Bulk, Caller, MetadataService, NoBulk, ObjectService};
use burstfs_types::{ClientId, Errno, Ino, InstanceId, LayoutPolicy, MdtIndex, MetadataPolicy, NodeIndex, OstIndex};
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

const TIMEOUT: Duration = Duration::from_secs(60);
/// The share of each OST.
pub(crate) const CAPACITY: u64 = 1 << 30;

/// One instance. Its root directory is root's, mode 0777.
///
/// At its end the checker finds nothing.
pub(crate) struct Cluster {
    clients: Vec<Arc<ClientFs>>,
    mdts: Vec<Arc<Mdt>>,
    osts: Vec<Arc<Ost>>,
    batches: Arc<AtomicUsize>,
    syncs: Vec<Arc<AtomicUsize>>,
    asked: Arc<AtomicUsize>,
    network: Arc<dyn Transport>,
    // Servers end before the runtime that runs them.
    _servers: Vec<ServerHandle>,
    runtime: Runtime,
    directory: TempDir,
}

impl Cluster {
    /// An instance of so many nodes, whose files live on the nodes that make them.
    pub(crate) fn new(nodes: usize) -> Cluster {
        Cluster::of_job(nodes, LayoutPolicy::Local)
    }

    /// The same, for a job that asks for a layout.
    pub(crate) fn of_job(nodes: usize, layout: LayoutPolicy) -> Cluster {
        Cluster::build(nodes, layout, &std::env::temp_dir())
    }

    /// The same, with its data below `parent`.
    pub(crate) fn new_in(nodes: usize, parent: &Path) -> Cluster {
        Cluster::build(nodes, LayoutPolicy::Local, parent)
    }

    /// An instance whose directories are split as soon as they have a few names.
    pub(crate) fn that_splits(nodes: usize) -> Cluster {
        Cluster::with_policy(nodes, MetadataPolicy { split_names: 8, split_contended_names: 4, split_shards: 16 })
    }

    /// An instance whose directories are split by this policy.
    pub(crate) fn with_policy(nodes: usize, policy: MetadataPolicy) -> Cluster {
        Cluster::build_with(nodes, (LayoutPolicy::default(), policy), &std::env::temp_dir())
    }

    fn build(nodes: usize, layout: LayoutPolicy, parent: &Path) -> Cluster {
        Cluster::build_with(nodes, (layout, MetadataPolicy::default()), parent)
    }

    fn build_with(nodes: usize, policies: (LayoutPolicy, MetadataPolicy), parent: &Path) -> Cluster {
        let runtime = Runtime::new().unwrap();
        let directory = tempfile::tempdir_in(parent).unwrap();
        let network: Arc<dyn Transport> = Arc::new(InProcess::new(64 << 20));
        let built = runtime.block_on(async { Builder::new((nodes, policies), network.clone(), &directory).await });
        Cluster {
            clients: built.clients,
            mdts: built.mdts,
            osts: built.osts,
            batches: built.batches,
            syncs: built.syncs,
            asked: built.asked,
            network,
            _servers: built.servers,
            runtime,
            directory,
        }
    }

    /// The file system as a node sees it.
    pub(crate) fn client(&self, node: usize) -> Arc<ClientFs> {
        Arc::clone(&self.clients[node])
    }

    /// Runs a future to its end.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Where operations that wait run.
    pub(crate) fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Where the OSTs' directories are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Messages with several requests that servers have had.
    pub(crate) fn batches(&self) -> usize {
        self.batches.load(Ordering::Relaxed)
    }

    /// How often each OST was told to make an object durable, since this was last asked.
    pub(crate) fn take_syncs(&self) -> Vec<usize> {
        self.syncs.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect()
    }

    /// Requests that servers have had of other nodes and that change nothing.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Bytes that are in the transport's own memory now: what a device would send from, and receive into.
    pub(crate) fn in_the_pool(&self) -> usize {
        self.network.regions().in_use_bytes()
    }

    /// The OSTs, to look behind the client's back.
    pub(crate) fn osts(&self) -> &[Arc<Ost>] {
        &self.osts
    }
}

impl Cluster {
    /// What the checker finds over all targets.
    async fn found(&self) -> Vec<Violation> {
        let mut checker = Checker::new(u16::try_from(self.mdts.len()).unwrap());
        for mdt in &self.mdts {
            checker.add_mdt(mdt).unwrap();
        }
        let xids = XidSource::new(ClientId { node: NodeIndex::new(0), incarnation: 1 });
        for (index, ost) in (0..).zip(&self.osts) {
            let (mut objects, mut next) = (Vec::new(), Some(List { part: 0, behind: None }));
            while let Some(list) = next {
                let reply = ost.call(xids.take().caller(), list.into(), &mut NoBulk).await;
                let Ok(OssReply::List(listed)) = reply else { panic!("{reply:?}") };
                objects.extend(listed.objects);
                next = listed.next;
            }
            let reply = ost.call(xids.take().caller(), Statfs.into(), &mut NoBulk).await;
            let Ok(OssReply::Statfs(counts)) = reply else { panic!("{reply:?}") };
            checker.add_ost(OstIndex::new(index), &objects, &counts);
        }
        checker.finish()
    }

    /// What the checker finds once nothing happens any more, but at most for ten seconds.
    async fn found_in_the_end(&self) -> Vec<Violation> {
        for _ in 0..100 {
            let found = self.found().await;
            if found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.found().await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.runtime.block_on(self.found_in_the_end()), []);
        }
    }
}

/// What a cluster is made of.
struct Builder {
    clients: Vec<Arc<ClientFs>>,
    mdts: Vec<Arc<Mdt>>,
    osts: Vec<Arc<Ost>>,
    batches: Arc<AtomicUsize>,
    syncs: Vec<Arc<AtomicUsize>>,
    asked: Arc<AtomicUsize>,
    servers: Vec<ServerHandle>,
}

impl Builder {
    async fn new(
        (nodes, policies): (usize, (LayoutPolicy, MetadataPolicy)),
        network: Arc<dyn Transport>,
        directory: &TempDir,
    ) -> Builder {
        let batches = Arc::<AtomicUsize>::default();
        let asked = Arc::<AtomicUsize>::default();
        let realm = Realm::new();
        let instance = InstanceId::new("test", 1, 0).unwrap();
        let (mut mdts, mut osts, mut servers, mut peers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut counted = Vec::new();
        let mut all_leases = Vec::new();
        for node in 0..nodes {
            let peer = Arc::new(ChannelPeers::default());
            let mdt = open_mdt((node, nodes), policies, peer.clone());
            let options = Options { capacity_bytes: CAPACITY, open_files_max: 256 };
            let ost = Arc::new(Ost::open(&directory.path().join(format!("ost{node}")), options).unwrap());
            let listener = network.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
            let limits = ServerLimits::default();
            let config = ServerConfig { instance: instance.clone(), uid: 0, auth: realm.member(0), limits };
            let oss = Arc::new(CountedOst { ost: ost.clone(), syncs: Arc::default() });
            let leases = Arc::new(Leases::new(client_id(node)));
            let handler = Arc::new(NodeHandler {
                mds: mdt.clone(),
                oss: oss.clone(),
                batches: batches.clone(),
                asked: asked.clone(),
                leases: leases.clone(),
            });
            all_leases.push(leases);
            servers.push(serve(listener, config, handler));
            mdts.push(mdt);
            osts.push(ost);
            counted.push(oss);
            peers.push(peer);
        }
        let addresses: Vec<_> = servers.iter().map(ServerHandle::address).collect();
        let mut clients = Vec::new();
        for node in 0..nodes {
            let id = client_id(node);
            let role = Role::Node(id);
            let identity = Identity { instance: instance.clone(), uid: 0, role, auth: realm.member(0) };
            let client = Client::new(network.clone(), identity, XidSource::new(id), ChannelLimits::default());
            let to_node = |(index, address): (usize, &SocketAddr)| {
                if index == node {
                    Node::Local { mds: mdts[index].clone(), oss: counted[index].clone() }
                } else {
                    Node::Remote(RemoteNode::new(&client, *address, TIMEOUT))
                }
            };
            let targets = addresses.iter().enumerate().map(to_node).collect();
            let targets = Targets::new(targets, client.xids().clone());
            let fs = ClientFs::new(targets, id.node, all_leases[node].clone());
            clients.push(Arc::new(fs));
            peers[node].channels.get_or_init(|| addresses.iter().map(|address| client.channel(*address)).collect());
            let (mdt, remover) = (mdts[node].clone(), Remover(osts.clone()));
            tokio::spawn(async move { mdt.run_destroyer(&remover).await });
            let mdt = mdts[node].clone();
            tokio::spawn(async move { mdt.run_splitter().await });
            for peer in (0..nodes).filter(|peer| *peer != node) {
                let mdt = mdts[node].clone();
                tokio::spawn(async move { mdt.run_resolver(MdtIndex::new(peer as u16)).await });
            }
        }
        let syncs = counted.iter().map(|oss| oss.syncs.clone()).collect();
        Builder { clients, mdts, osts, batches, syncs, asked, servers }
    }
}

fn client_id(node: usize) -> ClientId {
    ClientId { node: NodeIndex::new(node as u16), incarnation: 1 }
}

fn open_mdt(
    (node, nodes): (usize, usize),
    (layout, policy): (LayoutPolicy, MetadataPolicy),
    peers: Arc<ChannelPeers>,
) -> Arc<Mdt> {
    let config = MdtConfig {
        tracks_changes: true,
        mdt: MdtIndex::new(node as u16),
        mdts: nodes as u16,
        root_uid: 0,
        root_gid: 0,
        root_mode: 0o777,
        layout,
        has_ready_made: false,
        policy,
    };
    let engine = Arc::new(MemoryEngine::new());
    Arc::new(Mdt::open(config, engine, peers, Arc::new(SystemClock)).unwrap())
}

/// The other MDTs, over the same channels as a node's client has.
#[derive(Default)]
struct ChannelPeers {
    channels: OnceLock<Vec<Channel>>,
}

#[async_trait]
impl Peers for ChannelPeers {
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno> {
        let channel = self.channels.get().and_then(|channels| channels.get(usize::from(mdt.get()))).unwrap();
        let deadline = Deadline::after(TIMEOUT);
        let (body, _) = channel.exchange(request.opcode(), request.encode(), ClientBulk::None, deadline).await?;
        Ok(MdsReply::decode(request.opcode(), &body).unwrap())
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }

    async fn recall(&self, recall: Recall) -> Result<(), Errno> {
        let node = usize::from(recall.client.node.get());
        let channel = self.channels.get().and_then(|channels| channels.get(node)).unwrap();
        Ok(channel.call(&recall, Deadline::after(TIMEOUT)).await?)
    }
}

/// Removes objects without a network.
struct Remover(Vec<Arc<Ost>>);

#[async_trait]
impl ObjectRemover for Remover {
    async fn remove(&self, orphans: &[Orphan]) -> Vec<Ino> {
        let mut by_ost: BTreeMap<OstIndex, Remove> = BTreeMap::new();
        for (ost, object) in orphans.iter().flat_map(Orphan::objects) {
            by_ost.entry(ost).or_insert_with(|| Remove { objects: Vec::new() }).objects.push(object);
        }
        let xids = XidSource::new(ClientId { node: NodeIndex::new(0), incarnation: 1 });
        for (ost, remove) in by_ost {
            let number = xids.take();
            self.0[usize::from(ost.get())].call(number.caller(), remove.into(), &mut NoBulk).await.unwrap();
        }
        orphans.iter().map(|orphan| orphan.ino).collect()
    }
}

/// An OST that counts what it is told to make durable, whoever says so.
struct CountedOst {
    ost: Arc<Ost>,
    syncs: Arc<AtomicUsize>,
}

#[async_trait]
impl ObjectService for CountedOst {
    async fn call(&self, caller: Caller, request: OssRequest, bulk: &mut dyn Bulk) -> Result<OssReply, Errno> {
        if let OssRequest::Sync(_) = request {
            self.syncs.fetch_add(1, Ordering::Relaxed);
        }
        self.ost.call(caller, request, bulk).await
    }
}

/// One node's services for the others.
struct NodeHandler {
    mds: Arc<Mdt>,
    oss: Arc<CountedOst>,
    batches: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    leases: Arc<Leases>,
}

#[async_trait]
impl Handler for NodeHandler {
    async fn handle(
        &self,
        _peer: &Peer,
        caller: Caller,
        opcode: u16,
        body: &[u8],
        bulk: &mut dyn Bulk,
    ) -> Result<Vec<u8>, Errno> {
        if let Ok(BatchRequest::Batch(batch)) = BatchRequest::decode(opcode, body) {
            self.batches.fetch_add(1, Ordering::Relaxed);
            return Ok(BatchReply::Batch(batch::run(&*self.mds, caller, batch).await?).encode());
        }
        if let Ok(LeaseRequest::Recall(recall)) = LeaseRequest::decode(opcode, body) {
            return self.leases.recall(recall).await.map(|()| LeaseReply::Recall(()).encode());
        }
        if let Ok(request) = MdsRequest::decode(opcode, body) {
            if request.class() == Class::ReadOnly {
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(self.mds.call(caller, request).await?.encode());
        }
        let request = OssRequest::decode(opcode, body).map_err(|_| Errno::EPROTO)?;
        Ok(self.oss.call(caller, request, bulk).await?.encode())
    }
}
