//! A node of an instance for unit tests: everything real but the other nodes, whose addresses lead nowhere.

use std::net::SocketAddr;
use std::sync::Arc;

use burstfs_client::fs::{ClientFs, Leases, Node as ClientNode, RemoteNode, Targets as ClientTargets};
use burstfs_mds::{Mdt, MdtConfig, MemoryEngine, SystemClock};
use burstfs_mgs::{Identity as InstanceIdentity, Mgs};
use burstfs_net::{ChannelLimits, Client, Identity, Munge, Tcp, TcpConfig, XidSource};
use burstfs_oss::{Options, Ost};
use burstfs_proto::hello::Role;
use burstfs_proto::mgs::{Map, MapNode};
use burstfs_types::{ClientId, LayoutPolicy, MdtIndex, MetadataPolicy, NodeIndex};

use crate::links::{Links, RPC_TIMEOUT};
use crate::lost::LostNodes;
use crate::mgs::MgsDriver;

/// Node `own` of an instance of `nodes` nodes, called node0 and so on.
pub(crate) struct Fixture {
    pub(crate) client: Client,
    pub(crate) map: Map,
    pub(crate) links: Links,
    pub(crate) lost: Arc<LostNodes>,
    pub(crate) dir: tempfile::TempDir,
    own: NodeIndex,
}

impl Fixture {
    pub(crate) fn new(own: u16, nodes: u16) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeIndex::new(own);
        let client = client(node);
        // Nobody listens at these ports, which only root may open.
        let address = |node: u16| SocketAddr::from(([127, 0, 0, 1], 1 + node));
        let hosts: Vec<String> = (0..nodes).map(|node| format!("node{node}")).collect();
        let named = (0..nodes).zip(&hosts);
        let map_nodes =
            named.map(|(node, host)| MapNode { host: host.clone(), address: address(node), rdma: Vec::new() });
        let map = Map { generation: 1, nodes: map_nodes.collect() };
        let leases = Arc::new(Leases::new(ClientId { node, incarnation: 1 }));
        let links = Links::new(client.clone(), node, Arc::clone(&leases));
        links.set_map(&map);
        let config = MdtConfig {
            mdt: MdtIndex::new(own),
            mdts: nodes,
            root_uid: 1000,
            root_gid: 1000,
            root_mode: 0o700,
            layout: LayoutPolicy::default(),
            has_ready_made: true,
            tracks_changes: true,
            policy: MetadataPolicy::default(),
        };
        let engine = Arc::new(MemoryEngine::default());
        let mdt = Arc::new(Mdt::open(config, engine, Arc::new(links.clone()), Arc::new(SystemClock)).unwrap());
        let options = Options { capacity_bytes: 1 << 20, open_files_max: 4 };
        let ost = Arc::new(Ost::open(&dir.path().join("ost"), options).unwrap());
        let targets = (0..nodes).map(|there| {
            if there == own {
                ClientNode::Local { mds: mdt.clone(), oss: ost.clone() }
            } else {
                ClientNode::Remote(RemoteNode::new(&client, address(there), RPC_TIMEOUT))
            }
        });
        let fs = ClientFs::new(ClientTargets::new(targets.collect(), client.xids().clone()), node, leases);
        let lost = Arc::new(LostNodes::new(node, hosts, Arc::new(fs), links.clone(), mdt));
        Fixture { client, map, links, lost, dir, own: node }
    }

    /// The MGS of the instance, READY, on this node.
    pub(crate) fn mgs(&self) -> Arc<MgsDriver> {
        let identity = InstanceIdentity {
            instance: "vc.1.0".into(),
            name: "job".into(),
            user: "alice".into(),
            hosts: self.map.nodes.iter().map(|node| node.host.clone()).collect(),
            capacity: 1,
            receipt: String::new(),
        };
        let mgs = Mgs::succeed(identity, &self.map, &[]);
        Arc::new(MgsDriver::new(&self.dir.path().join("mgs"), self.own, mgs, 1).unwrap())
    }
}

fn client(node: NodeIndex) -> Client {
    let id = ClientId { node, incarnation: 1 };
    let identity =
        Identity { instance: "vc.1.0".parse().unwrap(), uid: 1000, role: Role::Node(id), auth: Arc::new(Munge::new()) };
    Client::new(Arc::new(Tcp::new(TcpConfig::default())), identity, XidSource::new(id), ChannelLimits::default())
}
