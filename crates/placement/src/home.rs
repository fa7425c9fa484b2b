//! Where what is new goes.

use burstfs_types::{Ino, Layout, MdtIndex, Name, OstIndex};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The MDT that shall hold the inode of the new directory `name` in `parent`, out of `mdts`. The parent is part of the
/// hash, so that equal names in different directories (`rank0/out`, `rank1/out`) do not meet on one MDT.
pub fn directory_home(parent: Ino, name: &Name, mdts: u16) -> MdtIndex {
    let hash = xxh3_64_with_seed(name.as_bytes(), parent.get());
    // The high bits of the product: even without a modulo's bias, and below `mdts` for every hash.
    let index = (u128::from(hash) * u128::from(mdts.max(1))) >> 64;
    MdtIndex::new(u16::try_from(index).unwrap_or(0))
}

/// The layout of a file that a client on the node with OST `creator` makes: `local`, one stripe there, so that the one
/// who writes it (nearly always the one who made it) writes at the speed of the local disk.
pub fn layout_for_new_file(creator: OstIndex) -> Layout {
    Layout::on_one(creator)
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
    fn a_new_file_lives_with_its_creator() {
        assert_eq!(layout_for_new_file(OstIndex::new(3)).osts(), [OstIndex::new(3)]);
    }

    proptest! {
        #[test]
        fn the_home_exists(parent in 1_u64..1 << 48, name in "[a-z]{1,30}", mdts in 0_u16..) {
            let home = directory_home(Ino::from_raw(parent).unwrap(), &Name::new(name).unwrap(), mdts);
            prop_assert!(home.get() < mdts.max(1));
        }
    }
}
