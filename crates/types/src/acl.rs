//! Access control lists as POSIX.1e draft 17 and `acl(5)` have them.
//!
//! Owns the rules: which lists there can be, how a list and permission bits follow from one another, and what a new inode inherits.
//! Does not own where a list is stored, nor who is let in by it: the kernel decides that.
//!
//! Invariant: an [`Acl`] is complete and in order. It has one entry for the owner, the group and others each; with entries for
//! named users or groups it has a mask.

use thiserror::Error;

/// The extended attribute that holds who may use an inode.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute of a directory that holds what is made in it inherits.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// The value of the list without entries, which stands for "no list".
pub const NO_ACL: &[u8] = &VERSION.to_le_bytes();

/// The only version there is (`linux/posix_acl_xattr.h`).
const VERSION: u32 = 2;
/// "No id", as entries have it that name nobody.
const NO_ID: u32 = u32::MAX;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Bytes that are no list, or a list that there cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum InvalidAcl {
    /// Not the form of the attribute's value.
    #[error("{len} bytes are no access control list")]
    Length {
        /// So many bytes.
        len: usize,
    },
    /// Of a version that is not known.
    #[error("version {0} of access control lists is not known")]
    Version(u32),
    /// An entry of no known kind, or with bits beyond read, write and execute.
    #[error("an entry with tag {tag:#x} and permissions {bits:#o}")]
    Entry {
        /// Its tag.
        tag: u16,
        /// Its permissions.
        bits: u16,
    },
    /// Entries that are missing, come twice, or are out of order.
    #[error("the entries do not make a list")]
    Entries,
}

/// Whom an entry is about; in the order that lists have them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    Mask,
    Others,
}

impl Who {
    fn new(tag: u16, id: u32) -> Option<Who> {
        Some(match tag {
            0x01 => Who::Owner,
            0x02 if id != NO_ID => Who::User(id),
            0x04 => Who::OwningGroup,
            0x08 if id != NO_ID => Who::Group(id),
            0x10 => Who::Mask,
            0x20 => Who::Others,
            _ => return None,
        })
    }

