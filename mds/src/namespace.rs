//! What the operations work on: inodes, entries and orphans, typed, over a transaction.
//!
//! Owns the rules that several operations share (entries and the times, counts and cookies of their directory; what
//! happens to an inode without a name). Owns no lock, no clock and no medium.
//!
//! Invariants kept by every method that writes: those that `crate::check` numbers.
//!
//! Failure: an [`OpError`]; the transaction must then be dropped, it may hold half of an operation.

use burstfs_proto::leases::Leased;
use burstfs_proto::mds::{Habit, WantedLayout};
use burstfs_types::{Errno, FileKind, Ino, Layout, LayoutPolicy, MdtIndex, Name, Timestamp};

use crate::leases::{attributes, entries};
use crate::mdt::MdtConfig;
use crate::record::{Body, CookieEntry, Dentry, Inode, RegularFile, Spread, decode, encode, key};
use crate::store::{StoreError, Transaction};

/// Why an operation did not finish.
#[derive(Debug)]
pub(crate) enum OpError {
    /// The caller's error.
    Errno(Errno),
    /// The store's.
    Store(StoreError),
    /// It concerns several MDTs: nothing was written, and it is to be run as a transaction over them.
    Several,
}

impl From<Errno> for OpError {
    fn from(errno: Errno) -> OpError {
        OpError::Errno(errno)
    }
}

impl From<StoreError> for OpError {
    fn from(error: StoreError) -> OpError {
        OpError::Store(error)
    }
}

/// Who has files open.
pub(crate) trait OpenFiles {
    /// Opens of `ino` that are registered.
    fn registered(&self, ino: Ino) -> u32;

    /// Whether somebody may have `ino` open whose registration a restart has lost.
    fn is_unknown(&self, ino: Ino) -> bool;

    /// Clients that have `ino` open for writing.
    fn writers(&self, ino: Ino) -> u32;

    /// How the files of `directory` were written.
    fn habit(&self, directory: Ino) -> Habit;
}

/// An open of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opened {
    pub(crate) ino: Ino,
    /// Whether for writing.
    pub(crate) writes: bool,
    /// The directory that learns from it.
    pub(crate) teaches: Option<Ino>,
}

impl Opened {
    pub(crate) fn new(ino: Ino, inode: &Inode, writes: bool) -> Opened {
        let teaches = if let Body::Regular(file) = &inode.body { file.teaches } else { None };
        Opened { ino, writes, teaches }
    }
}

/// What a committed operation means for the state that is not in the store.
#[derive(Default, Debug)]
pub(crate) struct Effects {
    /// Inodes made minus inodes removed.
    pub(crate) inodes: i64,
    /// Files whose objects are to be destroyed.
    pub(crate) destroyed: Vec<Ino>,
    /// The caller opened this file.
    pub(crate) opened: Option<Opened>,
    /// The caller closed this file.
    pub(crate) closed: Option<Ino>,
    /// A directory that is not spread has got an entry, and has so many now.
    pub(crate) grown: Option<(Ino, u64)>,
    /// The names of this directory are to move.
    pub(crate) moving: Option<Ino>,
    /// What others may have kept and is different now.
    pub(crate) changed: Vec<Leased>,
}

/// A directory that was read, to be changed and saved.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) ino: Ino,
    pub(crate) inode: Inode,
    pub(crate) parent: Ino,
    pub(crate) next_cookie: u64,
    pub(crate) entries: u64,
    pub(crate) layout: WantedLayout,
    pub(crate) spread: Spread,
}

impl Directory {
    fn new(ino: Ino, inode: Inode) -> Result<Directory, Errno> {
        let Body::Directory { parent, next_cookie, entries, layout, ref spread } = inode.body else {
            return Err(Errno::ENOTDIR);
        };
        let spread = spread.clone();
        Ok(Directory { ino, inode, parent, next_cookie, entries, layout, spread })
    }

    /// The directory that users know: a shard's head.
    pub(crate) fn head(&self) -> Ino {
        if let Spread::Shard { .. } = self.spread { self.parent } else { self.ino }
    }

    /// The group of what is made in it.
    pub(crate) fn group_for(&self, gid: u32) -> u32 {
        if self.inode.mode & S_ISGID != 0 { self.inode.gid } else { gid }
    }
}

pub(crate) const S_ISUID: u16 = 0o4000;
pub(crate) const S_ISGID: u16 = 0o2000;
pub(crate) const S_IXGRP: u16 = 0o010;

