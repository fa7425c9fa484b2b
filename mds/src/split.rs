//! Splits of directories that are large, or that several nodes fill at once: their names spread over more MDTs while they are in use.
//!
//! Owns the decision that a directory is split, and the course of a split. What its steps do is `crate::txn`'s business
//! (`txn::spread`), and so is that each happens whole or not at all.
//!
//! ```text
//!   [whole] -- too many names, or fewer that several nodes make --> Spread: a shard on each of some MDTs, all empty
//!                                                                     |
//!      .--------------------------------------------------------------'
//!      v
//!   [moving]  the head gives names away, in the order of their hashes, a piece at a time: GiveNames here, TakeNames there,
//!      |      and the border between what has moved and what has not, in one transaction
//!      v
//!   [spread]  each shard has its range of hashes, the head the last one. So it stays until the directory is removed.
//! ```
//!
//! Invariants:
//! - The head's MDT alone moves names of a directory, one piece after the other; a piece is small, so that what waits for it waits
//!   for one exchange of messages.
//! - A split that was interrupted goes on after a restart: the record `Q` is there from its first step to its last.
//! - Who asks a shard for a name that it does not hold is told so (EREMCHG), and nothing is done.
//!
//! Concurrency: one task for each MDT.
//!
//! Failure: a piece that was overtaken is planned anew, smaller; one whose MDT does not answer is tried again later. The directory
//! works in every state.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burstfs_placement::shard_homes;
use burstfs_proto::mds::{MovedName, Piece, Step};
use burstfs_types::shards::{SHARDS_MAX, first_hash, index_of};
use burstfs_types::{Errno, Ino, MetadataPolicy, NodeIndex, Shards};
use tokio::sync::Notify;

use crate::mdt::{Mdt, errno_of};
use crate::namespace::{Effects, Namespace, OpError};
use crate::record::{Spread, key};
use crate::store::{Engine, StoreError, for_each};
use crate::txn::{Plan, spread};

/// Names of one piece, and about how many bytes of them.
const PIECE_NAMES: usize = 256;
const PIECE_BYTES: usize = 64 << 10;
/// Names that may be made between the plan of a split and its decision.
const COOKIES_AHEAD: u64 = 1 << 20;
/// Times that a piece is planned anew before others get a turn.
const OVERTAKEN_MAX: u32 = 100;
const PAUSE: Duration = Duration::from_millis(500);
/// Directories whose makers of names are remembered, about.
const MAKERS: usize = 1_024;
/// So many times another node makes the next name, and a directory counts as contended.
const TURNS_MIN: u64 = 16;

/// The directories that are to be split, or are being split.
pub(crate) struct Splits {
    pending: Mutex<BTreeSet<Ino>>,
    added: Notify,
    makers: Makers,
}

impl Splits {
    /// Those that were being split.
    pub(crate) fn load(engine: &dyn Engine) -> Result<Splits, StoreError> {
        let mut pending = BTreeSet::new();
        for_each(engine, &[key::MOVING], |key, _| {
            pending.extend(key::ino_of(key));
            Ok(())
        })?;
        Ok(Splits { pending: Mutex::new(pending), added: Notify::new(), makers: Makers::new() })
    }

    fn pending(&self) -> MutexGuard<'_, BTreeSet<Ino>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, directory: Ino) {
        if self.pending().insert(directory) {
            self.added.notify_one();
        }
    }

    /// Takes note of what a committed operation of a client on `node` has done to the size of directories.
    pub(crate) fn note(&self, policy: &MetadataPolicy, effects: &Effects, node: Option<NodeIndex>) {
        if let Some(head) = effects.moving {
            self.add(head);
        }
        let Some((directory, names)) = effects.grown.filter(|_| policy.split_names > 0) else { return };
        // Small directories cost nothing.
        if names <= policy.split_names.min(policy.split_contended_names) {
            return;
        }
        let is_contended = node.is_some_and(|node| self.makers.are_several(directory, node));
        if names > policy.split_names || is_contended {
            self.add(directory);
        }
    }
}

/// Who made the last name in which directory, and how often somebody else did next. Only about: directories that share a place
/// forget each other.
struct Makers(Box<[AtomicU64]>);

