//! Nodes that were given up, and what this node does about it: what they hold answers EIO at once, instead of after a
//! time-out for each request, and what they had open or locked is free.
//!
//! Owns the list of those that this node has heard of; only the MGS adds to it, and nobody is taken off.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_client::fs::ClientFs;
use burstfs_mds::Mdt;
use burstfs_types::{Code, Failure, NodeIndex};

use crate::links::Links;

/// The lost nodes, as this one knows them.
pub(crate) struct LostNodes {
    own: NodeIndex,
    hosts: Vec<String>,
    fs: Arc<ClientFs>,
    links: Links,
    mdt: Arc<Mdt>,
    known: Mutex<BTreeSet<NodeIndex>>,
}

impl LostNodes {
    /// Nobody is lost. `hosts` by node index.
    pub(crate) fn new(own: NodeIndex, hosts: Vec<String>, fs: Arc<ClientFs>, links: Links, mdt: Arc<Mdt>) -> LostNodes {
        LostNodes { own, hosts, fs, links, mdt, known: Mutex::default() }
    }

    /// Those that this node has given up.
    pub(crate) fn known(&self) -> Vec<NodeIndex> {
        self.lock().iter().copied().collect()
    }

    /// The first node behind `node` that is not lost, as far as this node knows; it is never lost itself.
    pub(crate) fn first_living_after(&self, node: NodeIndex) -> Option<NodeIndex> {
        let known = self.lock();
        let later = self.nodes().filter(|later| *later > node);
        later.into_iter().find(|later| *later == self.own || !known.contains(later))
    }

    /// Gives up those of `lost` that this node has not given up yet. A node that hears that it was itself given up gives up
    /// all others: they go on without it, and must not find later what its job's processes did meanwhile.
    pub(crate) fn heed(&self, lost: &[NodeIndex]) {
        if lost.contains(&self.own) {
            self.give_up(self.nodes().filter(|node| *node != self.own));
        } else {
            self.give_up(lost.iter().copied());
        }
    }

    fn nodes(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..u16::try_from(self.hosts.len()).unwrap_or(u16::MAX)).map(NodeIndex::new)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<NodeIndex>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, nodes: impl Iterator<Item = NodeIndex>) {
        for node in nodes {
            if !self.lock().insert(node) {
                continue;
            }
            let host = self.hosts.get(usize::from(node.get())).map_or("?", String::as_str);
            let message = format!("{host} is lost: what it holds answers EIO from now on, and cannot be drained");
            tracing::error!("{}", Failure::new(Code::NodeLost, message));
            self.fs.targets().give_up(node);
            self.links.give_up(node);
            self.mdt.lose_node(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use burstfs_mds::Peers;
    use burstfs_net::RpcError;
    use burstfs_proto::oss::Statfs;
    use burstfs_types::MdtIndex;

    use super::*;
    use crate::fixture::Fixture;

    fn nodes(indices: &[u16]) -> Vec<NodeIndex> {
        indices.iter().copied().map(NodeIndex::new).collect()
    }

    #[tokio::test]
    async fn who_is_given_up_stays_so() {
        let Fixture { lost, .. } = Fixture::new(1, 4);
        lost.heed(&nodes(&[3]));
        lost.heed(&nodes(&[]));
        lost.heed(&nodes(&[0, 3]));
        assert_eq!(lost.known(), nodes(&[0, 3]));
    }

    #[tokio::test]
    async fn what_needs_a_lost_node_fails_at_once() {
        let fixture = Fixture::new(0, 2);
        assert!(!fixture.links.is_lost(MdtIndex::new(1)));
        fixture.lost.heed(&nodes(&[1]));
        assert!(fixture.links.is_lost(MdtIndex::new(1)));
        let answered = fixture.links.call_node(NodeIndex::new(1), &Statfs).await;
        assert!(matches!(answered, Err(RpcError::Closed)), "{answered:?}");
        assert_eq!(fixture.lost.fs.statfs().await.map(|stat| stat.capacity).ok(), Some(1 << 20), "what is left counts");
    }

    #[tokio::test]
    async fn a_node_that_was_given_up_gives_up_all_others() {
        let Fixture { lost, .. } = Fixture::new(1, 4);
        lost.heed(&nodes(&[1]));
        assert_eq!(lost.known(), nodes(&[0, 2, 3]));
    }

    #[tokio::test]
    async fn the_next_one_is_the_first_that_lives_and_at_last_this_node() {
        let Fixture { lost, .. } = Fixture::new(2, 4);
        let next = |node| lost.first_living_after(NodeIndex::new(node)).map(NodeIndex::get);
        assert_eq!(next(0), Some(1));
        lost.heed(&nodes(&[0, 1]));
        assert_eq!((next(0), next(1), next(2)), (Some(2), Some(2), Some(3)));
        // Whoever is given up is so for the others; it still is itself.
        lost.heed(&nodes(&[2]));
        assert_eq!((next(0), next(2)), (Some(2), None));
    }
}
