//! The checker: is told the records of MDTs and the objects of OSTs, and says which invariants do not hold.
//!
//! For tests and for whoever suspects a bug. It takes what it is told for one moment's: what changes meanwhile may look wrong.
//! Where only some of the MDTs are told, what lies on the others is believed.
//!
//! | invariant | |
//! |---|---|
//! | 1 | an entry names an inode that is there, of the kind that the entry says |
//! | 2 | each entry has one record by name and one by cookie, which agree |
//! | 3 | an entry's directory is there, and counts its entries |
//! | 4 | cookies are at least 3 and below the directory's next |
//! | 5 | what is no directory has as many names as its nlink says |
//! | 6 | a directory's nlink is 2 and one for each directory in it |
//! | 7 | a directory has one name, in the parent that it remembers; the root has none |
//! | 8 | extended attributes belong to inodes that are there and count them |
//! | 9 | inodes without a name, and no others, have an orphan record |
//! | 10 | a file whose objects wait for removal has no inode |
//! | 11 | inode numbers are of their MDT and below the limit that is stored |
//! | 12 | the count of inodes is right |
//! | 13 | no transaction over several MDTs is unfinished |
//! | 14 | every directory is reached from the root: there is no cycle |
//! | 15 | an object is one of a file's layout, or its file's objects wait for removal |
//! | 16 | an OST counts its objects, and what is allocated for them |
//! | 17 | an entry is with the shard of its directory that its name's hash says |
//! | 18 | a directory's shards are there, belong to it alone, and agree with it on what has moved and on what is inherited |
//! | 19 | no two entries of a directory have one cookie, whatever shards they are in |
//! | 20 | what has changed since it was drained is a file or link that is there |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::Ordering;

use burstfs_placement::name_hash;
use burstfs_proto::mds::{PeerRecords, Records};
use burstfs_proto::oss::OstStatfs;
use burstfs_types::shards::first_hash;
use burstfs_types::{ACL_DEFAULT, FileKind, Ino, Layout, MdtIndex, Name, ObjectId, OstIndex};

use crate::mdt::Mdt;
use crate::namespace::S_ISGID;
use crate::record::{Body, CookieEntry, Dentry, FIRST_COOKIE, Inode, Spread, decode, key};
use crate::store::StoreError;

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Violation {
    /// Its number in the table above.
    pub invariant: u8,
    /// What was found where.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.found)
    }
}

/// What is known of an MDT besides its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Figures {
    /// Inode numbers from here on were never given out.
    limit: u64,
    /// How many inodes it counts.
    inodes: i64,
}

/// The records of some MDTs, by what they belong to.
#[derive(Default)]
struct Walk {
    /// How many MDTs the instance has.
    mdts: u16,
    told: BTreeMap<MdtIndex, Figures>,
    inodes: BTreeMap<Ino, Inode>,
    by_name: BTreeMap<(Ino, Name), Dentry>,
    children: BTreeMap<Ino, Vec<Dentry>>,
    parents: BTreeMap<Ino, Vec<Ino>>,
    by_cookie: BTreeMap<(Ino, u64), CookieEntry>,
    xattrs: BTreeMap<Ino, u32>,
    orphans: BTreeSet<Ino>,
    destroys: BTreeSet<Ino>,
    shards: BTreeSet<Ino>,
    moving: BTreeSet<Ino>,
    default_acls: BTreeSet<Ino>,
    changes: BTreeSet<Ino>,
    unfinished: Vec<Ino>,
    objects: Vec<(OstIndex, ObjectId)>,
    violations: Vec<Violation>,
}

impl Mdt {
    /// Every violation that a walk over this MDT finds; none in a healthy one.
    pub fn check(&self) -> Result<Vec<Violation>, StoreError> {
        check(&[self])
    }
}

/// Every violation that a walk over `mdts` finds. They are of one instance, and nothing changes them meanwhile.
pub fn check(mdts: &[&Mdt]) -> Result<Vec<Violation>, StoreError> {
    let mut checker = Checker::new(mdts.first().map_or(0, |mdt| mdt.config.mdts));
    for mdt in mdts {
        checker.add_mdt(mdt)?;
    }
    Ok(checker.finish())
}

/// A walk over the targets of an instance.
pub struct Checker(Walk);

impl Checker {
    /// Of an instance with so many MDTs.
    pub fn new(mdts: u16) -> Checker {
        Checker(Walk { mdts, ..Walk::default() })
    }

