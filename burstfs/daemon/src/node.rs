//! One node's roles, brought up: from the description to a served namespace.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use burstfs_client::fs::{ClientFs, Leases, Node as ClientNode, RemoteNode, Targets as ClientTargets};
use burstfs_client::fuse::{self, Arrivals, FuseConfig, FuseSession, Passthrough};
use burstfs_mds::{Mdt, MdtConfig, RocksEngine, SystemClock};
use burstfs_mgs::{Identity as InstanceIdentity, Mgs};
use burstfs_net::{
    ChannelLimits, Choice, Client, Identity, Listener, Munge, Network, NetworkConfig, ServerConfig, ServerHandle,
    ServerLimits, TcpConfig, XidSource, serve,
};
use burstfs_node::description::InstanceDescription;
use burstfs_oss::{Options, Ost};
use burstfs_proto::hello::Role;
use burstfs_proto::mgs::{HeldPart, Join, Kept, Map};
use burstfs_spec::Transport;
use burstfs_types::{ClientId, Code, Failure, MdtIndex, NodeIndex};
use tokio::sync::watch;

use crate::backing::Broker;
use crate::directory::{Directory, Seat};
use crate::links::{Links, RPC_TIMEOUT, Remover};
use crate::lost::LostNodes;
use crate::mgs::MgsDriver;
use crate::rendezvous;
use crate::roles::{Roles, Targets};
use crate::staging;

/// Object files that an OST keeps open.
const OPEN_FILES_MAX: usize = 4096;

/// What the supervisor gives to a daemon that serves a mount.
pub(crate) struct MountDevice {
    /// `/dev/fuse`, mounted.
    pub(crate) device: OwnedFd,
    /// The socket to the broker of backing ids.
    pub(crate) backing: Option<OwnedFd>,
}

/// A node that has joined.
pub(crate) struct Node {
    pub(crate) directory: Directory,
    pub(crate) fs: Arc<ClientFs>,
    pub(crate) map: Map,
    /// The object target of this node.
    pub(crate) ost: Arc<Ost>,
    /// The numbers of this node's requests.
    pub(crate) xids: XidSource,
    /// Nodes that will not come back.
    pub(crate) lost: Arc<LostNodes>,
    /// As which this node asks an MGS.
    pub(crate) mgs_client: Client,
    /// The MGS, where this node carries it.
    pub(crate) carried: Arc<watch::Sender<Option<Arc<MgsDriver>>>>,
    /// What it answers to.
    pub(crate) services: Services,
    /// Answers the others for as long as it lives.
    pub(crate) server: Arc<ServerHandle>,
}

/// What a node answers to, wherever it listens.
#[derive(Clone)]
pub(crate) struct Services {
    config: ServerConfig,
    roles: Arc<Roles>,
}

impl Services {
    fn new(description: &InstanceDescription, roles: Roles) -> Services {
        let config = ServerConfig {
            instance: description.instance.clone(),
            uid: description.uid,
            auth: Arc::new(Munge::new()),
            limits: ServerLimits::default(),
        };
        Services { config, roles: Arc::new(roles) }
    }

    /// Of a node in a unit test.
    #[cfg(test)]
    pub(crate) fn without_targets(
        description: &InstanceDescription,
        carried: watch::Receiver<Option<Arc<MgsDriver>>>,
    ) -> Services {
        Services::new(description, Roles::new(watch::channel(None).1, carried))
    }

    /// Answers at `listener` until the handle is dropped.
    fn open(&self, listener: Box<dyn Listener>) -> ServerHandle {
        serve(listener, self.config.clone(), self.roles.clone())
    }

    /// Answers where commands look for the MGS, on a node that has taken it over, for as long as the daemon lives.
    pub(crate) fn answer_as_successor(self, description: Arc<InstanceDescription>) {
        tokio::spawn(async move {
            match rendezvous::listen_as_successor(&description).await {
                Ok(listener) => {
                    tracing::info!("the MGS of the instance is here, at {}", listener.address());
                    let _server = self.open(listener);
                    std::future::pending::<()>().await;
                }
                Err(error) => tracing::warn!("`burstfs status` will not find the MGS here: {error:#}"),
            }
        });
    }
}

/// The way to the MGS, before the node has joined.
pub(crate) struct Joining {
    pub(crate) directory: Directory,
    /// Answers the others for as long as somebody has it: they hear of a failed start from node 0.
    pub(crate) server: Arc<ServerHandle>,
    services: Services,
    address: SocketAddr,
    network: Network,
    targets: watch::Sender<Option<Targets>>,
    mgs_client: Client,
    carried: Arc<watch::Sender<Option<Arc<MgsDriver>>>>,
}

