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
