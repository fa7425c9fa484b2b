//! The RPCs of the queue of staging work: node 0 holds the queue, every node takes from it what fits its place.
//!
//! The items' and records' bodies are the stager's own (opaque bytes here), so that the copy engine can change without
//! the wire knowing.

use burstfs_types::NodeIndex;
use serde::{Deserialize, Serialize};

rpcs! {
    /// A request to the queue.
    StageRequest,
    /// The queue's answer.
    StageReply, Stage;
    /// Takes work (long poll), and hands in what came of work taken before.
    0x0401 Replayable Take(Take) -> Taken;
    /// Waits for a round of draining (long poll).
    0x0402 ReadOnly AwaitRound(AwaitRound) -> Option<Round>;
}

/// Which of the two queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Direction {
    /// Into the instance.
    In,
    /// Out of it.
    Out,
}

/// Work that somebody can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Item {
    /// The node that should do it: the one that holds the data. `None`: any.
    pub place: Option<NodeIndex>,
    /// The stager's description of it.
    pub body: Vec<u8>,
}

/// What came of an item.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// Its number.
    pub id: u64,
    /// New work that it brought up.
    pub items: Vec<Item>,
    /// The stager's records for the receipt.
    pub records: Vec<Vec<u8>>,
}

/// Waits for a round of draining while the job runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AwaitRound {
    /// With a number above this.
    pub newer_than: u64,
    /// Waits so long, milliseconds.
    pub wait_ms: u32,
}

/// A round of draining while the job runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Round {
    /// Its number; never 0.
    pub number: u64,
    /// What it is about: the stager's bytes.
    pub plan: Vec<u8>,
}

/// Hands in finished work, and asks for more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Take {
    /// Which queue.
    pub direction: Direction,
    /// Of which round; 0 before the job and after it.
    pub round: u64,
    /// Who asks.
    pub node: NodeIndex,
    /// Which life of its daemon: work taken by an earlier one goes back to the queue.
    pub incarnation: u64,
    /// What came of earlier items.
    pub finished: Vec<Finished>,
    /// At most so many new items; 0 only hands in.
    pub items_max: u32,
    /// Waits so long for the first, milliseconds.
    pub wait_ms: u32,
}

/// The queue's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Taken {
    /// Work, each with its number. Empty: nothing just now, ask again.
    Work(Vec<(u64, Item)>),
    /// Everything is done, on all nodes.
    Over,
}