impl Makers {
    fn new() -> Makers {
        Makers((0..MAKERS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Takes note that `node` has made a name; whether several do.
    fn are_several(&self, directory: Ino, node: NodeIndex) -> bool {
        let mixed = directory.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = &self.0[(mixed >> 54) as usize % MAKERS];
        // 32 bits that tell the directory, 16 for the turns, 16 for the node.
        let directory = mixed & 0xffff_ffff;
        let before = place.load(Ordering::Relaxed);
        let is_same = before >> 32 == directory;
        let (turns, last) = if is_same { (before >> 16 & 0xffff, before & 0xffff) } else { (0, u64::from(node.get())) };
        let turns = if last == u64::from(node.get()) { turns } else { (turns + 1).min(0xffff) };
        place.store(directory << 32 | turns << 16 | u64::from(node.get()), Ordering::Relaxed);
        turns >= TURNS_MIN
    }
}

/// What came of a step of a split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stepped {
    /// There is more to do.
    On,
    /// The directory is spread, or is none any more.
    Done,
}

impl Mdt {
    /// Splits directories as they grow, for ever. Sleeps without a timer while there is nothing to split.
    pub async fn run_splitter(&self) {
        loop {
            let added = self.splits.added.notified();
            if self.split_pending(usize::MAX).await > 0 {
                tokio::time::sleep(PAUSE).await;
            } else if self.splits.pending().is_empty() {
                added.await;
            }
        }
    }

    /// Takes at most `steps` steps of the splits that are to be done; how many directories could not go on.
    pub async fn split_pending(&self, mut steps: usize) -> usize {
        let mut stuck = 0;
        let directories: Vec<Ino> = self.splits.pending().iter().copied().collect();
        for directory in directories {
            while steps > 0 {
                steps -= 1;
                match self.split_step(directory).await {
                    Ok(Stepped::On) => {}
                    Ok(Stepped::Done) => {
                        self.splits.pending().remove(&directory);
                        break;
                    }
                    Err(errno) => {
                        tracing::debug!(%directory, %errno, "the split of a directory waits");
                        stuck += 1;
                        break;
                    }
                }
            }
        }
        stuck
    }

    /// One step, planned anew as often as it is overtaken.
    async fn split_step(&self, directory: Ino) -> Result<Stepped, Errno> {
        let mut limit = PIECE_NAMES;
        for _ in 0..OVERTAKEN_MAX {
            let Some(plan) = self.plan_split(directory, limit)? else { return Ok(Stepped::Done) };
            match self.carry_out(None, &plan).await {
                Err(Errno::EAGAIN) => limit = (limit / 2).max(1),
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(Stepped::On),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The next step; `None` when there is none.
    fn plan_split(&self, directory: Ino, limit: usize) -> Result<Option<Plan>, Errno> {
        let planned = self.with_namespace(|ns| match ns.directory(directory) {
            Ok(found) => match &found.spread {
                Spread::Whole => self.plan_spread(ns, directory),
                // What would go to a lost node stays.
                Spread::Head(shards) if self.peers.is_lost(shards.holder_in_the_end(shards.moved_below()).mdt()) => {
                    Ok(None)
                }
                Spread::Head(shards) if shards.is_moving() => plan_piece(ns, shards, limit).map(Some),
                Spread::Head(_) | Spread::Shard { .. } => Ok(None),
            },
            // Removed.
            Err(OpError::Errno(_)) => Ok(None),
            Err(error) => Err(error),
        });
        planned.map_err(|error| errno_of(&error))
    }

    /// A shard on each of some MDTs; `None` when there is no other.
    fn plan_spread(&self, ns: &mut Namespace<'_>, ino: Ino) -> Result<Option<Plan>, OpError> {
        let directory = ns.directory(ino)?;
        let others = self.config.policy.split_shards.min(SHARDS_MAX as u16).saturating_sub(1);
        let homes = shard_homes(ino, others, self.config.mdts, |mdt| !self.peers.is_lost(mdt));
        if homes.is_empty() {
            return Ok(None);
        }
        let like = spread::inherited(ns, &directory)?;
        let next_cookie = directory.next_cookie + COOKIES_AHEAD;
        let count = homes.len() as u16 + 1;
        let mut plan = Plan::default();
        for (index, home) in (0..).zip(&homes) {
            plan.step(*home, Step::MakeShard { index, count, head: ino, next_cookie, like: like.clone() });
        }
        plan.step(ino.mdt(), Step::Spread { head: ino, homes, next_cookie, like });
        Ok(Some(plan))
    }

    /// Whether splits go on, or are to be begun.
    pub fn is_splitting(&self) -> bool {
        !self.splits.pending().is_empty()
    }

    /// Takes note of what a committed operation has done to the size of directories.
    pub(crate) fn note_growth(&self, effects: &Effects, node: Option<NodeIndex>) {
        if self.config.mdts > 1 {
            self.splits.note(&self.config.policy, effects, node);
        }
    }
}

/// The next names that move: those behind the border, all of one range.
fn plan_piece(ns: &mut Namespace<'_>, shards: &Shards, limit: usize) -> Result<Plan, OpError> {
    let (head, from) = (shards.head(), shards.moved_below());
    let index = index_of(from, shards.count());
    let end = first_hash(index + 1, shards.count());
    let (names, until) = cut(spread::names(ns, head, (from, end), limit + 1)?, limit, end);
    let shard = shards.holder_in_the_end(from);
    let piece = Piece { from, until, names };
    let mut plan = Plan::default();
    plan.step(shard.mdt(), Step::TakeNames { shard, piece: piece.clone() });
    plan.step(head.mdt(), Step::GiveNames { head, piece });
    Ok(plan)
}

/// The first of `found`, at most `limit` unless more have one hash, and where the next piece begins: at `end` when these are all.
fn cut(found: Vec<(u64, MovedName)>, limit: usize, end: u64) -> (Vec<MovedName>, u64) {
    let mut bytes = 0;
    let is_too_long = |(_, moved): &(u64, MovedName)| {
        bytes += moved.name.as_bytes().len();
        bytes > PIECE_BYTES
    };
    let fits = found.iter().position(is_too_long).unwrap_or(found.len()).clamp(1, limit.max(1));
    let Some((until, _)) = found.get(fits) else { return (found.into_iter().map(|(_, name)| name).collect(), end) };
    let until = *until;
    let before: Vec<MovedName> =
        found.iter().take_while(|(hash, _)| *hash < until).map(|(_, name)| name.clone()).collect();
    // Names of one hash stay together; so many of them as a piece has are not found in any directory's time.
    if before.is_empty() { (found.into_iter().map(|(_, name)| name).collect(), until + 1) } else { (before, until) }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::mds::Named;
    use burstfs_types::{FileKind, Name};

    use super::*;

    fn found(hashes: &[u64]) -> Vec<(u64, MovedName)> {
        let named = Named { ino: Ino::ROOT, kind: FileKind::Fifo };
        hashes.iter().map(|hash| (*hash, MovedName { name: Name::new("n").unwrap(), named, cookie: 3 })).collect()
    }

    #[test]
    fn a_piece_ends_between_two_hashes() {
        let cut = |hashes: &[u64], limit| {
            let (names, until) = cut(found(hashes), limit, 100);
            (names.len(), until)
        };
        assert_eq!(cut(&[], 2), (0, 100));
        assert_eq!(cut(&[1, 5], 2), (2, 100));
        assert_eq!(cut(&[1, 5, 9], 2), (2, 9));
        assert_eq!(cut(&[1, 5, 5], 2), (1, 5));
        assert_eq!(cut(&[5, 5, 5], 2), (3, 6));
    }

    #[test]
    fn a_directory_is_contended_when_nodes_take_turns() {
        let (makers, directory) = (Makers::new(), Ino::from_raw(77).unwrap());
        assert!(!(0..1_000).any(|_| makers.are_several(directory, NodeIndex::new(3))));
        let turns = (0..1_000).filter(|n| makers.are_several(directory, NodeIndex::new(n % 2))).count() as u64;
        assert!((1_000 - TURNS_MIN - 2..=1_000).contains(&turns), "{turns}");
    }

    #[test]
    fn small_directories_are_left_alone() {
        let splits = Splits { pending: Mutex::default(), added: Notify::new(), makers: Makers::new() };
        let policy = MetadataPolicy { split_names: 10, split_contended_names: 5, ..MetadataPolicy::default() };
        let grown = |names| Effects { grown: Some((Ino::ROOT, names)), ..Effects::default() };
        for n in 0..100 {
            splits.note(&policy, &grown(5), Some(NodeIndex::new(n % 2)));
            splits.note(&policy, &grown(10), Some(NodeIndex::new(0)));
            splits.note(&MetadataPolicy { split_names: 0, ..policy }, &grown(99), None);
        }
        assert!(splits.pending().is_empty());
        splits.note(&policy, &grown(11), Some(NodeIndex::new(0)));
        assert_eq!(splits.pending().pop_first(), Some(Ino::ROOT));
        (0..100).for_each(|n| splits.note(&policy, &grown(6), Some(NodeIndex::new(n % 2))));
        assert_eq!(splits.pending().pop_first(), Some(Ino::ROOT));
    }
}
