//! The records of an MDT: keys, values and their codec.
//!
//! Owns the format. It lives as long as the instance, and all its processes are of one build: it has no version.
//!
//! | key | value | what |
//! |---|---|---|
//! | `I` ino | [`Inode`] | an inode of this MDT |
//! | `D` directory, hash of the name, name | [`Dentry`] | an entry |
//! | `C` directory, cookie | [`CookieEntry`] | the same entry in the listing's order |
//! | `X` ino, name | bytes | an extended attribute |
//! | `O` ino | nothing | an orphan: no name left, kept for those who have it open |
//! | `P` ino | [`Layout`] | a file that is gone, its objects not yet |
//! | `L` node | incarnation | the client that was last seen on a node |
//! | `R` node, slot | [`StoredReply`] | the reply cache |
//! | `F` ino | locks | who has which bytes of a file |
//! | `M` ino | number | a file or link has changed since it was last drained ([`crate::changes`]) |
//! | `T` transaction | [`Intent`](crate::txn) | what this MDT has promised to do when another one decides so |
//! | `W` transaction | MDTs | a transaction that this MDT has committed, and who may not have done his part |
//! | `S` ino | nothing | the inode is a shard |
//! | `Q` ino | nothing | a directory whose names are not all where they belong |
//! | `N` | counter | no inode number from here on was ever given out |
//! | `E` | number | how often this MDT was started |
//!
//! Numbers in keys are big-endian, so that the order of keys is the order of numbers.

use burstfs_placement::name_hash;
use burstfs_proto::mds::{LayoutChoice, TxId, WantedLayout};
use burstfs_types::shards::{first_hash, index_of};
use burstfs_types::{Attr, DeviceNumber, FileKind, Ino, Layout, Name, NodeIndex, Shards, Timestamp, Xid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// What `stat` shows as a directory's size: it has no better meaning here than one block of common file systems.
const DIRECTORY_SIZE: u64 = 4096;
/// The cookie of a directory's first entry: 1 and 2 are the client's `.` and `..`.
pub(crate) const FIRST_COOKIE: u64 = 3;

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub(crate) mode: u16,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    /// How many `X` records there are: most inodes have none, and need not be asked.
    pub(crate) xattrs: u32,
    pub(crate) body: Body,
}

/// What differs between kinds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    Regular(RegularFile),
    /// `layout` is what is made in it wants.
    Directory {
        parent: Ino,
        next_cookie: u64,
        entries: u64,
        layout: WantedLayout,
        spread: Spread,
    },
    Symlink {
        target: Vec<u8>,
    },
    Fifo,
    Socket,
    Character(DeviceNumber),
    Block(DeviceNumber),
}

/// Which names of a directory an inode holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Spread {
    /// All: the directory is not spread.
    Whole,
    /// Those that are the head's; it is one of these shards.
    Head(Box<Shards>),
    /// Those of the range `index`, of `count`, with hashes below `moved_below`. The inode is the head's shard, and its parent the head.
    Shard { index: u16, count: u16, moved_below: u64 },
}

impl Spread {
    /// Whether it holds `name`, if anything has the name.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        match self {
            Spread::Whole => true,
            Spread::Head(shards) => name_hash(name) >= shards.moved_below(),
            Spread::Shard { index, count, moved_below } => {
                let hash = name_hash(name);
                hash < *moved_below && index_of(hash, *count) == *index
            }
        }
    }

    /// Its word for [`Shards::moved_below`].
    pub(crate) fn moved_below(&self) -> u64 {
        match self {
            Spread::Whole => 0,
            Spread::Head(shards) => shards.moved_below(),
            Spread::Shard { moved_below, .. } => *moved_below,
        }
    }

    /// Its shards besides the head.
    pub(crate) fn others(&self) -> &[Ino] {
        match self {
            Spread::Head(shards) => shards.others(),
            Spread::Whole | Spread::Shard { .. } => &[],
        }
    }

    /// The range of hashes that a shard holds in the end: the first, and the end.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        match self {
            Spread::Shard { index, count, .. } => {
                Some((first_hash(*index, *count), first_hash(index.saturating_add(1), *count)))
            }
            Spread::Whole | Spread::Head(_) => None,
        }
    }

    /// The first cookie from `least` on that this shard gives, and no other: a directory's cookies are unique over its shards.
    pub(crate) fn cookie_from(&self, least: u64) -> u64 {
        let (index, count) = match self {
            Spread::Whole => return least,
            Spread::Head(shards) => (shards.count() - 1, shards.count()),
            Spread::Shard { index, count, .. } => (*index, *count),
        };
        let (index, count) = (u64::from(index), u64::from(count.max(1)));
        least.saturating_add((index % count + count - least % count) % count)
    }
}

