//! The checker: walks one MDT and says which invariants do not hold.
//!
//! For tests and for whoever suspects a bug; nothing else may change the MDT meanwhile. What lies on other MDTs is not seen:
//! an entry that names a directory elsewhere is believed.
//!
//! | invariant | |
//! |---|---|
//! | 1 | an entry whose inode is of this MDT names an inode that is there, of the kind that the entry says |
//! | 2 | each entry has one record by name and one by cookie, which agree |
//! | 3 | an entry's directory is there, and counts its entries |
//! | 4 | cookies are at least 3 and below the directory's next |
//! | 5 | what is no directory has as many names as its nlink says |
//! | 6 | a directory's nlink is 2 and one for each directory in it |
//! | 7 | a directory has one name, in the parent that it remembers (a parent elsewhere is not seen); the root has none |
//! | 8 | extended attributes belong to inodes that are there and count them |
//! | 9 | inodes without a name, and no others, have an orphan record |
//! | 10 | a file whose objects wait for removal has no inode |
//! | 11 | inode numbers are of this MDT and below the limit that is stored |
//! | 12 | the count of inodes is right |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;

use burstfs_types::{FileKind, Ino, Name};

use crate::mdt::Mdt;
use crate::record::{Body, CookieEntry, Dentry, FIRST_COOKIE, Inode, decode, key};
use crate::store::{Engine, StoreError, for_each};

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
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

/// Everything that the store has, by what it belongs to.
#[derive(Default)]
struct Walk {
    inodes: BTreeMap<Ino, Inode>,
    by_name: BTreeMap<(Ino, Name), Dentry>,
    children: BTreeMap<Ino, Vec<Dentry>>,
    parents: BTreeMap<Ino, Vec<Ino>>,
    by_cookie: BTreeMap<(Ino, u64), CookieEntry>,
    xattrs: BTreeMap<Ino, u32>,
    orphans: Vec<Ino>,
    destroys: Vec<Ino>,
    violations: Vec<Violation>,
}

impl Mdt {
    /// Every violation that a walk finds; none in a healthy MDT.
    pub fn check(&self) -> Result<Vec<Violation>, StoreError> {
        let mut walk = Walk::read(&*self.engine)?;
        walk.entries(self);
        walk.directories(self);
        walk.files();
        walk.attributes();
        walk.leftovers();
        walk.numbers(self);
        Ok(walk.violations)
    }
}

impl Walk {
    fn read(engine: &dyn Engine) -> Result<Walk, StoreError> {
        let mut walk = Walk::default();
        table(engine, key::INODE, |ino, key, value| {
            walk.inodes.insert(ino, decode(key, value)?);
            Ok(())
        })?;
        let mut bad_names = Vec::new();
        table(engine, key::DENTRY, |parent, key, value| {
            match Name::new(&key[9..]) {
                Ok(name) => {
                    walk.by_name.insert((parent, name), decode(key, value)?);
                }
                Err(error) => bad_names.push(format!("an entry of {parent}: {error}")),
            }
            Ok(())
        })?;
        table(engine, key::COOKIE, |parent, key, value| {
            walk.by_cookie.insert((parent, key::number_at(key, 9).unwrap_or(0)), decode(key, value)?);
            Ok(())
        })?;
        table(engine, key::XATTR, |ino, _, _| {
            *walk.xattrs.entry(ino).or_default() += 1;
            Ok(())
        })?;
        table(engine, key::ORPHAN, |ino, _, _| {
            walk.orphans.push(ino);
            Ok(())
        })?;
        table(engine, key::DESTROY, |ino, _, _| {
            walk.destroys.push(ino);
            Ok(())
        })?;
        for ((parent, _), dentry) in &walk.by_name {
            walk.children.entry(*parent).or_default().push(*dentry);
            walk.parents.entry(dentry.ino).or_default().push(*parent);
        }
        bad_names.into_iter().for_each(|found| walk.violated(2, found));
        Ok(walk)
    }

    fn violated(&mut self, invariant: u8, found: String) {
        self.violations.push(Violation { invariant, found });
    }