    /// Tells all of an MDT.
    pub fn add_mdt(&mut self, mdt: &Mdt) -> Result<(), StoreError> {
        let mut from = Some(Vec::new());
        while let Some(next) = from {
            let records = mdt.records(&PeerRecords { from: next })?;
            self.add_records(mdt.index(), &records)?;
            from = records.next;
        }
        Ok(())
    }

    /// Tells a part of an MDT's records. The error is of a record that does not decode.
    pub fn add_records(&mut self, mdt: MdtIndex, records: &Records) -> Result<(), StoreError> {
        self.0.told.insert(mdt, Figures { limit: records.limit, inodes: records.inodes });
        records.pairs.iter().try_for_each(|(key, value)| self.0.add(mdt, key, value))
    }

    /// Tells all objects of an OST, with what is allocated for each, and what it counts itself.
    pub fn add_ost(&mut self, ost: OstIndex, objects: &[(ObjectId, u64)], counts: &OstStatfs) {
        let walk = &mut self.0;
        walk.objects.extend(objects.iter().map(|(object, _)| (ost, *object)));
        let (count, used) = (objects.len() as u64, objects.iter().map(|(_, bytes)| bytes).sum::<u64>());
        if (counts.objects, counts.used) != (count, used) {
            let OstStatfs { objects, used: counted, .. } = counts;
            walk.violated(
                16,
                format!("{ost} counts {objects} objects, {counted} bytes, and has {count}, {used} bytes"),
            );
        }
    }

    /// How many inodes it was told.
    pub fn inodes(&self) -> u64 {
        self.0.inodes.len() as u64
    }

    /// How many objects it was told.
    pub fn objects(&self) -> u64 {
        self.0.objects.len() as u64
    }

    /// What is wrong.
    pub fn finish(self) -> Vec<Violation> {
        self.0.finish()
    }
}

/// The tables that the checker wants to be told.
const TABLES: [u8; 10] = [
    key::INODE,
    key::DENTRY,
    key::COOKIE,
    key::XATTR,
    key::ORPHAN,
    key::DESTROY,
    key::SHARD,
    key::MOVING,
    key::INTENT,
    key::COMMITTED,
];
/// Records of one answer, and about how many bytes of them: well below the limit of a message's body.
const RECORDS_MAX: usize = 2_048;
const RECORDS_BYTES: usize = 512 << 10;

impl Mdt {
    /// A part of the records, for the checker.
    pub(crate) fn records(&self, request: &PeerRecords) -> Result<Records, StoreError> {
        let found = self.engine.scan(&request.from, &key::after(&[key::XATTR]), RECORDS_MAX)?;
        let (mut is_cut, mut bytes, mut last) = (found.len() == RECORDS_MAX, 0, None);
        let mut pairs = Vec::new();
        for (key, value) in found {
            if bytes > RECORDS_BYTES {
                is_cut = true;
                break;
            }
            last = Some(key.clone());
            let Some(table) = key.first().filter(|table| TABLES.contains(table)) else { continue };
            let value = if *table == key::XATTR { Vec::new() } else { value };
            bytes += key.len() + value.len();
            pairs.push((key, value));
        }
        let next = last.filter(|_| is_cut).map(|last| [&last[..], &[0]].concat());
        let (limit, inodes) = (self.inos.limit(), self.inode_count.load(Ordering::Relaxed));
        Ok(Records { pairs, next, limit, inodes })
    }
}

impl Walk {
    fn add(&mut self, mdt: MdtIndex, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let (Some(table), Some(ino)) = (key.first(), key::ino_of(key)) else { return Ok(()) };
        match *table {
            key::INODE => {
                self.inodes.insert(ino, decode(key, value)?);
            }
            key::DENTRY => match key::name_of(key).map(|(hash, name)| (hash, Name::new(name))) {
                Some((hash, Ok(name))) if hash == name_hash(&name) => self.add_entry(ino, name, decode(key, value)?),
                other => self.violated(2, format!("an entry of {ino}: {other:?}")),
            },
            key::COOKIE => {
                self.by_cookie.insert((ino, key::number_at(key, 9).unwrap_or(0)), decode(key, value)?);
            }
            key::XATTR => {
                *self.xattrs.entry(ino).or_default() += 1;
                if key.get(9..) == Some(ACL_DEFAULT) {
                    self.default_acls.insert(ino);
                }
            }
            key::SHARD => drop(self.shards.insert(ino)),
            key::MOVING => drop(self.moving.insert(ino)),
            key::ORPHAN => drop(self.orphans.insert(ino)),
            key::DESTROY => drop(self.destroys.insert(ino)),
            key::CHANGE => drop(self.changes.insert(ino)),
            _ => self.unfinished.push(ino),
        }
        let is_own = ![key::INTENT, key::COMMITTED].contains(table);
        if is_own && ino.mdt() != mdt {
            self.violated(11, format!("{mdt} has a record of {ino}"));
        }
        Ok(())
    }

