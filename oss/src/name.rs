//! Names of object files.

use burstfs_types::{Errno, Ino, ObjectId, StripeIndex, limits};

/// Sub-directories of an OST: enough that those who make objects at the same time do not wait for one another; a directory
/// may have millions of entries, and to make one costs as much as to make two objects.
pub(crate) const SUBDIRS: usize = 32;

/// The sub-directory of an object. Inode numbers of one MDT are consecutive, and so are stripes: the multiplication
/// spreads both over the high bits.
pub(crate) fn subdir_of(object: ObjectId) -> usize {
    let key = object.ino.get() ^ (u64::from(object.stripe.get()) << 48).rotate_left(16);
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as usize
}

/// The name of a sub-directory.
pub(crate) fn subdir_name(subdir: usize) -> String {
    format!("{subdir:02x}")
}

/// An object's path below the OST's directory.
pub(crate) fn path_of(object: ObjectId) -> String {
    format!("{:02x}/{}", subdir_of(object), file_name(object))
}

fn file_name(object: ObjectId) -> String {
    format!("{:016x}.{:04x}", object.ino.get(), object.stripe.get())
}

/// The object that a file of a sub-directory holds; `None` when it is none of ours.
pub(crate) fn parse(subdir: usize, name: &[u8]) -> Option<ObjectId> {
    let (ino, stripe) = std::str::from_utf8(name).ok()?.split_once('.')?;
    let ino = Ino::from_raw(u64::from_str_radix(ino, 16).ok()?)?;
    let object = ObjectId { ino, stripe: StripeIndex::new(u16::from_str_radix(stripe, 16).ok()?) };
    // Other spellings of the same number are other files.
    (file_name(object).as_bytes() == name && subdir_of(object) == subdir).then_some(object)
}

/// Refuses ids that no layout has. An id's type does not check what came from a peer.
pub(crate) fn check(object: ObjectId) -> Result<(), Errno> {
    let stripe_ok = usize::from(object.stripe.get()) < limits::STRIPE_COUNT_MAX;
    if stripe_ok && Ino::from_raw(object.ino.get()).is_some() { Ok(()) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(ino: u64, stripe: u16) -> ObjectId {
        ObjectId { ino: Ino::from_raw(ino).unwrap(), stripe: StripeIndex::new(stripe) }
    }

    proptest! {
        #[test]
        fn names_go_there_and_back(counter in 1..=Ino::COUNTER_MAX, mdt: u16, stripe: u16) {
            let object = object(u64::from(mdt) << 48 | counter, stripe);
            let path = path_of(object);
            let (subdir, file) = path.split_once('/').unwrap();
            prop_assert_eq!(subdir, subdir_name(subdir_of(object)));
            prop_assert_eq!(parse(subdir_of(object), file.as_bytes()), Some(object));
        }

        #[test]
        fn other_names_are_no_objects(name: Vec<u8>) {
            prop_assert_eq!(parse(0, &name), None);
        }
    }

    #[test]
    fn inodes_and_stripes_spread() {
        let used = |ids: &mut dyn Iterator<Item = ObjectId>| {
            let mut count = [0; SUBDIRS];
            ids.for_each(|id| count[subdir_of(id)] += 1);
            *count.iter().max().unwrap()
        };
        assert!(used(&mut (1..=25_600).map(|n| object(n, 0))) < 1_000);
        assert!(used(&mut (0..2_048).map(|n| object(7, n))) < 120);
        assert!(used(&mut (0..256).map(|n| object(n << 48 | 1, 0))) < 20);
    }
}
