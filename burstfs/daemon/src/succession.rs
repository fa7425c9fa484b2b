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
use crate::node;

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