    fn add_entry(&mut self, parent: Ino, name: Name, dentry: Dentry) {
        self.children.entry(parent).or_default().push(dentry);
        self.parents.entry(dentry.ino).or_default().push(parent);
        self.by_name.insert((parent, name), dentry);
    }

    fn finish(mut self) -> Vec<Violation> {
        self.entries();
        self.directories();
        self.heads();
        self.shards();
        self.cookies();
        self.files();
        self.attributes();
        self.stray_objects();
        self.leftovers();
        self.numbers();
        if self.is_whole() {
            self.tree();
            for tx in std::mem::take(&mut self.unfinished) {
                self.violated(13, format!("the transaction {tx} is unfinished"));
            }
        }
        self.violations
    }

    fn violated(&mut self, invariant: u8, found: String) {
        self.violations.push(Violation { invariant, found });
    }

    fn all_violated(&mut self, found: Vec<(u8, String)>) {
        found.into_iter().for_each(|(invariant, found)| self.violated(invariant, found));
    }

    /// Whether all MDTs are told.
    fn is_whole(&self) -> bool {
        self.told.len() == usize::from(self.mdts)
    }

    fn is_told(&self, ino: Ino) -> bool {
        self.told.contains_key(&ino.mdt())
    }

    fn entries(&mut self) {
        let mut found = Vec::new();
        for ((parent, name), dentry) in &self.by_name {
            let at = format!("{name} in {parent}");
            let kind = self.inodes.get(&dentry.ino).map(Inode::kind);
            if kind != Some(dentry.kind) && self.is_told(dentry.ino) {
                found.push((1, format!("{at} names {} as {:?}, which is {kind:?}", dentry.ino, dentry.kind)));
            }
            let expected = CookieEntry { name: name.clone(), ino: dentry.ino, kind: dentry.kind };
            let other = self.by_cookie.get(&(*parent, dentry.cookie));
            if other != Some(&expected) {
                found.push((2, format!("{at} is {dentry:?} by name and {other:?} by cookie")));
            }
            match self.inodes.get(parent).map(|inode| &inode.body) {
                Some(Body::Directory { next_cookie, spread, .. }) => {
                    if !spread.holds(name) {
                        found.push((17, format!("{at} is with another shard's names")));
                    }
                    if !(FIRST_COOKIE..*next_cookie).contains(&dentry.cookie) {
                        found.push((4, format!("{at} has cookie {} and the next is {next_cookie}", dentry.cookie)));
                    }
                }
                Some(_) | None => found.push((3, format!("{at} is in no directory"))),
            }
        }
        if self.by_cookie.len() != self.by_name.len() {
            found.push((2, format!("{} entries by name, {} by cookie", self.by_name.len(), self.by_cookie.len())));
        }
        self.all_violated(found);
    }

    /// The entries of `parent`.
    fn entries_of(&self, parent: Ino) -> &[Dentry] {
        self.children.get(&parent).map_or(&[], Vec::as_slice)
    }

    /// The directories that name `ino`, each as often as it does.
    fn names_of(&self, ino: Ino) -> &[Ino] {
        self.parents.get(&ino).map_or(&[], Vec::as_slice)
    }