/// The namespace as one operation sees it.
pub(crate) struct Namespace<'t> {
    tx: &'t mut dyn Transaction,
    opens: &'t dyn OpenFiles,
    /// This MDT.
    pub(crate) mdt: MdtIndex,
    /// How many MDTs there are.
    pub(crate) mdts: u16,
    /// The layout that the job asks for.
    pub(crate) job_layout: LayoutPolicy,
    /// The time of the operation.
    pub(crate) now: Timestamp,
    /// The number of the operation's change to what is drained; `None` where changes are not recorded.
    pub(crate) change: Option<u64>,
    /// The number for an inode that the operation may make.
    pub(crate) fresh: Option<Ino>,
    /// The caller's registered opens of the inode that a close is about.
    pub(crate) caller_opens: u32,
    /// Whether other MDTs do their part at the same time.
    pub(crate) is_transaction: bool,
    pub(crate) effects: Effects,
}

impl<'t> Namespace<'t> {
    pub(crate) fn new(
        tx: &'t mut dyn Transaction,
        opens: &'t dyn OpenFiles,
        config: &MdtConfig,
        now: Timestamp,
        change: Option<u64>,
    ) -> Namespace<'t> {
        Namespace {
            tx,
            opens,
            mdt: config.mdt,
            mdts: config.mdts,
            job_layout: config.layout,
            now,
            change,
            fresh: None,
            caller_opens: 0,
            is_transaction: false,
            effects: Effects::default(),
        }
    }

    /// How many OSTs there are: node n serves MDT n and OST n.
    pub(crate) fn osts(&self) -> u16 {
        self.mdts
    }

    /// The inode `ino`; `None` when it is not there.
    pub(crate) fn inode(&mut self, ino: Ino) -> Result<Option<Inode>, OpError> {
        let key = key::inode(ino);
        let value = self.tx.get(&key)?;
        Ok(value.map(|value| decode(&key, &value)).transpose()?)
    }

    /// The inode `ino` that the caller has by its number. ESTALE, not ENOENT, when it is gone: the kernel then looks the
    /// path up again and finds what has taken its place.
    pub(crate) fn existing(&mut self, ino: Ino) -> Result<Inode, OpError> {
        Ok(self.inode(ino)?.ok_or(Errno::ESTALE)?)
    }

    /// The inode `ino`, to change what a directory's shards have of it, too.
    pub(crate) fn existing_with_shards(&mut self, ino: Ino) -> Result<Inode, OpError> {
        let inode = self.existing(ino)?;
        let is_spread = matches!(inode.body, Body::Directory { spread: Spread::Head(_), .. });
        if is_spread && !self.is_transaction { Err(OpError::Several) } else { Ok(inode) }
    }

    pub(crate) fn put_inode(&mut self, ino: Ino, inode: &Inode) {
        self.effects.changed.push(attributes(ino));
        self.tx.put(key::inode(ino), encode(inode));
        if matches!(inode.body, Body::Regular(_) | Body::Symlink { .. }) {
            self.mark_changed(ino);
        }
    }

    /// Records that the file or link `ino` differs, or is about to, from what was drained of it.
    pub(crate) fn mark_changed(&mut self, ino: Ino) {
        if let Some(number) = self.change {
            self.tx.put(key::change(ino), encode(&number));
        }
    }

    /// Takes the fresh number for `inode` and saves it.
    pub(crate) fn make_inode(&mut self, inode: &Inode) -> Result<Ino, OpError> {
        // The driver provides a number for each operation that can get here; without one the MDT has none left.
        let ino = self.fresh.take().ok_or(Errno::ENOSPC)?;
        self.put_inode(ino, inode);
        self.effects.inodes += 1;
        Ok(ino)
    }

    /// The caller opens a file. Its attributes are nobody's to keep once somebody may write it.
    pub(crate) fn open(&mut self, ino: Ino, inode: &Inode, writes: bool) {
        self.effects.opened = Some(Opened::new(ino, inode, writes));
        if writes {
            self.effects.changed.push(attributes(ino));
            self.mark_changed(ino);
        }
    }

    /// The directory `ino`. ENOENT when it was removed: nothing is found or made in it any more.
    pub(crate) fn directory(&mut self, ino: Ino) -> Result<Directory, OpError> {
        let inode = self.inode(ino)?.ok_or(Errno::ENOENT)?;
        Ok(Directory::new(ino, inode)?)
    }

    /// The directory, or the shard of one, that holds `name`. EREMCHG when another shard does.
    pub(crate) fn directory_with(&mut self, ino: Ino, name: &Name) -> Result<Directory, OpError> {
        let directory = self.directory(ino)?;
        if directory.spread.holds(name) { Ok(directory) } else { Err(Errno::EREMCHG.into()) }
    }

    pub(crate) fn save_directory(&mut self, mut directory: Directory) {
        directory.inode.body = Body::Directory {
            parent: directory.parent,
            next_cookie: directory.next_cookie,
            entries: directory.entries,
            layout: directory.layout,
            spread: directory.spread,
        };
        self.put_inode(directory.ino, &directory.inode);
    }

    /// The entry `name` of the directory `parent`.
    pub(crate) fn dentry(&mut self, parent: Ino, name: &Name) -> Result<Option<Dentry>, OpError> {
        let key = key::dentry(parent, name);
        let value = self.tx.get(&key)?;
        Ok(value.map(|value| decode(&key, &value)).transpose()?)
    }

    /// Writes an entry under the cookie that it has.
    pub(crate) fn put_dentry(&mut self, parent: Ino, name: &Name, dentry: Dentry) {
        self.effects.changed.push(entries(parent));
        self.tx.put(key::dentry(parent, name), encode(&dentry));
        let by_cookie = CookieEntry { name: name.clone(), ino: dentry.ino, kind: dentry.kind };
        self.tx.put(key::cookie(parent, dentry.cookie), encode(&by_cookie));
    }

    /// Adds an entry at the end of `directory`.
    pub(crate) fn add_entry(&mut self, directory: &mut Directory, name: &Name, ino: Ino, kind: FileKind) {
        let dentry = Dentry { ino, kind, cookie: directory.next_cookie };
        directory.next_cookie = directory.spread.cookie_from(directory.next_cookie + 1);
        directory.entries += 1;
        if directory.spread == Spread::Whole {
            self.effects.grown = Some((directory.ino, directory.entries));
        }
        if kind == FileKind::Directory {
            directory.inode.nlink += 1;
        }
        self.touch(directory);
        self.put_dentry(directory.ino, name, dentry);
    }

    /// Says that the operation is one of several MDTs unless `ino` is of this one.
    pub(crate) fn needs_here(&self, ino: Ino) -> Result<(), OpError> {
        if ino.mdt() == self.mdt { Ok(()) } else { Err(OpError::Several) }
    }

    /// Takes an entry out of `directory`.
    pub(crate) fn remove_entry(&mut self, directory: &mut Directory, name: &Name, dentry: Dentry) {
        directory.entries -= 1;
        if dentry.kind == FileKind::Directory {
            directory.inode.nlink -= 1;
        }
        self.touch(directory);
        self.effects.changed.push(entries(directory.ino));
        self.delete_dentry(directory.ino, name, dentry.cookie);
    }

    /// The times of a directory whose entries changed.
    pub(crate) fn touch(&self, directory: &mut Directory) {
        directory.inode.mtime = self.now;
        directory.inode.ctime = self.now;
    }

    /// Takes one name from what is no directory and of this MDT. Without any it becomes an orphan while somebody has it open, else it goes.
    pub(crate) fn drop_name(&mut self, ino: Ino) -> Result<(), OpError> {
        // An entry without its inode breaks invariant 1; removing the entry is what heals it.
        let Some(mut inode) = self.inode(ino)? else { return Ok(()) };
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.ctime = self.now;
        if inode.nlink > 0 {
            self.put_inode(ino, &inode);
        } else if self.is_open(ino) {
            self.put_inode(ino, &inode);
            self.tx.put(key::orphan(ino), Vec::new());
        } else {
            self.remove_inode(ino, inode)?;
        }
        Ok(())
    }

    /// Removes an empty directory's inode.
    pub(crate) fn remove_directory(&mut self, directory: Directory) -> Result<(), OpError> {
        if directory.entries > 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        self.remove_inode(directory.ino, directory.inode)
    }

    /// Removes the inode `ino` if it is an orphan that nobody has open; `closing` opens are about to go.
    pub(crate) fn release_orphan(&mut self, ino: Ino, closing: u32) -> Result<(), OpError> {
        let is_open = self.opens.registered(ino) > closing || self.opens.is_unknown(ino);
        if is_open || self.tx.get(&key::orphan(ino))?.is_none() {
            return Ok(());
        }
        self.tx.delete(key::orphan(ino));
        match self.inode(ino)? {
            Some(inode) => self.remove_inode(ino, inode),
            None => Ok(()),
        }
    }

    /// Clients that have `ino` open for writing.
    pub(crate) fn writers(&self, ino: Ino) -> u32 {
        self.opens.writers(ino)
    }

    /// How the files of `directory` were written.
    pub(crate) fn habit(&self, directory: Ino) -> Habit {
        self.opens.habit(directory)
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.opens.registered(ino) > 0 || self.opens.is_unknown(ino)
    }

    fn remove_inode(&mut self, ino: Ino, inode: Inode) -> Result<(), OpError> {
        self.tx.delete(key::inode(ino));
        self.effects.changed.extend([attributes(ino), entries(ino)]);
        if let Body::Directory { spread: Spread::Shard { .. }, .. } = inode.body {
            self.tx.delete(key::shard(ino));
        } else {
            self.effects.inodes -= 1;
        }
        if self.change.is_some() {
            self.tx.delete(key::change(ino));
        }
        if let Body::Directory { spread: Spread::Head(_), .. } = inode.body {
            self.tx.delete(key::moving(ino));
        }
        if inode.xattrs > 0 {
            for name in self.xattr_names(ino)? {
                self.remove_xattr(ino, &name);
            }
        }
        if let Body::Regular(RegularFile { layout: Some(layout), .. }) = inode.body {
            self.put_destroy(ino, &layout);
        }
        Ok(())
    }

    /// At most `limit` entries of `directory` whose names have hashes from `from` on and, with `until`, below it; in the order of hashes.
    pub(crate) fn entries_by_hash(
        &mut self,
        directory: Ino,
        (from, until): (u64, Option<u64>),
        limit: usize,
    ) -> Result<Vec<(u64, Name, Dentry)>, OpError> {
        let end = match until {
            Some(until) => key::dentries_from(directory, until),
            None => key::after(&key::dentries_from(directory, 0)[..9]),
        };
        let pairs = self.tx.scan(&key::dentries_from(directory, from), &end, limit)?;
        let decoded = pairs.iter().map(|(key, value)| {
            let (hash, name) = key::name_of(key).ok_or(Errno::EIO)?;
            Ok((hash, Name::new(name).map_err(|_| Errno::EIO)?, decode(key, value)?))
        });
        decoded.collect()
    }

    /// Takes an entry's records away, and leaves the counts to the caller.
    pub(crate) fn delete_dentry(&mut self, directory: Ino, name: &Name, cookie: u64) {
        self.tx.delete(key::dentry(directory, name));
        self.tx.delete(key::cookie(directory, cookie));
    }

    /// Says whether names of `head` are on the move.
    pub(crate) fn set_moving(&mut self, head: Ino, is_moving: bool) {
        if is_moving {
            self.tx.put(key::moving(head), Vec::new());
            self.effects.moving = Some(head);
        } else {
            self.tx.delete(key::moving(head));
        }
    }

    /// Makes the shard `ino`. It is no inode that anybody counts.
    pub(crate) fn make_shard(&mut self, ino: Ino, inode: &Inode) {
        self.put_inode(ino, inode);
        self.tx.put(key::shard(ino), Vec::new());
    }

    fn put_destroy(&mut self, ino: Ino, layout: &Layout) {
        self.tx.put(key::destroy(ino), encode(layout));
        self.effects.destroyed.push(ino);
    }

    /// The entries of `directory` behind `cookie`, at most `limit`.
    pub(crate) fn entries_behind(
        &mut self,
        directory: Ino,
        cookie: u64,
        limit: usize,
    ) -> Result<Vec<(u64, CookieEntry)>, OpError> {
        let Some(first) = cookie.checked_add(1) else { return Ok(Vec::new()) };
        let until = key::after(&key::cookie(directory, 0)[..9]);
        let pairs = self.tx.scan(&key::cookie(directory, first), &until, limit)?;
        let decoded = pairs.iter().map(|(key, value)| {
            let cookie = key::number_at(key, 9).unwrap_or_default();
            Ok((cookie, decode(key, value)?))
        });
        decoded.collect()
    }

    pub(crate) fn xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, OpError> {
        Ok(self.tx.get(&key::xattr(ino, name))?)
    }

    pub(crate) fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Vec<u8>) {
        self.tx.put(key::xattr(ino, name), value);
    }

    pub(crate) fn remove_xattr(&mut self, ino: Ino, name: &[u8]) {
        self.tx.delete(key::xattr(ino, name));
    }

    pub(crate) fn xattr_names(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>, OpError> {
        let from = key::xattr(ino, &[]);
        let pairs = self.tx.scan(&from, &key::after(&from), usize::MAX)?;
        Ok(pairs.into_iter().map(|(key, _)| key[from.len()..].to_vec()).collect())
    }
}
