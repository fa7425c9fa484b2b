//! Transactions over several MDTs: all of an operation happens, or nothing of it, whichever MDT dies when.
//!
//! Owns the protocol, its records (`T` and `W` of `crate::record`), and the rename lock. Does not own what the operations mean:
//! [`plan`] cuts an operation into steps by MDT, [`step`] says what each step needs and does.
//!
//! The MDT that has the client's request coordinates. It plans on what it reads, without holding anything, and has each MDT
//! that is concerned promise its steps, in ascending order of the MDTs; its own turn comes in that order, too.
//!
//! ```text
//!   coordinator                                     participant
//!   -----------                                     -----------
//!   plan, on reads
//!       |                  PeerPrepare
//!   [running]  --------------------------------->  checks, holds, writes the intent T
//!       |   ^   EAGAIN: what was read has changed     |
//!       |   |   EBUSY: held by another: ask again     v
//!       |   +-- an errno: everything is dropped    [prepared]   reads and changes of what is held wait
//!       |                                             |    |
//!       | one batch: own steps, the reply, W          |    | after a while, and after a restart: PeerOutcome
//!       v                                             |    v
//!   [committed]  ----- PeerDecide(commit) ------------>  one batch: steps, T removed   -> [finished]
//!       |                                             |
//!       | all have answered: W removed                |
//!       v                                             |
//!   [finished]                                        |
//!                                                     |
//!   [running] -- dropped, died, refused --> no W:     |
//!                PeerDecide(abort), or "Aborted" -------> T removed                     -> [finished]
//! ```
//!
//! Invariants:
//! - The batch that writes `W`, the coordinator's own steps and the reply is the moment of the operation. Without `W`, and
//!   without the coordinator at work on it, a transaction has not happened (presumed abort).
//! - What a participant has promised it can do after any number of restarts: the intent is written first, and what it concerns
//!   is held until the decision, so that nobody sees, or builds on, a state that the operation has ended.
//! - A step is done once: the intent goes in the batch of its steps, and a copy of a PeerPrepare that comes after the decision is
//!   refused, as long as any copy can come.
//! - MDTs are asked in ascending order, and each takes all that it is asked to hold at once, so that no two transactions wait
//!   for one another.
//! - A directory gets another parent only under the rename lock, a mutex of MDT 0, which coordinates each such rename: the way
//!   from the new parent to the root cannot change between the look at it and the decision, and no cycle can form. The lock
//!   dies with its only possible holder. What that one had decided is still held where it was prepared, and whoever looks
//!   there waits.
//!
//! Concurrency: any number of transactions at once. Only the rename lock is held across an await.
//!
//! Failure: a participant that does not answer fails the operation before the decision, and is told later after it
//! ([`resolver`]). What was prepared for an MDT whose node is lost for good is dropped: the decision is lost with the node.

mod coordinator;
mod participant;
mod plan;
mod resolver;
pub(crate) mod spread;
mod step;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_proto::mds::{Outcome, TxId};
use burstfs_types::{Errno, MdtIndex};
use tokio::sync::Notify;

use crate::record::{decode, key};
use crate::store::{Engine, StoreError, for_each};

pub(crate) use plan::Plan;
pub(crate) use step::with_one_more_name;

/// The transactions that an MDT knows of.
pub(crate) struct Txns {
    state: Mutex<State>,
    /// Something waits for a word to or from another MDT.
    unfinished: Notify,
    /// The rename lock; that of MDT 0 counts.
    renames: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Coordinated here, not decided.
    running: BTreeSet<TxId>,
    /// Coordinated here and committed; who is yet to be told.
    committed: BTreeMap<TxId, Vec<MdtIndex>>,
    /// Promised to others.
    prepared: BTreeSet<TxId>,
    /// By coordinator: what is known to be finished, so that late copies are refused.
    finished: HashMap<MdtIndex, Finished>,
}

/// What is finished of one coordinator's transactions: those below a number, and some above it.
#[derive(Default)]
struct Finished {
    below: Option<TxId>,
    above: BTreeSet<TxId>,
}

impl Txns {
    /// Those that the store has.
    pub(crate) fn load(engine: &dyn Engine) -> Result<Txns, StoreError> {
        let mut state = State::default();
        for_each(engine, &[key::INTENT], |key, _| {
            state.prepared.extend(key::ino_of(key).map(TxId::new));
            Ok(())
        })?;
        for_each(engine, &[key::COMMITTED], |key, value| {
            if let Some(number) = key::ino_of(key) {
                state.committed.insert(TxId::new(number), decode(key, value)?);
            }
            Ok(())
        })?;
        let renames = tokio::sync::Mutex::new(());
        Ok(Txns { state: Mutex::new(state), unfinished: Notify::new(), renames })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a transaction that is coordinated here stands.
    fn outcome(&self, tx: TxId) -> Outcome {
        let state = self.state();
        match () {
            () if state.running.contains(&tx) => Outcome::Running,
            () if state.committed.contains_key(&tx) => Outcome::Committed,
            () => Outcome::Aborted,
        }
    }

    /// The oldest transaction coordinated here that is not finished everywhere.
    fn oldest(&self) -> Option<TxId> {
        let state = self.state();
        let running = state.running.first().copied();
        let committed = state.committed.keys().next().copied();
        running.into_iter().chain(committed).min()
    }

    /// Takes note that the coordinator of `tx` has nothing unfinished below `oldest`. ECANCELED when `tx` itself is finished.
    fn admit(&self, tx: TxId, oldest: TxId) -> Result<(), Errno> {
        let mut state = self.state();
        let finished = state.finished.entry(tx.coordinator()).or_default();
        finished.below = finished.below.max(Some(oldest));
        finished.above = finished.above.split_off(&oldest);
        let is_finished = finished.below.is_some_and(|below| tx < below) || finished.above.contains(&tx);
        if is_finished { Err(Errno::ECANCELED) } else { Ok(()) }
    }

    /// Takes note that `tx`, coordinated elsewhere, is finished here.
    fn finish(&self, tx: TxId) {
        let mut state = self.state();
        state.prepared.remove(&tx);
        state.finished.entry(tx.coordinator()).or_default().above.insert(tx);
    }
}
