//! Registration, map, barriers, status.

use std::net::SocketAddr;

use burstfs_proto::mgs::{
    ArrivalNews, BarrierDone, Conclusion, Input, InstanceStatus, Join, Kept, Map, MapNode, NodeSpace, Phase, Report,
    StageFigures, State, Waited,
};
use burstfs_types::{Code, Failure, JobEnd, NodeIndex, hostlist};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arrivals::Arrivals;
use crate::holding::Holding;

/// What does not change in an instance's life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// `<cluster>.<job id>.<restart count>`.
    pub instance: String,
    /// The value of `name`.
    pub name: String,
    /// The job's user.
    pub user: String,
    /// By node index.
    pub hosts: Vec<String>,
    /// Bytes asked for, over all nodes.
    pub capacity: u64,
    /// Where the receipt of the drain will be.
    pub receipt: String,
}

/// Why a node may not join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum JoinRefused {
    /// The instance has no such node.
    #[error("the instance has no {0}")]
    NoSuchNode(NodeIndex),
    /// A later life of the node's daemon has joined already.
    #[error("{0} has joined with a later incarnation")]
    Outdated(NodeIndex),
    /// The instance went on without it.
    #[error("{0} was given up")]
    Lost(NodeIndex),
    /// The node has ended its part of what goes on here: it is to be lost, if it is not.
    #[error("{0} has given up what goes on here")]
    GaveUp(NodeIndex),
    /// The drain that the node means is over.
    #[error("the drain that {0} means is over; there may be another")]
    Held(NodeIndex),
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) joined: Option<(u64, SocketAddr)>,
    #[serde(default)]
    rdma: Vec<SocketAddr>,
    pub(crate) reached: Option<Phase>,
    pub(crate) is_lost: bool,
    #[serde(skip)]
    report: Option<Report>,
}

/// The instance's directory. What a restarted node 0 needs is in its serialized form; reports are told again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mgs {
    identity: Identity,
    pub(crate) nodes: Vec<Node>,
    pub(crate) generation: u64,
    failure: Option<Failure>,
    conclusion: Option<Conclusion>,
    #[serde(default)]
    drain_deadline: Option<u64>,
    #[serde(default)]
    job_end: Option<JobEnd>,
    #[serde(default)]
    partial: Option<Failure>,
    #[serde(default)]
    arrivals: Arrivals,
    /// Bytes that were to be drained when somebody looked last.
    #[serde(skip)]
    dirty: Option<u64>,
    /// Of an MGS in a later life, which is not kept: each begins anew.
    #[serde(skip)]
    pub(crate) holding: Option<Holding>,
    #[serde(skip)]
    pub(crate) version: u64,
}

impl Mgs {
    /// An instance that nobody has joined.
    pub fn new(identity: Identity) -> Mgs {
        let nodes = vec![Node::default(); identity.hosts.len()];
        Mgs {
            identity,
            nodes,
            generation: 0,
            failure: None,
            conclusion: None,
            drain_deadline: None,
            job_end: None,
            partial: None,
            arrivals: Arrivals::default(),
            dirty: None,
            holding: None,
            version: 0,
        }
    }

    /// Goes on with an instance that was READY when the node that carried its MGS was lost. What the nodes have reached since
    /// they say again; `lost` are left out.
    pub fn succeed(identity: Identity, map: &Map, lost: &[NodeIndex]) -> Mgs {
        let indices = (0_u16..).map(NodeIndex::new);
        let nodes = indices.zip(&map.nodes).map(|(index, node)| Node {
            joined: Some((0, node.address)),
            rdma: node.rdma.clone(),
            reached: Some(Phase::StagedIn),
            is_lost: lost.contains(&index),
            report: None,
        });
        let nodes: Vec<Node> = nodes.collect();
        Mgs { generation: map.generation, nodes, ..Mgs::new(identity) }
    }

