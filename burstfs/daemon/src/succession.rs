//! What becomes of the MGS when its node is lost: the next node in order carries on.
//!
//! ```text
//!   the MGS is heard ----- silent for too long -----> its node and all before the next are lost
//!        ^                                               |                      |
//!        |             the next is another node          |                      | the next is this node
//!        '---- ask there; it answers when it has noticed-'                      v
//!                                                          carry the MGS: READY, with the map, without the lost
//! ```
//!
//! Owns the decision, on this node, that the MGS's node is lost. Each node decides by itself, from the order of the node list
//! and from silence alone, so nothing has to be agreed on. Only a READY instance has a successor: one that starts fails
//! instead.
//!
//! Invariants: the seat only moves to nodes further down the list, and never past this node. Whoever takes over counts every
//! node before it as lost, so what it concludes is never more than it knows: a drain without node 0 is never COMPLETE.
//!
//! Failure: in a network that is cut in two, both sides go on, each without the other; each drains what it holds and neither
//! says COMPLETE.

use std::sync::Arc;

use anyhow::Context;
use burstfs_mgs::Mgs;
use burstfs_net::Client;
use burstfs_node::description::InstanceDescription;
use burstfs_proto::mgs::Map;
use burstfs_types::{Code, Failure, NodeIndex};
use tokio::sync::watch;

use crate::directory::{Directory, Seat};
use crate::life::{TICK, ticks};
use crate::lost::LostNodes;
use crate::mgs::MgsDriver;
use crate::node::{self, Services};

/// Watches the MGS for one node that is ready.
pub(crate) struct Succession {
    pub(crate) description: Arc<InstanceDescription>,
    pub(crate) directory: Directory,
    pub(crate) map: Map,
    pub(crate) lost: Arc<LostNodes>,
    /// As which this node asks an MGS.
    pub(crate) client: Client,
    /// The MGS of this node, for those who ask it.
    pub(crate) carried: Arc<watch::Sender<Option<Arc<MgsDriver>>>>,
    /// What this node answers to.
    pub(crate) services: Services,
}

impl Succession {
    /// For as long as the daemon lives.
    pub(crate) async fn watch(self) {
        let ticks_max = ticks(node::silence(&self.description));
        loop {
            tokio::time::sleep(TICK).await;
            if self.directory.tick() >= ticks_max
                && let Err(error) = self.move_on()
            {
                tracing::error!("the MGS cannot be taken over: {error:#}");
            }
        }
    }

    fn own(&self) -> NodeIndex {
        NodeIndex::new(self.description.node_index)
    }

    fn move_on(&self) -> anyhow::Result<()> {
        let before = self.directory.seat().node;
        let next = self.lost.first_living_after(before).context("no node is left")?;
        let message = format!("nothing was heard of the MGS on {}; it is {}'s now", self.host(before), self.host(next));
        tracing::error!("{}", Failure::new(Code::NodeLost, message));
        let gone: Vec<NodeIndex> = (0..next.get()).map(NodeIndex::new).collect();
        self.lost.heed(&gone);
        let seat = if next == self.own() {
            let mgs = self.carry()?;
            self.carried.send_replace(Some(mgs.clone()));
            self.services.clone().answer_as_successor(self.description.clone());
            tokio::spawn(mgs.clone().listen(ticks(node::silence(&self.description))));
            Seat::own(next, mgs, self.client.xids().clone())
        } else {
            let there = self.map.nodes.get(usize::from(next.get())).context("the map lacks a node")?;
            Seat::remote(next, self.client.channel(there.address))
        };
        self.directory.move_to(seat);
        Ok(())
    }

    fn carry(&self) -> anyhow::Result<Arc<MgsDriver>> {
        let mgs = Mgs::succeed(node::identity(&self.description), &self.map, &self.lost.known());
        Ok(Arc::new(MgsDriver::new(&node::mgs_dir(&self.description), self.own(), mgs, self.description.incarnation)?))
    }

