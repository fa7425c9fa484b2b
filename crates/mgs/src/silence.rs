//! Of which nodes nothing is heard.
//!
//! Time is counted in ticks of whoever listens, not by a clock: a listener that did not run for a while (its machine was
//! stopped, or swapped) has heard nobody meanwhile, and that is no reason to give everybody up.

use std::collections::BTreeMap;

use burstfs_types::NodeIndex;

/// How many ticks each node has been silent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Silence {
    ticks: BTreeMap<NodeIndex, u32>,
}

impl Silence {
    /// A node was heard. From the first time on it is listened for.
    pub fn heard(&mut self, node: NodeIndex) {
        self.ticks.insert(node, 0);
    }

    /// Listens for a node that has not been heard yet.
    pub fn expect(&mut self, node: NodeIndex) {
        self.ticks.entry(node).or_insert(0);
    }

    /// A tick has passed; the nodes that have now been silent for `max` of them or more.
    pub fn tick(&mut self, max: u32) -> Vec<NodeIndex> {
        self.ticks.values_mut().for_each(|ticks| *ticks = ticks.saturating_add(1));
        self.ticks.iter().filter(|(_, ticks)| **ticks >= max).map(|(node, _)| *node).collect()
    }

    /// The nodes that are listened for.
    pub fn nodes(&self) -> impl Iterator<Item = NodeIndex> {
        self.ticks.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_silent_after_so_many_ticks_without_a_word() {
        let (a, b) = (NodeIndex::new(1), NodeIndex::new(2));
        let mut silence = Silence::default();
        assert_eq!(silence.tick(1), []);
        silence.heard(a);
        silence.expect(b);
        assert_eq!(silence.tick(3), []);
        assert_eq!(silence.tick(3), []);
        silence.heard(a);
        silence.expect(b);
        assert_eq!(silence.tick(3), [b], "to expect somebody is not to hear him");
        assert_eq!(silence.tick(3), [b]);
        assert_eq!(silence.tick(3), [a, b]);
        assert_eq!(silence.nodes().collect::<Vec<_>>(), [a, b]);
    }
}