    /// Moves with every change that somebody may wait for, and that must survive a restart of node 0.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A node joins. Again with the same address: nothing changes. With another one: a new map.
    pub fn join(&mut self, join: &Join) -> Result<(), JoinRefused> {
        self.admit(join)?;
        let index = usize::from(join.node.get());
        let node = self.nodes.get_mut(index).ok_or(JoinRefused::NoSuchNode(join.node))?;
        if node.is_lost {
            return Err(JoinRefused::Lost(join.node));
        }
        if node.joined.is_some_and(|(incarnation, _)| incarnation > join.incarnation) {
            return Err(JoinRefused::Outdated(join.node));
        }
        let joined = Some((join.incarnation, join.address));
        let before =
            (std::mem::replace(&mut node.joined, joined), std::mem::replace(&mut node.rdma, join.rdma.clone()));
        let is_same_address = before.0.is_some_and(|(_, address)| address == join.address) && before.1 == join.rdma;
        let is_begun = self.holding.as_ref().is_none_or(|holding| holding.is_begun);
        if is_begun && !is_same_address && self.nodes.iter().all(|node| node.joined.is_some()) {
            self.generation += 1;
        }
        if before != (joined, join.rdma.clone()) {
            self.version += 1;
        }
        if let Some(end) = join.held.as_ref().and_then(|part| part.job_end) {
            self.set_job_end(end);
        }
        Ok(())
    }

    /// The map, when all have joined and it is newer than `generation`.
    pub fn poll_map(&self, newer_than: u64) -> Waited<Map> {
        if let Some(failure) = self.start_failure() {
            return Waited::Failed(failure.clone());
        }
        if self.generation <= newer_than {
            return Waited::NotYet;
        }
        let nodes = self.identity.hosts.iter().zip(&self.nodes);
        let nodes = nodes.filter_map(|(host, node)| {
            node.joined.map(|(_, address)| MapNode { host: host.clone(), address, rdma: node.rdma.clone() })
        });
        Waited::Done(Map { generation: self.generation, nodes: nodes.collect() })
    }

    /// A node says that it has reached a phase, and all before it. Saying it again changes nothing.
    ///
    /// A client that goes before the instance is ready ends the start: else "and all before it" would complete the
    /// stage-in that this node has not done, and the instance would be READY without its input.
    pub fn reach(&mut self, node: NodeIndex, phase: Phase) {
        let index = usize::from(node.get());
        if phase > Phase::StagedIn && index < self.nodes.len() && !self.has_passed(Phase::StagedIn) {
            let host = self.host(node);
            let message = format!("{host}: the job ended there before the file system was ready");
            self.fail(Failure::new(Code::Cancelled, message));
        }
        let Some(node) = self.nodes.get_mut(usize::from(node.get())) else { return };
        if node.reached < Some(phase) {
            node.reached = Some(phase);
            self.version += 1;
        }
    }

    /// Whether all nodes that live have reached `phase`.
    pub fn poll_barrier(&self, phase: Phase) -> Waited<BarrierDone> {
        if let Some(failure) = self.start_failure() {
            return Waited::Failed(failure.clone());
        }
        if !self.has_passed(phase) {
            return Waited::NotYet;
        }
        Waited::Done(BarrierDone {
            lost: self.lost(),
            conclusion: self.conclusion.clone(),
            drain_deadline: self.drain_deadline,
            job_end: self.job_end,
            partial: self.partial.clone(),
        })
    }