/// What is known of a regular file's bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RegularFile {
    pub(crate) wanted: WantedLayout,
    /// Where its bytes live; never changes once it is `Some`.
    pub(crate) layout: Option<Layout>,
    /// Why it is that one.
    pub(crate) choice: Option<LayoutChoice>,
    /// The directory that it was made in, which learns how it is written; `None` where that teaches nothing.
    pub(crate) teaches: Option<Ino>,
    /// Appends that were given a place end here; 0 for a file with one stripe.
    pub(crate) appends_end: u64,
}

impl Inode {
    /// A new inode: one name, or two for a directory (`.` counts), all times `now`.
    pub(crate) fn new(mode: u16, uid: u32, gid: u32, body: Body, now: Timestamp) -> Inode {
        let nlink = if matches!(body, Body::Directory { .. }) { 2 } else { 1 };
        let mode = mode & 0o7777;
        Inode { mode, nlink, uid, gid, atime: now, mtime: now, ctime: now, xattrs: 0, body }
    }

    /// With so many extended attributes.
    pub(crate) fn with_xattrs(self, xattrs: u32) -> Inode {
        Inode { xattrs, ..self }
    }

    pub(crate) fn directory(parent: Ino, layout: WantedLayout) -> Body {
        Body::Directory { parent, next_cookie: FIRST_COOKIE, entries: 0, layout, spread: Spread::Whole }
    }

    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::Regular(_) => FileKind::Regular,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink { .. } => FileKind::Symlink,
            Body::Fifo => FileKind::Fifo,
            Body::Socket => FileKind::Socket,
            Body::Character(device) => FileKind::Character(*device),
            Body::Block(device) => FileKind::Block(*device),
        }
    }

    pub(crate) fn attr(&self, ino: Ino) -> Attr {
        let shards = match &self.body {
            Body::Directory { spread: Spread::Head(shards), .. } => Some(shards.clone()),
            _ => None,
        };
        let (size, layout) = match &self.body {
            Body::Regular(file) => (0, file.layout.clone()),
            Body::Directory { .. } => (DIRECTORY_SIZE, None),
            Body::Symlink { target } => (target.len() as u64, None),
            Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => (0, None),
        };
        Attr {
            ino,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size,
            blocks: 0,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            layout,
            shards,
        }
    }
}

/// An entry of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Dentry {
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
    pub(crate) cookie: u64,
}

/// An entry of a directory, found by its cookie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CookieEntry {
    pub(crate) name: Name,
    pub(crate) ino: Ino,
    pub(crate) kind: FileKind,
}

/// A reply that may be asked for again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct StoredReply {
    pub(crate) incarnation: u64,
    pub(crate) xid: Xid,
    pub(crate) opcode: u16,
    pub(crate) body: Vec<u8>,
}

/// The keys. `all_of` gives the range of a table or of a part of it.
pub(crate) mod key {
    use super::{Ino, Name, NodeIndex, TxId, name_hash};

    pub(crate) const INODE: u8 = b'I';
    pub(crate) const DENTRY: u8 = b'D';
    pub(crate) const COOKIE: u8 = b'C';
    pub(crate) const XATTR: u8 = b'X';
    pub(crate) const ORPHAN: u8 = b'O';
    pub(crate) const DESTROY: u8 = b'P';
    pub(crate) const CLIENT: u8 = b'L';
    pub(crate) const REPLY: u8 = b'R';
    pub(crate) const FILE_LOCKS: u8 = b'F';
    pub(crate) const CHANGE: u8 = b'M';
    pub(crate) const INTENT: u8 = b'T';
    pub(crate) const COMMITTED: u8 = b'W';
    pub(crate) const SHARD: u8 = b'S';
    pub(crate) const MOVING: u8 = b'Q';
    pub(crate) const INO_LIMIT: &[u8] = b"N";
    pub(crate) const EPOCH: &[u8] = b"E";

    fn with(table: u8, ino: Ino, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(9 + rest.len());
        key.push(table);
        key.extend_from_slice(&ino.get().to_be_bytes());
        key.extend_from_slice(rest);
        key
    }