    fn host(&self, node: NodeIndex) -> &str {
        self.description.nodes.get(usize::from(node.get())).map_or("?", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use burstfs_node::description::{DESCRIPTION_VERSION, Network, Timeouts};
    use burstfs_proto::mgs::{MgsReply, MgsRequest, State, Status};
    use burstfs_spec::{Accumulator, NoProfiles, Transport};
    use burstfs_types::MetadataPolicy;

    use super::*;
    use crate::fixture::Fixture;

    const SILENCE_TICKS: u32 = 3;

    fn description(fixture: &Fixture, own: u16) -> Arc<InstanceDescription> {
        let mut accumulator = Accumulator::default();
        accumulator.add("4GiB", &NoProfiles).unwrap();
        Arc::new(InstanceDescription {
            version: DESCRIPTION_VERSION,
            instance: "vc.1.0".parse().unwrap(),
            uid: 1000,
            gid: 1000,
            user: "alice".into(),
            nodes: fixture.map.nodes.iter().map(|node| node.host.clone()).collect(),
            node_index: own,
            spec: accumulator.finish().unwrap().unwrap(),
            capacity_bytes: 1 << 30,
            data_dir: fixture.dir.path().into(),
            mount: "/burstfs/1".into(),
            serves_mount: false,
            work_dir: "/".into(),
            stdout: None,
            slurm_conf: None,
            // Nobody will look for the MGS here.
            network: Network {
                mgs_port_base: 27400,
                mgs_port_count: 0,
                transport: Transport::Tcp,
                interfaces: Vec::new(),
                rdma_connections: 1,
                memory_bytes: 1 << 25,
            },
            metadata: MetadataPolicy::default(),
            timeouts: Timeouts { start_ms: 1, no_progress_ms: 1, silence_ms: u64::from(SILENCE_TICKS) * 1000 },
            restarted: false,
            incarnation: 1,
            drains_alone: false,
            held: None,
            job_end: None,
        })
    }

    /// Node `own` of four, whose MGS is on node 0, which does not answer.
    fn succession(fixture: &Fixture, own: u16) -> Succession {
        let description = description(fixture, own);
        let channel = fixture.client.channel(fixture.map.nodes[0].address);
        let carried = Arc::new(watch::Sender::new(None));
        Succession {
            directory: Directory::new(Seat::remote(NodeIndex::new(0), channel), node::silence(&description)),
            map: fixture.map.clone(),
            lost: fixture.lost.clone(),
            client: fixture.client.clone(),
            services: Services::without_targets(&description, carried.subscribe()),
            carried,
            description,
        }
    }

    fn indices(nodes: &[NodeIndex]) -> Vec<u16> {
        nodes.iter().map(|node| node.get()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_moves_before_it_was_silent_for_long_enough() {
        let fixture = Fixture::new(1, 4);
        let succession = succession(&fixture, 1);
        let directory = succession.directory.clone();
        tokio::spawn(succession.watch());
        tokio::time::sleep(TICK * (SILENCE_TICKS - 1) + TICK / 2).await;
        assert!(!directory.has_left(NodeIndex::new(0)) && fixture.lost.known().is_empty());
        tokio::time::sleep(TICK).await;
        assert!(directory.has_left(NodeIndex::new(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_node_carries_the_mgs_on_as_ready_and_without_the_lost() {
        let fixture = Fixture::new(1, 4);
        let succession = succession(&fixture, 1);
        let (directory, mut carried) = (succession.directory.clone(), succession.carried.subscribe());
        tokio::spawn(succession.watch());
        let mgs = carried.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        directory.left(NodeIndex::new(0)).await;
        assert_eq!((directory.seat().node.get(), indices(&fixture.lost.known())), (1, vec![0]));
        let Ok(MgsReply::Status(status)) = mgs.call(MgsRequest::Status(Status)).await else { panic!("no status") };
        assert_eq!((status.state, status.missing), (State::Ready, vec!["node0".to_owned()]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_node_asks_each_before_it_in_turn() {
        let fixture = Fixture::new(2, 4);
        let succession = succession(&fixture, 2);
        let (directory, carried) = (succession.directory.clone(), succession.carried.clone());
        tokio::spawn(succession.watch());
        directory.left(NodeIndex::new(0)).await;
        assert_eq!((directory.seat().node.get(), indices(&fixture.lost.known())), (1, vec![0]));
        assert!(carried.borrow().is_none());
        directory.left(NodeIndex::new(1)).await;
        assert_eq!((directory.seat().node.get(), indices(&fixture.lost.known())), (2, vec![0, 1]));
        assert!(carried.borrow().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_to_be_lost_is_passed_over() {
        let fixture = Fixture::new(2, 4);
        fixture.lost.heed(&[NodeIndex::new(1)]);
        let succession = succession(&fixture, 2);
        let directory = succession.directory.clone();
        tokio::spawn(succession.watch());
        directory.left(NodeIndex::new(0)).await;
        assert_eq!(directory.seat().node.get(), 2);
    }
}