    fn tag_and_id(self) -> (u16, u32) {
        match self {
            Who::Owner => (0x01, NO_ID),
            Who::User(id) => (0x02, id),
            Who::OwningGroup => (0x04, NO_ID),
            Who::Group(id) => (0x08, id),
            Who::Mask => (0x10, NO_ID),
            Who::Others => (0x20, NO_ID),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    who: Who,
    bits: u16,
}

/// An access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// The list in the value of an attribute; `None` for the list without entries, which stands for "no list".
    pub fn decode(value: &[u8]) -> Result<Option<Acl>, InvalidAcl> {
        let length = InvalidAcl::Length { len: value.len() };
        let (header, rest) = value.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
        let version = u32::from_le_bytes(*header);
        if version != VERSION {
            return Err(InvalidAcl::Version(version));
        }
        let (entries, []) = rest.as_chunks::<ENTRY_BYTES>() else { return Err(length) };
        let entries = entries.iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() { Ok(None) } else { Acl::new(entries).map(Some) }
    }

    /// Checks what the kernel's `posix_acl_valid` does. A user or group that comes twice is none of its business.
    fn new(entries: Vec<Entry>) -> Result<Acl, InvalidAcl> {
        let is_sorted = entries.is_sorted_by_key(|entry| entry.who.tag_and_id().0);
        let count = |who: Who| entries.iter().filter(|entry| entry.who == who).count();
        let has_each = [Who::Owner, Who::OwningGroup, Who::Others].into_iter().all(|who| count(who) == 1);
        let names = entries.iter().any(|entry| matches!(entry.who, Who::User(_) | Who::Group(_)));
        let masks = count(Who::Mask);
        let has_mask = masks == 1 || masks == 0 && !names;
        if is_sorted && has_each && has_mask { Ok(Acl { entries }) } else { Err(InvalidAcl::Entries) }
    }

    /// The value of an attribute with this list.
    pub fn encode(&self) -> Vec<u8> {
        let entry = |entry: &Entry| {
            let (tag, id) = entry.who.tag_and_id();
            let [t0, t1] = tag.to_le_bytes();
            let [b0, b1] = entry.bits.to_le_bytes();
            let [i0, i1, i2, i3] = id.to_le_bytes();
            [t0, t1, b0, b1, i0, i1, i2, i3]
        };
        VERSION.to_le_bytes().into_iter().chain(self.entries.iter().flat_map(entry)).collect()
    }

    /// Whether it says no more than permission bits can.
    pub fn is_only_bits(&self) -> bool {
        // With the three entries that every list has.
        self.entries.len() == 3
    }

    /// The nine permission bits that stand for it: the group's are the mask where there is one.
    pub fn bits(&self) -> u16 {
        self.of(Who::Owner) << 6 | self.of(self.group_class()) << 3 | self.of(Who::Others)
    }

    /// The list after `chmod` to `mode`: what is behind the nine bits becomes them, named users and groups stay.
    pub fn with_bits(mut self, mode: u16) -> Acl {
        let class = self.group_class();
        for entry in &mut self.entries {
            match entry.who {
                Who::Owner => entry.bits = mode >> 6 & 0o7,
                Who::Others => entry.bits = mode & 0o7,
                who if who == class => entry.bits = mode >> 3 & 0o7,
                Who::User(_) | Who::OwningGroup | Who::Group(_) | Who::Mask => {}
            }
        }
        self
    }

    /// What an inode that is made with `mode` in a directory with this default list gets: nobody gets more than both say.
    pub fn inherited(self, mode: u16) -> Acl {
        let bits = self.bits() & mode;
        self.with_bits(bits)
    }

    /// The entry that the group's permission bits stand for.
    fn group_class(&self) -> Who {
        let has_mask = self.entries.iter().any(|entry| entry.who == Who::Mask);
        if has_mask { Who::Mask } else { Who::OwningGroup }
    }

    fn of(&self, who: Who) -> u16 {
        self.entries.iter().find(|entry| entry.who == who).map_or(0, |entry| entry.bits)
    }
}

fn decode_entry(bytes: &[u8; ENTRY_BYTES]) -> Result<Entry, InvalidAcl> {
    let [t0, t1, b0, b1, i0, i1, i2, i3] = *bytes;
    let (tag, bits) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([b0, b1]));
    match Who::new(tag, u32::from_le_bytes([i0, i1, i2, i3])) {
        Some(who) if bits <= 0o7 => Ok(Entry { who, bits }),
        Some(_) | None => Err(InvalidAcl::Entry { tag, bits }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |(tag, bits, id): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [&[2, 0, 0, 0][..], &entries.iter().flat_map(entry).collect::<Vec<u8>>()].concat()
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::decode(&value(entries)).unwrap().unwrap()
    }

    /// `u::rwx u:5:rw- g::r-x m::r-- o::--x`
    const NAMED: [(u16, u16, u32); 5] = [(1, 7, NO_ID), (2, 6, 5), (4, 5, NO_ID), (16, 4, NO_ID), (32, 1, NO_ID)];

    #[test]
    fn a_list_is_its_bytes() {
        assert_eq!(acl(&NAMED).encode(), value(&NAMED));
        assert_eq!(Acl::decode(&value(&[])), Ok(None));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let refused = |entries: &[(u16, u16, u32)]| Acl::decode(&value(entries)).unwrap_err();
        let three = [(1, 7, NO_ID), (4, 5, NO_ID), (32, 1, NO_ID)];
        assert_eq!(Acl::decode(&[2, 0, 0]), Err(InvalidAcl::Length { len: 3 }));
        assert_eq!(Acl::decode(&[2, 0, 0, 0, 1]), Err(InvalidAcl::Length { len: 5 }));
        assert_eq!(Acl::decode(&[1, 0, 0, 0]), Err(InvalidAcl::Version(1)));
        assert_eq!(refused(&three[..2]), InvalidAcl::Entries);
        assert_eq!(refused(&[three[1], three[0], three[2]]), InvalidAcl::Entries);
        assert_eq!(refused(&[three[0], (2, 7, 5), three[1], three[2]]), InvalidAcl::Entries, "no mask");
        assert_eq!(refused(&[three[0], three[0], three[1], three[2]]), InvalidAcl::Entries);
        assert_eq!(refused(&[(1, 8, NO_ID), three[1], three[2]]), InvalidAcl::Entry { tag: 1, bits: 8 });
        assert_eq!(refused(&[(3, 7, NO_ID), three[1], three[2]]), InvalidAcl::Entry { tag: 3, bits: 7 });
        assert_eq!(refused(&[(2, 7, NO_ID), three[1], three[2]]), InvalidAcl::Entry { tag: 2, bits: 7 });
    }

    #[test]
    fn users_may_come_in_any_order_of_their_numbers() {
        acl(&[(1, 7, NO_ID), (2, 6, 9), (2, 6, 5), (4, 5, NO_ID), (16, 4, NO_ID), (32, 1, NO_ID)]);
    }

    #[test]
    fn bits_and_lists_follow_from_one_another() {
        let named = acl(&NAMED);
        assert!(!named.is_only_bits());
        assert_eq!(named.bits(), 0o741);
        assert_eq!(
            named.with_bits(0o4632).encode(),
            value(&[(1, 6, NO_ID), (2, 6, 5), (4, 5, NO_ID), (16, 3, NO_ID), (32, 2, NO_ID)])
        );
        let three = acl(&[(1, 7, NO_ID), (4, 5, NO_ID), (32, 1, NO_ID)]);
        assert!(three.is_only_bits());
        assert_eq!(three.with_bits(0o640).bits(), 0o640);
    }

    #[test]
    fn what_is_inherited_is_no_more_than_both_say() {
        let inherited = acl(&NAMED).inherited(0o666);
        assert_eq!(inherited.bits(), 0o640);
        assert_eq!(
            inherited.encode(),
            value(&[(1, 6, NO_ID), (2, 6, 5), (4, 5, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(Some(acl)) = Acl::decode(&bytes) {
                prop_assert_eq!(Acl::decode(&acl.encode()), Ok(Some(acl)));
            }
        }

        #[test]
        fn chmod_is_seen(mode in 0_u16..0o1000) {
            prop_assert_eq!(acl(&NAMED).with_bits(mode).bits(), mode);
        }
    }
}