/// Listens, and finds the MGS (or is it).
pub(crate) async fn find_directory(description: &InstanceDescription) -> Result<Joining, Failure> {
    let here =
        |error: anyhow::Error| Failure::new(Code::DaemonFailed, format!("{}: {error:#}", description.node_name()));
    let own_ips = rendezvous::own_ips(description).await;
    let network = open_network(description, &own_ips)?;
    let listener = rendezvous::listen(&network, description).await.map_err(here)?;
    let port = listener.address().port();
    let own = NodeIndex::new(description.node_index);
    // Another node carries the MGS only when a life of its daemon before this one has taken it over.
    // What is held is looked after by node 0 alone.
    let was_here = || description.held.is_none() && description.restarted && MgsDriver::was_in(&mgs_dir(description));
    let carries = own == NodeIndex::new(0) || was_here();
    let mgs = carries.then(|| open_mgs(description).map(Arc::new)).transpose().map_err(here)?;
    let (targets, opened) = watch::channel(None);
    let carried = Arc::new(watch::Sender::new(mgs.clone()));
    let services = Services::new(description, Roles::new(opened, carried.subscribe()));
    let server = Arc::new(services.open(listener));
    if mgs.is_some() && own != NodeIndex::new(0) {
        services.clone().answer_as_successor(Arc::new(description.clone()));
    }
    // An id of its own: a long poll stays unanswered for long, and would keep the MDTs' reply caches full.
    let mgs_client = client(description, &network, ClientId { node: own, incarnation: description.incarnation });
    let (seat, address) = match mgs {
        Some(mgs) => {
            let ip = rendezvous::resolve(description.node_name()).await.map_err(here)?;
            (Seat::own(own, mgs, mgs_client.xids().clone()), SocketAddr::new(ip, port))
        }
        None => {
            let channel = rendezvous::find(&mgs_client, description).await?;
            let ip = match own_ips {
                Ok(ips) if !description.network.interfaces.is_empty() => ips[0],
                Ok(_) | Err(_) => rendezvous::own_ip_towards(channel.address()).map_err(here)?,
            };
            (Seat::remote(NodeIndex::new(0), channel), SocketAddr::new(ip, port))
        }
    };
    let directory = Directory::new(seat, silence(description));
    Ok(Joining { directory, server, services, address, network, targets, mgs_client, carried })
}

impl Joining {
    /// Joins, opens the targets meanwhile, and builds the client over all nodes.
    pub(crate) async fn join(self, description: &InstanceDescription) -> Result<Node, Failure> {
        let own = NodeIndex::new(description.node_index);
        let id = ClientId { node: own, incarnation: description.incarnation.saturating_add(1) };
        let client = client(description, &self.network, id);
        let leases = Arc::new(Leases::new(id));
        let links = Links::new(client.clone(), own, Arc::clone(&leases));
        let opened = tokio::task::spawn_blocking({
            let (description, links) = (description.clone(), links.clone());
            move || open_targets(&description, links, leases)
        });
        let rdma = self.network.rdma_addresses();
        let held = description.held.as_ref();
        let held = held.map(|held| HeldPart {
            attempts: held.attempts,
            suspects: held.suspects.clone(),
            job_end: description.job_end,
        });
        let join = Join { node: own, incarnation: description.incarnation, address: self.address, rdma, held };
        let mut map = self.directory.join(join).await?;
        let here =
            |error: anyhow::Error| Failure::new(Code::DaemonFailed, format!("{}: {error:#}", description.node_name()));
        let targets = opened.await.context("opening the targets").and_then(|opened| opened).map_err(here)?;
        reach_node_0_as_the_mgs(&mut map, &self.directory);
        for node in &map.nodes {
            self.network.reach_by_rdma(node.address, &node.rdma);
        }
        links.set_map(&map);
        self.targets.send_replace(Some(targets.clone()));
        spawn_destroyer(own, &targets, &links);
        spawn_resolvers(own, &targets, map.nodes.len());
        spawn_splitter(&targets);
        let fs = Arc::new(client_fs(own, &map, &targets, &client));
        // No client is left of an instance that is held: nothing to tell them.
        if description.restarted && description.held.is_none() {
            announce(Arc::clone(&fs));
        }
        Ok(Node {
            lost: Arc::new(LostNodes::new(own, description.nodes.clone(), fs.clone(), links, targets.mdt)),
            fs,
            directory: self.directory,
            map,
            mgs_client: self.mgs_client,
            carried: self.carried,
            xids: client.xids().clone(),
            ost: targets.ost,
            services: self.services,
            server: self.server,
        })
    }
}

