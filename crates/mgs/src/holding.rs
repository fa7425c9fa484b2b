//! The MGS of an instance whose drain was incomplete, in a life of its daemons that tries again: it waits for the nodes that
//! still have a part, and begins when it is told to.
//!
//! Nodes that are missing then are left out as lost ones. A node that ends an attempt before the others (its supervisor has seen
//! no progress) comes back with one attempt more, and is left out of the one that goes on. What the daemons of before say,
//! who do not know yet that there is another attempt, is refused.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use burstfs_proto::mgs::{HeldPart, Join, Kept, Phase};
use burstfs_types::{JobEnd, NodeIndex};

use crate::directory::{Identity, JoinRefused, Mgs};

/// Where a node that is missing is entered in the map: nobody answers there, and nobody asks.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What is held, and how far the next attempt is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holding {
    /// How the attempt before ended.
    pub(crate) kept: Kept,
    /// How many have ended.
    pub(crate) attempts: u32,
    /// What each node knows of its part, by node index.
    pub(crate) parts: Vec<Option<HeldPart>>,
    pub(crate) is_begun: bool,
    pub(crate) is_asked: bool,
}

impl Mgs {
    /// An instance whose drain was incomplete `attempts` times, the last of them as `kept` says.
    pub fn hold(identity: Identity, kept: Kept, attempts: u32) -> Mgs {
        let parts = vec![None; identity.hosts.len()];
        let mut mgs = Mgs::new(identity);
        mgs.holding = Some(Holding { kept, attempts, parts, is_begun: false, is_asked: false });
        mgs
    }

    /// Whether `node` takes part in what this MGS conducts.
    pub fn is_member(&self, node: NodeIndex) -> bool {
        let index = usize::from(node.get());
        let joined = |holding: &Holding| holding.parts.get(index).is_some_and(Option::is_some);
        self.holding.as_ref().is_none_or(joined)
    }

    /// Whether all nodes are there for an attempt, or it has begun.
    pub fn is_complete(&self) -> bool {
        self.holding.as_ref().is_none_or(|holding| holding.is_begun || holding.parts.iter().all(Option::is_some))
    }

    /// Somebody wants an attempt now; `ended` is how the job ended, where its user says so.
    pub fn resume(&mut self, ended: Option<JobEnd>) {
        if let Some(end) = ended.filter(|_| self.holding.is_some()) {
            self.set_job_end(end);
        }
        if let Some(holding) = self.holding.as_mut().filter(|holding| !holding.is_asked) {
            holding.is_asked = true;
            self.version += 1;
        }
    }

    /// Whether somebody has wanted an attempt.
    pub fn is_asked(&self) -> bool {
        self.holding.as_ref().is_some_and(|holding| holding.is_asked)
    }

    /// The attempt begins, with those that are there.
    pub fn begin(&mut self) {
        let Some(holding) = self.holding.as_mut().filter(|holding| !holding.is_begun) else { return };
        holding.is_begun = true;
        for (node, part) in self.nodes.iter_mut().zip(&holding.parts) {
            if part.is_none() {
                node.is_lost = true;
                node.joined = Some((0, NOWHERE));
            }
            node.reached = Some(Phase::StagedIn);
        }
        self.generation += 1;
        self.version += 1;
    }

    /// Nodes whose part may be less than what the job wrote there, as far as any knows.
    pub fn suspects(&self) -> BTreeSet<NodeIndex> {
        let parts = self.holding.iter().flat_map(|holding| holding.parts.iter().flatten());
        parts.flat_map(|part| part.suspects.iter().copied()).collect()
    }

