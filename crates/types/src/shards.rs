//! A directory whose names are spread over several inodes, each on an MDT of its own.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Ino;

/// How many inodes can hold the names of one directory.
pub const SHARDS_MAX: usize = 256;

/// Who holds which names of a directory that is spread, by the hash of a name.
///
/// The hashes are cut into as many equal ranges as there are shards. The last shard is the directory's own inode, its head: it held
/// everything at the beginning, and gives the other ranges away from the bottom up, a piece at a time. So names whose hash is
/// below `moved_below` are with the shard of their range, all others with the head.
///
/// What somebody remembers of it may be old, and is then wrong in one way only: a name may have moved on, from the head to the shard
/// of its range. The head knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Shards {
    inos: Vec<Ino>,
    moved_below: u64,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    inos: Vec<Ino>,
    moved_below: u64,
}

/// Not the shards of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum InvalidShards {
    /// Fewer than two, or too many.
    #[error("a directory has 2 to {SHARDS_MAX} shards, not {0}")]
    Count(usize),
    /// One comes twice.
    #[error("{0} is a shard twice")]
    Twice(Ino),
    /// What is the head's by its range would be with others.
    #[error("names with hashes up to {0:#x} cannot be with other shards than the head")]
    Moved(u64),
}

impl Shards {
    /// `inos` by their ranges, the head last; names with hashes below `moved_below` are where they belong.
    pub fn new(inos: Vec<Ino>, moved_below: u64) -> Result<Shards, InvalidShards> {
        if !(2..=SHARDS_MAX).contains(&inos.len()) {
            return Err(InvalidShards::Count(inos.len()));
        }
        let twice = |(index, ino): &(usize, &Ino)| inos[..*index].contains(ino);
        if let Some((_, ino)) = inos.iter().enumerate().find(twice) {
            return Err(InvalidShards::Twice(*ino));
        }
        let shards = Shards { inos, moved_below };
        if moved_below > shards.moved_in_the_end() { Err(InvalidShards::Moved(moved_below)) } else { Ok(shards) }
    }

    /// The directory's own inode.
    pub fn head(&self) -> Ino {
        self.inos[self.inos.len() - 1]
    }

    /// All of them, by their ranges, the head last.
    pub fn inos(&self) -> &[Ino] {
        &self.inos
    }

    /// All but the head.
    pub fn others(&self) -> &[Ino] {
        &self.inos[..self.inos.len() - 1]
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.inos.len() as u16
    }

    /// Hashes below are where they belong.
    pub fn moved_below(&self) -> u64 {
        self.moved_below
    }

    /// What [`moved_below`](Shards::moved_below) is when nothing is left to move.
    pub fn moved_in_the_end(&self) -> u64 {
        first_hash(self.count() - 1, self.count())
    }

    /// Whether something is left to move.
    pub fn is_moving(&self) -> bool {
        self.moved_below < self.moved_in_the_end()
    }

    /// The same after everything below `until` has moved.
    pub fn moved_to(&self, until: u64) -> Result<Shards, InvalidShards> {
        Shards::new(self.inos.clone(), until)
    }

    /// Who holds names with this hash when nothing is left to move.
    pub fn holder_in_the_end(&self, hash: u64) -> Ino {
        self.inos[usize::from(index_of(hash, self.count()))]
    }

    /// Who holds names with this hash.
    pub fn holder(&self, hash: u64) -> Ino {
        if hash < self.moved_below { self.holder_in_the_end(hash) } else { self.head() }
    }
}

/// The range that `hash` is in, of `count`.
pub fn index_of(hash: u64, count: u16) -> u16 {
    // Below `count`, which is a u16, for every hash.
    ((u128::from(hash) * u128::from(count)) >> 64) as u16
}

/// The first hash of the range `index`, of `count`; the end of the one before. Below `count` it is a hash.
pub fn first_hash(index: u16, count: u16) -> u64 {
    let first = (u128::from(index) << 64).div_ceil(u128::from(count.max(1)));
    u64::try_from(first).unwrap_or(u64::MAX)
}

impl TryFrom<Raw> for Shards {
    type Error = InvalidShards;

    fn try_from(raw: Raw) -> Result<Shards, InvalidShards> {
        Shards::new(raw.inos, raw.moved_below)
    }
}

impl From<Shards> for Raw {
    fn from(shards: Shards) -> Raw {
        Raw { inos: shards.inos, moved_below: shards.moved_below }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inos(count: u64) -> Vec<Ino> {
        (1..=count).map(|n| Ino::from_raw(n).unwrap()).collect()
    }

    #[test]
    fn at_the_beginning_all_is_the_heads() {
        let shards = Shards::new(inos(4), 0).unwrap();
        assert!([0, 1, u64::MAX / 2, u64::MAX].iter().all(|hash| shards.holder(*hash) == shards.head()));
        assert!(shards.is_moving());
    }

    #[test]
    fn in_the_end_each_has_its_range() {
        let begun = Shards::new(inos(4), 0).unwrap();
        let shards = begun.moved_to(begun.moved_in_the_end()).unwrap();
        assert!(!shards.is_moving());
        let holders = [0, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, 3 << 62, u64::MAX]
            .map(|hash| shards.holder(hash).get());
        assert_eq!(holders, [1, 1, 2, 2, 3, 4, 4]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Shards::new(inos(1), 0), Err(InvalidShards::Count(1)));
        assert_eq!(Shards::new(inos(257), 0), Err(InvalidShards::Count(257)));
        assert_eq!(Shards::new([inos(2), inos(1)].concat(), 0), Err(InvalidShards::Twice(Ino::from_raw(1).unwrap())));
        assert_eq!(Shards::new(inos(2), (1 << 63) + 1), Err(InvalidShards::Moved((1 << 63) + 1)));
    }

    proptest! {
        #[test]
        fn ranges_are_in_order_and_cover_all_hashes(hash: u64, count in 2_u16..=256) {
            let index = index_of(hash, count);
            prop_assert!(index < count && first_hash(index, count) <= hash);
            prop_assert!(index + 1 == count || hash < first_hash(index + 1, count));
        }

        #[test]
        fn a_name_moves_once(hash: u64, count in 2_u64..=256, earlier: u64, later: u64) {
            let begun = Shards::new(inos(count), 0).unwrap();
            let at = |moved: u64| begun.moved_to(moved.min(begun.moved_in_the_end())).unwrap();
            let (before, after) = (at(earlier.min(later)), at(earlier.max(later)));
            let moved = before.holder(hash) != after.holder(hash);
            prop_assert!(!moved || before.holder(hash) == begun.head());
            prop_assert_eq!(after.inos(), begun.inos());
        }
    }
}
