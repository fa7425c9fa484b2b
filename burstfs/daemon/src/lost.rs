//! Nodes that were given up, and what this node does about it: what they hold answers EIO at once, instead of after a
//! time-out for each request.
//!
//! Owns the list of those that this node has heard of; only the MGS adds to it, and nobody is taken off.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use burstfs_client::fs::ClientFs;
use burstfs_types::{Code, Failure, NodeIndex};

use crate::links::Links;

/// The lost nodes, as this one knows them.
pub(crate) struct LostNodes {
    own: NodeIndex,
    hosts: Vec<String>,
    fs: Arc<ClientFs>,
    links: Links,
    known: Mutex<BTreeSet<NodeIndex>>,
}

impl LostNodes {
    /// Nobody is lost. `hosts` by node index.
    pub(crate) fn new(own: NodeIndex, hosts: Vec<String>, fs: Arc<ClientFs>, links: Links) -> LostNodes {
        LostNodes { own, hosts, fs, links, known: Mutex::default() }
    }

    /// Gives up those of `lost` that this node has not given up yet. A node that hears that it was itself given up gives up
    /// all others: they go on without it, and must not find later what its job's processes did meanwhile.
    pub(crate) fn heed(&self, lost: &[NodeIndex]) {
        if lost.contains(&self.own) {
            let all: Vec<NodeIndex> = (0_u16..).map(NodeIndex::new).zip(&self.hosts).map(|(node, _)| node).collect();
            self.give_up(all.into_iter().filter(|node| *node != self.own));
        } else {
            self.give_up(lost.iter().copied());
        }
    }

    fn give_up(&self, nodes: impl Iterator<Item = NodeIndex>) {
        for node in nodes {
            if !self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(node) {
                continue;
            }
            let host = self.hosts.get(usize::from(node.get())).map_or("?", String::as_str);
            let message = format!("{host} is lost: what it holds answers EIO from now on, and cannot be drained");
            tracing::error!("{}", Failure::new(Code::NodeLost, message));
            self.fs.targets().give_up(node);
            self.links.give_up(node);
        }
    }
}