    fn entries(&mut self, mdt: &Mdt) {
        let mut found = Vec::new();
        for ((parent, name), dentry) in &self.by_name {
            let at = format!("{name} in {parent}");
            let kind = self.inodes.get(&dentry.ino).map(Inode::kind);
            let is_elsewhere = dentry.ino.mdt() != mdt.index() && dentry.kind == FileKind::Directory;
            if kind != Some(dentry.kind) && !is_elsewhere {
                found.push((1, format!("{at} names {} as {:?}, which is {kind:?}", dentry.ino, dentry.kind)));
            }
            let expected = CookieEntry { name: name.clone(), ino: dentry.ino, kind: dentry.kind };
            let other = self.by_cookie.get(&(*parent, dentry.cookie));
            if other != Some(&expected) {
                found.push((2, format!("{at} is {dentry:?} by name and {other:?} by cookie")));
            }
            match self.inodes.get(parent).map(|inode| &inode.body) {
                Some(Body::Directory { next_cookie, .. }) => {
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
        found.into_iter().for_each(|(invariant, text)| self.violated(invariant, text));
    }

    /// The entries of `parent`.
    fn entries_of(&self, parent: Ino) -> &[Dentry] {
        self.children.get(&parent).map_or(&[], Vec::as_slice)
    }

    /// The directories that name `ino`, each as often as it does.
    fn names_of(&self, ino: Ino) -> &[Ino] {
        self.parents.get(&ino).map_or(&[], Vec::as_slice)
    }

    fn directories(&mut self, mdt: &Mdt) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let Body::Directory { parent, entries, .. } = &inode.body else { continue };
            let own = self.entries_of(*ino);
            let count = own.len() as u64;
            if count != *entries {
                found.push((3, format!("{ino} counts {entries} entries and has {count}")));
            }
            let children = own.iter().filter(|dentry| dentry.kind == FileKind::Directory).count();
            if u64::from(inode.nlink) != 2 + children as u64 {
                found.push((6, format!("{ino} has nlink {} and {children} directories", inode.nlink)));
            }
            let names = self.names_of(*ino);
            let is_right = match *ino {
                Ino::ROOT => names.is_empty(),
                _ if parent.mdt() == mdt.index() => names == [*parent],
                _ => names.is_empty(),
            };
            if !is_right {
                found.push((7, format!("{ino} remembers {parent} and is named in {names:?}")));
            }
        }
        if mdt.index() == Ino::ROOT.mdt() && !self.inodes.contains_key(&Ino::ROOT) {
            found.push((7, "there is no root".to_owned()));
        }
        found.into_iter().for_each(|(invariant, text)| self.violated(invariant, text));
    }

    fn files(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            if inode.kind() == FileKind::Directory {
                continue;
            }
            let names = self.names_of(*ino).len();
            if names as u64 != u64::from(inode.nlink) {
                found.push((5, format!("{ino} has nlink {} and {names} names", inode.nlink)));
            }
            if (inode.nlink == 0) != self.orphans.contains(ino) {
                found.push((9, format!("{ino} has nlink {}; orphans are {:?}", inode.nlink, self.orphans)));
            }
        }
        found.into_iter().for_each(|(invariant, text)| self.violated(invariant, text));
    }

    fn attributes(&mut self) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let count = self.xattrs.get(ino).copied().unwrap_or(0);
            if inode.xattrs != count {
                found.push(format!("{ino} counts {} extended attributes and has {count}", inode.xattrs));
            }
        }
        let stray = self.xattrs.keys().filter(|ino| !self.inodes.contains_key(ino));
        found.extend(stray.map(|ino| format!("{ino} is not there and has extended attributes")));
        found.into_iter().for_each(|text| self.violated(8, text));
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
    }

    fn numbers(&mut self, mdt: &Mdt) {
        let limit = mdt.inos.limit();
        let strange = |ino: &Ino| ino.mdt() != mdt.index() || (*ino != Ino::ROOT && ino.counter() >= limit);
        let strange: Vec<Ino> = self.inodes.keys().copied().filter(strange).collect();
        if !strange.is_empty() {
            self.violated(11, format!("{strange:?} are above {limit} or of another MDT"));
        }
        let counted = mdt.inode_count.load(Ordering::Relaxed);
        if i64::try_from(self.inodes.len()) != Ok(counted) {
            self.violated(12, format!("{counted} inodes are counted, {} are there", self.inodes.len()));
        }
    }
}

/// Visits a table whose keys begin with an inode number.
fn table(
    engine: &dyn Engine,
    table: u8,
    mut visit: impl FnMut(Ino, &[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for_each(engine, &[table], |key, value| match key::ino_of(key) {
        Some(ino) => visit(ino, key, value),
        None => Ok(()),
    })
}
