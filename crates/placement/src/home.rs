//! Where what is new goes.

use burstfs_types::{Ino, Layout, LayoutError, MdtIndex, Name, OstIndex, StripePattern, limits};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The MDT that shall hold the inode of the new directory `name` in `parent`, out of `mdts`. The parent is part of the
/// hash, so that equal names in different directories (`rank0/out`, `rank1/out`) do not meet on one MDT.
pub fn directory_home(parent: Ino, name: &Name, mdts: u16) -> MdtIndex {
    let hash = xxh3_64_with_seed(name.as_bytes(), parent.get());
    // The high bits of the product: even without a modulo's bias, and below `mdts` for every hash.
    let index = (u128::from(hash) * u128::from(mdts.max(1))) >> 64;
    MdtIndex::new(u16::try_from(index).unwrap_or(0))
}

/// Where a name is in the order of a directory's hashes. All names of a directory are spread by it, once it is.
pub fn name_hash(name: &Name) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), 0)
}

/// The MDTs that shall hold names of the directory `head` besides its own, at most `count` of those for which `is_usable`. They follow
/// one another from one that its number chooses, so that the shards of many directories are even over all MDTs.
pub fn shard_homes(head: Ino, count: u16, mdts: u16, is_usable: impl Fn(MdtIndex) -> bool) -> Vec<MdtIndex> {
    let mdts = mdts.max(1);
    let first = (xxh3_64_with_seed(&head.get().to_be_bytes(), 0) % u64::from(mdts)) as u16;
    let in_turn = (0..mdts).map(|n| MdtIndex::new(((u32::from(first) + u32::from(n)) % u32::from(mdts)) as u16));
    in_turn.filter(|mdt| *mdt != head.mdt() && is_usable(*mdt)).take(usize::from(count)).collect()
}

/// The layout of the file `ino` that asks for stripes, over `osts` OSTs: on as many of them as the pattern says and there
/// are. Consecutive files of an MDT begin on consecutive OSTs, so that small files, and the first stripes of all, spread.
pub fn striped(pattern: StripePattern, ino: Ino, osts: u16) -> Result<Layout, LayoutError> {
    let osts = osts.max(1);
    let count = pattern.count().unwrap_or(osts).min(osts).min(limits::STRIPE_COUNT_MAX as u16);
    let first = (ino.counter() + u64::from(ino.mdt().get())) % u64::from(osts);
    let ost = |stripe: u16| OstIndex::new(((first + u64::from(stripe)) % u64::from(osts)) as u16);
    Layout::new(pattern.size_bytes(), (0..count).map(ost).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_children_of_the_root_spread() {
        let mut count = [0_u32; 4];
        for n in 0..4_000 {
            let name = Name::new(format!("dir{n}")).unwrap();
            count[usize::from(directory_home(Ino::ROOT, &name, 4).get())] += 1;
        }
        assert!(count.iter().all(|n| (850..1_150).contains(n)), "{count:?}");
    }

    #[test]
    fn equal_names_in_different_directories_spread() {
        let name = Name::new("out").unwrap();
        let mut count = [0_u32; 4];
        for n in 1..=4_000 {
            count[usize::from(directory_home(Ino::from_raw(n).unwrap(), &name, 4).get())] += 1;
        }
        assert!(count.iter().all(|n| (850..1_150).contains(n)), "{count:?}");
    }

    #[test]
    fn shards_are_on_other_mdts_and_spread() {
        let mut count = [0_u32; 5];
        for n in 1..=4_000 {
            let homes = shard_homes(Ino::new(MdtIndex::new((n % 5) as u16), n).unwrap(), 2, 5, |_| true);
            assert!(homes.len() == 2 && homes[0] != homes[1]);
            assert!(homes.iter().all(|home| u64::from(home.get()) != n % 5));
            homes.iter().for_each(|home| count[usize::from(home.get())] += 1);
        }
        assert!(count.iter().all(|n| (1_400..1_800).contains(n)), "{count:?}");
        assert_eq!(shard_homes(Ino::ROOT, 9, 3, |mdt| mdt.get() != 1), [MdtIndex::new(2)]);
        assert_eq!(shard_homes(Ino::ROOT, 9, 1, |_| true), []);
    }

    #[test]
    fn files_take_turns() {
        let pattern = StripePattern::new(Some(2), 1 << 16).unwrap();
        let osts = |counter| {
            let layout = striped(pattern, Ino::new(MdtIndex::new(1), counter).unwrap(), 3).unwrap();
            layout.osts().iter().map(|ost| ost.get()).collect::<Vec<_>>()
        };
        assert_eq!([osts(1), osts(2), osts(3), osts(4)], [[2, 0], [0, 1], [1, 2], [2, 0]]);
    }

    #[test]
    fn a_file_has_no_more_stripes_than_there_are_osts() {
        let layout = |count, osts| {
            let pattern = StripePattern::new(count, 1 << 20).unwrap();
            striped(pattern, Ino::ROOT, osts).unwrap().osts().len()
        };
        assert_eq!((layout(Some(8), 3), layout(None, 3), layout(None, 16_384), layout(None, 0)), (3, 3, 2_048, 1));
    }

    proptest! {
        #[test]
        fn the_home_exists(parent in 1_u64..1 << 48, name in "[a-z]{1,30}", mdts in 0_u16..) {
            let home = directory_home(Ino::from_raw(parent).unwrap(), &Name::new(name).unwrap(), mdts);
            prop_assert!(home.get() < mdts.max(1));
        }
    }
}