/// Where node 0 says that it is may be an address that only it can use (`127.0.1.1` of its own host file); this node has
/// reached it at the MGS's.
fn reach_node_0_as_the_mgs(map: &mut Map, directory: &Directory) {
    if let (Some(channel), Some(first)) = (directory.seat().channel(), map.nodes.first_mut()) {
        first.address = channel.address();
    }
}

impl Node {
    /// Serves the mount.
    pub(crate) async fn serve(
        &self,
        mount: MountDevice,
        description: &InstanceDescription,
        arrivals: Option<Arc<Arrivals>>,
    ) -> Result<FuseSession, Failure> {
        let config = Memory::of(description).fuse();
        let (fs, runtime) = (self.fs.clone(), tokio::runtime::Handle::current());
        let passthrough = mount.backing.and_then(|socket| match Broker::new(socket) {
            Ok(broker) => Some(Passthrough { files: self.ost.clone(), ids: Arc::new(broker) }),
            Err(error) => {
                tracing::warn!("files are not passed through to the kernel: {error}");
                None
            }
        });
        let serve = move || fuse::serve(fs, mount.device, config, passthrough, arrivals, runtime);
        let session = tokio::task::spawn_blocking(serve).await;
        let served = session.map_err(std::io::Error::other).and_then(|session| session);
        served.map_err(|error| Failure::new(Code::MountFailed, format!("the kernel's FUSE: {error}")))
    }
}

/// How the memory for data on its way is divided.
#[derive(Clone, Copy)]
struct Memory(usize);

impl Memory {
    fn of(description: &InstanceDescription) -> Memory {
        Memory(usize::try_from(description.network.memory_bytes).unwrap_or(usize::MAX))
    }

    /// Servers have memory of their own: two nodes that ask each other must not wait for each other's.
    fn network(self) -> TcpConfig {
        TcpConfig { client_pool_bytes: self.0 / 4, server_pool_bytes: self.0 / 2 }
    }

    fn fuse(self) -> FuseConfig {
        FuseConfig { bulk_bytes_max: self.0 / 4, ..FuseConfig::default() }
    }
}

/// The node's way to the others: what the job asks for, else what the site says.
fn open_network(description: &InstanceDescription, own_ips: &anyhow::Result<Vec<IpAddr>>) -> Result<Network, Failure> {
    let asked = match description.spec.create.transport {
        Transport::Auto => description.network.transport,
        asked => asked,
    };
    let choice = match asked {
        Transport::Auto => Choice::Auto,
        Transport::Rdma => Choice::Rdma,
        Transport::Tcp => Choice::Tcp,
    };
    let missing = |reason: String| Failure::new(Code::RdmaMissing, format!("{}: {reason}", description.node_name()));
    let config = NetworkConfig {
        memory: Memory::of(description).network(),
        rdma_connections: description.network.rdma_connections.into(),
    };
    match own_ips {
        Ok(ips) => Network::open(choice, ips, config).map_err(missing),
        Err(error) if choice == Choice::Rdma => Err(missing(format!("{error:#}"))),
        Err(error) => {
            tracing::info!("RDMA is not used on this node, TCP is: {error:#}");
            Network::open(Choice::Tcp, &[], config).map_err(missing)
        }
    }
}

fn open_mgs(description: &InstanceDescription) -> anyhow::Result<MgsDriver> {
    let own = NodeIndex::new(description.node_index);
    if let Some(held) = &description.held {
        let kept = Kept {
            failure: held.failure.clone(),
            kept_until: held.kept_until.unwrap_or(u64::MAX),
            errors_may_pass: held.hope.errors_may_pass,
            nodes_may_return: held.hope.nodes_may_return,
        };
        let mgs = Mgs::hold(identity(description), kept, held.attempts);
        return MgsDriver::new(&mgs_dir(description), own, mgs, description.incarnation);
    }
    MgsDriver::open(&mgs_dir(description), own, identity(description), description.incarnation)
}

/// Where this node keeps the MGS that it carries.
pub(crate) fn mgs_dir(description: &InstanceDescription) -> PathBuf {
    description.data_dir.join("mgs")
}