    fn directories(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let Body::Directory { parent, entries, spread, .. } = &inode.body else { continue };
            let own = self.entries_of(*ino);
            let count = own.len() as u64;
            if count != *entries {
                found.push((3, format!("{ino} counts {entries} entries and has {count}")));
            }
            let children = own.iter().filter(|dentry| dentry.kind == FileKind::Directory).count();
            if u64::from(inode.nlink) != 2 + children as u64 {
                found.push((6, format!("{ino} has nlink {} and {children} directories", inode.nlink)));
            }
            let names: Vec<Ino> = self.names_of(*ino).iter().map(|ino| self.head_of(*ino)).collect();
            let is_right = match *ino {
                Ino::ROOT => names.is_empty(),
                // Its head knows it.
                _ if matches!(spread, Spread::Shard { .. }) => names.is_empty(),
                // A name may be with a shard that is not told.
                _ if !self.is_whole() && names.is_empty() => true,
                _ => names == [*parent],
            };
            if !is_right {
                found.push((7, format!("{ino} remembers {parent} and is named in {names:?}")));
            }
        }
        if self.is_told(Ino::ROOT) && !self.inodes.contains_key(&Ino::ROOT) {
            found.push((7, "there is no root".to_owned()));
        }
        self.all_violated(found);
    }

    /// The directory that users know.
    fn head_of(&self, ino: Ino) -> Ino {
        match self.inodes.get(&ino).map(|inode| &inode.body) {
            Some(Body::Directory { parent, spread: Spread::Shard { .. }, .. }) => *parent,
            Some(_) | None => ino,
        }
    }

    /// What a head says of its shards.
    fn heads(&mut self) {
        let mut found = Vec::new();
        for (head, inode) in &self.inodes {
            let Body::Directory { spread: Spread::Head(shards), .. } = &inode.body else { continue };
            if shards.is_moving() != self.moving.contains(head) {
                found.push((18, format!("{head} is remembered as moving or not, and is {shards:?}")));
            }
            if shards.head() != *head {
                found.push((18, format!("{head} is not the head of its {shards:?}")));
            }
            for (index, ino) in (0..).zip(shards.others()).filter(|(_, ino)| self.is_told(**ino)) {
                let expected = Spread::Shard {
                    index,
                    count: shards.count(),
                    moved_below: shards.moved_below().min(first_hash(index + 1, shards.count())),
                };
                let shard = self.inodes.get(ino);
                if !shard.is_some_and(|shard| is_shard_of(shard, *head, &expected)) {
                    found.push((18, format!("{head} has the shard {ino} as {expected:?}, which is {shard:?}")));
                }
                let is_alike = shard.is_none_or(|shard| inherits_alike(shard, inode))
                    && self.default_acls.contains(ino) == self.default_acls.contains(head);
                if !is_alike {
                    found.push((18, format!("{ino} differs from its head {head} in what is inherited")));
                }
            }
        }
        self.all_violated(found);
    }

    /// What a shard says of its head.
    fn shards(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let Body::Directory { parent, spread: Spread::Shard { .. }, .. } = &inode.body else { continue };
            let head = self.inodes.get(parent).map(|head| &head.body);
            let is_known = match head {
                Some(Body::Directory { spread, .. }) => spread.others().contains(ino),
                Some(_) => false,
                None => !self.is_told(*parent),
            };
            if !is_known || !self.shards.contains(ino) {
                found.push((18, format!("the shard {ino} is not known, to {parent} or as one")));
            }
        }
        let is_stray = |ino: &&Ino| !self.inodes.get(*ino).is_some_and(is_shard);
        found.extend(self.shards.iter().filter(is_stray).map(|ino| (18, format!("{ino} is no shard"))));
        let is_gone = |ino: &&Ino| !self.inodes.contains_key(*ino);
        found.extend(self.moving.iter().filter(is_gone).map(|ino| (18, format!("{ino} is gone and moving"))));
        self.all_violated(found);
    }

    fn cookies(&mut self) {
        let mut seen = BTreeSet::new();
        let twice = |(ino, cookie): &&(Ino, u64)| !seen.insert((self.head_of(*ino), *cookie));
        let found: Vec<_> =
            self.by_cookie.keys().filter(twice).map(|at| (19, format!("a cookie twice: {at:?}"))).collect();
        self.all_violated(found);
    }

    fn files(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in self.inodes.iter().filter(|(_, inode)| inode.kind() != FileKind::Directory) {
            let (names, nlink) = (self.names_of(*ino).len(), inode.nlink as usize);
            if names > nlink || names < nlink && self.is_whole() {
                found.push((5, format!("{ino} has nlink {nlink} and {names} names")));
            }
            if (nlink == 0) != self.orphans.contains(ino) {
                found.push((9, format!("{ino} has nlink {nlink}; orphans are {:?}", self.orphans)));
            }
        }
        self.all_violated(found);
    }

    fn attributes(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let count = self.xattrs.get(ino).copied().unwrap_or(0);
            if inode.xattrs != count {
                found.push((8, format!("{ino} counts {} extended attributes and has {count}", inode.xattrs)));
            }
        }
        let stray = self.xattrs.keys().filter(|ino| !self.inodes.contains_key(ino));
        found.extend(stray.map(|ino| (8, format!("{ino} is not there and has extended attributes"))));
        self.all_violated(found);
    }

    fn stray_objects(&mut self) {
        let mut found = Vec::new();
        for (ost, object) in &self.objects {
            let is_in_layout = |inode: &Inode| match &inode.body {
                Body::Regular(file) => {
                    let stripes = file.layout.as_ref().map(Layout::stripes);
                    stripes.is_some_and(|mut stripes| stripes.any(|stripe| stripe == (object.stripe, *ost)))
                }
                _ => false,
            };
            let has_file = self.inodes.get(&object.ino).is_some_and(is_in_layout);
            if !has_file && self.is_told(object.ino) && !self.destroys.contains(&object.ino) {
                found.push((15, format!("{ost} has {object}, and no file has it there")));
            }
        }
        self.all_violated(found);
    }

    fn leftovers(&mut self) {
        for ino in std::mem::take(&mut self.orphans) {
            if self.inodes.get(&ino).is_none_or(|inode| inode.nlink > 0) {
                self.violated(9, format!("the orphan {ino} is gone or has a name"));
            }
        }
        for ino in std::mem::take(&mut self.destroys) {
            if self.inodes.contains_key(&ino) {
                self.violated(10, format!("the objects of {ino} wait for removal, and the file is there"));
            }
        }
        for ino in std::mem::take(&mut self.changes) {
            if self.inodes.get(&ino).is_none_or(|inode| inode.kind() == FileKind::Directory) {
                self.violated(20, format!("{ino} has changed, and is no file that is there"));
            }
        }
    }

    fn numbers(&mut self) {
        let mut found = Vec::new();
        for (mdt, figures) in &self.told {
            let own: Vec<Ino> = self.inodes.keys().filter(|ino| ino.mdt() == *mdt).copied().collect();
            let is_strange = |ino: &&Ino| **ino != Ino::ROOT && ino.counter() >= figures.limit;
            let strange: Vec<&Ino> = own.iter().filter(is_strange).collect();
            if !strange.is_empty() {
                found.push((11, format!("{strange:?} are above {}", figures.limit)));
            }
            // Shards are parts of directories, and nobody counts them.
            let counted = own.iter().filter(|ino| !self.inodes.get(ino).is_some_and(is_shard)).count();
            if i64::try_from(counted) != Ok(figures.inodes) {
                found.push((12, format!("{mdt} counts {} inodes and has {counted}", figures.inodes)));
            }
        }
        self.all_violated(found);
    }

    fn tree(&mut self) {
        let mut reached = BTreeSet::from([Ino::ROOT]);
        let mut to_visit = vec![Ino::ROOT];
        while let Some(directory) = to_visit.pop() {
            let entries = self.entries_of(directory).iter().filter(|dentry| dentry.kind == FileKind::Directory);
            let shards = match self.inodes.get(&directory).map(|inode| &inode.body) {
                Some(Body::Directory { spread, .. }) => spread.others(),
                Some(_) | None => &[],
            };
            let below = entries.map(|dentry| dentry.ino).chain(shards.iter().copied());
            to_visit.extend(below.filter(|ino| reached.insert(*ino)));
        }
        let is_lost = |(ino, inode): &(&Ino, &Inode)| inode.kind() == FileKind::Directory && !reached.contains(ino);
        let lost: Vec<Ino> = self.inodes.iter().filter(is_lost).map(|(ino, _)| *ino).collect();
        lost.into_iter().for_each(|ino| self.violated(14, format!("{ino} is not reached from the root")));
    }
}

fn is_shard(inode: &Inode) -> bool {
    matches!(inode.body, Body::Directory { spread: Spread::Shard { .. }, .. })
}

/// Whether it is a shard of `head`, as the head has it. The border is the head's business below the shard's own range.
fn is_shard_of(inode: &Inode, head: Ino, expected: &Spread) -> bool {
    let Body::Directory { parent, spread, .. } = &inode.body else { return false };
    let (Spread::Shard { index, count, moved_below }, Some((first, _))) = (spread, spread.range()) else {
        return false;
    };
    let same = Spread::Shard { index: *index, count: *count, moved_below: *moved_below.max(&first) };
    let expected_moved = expected.moved_below().max(first);
    *parent == head && same.range() == expected.range() && same.moved_below() == expected_moved
}

/// Whether what is made in both is the same: group, layout, and that it inherits the group.
fn inherits_alike(shard: &Inode, head: &Inode) -> bool {
    let layout = |inode: &Inode| if let Body::Directory { layout, .. } = inode.body { Some(layout) } else { None };
    let set_gid = |inode: &Inode| inode.mode & S_ISGID;
    (shard.gid, layout(shard), set_gid(shard)) == (head.gid, layout(head), set_gid(head))
}
