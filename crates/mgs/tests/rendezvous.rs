//! A whole instance with the MGS in the middle: nodes join, go through the phases, repeat themselves, restart, fail and
//! are lost, in any order, and node 0 restarts from what it kept.

// clippy.toml allows it in tests, but does not see the helpers of a test binary as such.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use burstfs_mgs::{Identity, JoinRefused, Mgs};
use burstfs_proto::mgs::{Join, Phase, State, Waited};
use burstfs_types::{Code, Failure, NodeIndex};
use proptest::prelude::*;

const PHASES: [Phase; 4] = [Phase::StagedIn, Phase::ClientsGone, Phase::Drained, Phase::Finished];
const NODES: u16 = 4;

/// What happens to a node next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It goes on: joins, or reaches its next phase when the one before is passed.
    GoOn,
    /// It says its last word again.
    Repeat,
    /// Its daemon restarts, at another address or the same.
    Restart { moves: bool },
    /// It is given up.
    Lose,
    /// It cannot go on starting.
    Fail,
    /// Node 0's daemon restarts, with the MGS.
    RestartMgs,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => Just(Step::GoOn),
        4 => Just(Step::Repeat),
        2 => any::<bool>().prop_map(|moves| Step::Restart { moves }),
        1 => Just(Step::Lose),
        1 => Just(Step::Fail),
        2 => Just(Step::RestartMgs),
    ]
}

/// A node as its daemon sees itself.
struct Node {
    index: NodeIndex,
    incarnation: u64,
    port: u16,
    has_joined: bool,
    is_lost: bool,
    /// How many phases it has said to have reached.
    said: usize,
}

impl Node {
    fn join(&mut self, mgs: &mut Mgs) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let joined =
            mgs.join(&Join { node: self.index, incarnation: self.incarnation, address, rdma: vec![], held: None });
        assert_eq!(joined, if self.is_lost { Err(JoinRefused::Lost(self.index)) } else { Ok(()) });
        self.has_joined = true;
    }

    /// Whether the node may say the next phase: what it waited for before has been answered.
    fn is_released(&self, mgs: &Mgs) -> bool {
        match self.said.checked_sub(1) {
            None => matches!(mgs.poll_map(0), Waited::Done(_)),
            Some(last) => matches!(mgs.poll_barrier(PHASES[last]), Waited::Done(_)),
        }
    }

    fn go_on(&mut self, mgs: &mut Mgs) {
        if !self.has_joined {
            self.join(mgs);
        } else if self.said < PHASES.len() && self.is_released(mgs) {
            mgs.reach(self.index, PHASES[self.said]);
            self.said += 1;
        }
    }

    fn repeat(&mut self, mgs: &mut Mgs) {
        if self.has_joined {
            self.join(mgs);
        }
        if let Some(last) = self.said.checked_sub(1) {
            mgs.reach(self.index, PHASES[last]);
        }
    }
}

fn instance() -> (Mgs, Vec<Node>) {
    let hosts = (1..=NODES).map(|n| format!("node{n}")).collect();
    let mgs = Mgs::new(Identity {
        instance: "vc.1.0".into(),
        name: "job".into(),
        user: "alice".into(),
        hosts,
        capacity: 1 << 30,
        receipt: String::new(),
    });
    let node = |n| Node {
        index: NodeIndex::new(n),
        incarnation: 1,
        port: 100 + n,
        has_joined: false,
        is_lost: false,
        said: 0,
    };
    (mgs, (0..NODES).map(node).collect())
}

fn apply(mgs: &mut Mgs, node: &mut Node, step: Step) {
    match step {
        Step::GoOn => node.go_on(mgs),
        Step::Repeat => node.repeat(mgs),
        Step::Restart { moves } => {
            node.incarnation += 1;
            node.port += 1_000 * u16::from(moves);
            node.has_joined = false;
        }
        // Node 0 carries the MGS: with it the instance is gone.
        Step::Lose if node.index.get() == 0 => {}
        Step::Lose => {
            node.is_lost = true;
            mgs.lose(node.index);
        }
        Step::Fail => mgs.fail(Failure::new(Code::DaemonFailed, "x")),
        Step::RestartMgs => {
            let kept = serde_json::to_vec(mgs).unwrap();
            *mgs = serde_json::from_slice(&kept).unwrap();
        }
    }
}

/// What was said once to a node that waits.
fn verdicts(mgs: &Mgs) -> Vec<Option<bool>> {
    let verdict = |phase: &Phase| match mgs.poll_barrier(*phase) {
        Waited::Done(_) => Some(true),
        Waited::Failed(_) => Some(false),
        Waited::NotYet => None,
    };
    PHASES.iter().map(verdict).collect()
}

proptest! {
    /// All nodes that live end up released from every barrier, or all learn of the failure; nobody hears both.
    #[test]
    fn every_instance_ends_released_or_failed(steps in prop::collection::vec((0..NODES, step()), 0..150)) {
        let (mut mgs, mut nodes) = instance();
        let (mut before, mut generation) = (verdicts(&mgs), 0);
        for (n, step) in steps {
            apply(&mut mgs, &mut nodes[usize::from(n)], step);
            let now = verdicts(&mgs);
            for (earlier, later) in before.iter().zip(&now) {
                prop_assert!(earlier.is_none() || earlier == later, "{before:?} became {now:?} by {step:?}");
            }
            before = now;
            if let Waited::Done(map) = mgs.poll_map(0) {
                prop_assert!(map.generation >= generation && map.nodes.len() == usize::from(NODES));
                generation = map.generation;
            }
        }
        for _ in 0..=PHASES.len() * 2 {
            for node in nodes.iter_mut().filter(|node| !node.is_lost) {
                node.go_on(&mut mgs);
            }
        }
        let verdicts = verdicts(&mgs);
        let all = |verdict| verdicts.iter().all(|one| *one == Some(verdict));
        prop_assert!(all(true) || all(false), "{verdicts:?} {:?}", mgs.state());
        prop_assert_eq!(all(false), mgs.state() == State::Failed);
        if all(true) {
            let lost: Vec<_> = nodes.iter().filter(|node| node.is_lost).map(|node| node.index).collect();
            prop_assert_eq!(mgs.lost(), lost);
        }
    }

    /// A daemon that restarts at another address is found there, by those who have the old map.
    #[test]
    fn a_node_that_moves_makes_a_new_map(n in 0..NODES) {
        let (mut mgs, mut nodes) = instance();
        nodes.iter_mut().for_each(|node| node.join(&mut mgs));
        let node = &mut nodes[usize::from(n)];
        apply(&mut mgs, node, Step::Restart { moves: true });
        prop_assert_eq!(mgs.poll_map(1), Waited::NotYet);
        node.join(&mut mgs);
        let Waited::Done(map) = mgs.poll_map(1) else { panic!("no new map") };
        prop_assert_eq!(map.nodes[usize::from(n)].address.port(), node.port);
    }
}