    /// Whether a node may join what goes on here.
    pub(crate) fn admit(&mut self, join: &Join) -> Result<(), JoinRefused> {
        let is_over = self.conclusion().is_some();
        match (&mut self.holding, &join.held) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(JoinRefused::Held(join.node)),
            (None, Some(_)) => Err(JoinRefused::GaveUp(join.node)),
            (Some(_), Some(_)) if is_over => Err(JoinRefused::Held(join.node)),
            (Some(holding), Some(part)) => {
                let known = holding.parts.get_mut(usize::from(join.node.get()));
                let known = known.ok_or(JoinRefused::NoSuchNode(join.node))?;
                match known {
                    Some(known) if holding.is_begun && part.attempts > known.attempts => {
                        Err(JoinRefused::GaveUp(join.node))
                    }
                    None if holding.is_begun => Err(JoinRefused::Lost(join.node)),
                    known => {
                        *known = Some(part.clone());
                        Ok(())
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::mgs::{BarrierDone, Conclusion, State, Waited};
    use burstfs_types::{Code, Failure};

    use super::*;

    fn mgs() -> Mgs {
        let identity = Identity {
            instance: "vc.1.0".into(),
            name: "job".into(),
            user: "alice".into(),
            hosts: vec!["node1".into(), "node2".into(), "node3".into()],
            capacity: 1,
            receipt: "/home/alice/burstfs-1.receipt.json".into(),
        };
        let kept = Kept {
            failure: Failure::new(Code::DrainNoSpace, "quota"),
            kept_until: 77,
            errors_may_pass: true,
            nodes_may_return: false,
        };
        Mgs::hold(identity, kept, 3)
    }

    fn join(node: u16, attempts: u32, doubted: Option<u16>) -> Join {
        let address = SocketAddr::from(([127, 0, 0, 1], 100 + node));
        let held =
            Some(HeldPart { attempts, suspects: doubted.map(NodeIndex::new).into_iter().collect(), job_end: None });
        Join { node: NodeIndex::new(node), incarnation: u64::from(attempts), address, rdma: Vec::new(), held }
    }

    #[test]
    fn it_is_held_until_it_begins_and_then_drains() {
        let mut mgs = mgs();
        let status = mgs.status();
        assert_eq!((status.state, status.kept_until, status.attempts), (State::Held, Some(77), 3));
        assert_eq!(status.reason, "E403: quota");
        (0..3).for_each(|node| mgs.join(&join(node, 3, (node != 1).then_some(2))).unwrap());
        assert!(mgs.is_complete());
        assert_eq!(mgs.poll_map(0), Waited::NotYet, "nobody has said begin");
        mgs.begin();
        assert_eq!(mgs.state(), State::Draining);
        let Waited::Done(map) = mgs.poll_map(0) else { panic!("no map") };
        assert_eq!(map.nodes[1].address.port(), 101);
        assert_eq!(mgs.suspects(), BTreeSet::from([NodeIndex::new(2)]));
        (0..3).for_each(|node| mgs.reach(NodeIndex::new(node), Phase::ClientsGone));
        assert!(matches!(mgs.poll_barrier(Phase::ClientsGone), Waited::Done(done) if done.lost.is_empty()));
        mgs.conclude(Conclusion::Drained);
        (0..3).for_each(|node| mgs.reach(NodeIndex::new(node), Phase::Drained));
        let done = BarrierDone {
            lost: vec![],
            conclusion: Some(Conclusion::Drained),
            drain_deadline: None,
            job_end: None,
            partial: None,
        };
        assert_eq!(mgs.poll_barrier(Phase::Drained), Waited::Done(done));
    }

    #[test]
    fn who_is_missing_when_it_begins_is_left_out() {
        let mut mgs = mgs();
        mgs.join(&join(0, 3, None)).unwrap();
        mgs.join(&join(1, 9, None)).unwrap();
        assert!(!mgs.is_complete() && !mgs.is_member(NodeIndex::new(2)));
        mgs.begin();
        assert_eq!(
            (mgs.lost(), mgs.join(&join(2, 3, None))),
            (vec![NodeIndex::new(2)], Err(JoinRefused::Lost(NodeIndex::new(2))))
        );
        let Waited::Done(map) = mgs.poll_map(0) else { panic!("no map") };
        assert_eq!(map.nodes.len(), 3, "indices stay what they were");
    }

    #[test]
    fn a_daemon_that_was_killed_goes_on_and_one_that_gave_up_does_not() {
        let mut mgs = mgs();
        (0..3).for_each(|node| mgs.join(&join(node, 3, None)).unwrap());
        mgs.begin();
        assert_eq!(mgs.join(&join(1, 3, None)), Ok(()));
        assert_eq!(mgs.join(&join(1, 4, None)), Err(JoinRefused::GaveUp(NodeIndex::new(1))));
    }

    #[test]
    fn lives_do_not_mix() {
        let mut held = mgs();
        let before = Join { held: None, ..join(1, 3, None) };
        assert_eq!(held.join(&before), Err(JoinRefused::Held(NodeIndex::new(1))));
        let mut first = Mgs::new(Identity { hosts: vec!["node1".into()], ..mgs().identity().clone() });
        assert_eq!(first.join(&join(0, 1, None)), Err(JoinRefused::GaveUp(NodeIndex::new(0))));
        assert!(first.is_member(NodeIndex::new(0)));
    }

    #[test]
    fn how_the_job_ended_is_known_when_one_node_knows_it_and_is_the_same_for_all() {
        let told = |mgs: &mut Mgs| {
            mgs.begin();
            (0..3).for_each(|node| mgs.reach(NodeIndex::new(node), Phase::ClientsGone));
            let Waited::Done(done) = mgs.poll_barrier(Phase::ClientsGone) else { panic!("not passed") };
            done.job_end
        };
        let knows = |node, job_end| Join {
            held: Some(HeldPart { attempts: 3, suspects: Vec::new(), job_end }),
            ..join(node, 3, None)
        };
        for (of_node_2, said, expected) in [
            (None, None, None),
            (Some(JobEnd::Failure), None, Some(JobEnd::Failure)),
            (None, Some(JobEnd::Success), Some(JobEnd::Success)),
            (Some(JobEnd::Failure), Some(JobEnd::Success), Some(JobEnd::Failure)),
        ] {
            let mut mgs = mgs();
            (0..2).for_each(|node| mgs.join(&knows(node, None)).unwrap());
            mgs.join(&knows(2, of_node_2)).unwrap();
            mgs.resume(said);
            assert_eq!(told(&mut mgs), expected);
            mgs.resume(Some(JobEnd::Success));
            mgs.set_job_end(JobEnd::Success);
            assert_eq!(mgs.job_end(), expected, "somebody may have heard the other already");
        }
    }

    #[test]
    fn a_word_is_heard_once() {
        let mut mgs = mgs();
        let before = mgs.version();
        mgs.resume(None);
        mgs.resume(None);
        assert_eq!((mgs.is_asked(), mgs.version()), (true, before + 1));
    }
}