    /// The start cannot succeed. The first reason stays; once the instance is ready there is no start to fail.
    pub fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() && self.holding.is_none() && !self.has_passed(Phase::StagedIn) {
            self.failure = Some(failure);
            self.version += 1;
        }
    }

    /// The time for the start is over.
    pub fn start_timed_out(&mut self) {
        let missing = self.missing();
        if !missing.is_empty() {
            let nodes = hostlist::compress(&missing);
            self.fail(Failure::new(
                Code::NodeMissing,
                format!("{nodes}: did not join in time; see the burstfs log there"),
            ));
        }
    }

    /// A node will not come back. Before READY that fails the start.
    pub fn lose(&mut self, node: NodeIndex) {
        let index = usize::from(node.get());
        // Asked before the node is left out, else the loss of the last that is late would complete the barrier.
        let is_ready = self.has_passed(Phase::StagedIn);
        if !is_ready {
            let host = self.host(node);
            self.fail(Failure::new(Code::NodeMissing, format!("{host}: was lost while the file system started")));
        }
        if let Some(node) = self.nodes.get_mut(index).filter(|node| !node.is_lost) {
            node.is_lost = true;
            self.version += 1;
        }
    }

    /// Nodes that were given up.
    pub fn lost(&self) -> Vec<NodeIndex> {
        let lost = (0_u16..).map(NodeIndex::new).zip(&self.nodes).filter(|(_, node)| node.is_lost);
        lost.map(|(index, _)| index).collect()
    }

    /// What does not change.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The name of a node.
    pub fn host(&self, node: NodeIndex) -> &str {
        self.identity.hosts.get(usize::from(node.get())).map_or("?", String::as_str)
    }

    /// Nodes that have joined, those that were given up among them.
    pub fn joined(&self) -> Vec<NodeIndex> {
        let joined = (0_u16..).map(NodeIndex::new).zip(&self.nodes).filter(|(_, node)| node.joined.is_some());
        joined.map(|(index, _)| index).collect()
    }

    /// A node's figures.
    pub fn report(&mut self, report: Report) {
        if let Some(node) = self.nodes.get_mut(usize::from(report.node.get())) {
            node.report = Some(report);
        }
    }

    /// What all nodes have staged and drained, as far as they have said: something that rises while anything moves.
    pub fn moved(&self) -> u64 {
        let of = |figures: StageFigures| figures.bytes_done.saturating_add(figures.files_done);
        let moved = self.reports().map(|report| of(report.stage_in).saturating_add(of(report.stage_out)));
        moved.fold(0, u64::saturating_add)
    }

    /// The deadline that the job is told, seconds since the epoch. To be set before the barrier `StagedIn`.
    pub fn set_drain_deadline(&mut self, deadline: Option<u64>) {
        if self.drain_deadline.is_none() && deadline.is_some() {
            self.drain_deadline = deadline;
            self.version += 1;
        }
    }

    /// The deadline that the job was told.
    pub fn drain_deadline(&self) -> Option<u64> {
        self.drain_deadline
    }

    /// How the job ended, which decides for all nodes what is drained. The first word stays. Once the last node has
    /// reached `ClientsGone` nothing is changed any more: some have heard with that what there was to hear.
    pub fn set_job_end(&mut self, end: JobEnd) {
        if self.job_end.is_none() && !self.has_passed(Phase::ClientsGone) {
            self.job_end = Some(end);
            self.version += 1;
        }
    }

    /// How the job ended, if anybody has said.
    pub fn job_end(&self) -> Option<JobEnd> {
        self.job_end
    }

    /// Not all input is there, and the job starts all the same. To be said before the barrier `StagedIn`.
    pub fn set_partial(&mut self, failure: Failure) {
        if self.partial.is_none() {
            self.partial = Some(failure);
            self.version += 1;
        }
    }

    /// Whether the input is there.
    fn input(&self) -> Input {
        if self.partial.is_some() { Input::Partial } else { self.arrivals.input() }
    }

    /// Input comes while the job runs.
    pub fn expect_arrivals(&mut self) {
        self.version += u64::from(self.arrivals.expect());
    }

    /// These paths of the instance will not come.
    pub fn fail_arrivals(&mut self, paths: Vec<Vec<u8>>) {
        self.version += u64::from(self.arrivals.add_failed(paths));
    }

    /// All that comes is there; `failure` says why that is not all there should be.
    pub fn end_arrivals(&mut self, failure: Option<Failure>) {
        self.version += u64::from(self.arrivals.end(failure));
    }

    /// Whether all input that comes while the job runs is there.
    pub fn has_arrived(&self) -> bool {
        self.arrivals.is_over()
    }

    /// What has become of that input, for somebody who knows of so many paths that did not come.
    pub fn arrival_news(&self, known: u64) -> Option<ArrivalNews> {
        self.arrivals.news(known)
    }

    /// How the drain ended. The first word stays.
    pub fn conclude(&mut self, conclusion: Conclusion) {
        if self.conclusion.is_none() {
            self.conclusion = Some(conclusion);
            self.version += 1;
        }
    }

    /// How the drain ended.
    pub fn conclusion(&self) -> Option<&Conclusion> {
        self.conclusion.as_ref()
    }

    /// Whether every node that lives is past `phase`.
    pub fn has_passed(&self, phase: Phase) -> bool {
        let mut living = self.nodes.iter().filter(|node| !node.is_lost).peekable();
        living.peek().is_some() && living.all(|node| node.reached >= Some(phase))
    }

    /// Where the instance is in its life.
    pub fn state(&self) -> State {
        match (&self.failure, &self.conclusion) {
            (Some(_), _) => State::Failed,
            (None, Some(Conclusion::Drained | Conclusion::Dropped(_))) => State::Drained,
            (None, Some(Conclusion::Held(_))) => State::Held,
            (None, None) if self.holding.is_some() => match self.is_begun() {
                true => State::Draining,
                false => State::Held,
            },
            (None, None) if self.nodes.iter().any(|node| node.reached >= Some(Phase::ClientsGone)) => State::Draining,
            (None, None) if self.has_passed(Phase::StagedIn) => State::Ready,
            (None, None) if self.generation > 0 => State::StagingIn,
            (None, None) => State::Starting,
        }
    }

    fn is_begun(&self) -> bool {
        self.holding.as_ref().is_some_and(|holding| holding.is_begun)
    }

    /// What is known of data that is kept.
    fn kept(&self) -> Option<&Kept> {
        let before = self.holding.as_ref().map(|holding| &holding.kept);
        match &self.conclusion {
            Some(Conclusion::Held(kept)) => Some(kept),
            Some(Conclusion::Drained | Conclusion::Dropped(_)) => None,
            None => before,
        }
    }

    /// So many bytes are to be drained yet, as was just found.
    pub fn found_dirty(&mut self, bytes: u64) {
        self.dirty = Some(bytes);
    }

    /// While a drain goes on that copies all there is, what is left of it; before, what was found.
    fn dirty(&self) -> Option<u64> {
        match self.state() {
            State::Draining => {
                let figures = sum(self.reports().map(|report| report.stage_out));
                Some(figures.bytes_total.saturating_sub(figures.bytes_done))
            }
            State::Drained => Some(0),
            State::Ready => self.dirty,
            State::Starting | State::StagingIn | State::Failed | State::Held => None,
        }
    }

    fn spaces(&self) -> Vec<NodeSpace> {
        let nodes = self.identity.hosts.iter().zip(&self.nodes);
        let told = nodes.filter_map(|(host, node)| node.report.as_ref().map(|report| (host, report)));
        told.map(|(host, report)| NodeSpace { host: host.clone(), capacity: report.capacity, used: report.used })
            .collect()
    }

    /// Bytes that all nodes have staged in or drained in what goes on, as far as they have said.
    pub fn bytes_moved(&self) -> u64 {
        let moved = self.reports().map(|report| report.stage_in.bytes_done.saturating_add(report.stage_out.bytes_done));
        moved.fold(0, u64::saturating_add)
    }

    /// The instance as people see it; how fast things move is the caller's to say.
    pub fn status(&self) -> InstanceStatus {
        InstanceStatus {
            instance: self.identity.instance.clone(),
            name: self.identity.name.clone(),
            user: self.identity.user.clone(),
            state: self.state(),
            hosts: self.identity.hosts.clone(),
            missing: self.missing(),
            capacity: self.identity.capacity,
            used: self.reports().map(|report| report.used).fold(0, u64::saturating_add),
            spaces: self.spaces(),
            dirty: self.dirty(),
            rate: 0,
            stage_in: sum(self.reports().map(|report| report.stage_in)),
            input: self.input(),
            stage_out: sum(self.reports().map(|report| report.stage_out)),
            transport: self.transport(),
            receipt: self.identity.receipt.clone(),
            kept_until: self.kept().map(|kept| kept.kept_until),
            attempts: self.holding.as_ref().map_or(0, |holding| holding.attempts),
            dropped: self.dropped().cloned(),
            reason: self.reason(),
        }
    }

    /// What those that have joined talk over.
    fn transport(&self) -> String {
        let joined = self.identity.hosts.iter().zip(&self.nodes).filter(|(_, node)| node.joined.is_some());
        let (rdma, tcp): (Vec<_>, Vec<_>) = joined.partition(|(_, node)| !node.rdma.is_empty());
        let hosts: Vec<String> = tcp.iter().map(|(host, _)| (*host).clone()).collect();
        match (rdma.is_empty(), tcp.is_empty()) {
            (true, _) => "tcp".to_owned(),
            (false, true) => "rdma".to_owned(),
            (false, false) => format!("rdma, tcp on {}", hostlist::compress(&hosts)),
        }
    }

    /// A failure that the nodes must hear of.
    fn start_failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    fn reason(&self) -> String {
        let held = self.kept().filter(|_| self.state() == State::Held).map(|kept| kept.failure.to_string());
        let dropped = || self.dropped().map(Failure::to_string);
        let arrivals = || self.partial.as_ref().or(self.arrivals.failure()).map(Failure::to_string);
        let failure = self.failure.as_ref().map(Failure::to_string).or(held).or_else(dropped);
        failure.or_else(|| self.lost_words()).or_else(arrivals).unwrap_or_default()
    }

    fn dropped(&self) -> Option<&Failure> {
        match &self.conclusion {
            Some(Conclusion::Dropped(failure)) => Some(failure),
            Some(Conclusion::Drained | Conclusion::Held(_)) | None => None,
        }
    }

    fn lost_words(&self) -> Option<String> {
        let lost = self.identity.hosts.iter().zip(&self.nodes).filter(|(_, node)| node.is_lost);
        let lost: Vec<String> = lost.map(|(host, _)| host.clone()).collect();
        let failure =
            || Failure::new(Code::NodeLost, format!("{}: lost, with what it held", hostlist::compress(&lost)));
        (!lost.is_empty()).then(|| failure().to_string())
    }

    fn missing(&self) -> Vec<String> {
        let is_missing = |node: &Node| node.joined.is_none() || node.is_lost;
        let missing = self.identity.hosts.iter().zip(&self.nodes).filter(|(_, node)| is_missing(node));
        missing.map(|(host, _)| host.clone()).collect()
    }

    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.nodes.iter().filter_map(|node| node.report.as_ref())
    }
}