/// The instance as its MGS knows it.
pub(crate) fn identity(description: &InstanceDescription) -> InstanceIdentity {
    let nodes = description.nodes.len() as u64;
    InstanceIdentity {
        instance: description.instance.to_string(),
        name: description.spec.create.name.as_str().to_owned(),
        user: description.user.clone(),
        hosts: description.nodes.clone(),
        capacity: description.capacity_bytes.saturating_mul(nodes),
        receipt: staging::receipt_path(description).to_string_lossy().into_owned(),
    }
}

fn client(description: &InstanceDescription, network: &Network, id: ClientId) -> Client {
    let identity = Identity {
        instance: description.instance.clone(),
        uid: description.uid,
        role: Role::Node(id),
        auth: Arc::new(Munge::new()),
    };
    Client::new(Arc::new(network.clone()), identity, XidSource::new(id), ChannelLimits::default())
}

fn open_targets(description: &InstanceDescription, links: Links, leases: Arc<Leases>) -> anyhow::Result<Targets> {
    let engine = open_engine(&description.data_dir.join("mdt"))?;
    let config = MdtConfig {
        mdt: MdtIndex::new(description.node_index),
        mdts: u16::try_from(description.nodes.len()).context("too many nodes")?,
        root_uid: description.uid,
        root_gid: description.gid,
        root_mode: 0o700,
        layout: description.spec.create.layout,
        has_ready_made: true,
        policy: description.metadata,
        tracks_changes: !description.spec.stage_out.is_empty(),
    };
    let mdt = Mdt::open(config, Arc::new(engine), Arc::new(links.clone()), Arc::new(SystemClock)).context("MDT")?;
    let options = Options { capacity_bytes: description.capacity_bytes, open_files_max: OPEN_FILES_MAX };
    let ost = Ost::open(&description.data_dir.join("ost"), options).context("OST")?;
    Ok(Targets { own: NodeIndex::new(description.node_index), mdt: Arc::new(mdt), ost: Arc::new(ost), links, leases })
}

fn open_engine(dir: &Path) -> anyhow::Result<RocksEngine> {
    RocksEngine::open(dir).with_context(|| format!("MDT in {}", dir.display()))
}

fn client_fs(own: NodeIndex, map: &Map, targets: &Targets, client: &Client) -> ClientFs {
    let nodes = (0_u16..).map(NodeIndex::new).zip(&map.nodes).map(|(node, there)| {
        if node == own {
            ClientNode::Local { mds: targets.mdt.clone(), oss: targets.ost.clone() }
        } else {
            ClientNode::Remote(RemoteNode::new(client, there.address, RPC_TIMEOUT))
        }
    });
    let targets_of_client = ClientTargets::new(nodes.collect(), client.xids().clone());
    ClientFs::new(targets_of_client, own, Arc::clone(&targets.leases))
}

/// Objects of removed files go in the background, for as long as the daemon lives.
fn spawn_destroyer(own: NodeIndex, targets: &Targets, links: &Links) {
    let remover = Remover { own, links: links.clone(), ost: targets.ost.clone() };
    let mdt = targets.mdt.clone();
    tokio::spawn(async move { mdt.run_destroyer(&remover).await });
}

/// Transactions with other MDTs whose course was interrupted are ended in the background.
fn spawn_resolvers(own: NodeIndex, targets: &Targets, nodes: usize) {
    for peer in (0..u16::try_from(nodes).unwrap_or(u16::MAX)).filter(|node| *node != own.get()).map(MdtIndex::new) {
        let mdt = targets.mdt.clone();
        tokio::spawn(async move { mdt.run_resolver(peer).await });
    }
}

/// Directories that have grown large are split in the background.
fn spawn_splitter(targets: &Targets) {
    let mdt = targets.mdt.clone();
    tokio::spawn(async move { mdt.run_splitter().await });
}

/// Shows every MDT that this node's client is a new one: what the one before it had open and locked is free then, also where
/// this one has nothing to ask.
fn announce(fs: Arc<ClientFs>) {
    tokio::spawn(async move {
        if let Err(error) = fs.statfs().await {
            tracing::warn!("not all nodes know yet that this daemon was started again: {error}");
        }
    });
}

/// Until when all nodes must have joined.
pub(crate) fn start_timeout(description: &InstanceDescription) -> Duration {
    Duration::from_millis(description.timeouts.start_ms)
}

/// After how long without a word a node is lost.
pub(crate) fn silence(description: &InstanceDescription) -> Duration {
    Duration::from_millis(description.timeouts.silence_ms)
}