    pub(crate) fn inode(ino: Ino) -> Vec<u8> {
        with(INODE, ino, &[])
    }

    pub(crate) fn dentry(parent: Ino, name: &Name) -> Vec<u8> {
        with(DENTRY, parent, &[&name_hash(name).to_be_bytes(), name.as_bytes()].concat())
    }

    /// The beginning of the keys of entries whose names have a hash of at least `hash`.
    pub(crate) fn dentries_from(parent: Ino, hash: u64) -> Vec<u8> {
        with(DENTRY, parent, &hash.to_be_bytes())
    }

    /// The hash and the name in the key of an entry; `None` for a key that is too short.
    pub(crate) fn name_of(key: &[u8]) -> Option<(u64, &[u8])> {
        Some((number_at(key, 9)?, key.get(17..)?))
    }

    pub(crate) fn shard(ino: Ino) -> Vec<u8> {
        with(SHARD, ino, &[])
    }

    pub(crate) fn moving(ino: Ino) -> Vec<u8> {
        with(MOVING, ino, &[])
    }

    pub(crate) fn cookie(parent: Ino, cookie: u64) -> Vec<u8> {
        with(COOKIE, parent, &cookie.to_be_bytes())
    }

    pub(crate) fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
        with(XATTR, ino, name)
    }

    pub(crate) fn orphan(ino: Ino) -> Vec<u8> {
        with(ORPHAN, ino, &[])
    }

    pub(crate) fn destroy(ino: Ino) -> Vec<u8> {
        with(DESTROY, ino, &[])
    }

    pub(crate) fn file_locks(ino: Ino) -> Vec<u8> {
        with(FILE_LOCKS, ino, &[])
    }

    pub(crate) fn change(ino: Ino) -> Vec<u8> {
        with(CHANGE, ino, &[])
    }

    pub(crate) fn intent(tx: TxId) -> Vec<u8> {
        with(INTENT, tx.number(), &[])
    }

    pub(crate) fn committed(tx: TxId) -> Vec<u8> {
        with(COMMITTED, tx.number(), &[])
    }

    pub(crate) fn client(node: NodeIndex) -> Vec<u8> {
        [&[CLIENT], &node.get().to_be_bytes()[..]].concat()
    }

    pub(crate) fn reply(node: NodeIndex, slot: u32) -> Vec<u8> {
        [&[REPLY], &node.get().to_be_bytes()[..], &slot.to_be_bytes()[..]].concat()
    }

    /// The inode number in a key of one of the tables that have it first; `None` for a key that is too short.
    pub(crate) fn ino_of(key: &[u8]) -> Option<Ino> {
        Ino::from_raw(number_at(key, 1)?)
    }

    /// The big-endian number at `at`.
    pub(crate) fn number_at(key: &[u8], at: usize) -> Option<u64> {
        let bytes = key.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The end of the keys that begin with `prefix`: `prefix` itself is their beginning.
    pub(crate) fn after(prefix: &[u8]) -> Vec<u8> {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end;
            }
        }
        // Only for a prefix of nothing but 0xff, which no table has.
        vec![0xff; prefix.len() + 1]
    }
}

/// Encodes a value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // A `Vec` has no end and the records have no serializer that fails: an error here is a bug of this module.
    postcard::to_stdvec(value).unwrap_or_default()
}

/// Decodes the value of `key`.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(value).map_err(|source| StoreError::Corrupt { key: key.escape_ascii().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(key::after(b"Ia"), b"Ib");
        assert_eq!(key::after(&[b'I', 0xff]), [b'J']);
        let parent = Ino::from_raw(0xff).unwrap();
        let last = key::cookie(parent, u64::MAX);
        let prefix = &last[..9];
        assert!(last < key::after(prefix));
        assert!(key::cookie(Ino::from_raw(0x100).unwrap(), 0) >= key::after(prefix));
    }

    #[test]
    fn a_record_that_is_cut_is_corrupt() {
        let bytes = encode(&Dentry { ino: Ino::ROOT, kind: FileKind::Fifo, cookie: 3 });
        assert!(decode::<Dentry>(b"D", &bytes).is_ok());
        assert!(matches!(decode::<Dentry>(b"D", &bytes[..1]), Err(StoreError::Corrupt { .. })));
    }
}