fn sum(figures: impl Iterator<Item = StageFigures>) -> StageFigures {
    figures.fold(StageFigures::default(), |a, b| StageFigures {
        bytes_total: a.bytes_total.saturating_add(b.bytes_total),
        bytes_done: a.bytes_done.saturating_add(b.bytes_done),
        files_total: a.files_total.saturating_add(b.files_total),
        files_done: a.files_done.saturating_add(b.files_done),
        files_failed: a.files_failed.saturating_add(b.files_failed),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mgs(hosts: usize) -> Mgs {
        Mgs::new(Identity {
            instance: "vc.1.0".into(),
            name: "job".into(),
            user: "alice".into(),
            hosts: (1..=hosts).map(|n| format!("node{n}")).collect(),
            capacity: 1 << 30,
            receipt: "/home/alice/burstfs-1.receipt.json".into(),
        })
    }

    fn join(node: u16, incarnation: u64, port: u16) -> Join {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Join { node: NodeIndex::new(node), incarnation, address, rdma: vec![], held: None }
    }

    fn joined(hosts: u16) -> Mgs {
        let mut mgs = mgs(hosts.into());
        (0..hosts).for_each(|node| mgs.join(&join(node, 1, 100 + node)).unwrap());
        mgs
    }

    #[test]
    fn the_map_and_the_status_say_who_has_rdma() {
        let mut mgs = mgs(3);
        let rdma = vec![SocketAddr::from(([10, 0, 0, 1], 7)), SocketAddr::from(([10, 1, 0, 1], 7))];
        mgs.join(&Join { rdma: rdma.clone(), ..join(0, 1, 100) }).unwrap();
        assert_eq!(mgs.status().transport, "rdma");
        mgs.join(&join(1, 1, 101)).unwrap();
        mgs.join(&join(2, 1, 102)).unwrap();
        assert_eq!(mgs.status().transport, "rdma, tcp on node[2-3]");
        let Waited::Done(map) = mgs.poll_map(0) else { panic!("no map") };
        assert_eq!((&map.nodes[0].rdma, &map.nodes[1].rdma), (&rdma, &vec![]));
        assert_eq!(joined(2).status().transport, "tcp");
    }

    #[test]
    fn the_map_comes_with_the_last_node() {
        let mut mgs = mgs(2);
        mgs.join(&join(0, 1, 100)).unwrap();
        assert_eq!(mgs.poll_map(0), Waited::NotYet);
        assert_eq!((mgs.state(), mgs.status().missing), (State::Starting, vec!["node2".to_owned()]));
        mgs.join(&join(1, 1, 101)).unwrap();
        let Waited::Done(map) = mgs.poll_map(0) else { panic!("no map") };
        assert_eq!((map.generation, map.nodes[1].address.port()), (1, 101));
        assert_eq!(mgs.state(), State::StagingIn);
        assert_eq!(mgs.poll_map(1), Waited::NotYet);
    }

    #[test]
    fn a_restarted_node_changes_the_map_only_with_another_address() {
        let mut mgs = joined(2);
        mgs.join(&join(1, 2, 101)).unwrap();
        assert_eq!(mgs.poll_map(1), Waited::NotYet);
        mgs.join(&join(1, 3, 201)).unwrap();
        assert!(matches!(mgs.poll_map(1), Waited::Done(map) if map.generation == 2));
        assert_eq!(mgs.join(&join(1, 2, 101)), Err(JoinRefused::Outdated(NodeIndex::new(1))));
        assert_eq!(mgs.join(&join(7, 2, 101)), Err(JoinRefused::NoSuchNode(NodeIndex::new(7))));
    }

    #[test]
    fn the_first_failure_of_a_start_stays_and_reaches_all() {
        let mut mgs = joined(2);
        let first = Failure::new(Code::StageInFailed, "first");
        mgs.fail(first.clone());
        mgs.fail(Failure::new(Code::Cancelled, "second"));
        assert_eq!(mgs.poll_barrier(Phase::StagedIn), Waited::Failed(first.clone()));
        assert_eq!(mgs.poll_map(0), Waited::Failed(first));
        assert_eq!(mgs.state(), State::Failed);
    }

    #[test]
    fn nothing_fails_an_instance_that_is_ready() {
        let mut mgs = joined(2);
        (0..2).for_each(|node| mgs.reach(NodeIndex::new(node), Phase::StagedIn));
        assert_eq!(mgs.state(), State::Ready);
        mgs.fail(Failure::new(Code::Cancelled, "late"));
        mgs.lose(NodeIndex::new(1));
        assert_eq!(mgs.state(), State::Ready);
        mgs.reach(NodeIndex::new(0), Phase::ClientsGone);
        let lost = vec![NodeIndex::new(1)];
        assert_eq!(
            mgs.poll_barrier(Phase::ClientsGone),
            Waited::Done(BarrierDone { lost, conclusion: None, drain_deadline: None, job_end: None, partial: None })
        );
        assert_eq!(mgs.join(&join(1, 9, 1)), Err(JoinRefused::Lost(NodeIndex::new(1))));
        assert_eq!(mgs.status().reason, "E303: node2: lost, with what it held");
        assert_eq!(mgs.joined().len(), 2);
    }

    #[test]
    fn a_successor_goes_on_without_the_lost() {
        let mut first = joined(3);
        let Waited::Done(map) = first.poll_map(0) else { panic!("no map") };
        (0..3).for_each(|node| first.reach(NodeIndex::new(node), Phase::StagedIn));
        let mut next = Mgs::succeed(first.identity.clone(), &map, &[NodeIndex::new(0)]);
        assert_eq!(
            (next.state(), next.lost(), next.poll_map(0)),
            (State::Ready, vec![NodeIndex::new(0)], Waited::Done(map))
        );
        next.reach(NodeIndex::new(1), Phase::ClientsGone);
        assert_eq!(next.poll_barrier(Phase::ClientsGone), Waited::NotYet);
        next.reach(NodeIndex::new(2), Phase::ClientsGone);
        let lost = vec![NodeIndex::new(0)];
        assert_eq!(
            next.poll_barrier(Phase::ClientsGone),
            Waited::Done(BarrierDone { lost, conclusion: None, drain_deadline: None, job_end: None, partial: None })
        );
        assert_eq!(next.join(&join(2, 5, 102)), Ok(()), "a later life of a daemon joins as before");
    }

    #[test]
    fn a_node_lost_while_starting_fails_the_start() {
        let mut mgs = joined(2);
        mgs.lose(NodeIndex::new(1));
        assert!(
            matches!(mgs.poll_barrier(Phase::StagedIn), Waited::Failed(failure) if failure.code == Code::NodeMissing)
        );
    }

    #[test]
    fn a_time_out_names_the_missing() {
        let mut mgs = mgs(3);
        mgs.join(&join(1, 1, 100)).unwrap();
        mgs.start_timed_out();
        assert!(matches!(mgs.poll_map(0), Waited::Failed(failure) if failure.message.starts_with("node1,node3:")));
        let mut complete = joined(1);
        complete.start_timed_out();
        assert_eq!(complete.state(), State::StagingIn);
    }

    #[test]
    fn a_job_that_ends_while_it_starts_does_not_make_the_instance_ready() {
        let mut mgs = joined(2);
        mgs.reach(NodeIndex::new(0), Phase::StagedIn);
        mgs.reach(NodeIndex::new(1), Phase::ClientsGone);
        let answer = mgs.poll_barrier(Phase::StagedIn);
        assert!(matches!(answer, Waited::Failed(failure) if failure.code == Code::Cancelled));
        assert_eq!(mgs.state(), State::Failed);
    }

    #[test]
    fn a_conclusion_shows() {
        let mut mgs = joined(1);
        mgs.reach(NodeIndex::new(0), Phase::StagedIn);
        mgs.reach(NodeIndex::new(0), Phase::Drained);
        assert_eq!(mgs.state(), State::Draining);
        let failure = Failure::new(Code::DrainFailed, "x");
        let kept = Kept { failure, kept_until: 9, errors_may_pass: true, nodes_may_return: false };
        mgs.conclude(Conclusion::Held(kept));
        mgs.conclude(Conclusion::Drained);
        assert_eq!((mgs.state(), mgs.status().reason.as_str()), (State::Held, "E401: x"));
        assert_eq!(mgs.status().kept_until, Some(9));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Join(u16, u64),
        Reach(u16, u8),
        Lose(u16),
        Fail,
    }

    fn phase(number: u8) -> Phase {
        [Phase::StagedIn, Phase::ClientsGone, Phase::Drained, Phase::Finished][usize::from(number % 4)]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0_u16..5, 1_u64..4).prop_map(|(node, incarnation)| Event::Join(node, incarnation)),
            8 => (0_u16..5, 0_u8..4).prop_map(|(node, phase)| Event::Reach(node, phase)),
            1 => (0_u16..5).prop_map(Event::Lose),
            1 => Just(Event::Fail),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: what was passed stays passed, what failed stays failed, and nobody is
        /// both; a copy through the serialized form behaves the same.
        #[test]
        fn answers_never_turn(events in proptest::collection::vec(event(), 0..60)) {
            let mut mgs = mgs(4);
            let (mut failed, mut ready) = (false, false);
            for event in events {
                match event {
                    Event::Join(node, incarnation) => { let _ = mgs.join(&join(node, incarnation, 100 + node)); }
                    Event::Reach(node, number) => mgs.reach(NodeIndex::new(node), phase(number)),
                    Event::Lose(node) => mgs.lose(NodeIndex::new(node)),
                    Event::Fail => mgs.fail(Failure::new(Code::Cancelled, "x")),
                }
                let answer = mgs.poll_barrier(Phase::StagedIn);
                prop_assert!(!failed || matches!(answer, Waited::Failed(_)));
                prop_assert!(!ready || matches!(answer, Waited::Done(_)) || mgs.lost().len() == 4);
                failed |= matches!(answer, Waited::Failed(_));
                ready |= matches!(answer, Waited::Done(_));
                prop_assert!(!(failed && ready));
            }
        }
    }
}
