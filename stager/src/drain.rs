//! Entries out of the instance, to a directory of the PFS.
//!
//! A group of files is written under temporary names, then synced together (the first sync commits the others' metadata
//! too), checked, renamed; the directory is synced at the end of the batch. A crash before the rename leaves the old
//! file and a temporary `.<name>.burstfs-<job>-<attempt><node><number>`, which the next attempt's listing, or this
//! node's next life, removes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use burstfs_proto::stage::Direction;
use burstfs_types::{ACL_ACCESS, ACL_DEFAULT, Errno, Ino, Layout};
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_128;

use crate::batch::{ALONE_MIN_BYTES, Fate, SMALL_MAX_BYTES, overlap};
use crate::buffer::Buffer;
use crate::engine::Context;
use crate::error::{EntryError, OsError};
use crate::identity::Wanted;
use crate::item::{Copy, Dir, Entry, EntryKind, EntryRecord, EntryState, How, Kept, join};
use crate::job::{Atomic, StageJob, Update, Verify};
use crate::journal::{Copied, path_hash};
use crate::links::{GroupKey, Made};
use crate::list::READDIR_MAX;
use crate::pfs;
use crate::settle::{self, Settles, Settling, StillChanged, Watch};
use crate::spread::is_spread;
use crate::stream;
use crate::temporary;
use crate::tree::{Kind, Meta, Opened};

/// From so many files on one `syncfs` takes less time than their syncs, each of which flushes the device.
const SYNCFS_MIN: usize = 4;
/// Files up to this size are synced so. `syncfs` also waits for what others have written to the file system: with larger ones there
/// is more of that than anything it saves.
const SYNCFS_MAX_BYTES: u64 = 256 << 10;
/// Threads that wait for files to be durable, for one group.
const SYNCS_MAX: usize = 16;

/// A temporary name, removed unless it was renamed.
pub(crate) struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: Option<Vec<u8>>,
}

impl<'a> Temporary<'a> {
    /// One that was made by another item.
    pub(crate) fn of(dir: BorrowedFd<'a>, name: Vec<u8>) -> Temporary<'a> {
        Temporary { dir, name: Some(name) }
    }

    /// Leaves it to another item; its name.
    pub(crate) fn keep(mut self) -> Vec<u8> {
        self.name.take().unwrap_or_default()
    }

    fn rename(mut self, target: &[u8]) -> Result<(), OsError> {
        if let Some(name) = &self.name {
            pfs::rename(self.dir, name, target)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(errno) = pfs::unlink(self.dir, name)
        {
            tracing::debug!(%errno, name = %name.escape_ascii(), "a temporary could not be removed");
        }
    }
}

/// A file that is written but has not its name yet.
pub(crate) struct Pending<'a> {
    fd: Arc<OwnedFd>,
    /// `None`: written in place.
    temporary: Option<Temporary<'a>>,
    target: Vec<u8>,
    meta: Meta,
    record: EntryRecord,
    /// The contents have been compared already.
    is_checked: bool,
    /// In a round.
    watch: Option<Watch>,
}

impl<'a> Pending<'a> {
    /// A file whose contents have been read again and compared.
    pub(crate) fn checked(
        fd: Arc<OwnedFd>,
        temporary: Option<Temporary<'a>>,
        target: Vec<u8>,
        meta: Meta,
        record: EntryRecord,
    ) -> Pending<'a> {
        Pending { fd, temporary, target, meta, record, is_checked: true, watch: None }
    }
}

pub(crate) enum Prepared<'a> {
    Fate(Fate),
    Pending(Box<Pending<'a>>),
}

/// A batch's target directory.
pub(crate) struct Drain<'a> {
    pub(crate) context: &'a Context,
    pub(crate) job: &'a StageJob,
    pub(crate) number: u16,
    copy: &'a Copy,
    attempt: u32,
    /// Opened before anything is written: `syncfs` of it reports every error since.
    pub(crate) dir: OwnedFd,
    syncs_whole: bool,
    /// Whether what is made in the directory gets an ACL of it that is not the source's.
    passes_acl_on: bool,
    settles: Settles,
}

impl<'a> Drain<'a> {
    pub(crate) fn open(
        context: &'a Context,
        job: &'a StageJob,
        number: u16,
        attempt: u32,
        copy: &'a Copy,
    ) -> Result<Drain<'a>, EntryError> {
        let dir = pfs::open_below(&copy.dir.pfs_root, &copy.dir.below)
            .map_err(EntryError::target("open the directory of"))?;
        let passes_acl_on = job.preserve.acl && pfs::has_xattr(dir.as_fd(), ACL_DEFAULT);
        let (syncs_whole, settles) = (pfs::syncs_whole(dir.as_fd()), Settles::default());
        Ok(Drain { context, job, number, copy, attempt, dir, syncs_whole, passes_acl_on, settles })
    }

    /// Makes the renames durable. In a round: what is to be drained again all the same.
    pub(crate) async fn finish(self) -> Result<StillChanged, EntryError> {
        pfs::sync(self.dir.as_fd()).map_err(EntryError::target("sync the directory of"))?;
        Ok(self.settles.finish(self.context).await)
    }

    pub(crate) async fn group(&self, entries: &[Entry]) -> Vec<Fate> {
        match (&self.copy.how, entries) {
            (How::Linked, [entry]) => return vec![self.linked(entry).await.into()],
            (How::Spread(spread), [entry]) => return vec![self.stripe(entry, spread).await.into()],
            (How::Batch | How::Alone | How::Linked | How::Spread(_), _) => {}
        }
        let prepared = overlap(entries, |entry| self.prepare(entry)).await;
        self.commit(prepared).await
    }

    async fn prepare(&self, entry: &Entry) -> Prepared<'_> {
        let prepared = match (entry.kind, entry.ino) {
            (EntryKind::File, Some(ino)) => self.file(entry, ino).await,
            (EntryKind::Symlink, Some(ino)) => self.settled_symlink(entry, ino).await.map(Prepared::Fate),
            (EntryKind::File | EntryKind::Symlink, None) => Err(EntryError::source("find")(Errno::ENOENT.into())),
            (EntryKind::Directory | EntryKind::Other, _) => Err(EntryError::Special(entry.kind.text())),
        };
        prepared.unwrap_or_else(|error| Prepared::Fate(self.failed(error, entry)))
    }

    /// A file that changes under a round's hands has not failed.
    fn failed(&self, error: EntryError, entry: &Entry) -> Fate {
        match error {
            EntryError::Changed if self.context.round().is_some() => Fate::Busy { bytes: entry.counted.unwrap_or(0) },
            error => Fate::Failed(error),
        }
    }

    pub(crate) async fn getattr(&self, ino: Ino) -> Result<Meta, EntryError> {
        let failed = |errno: Errno| EntryError::Source { what: "stat", errno: errno.into() };
        Ok(Meta::from(&self.context.tree.getattr(ino).await.map_err(failed)?))
    }

    async fn file(&self, entry: &Entry, ino: Ino) -> Result<Prepared<'_>, EntryError> {
        if self.context.only_names(self.job) {
            let meta = self.getattr(ino).await?;
            let is_drained = matches!(self.drained(entry, &meta), Some(Some(_)));
            let there = if is_drained { self.existing(entry, &meta)? } else { None };
            let not_asked = || record(entry, &meta, None, EntryState::NotAsked, Kept::default());
            return Ok(Prepared::Fate(Fate::Done(there.unwrap_or_else(not_asked))));
        }
        if !self.copy.is_new {
            let failed = |errno: Errno| EntryError::Source { what: "stat", errno: errno.into() };
            let attr = self.context.tree.getattr(ino).await.map_err(failed)?;
            let meta = Meta::from(&attr);
            // Before anything at the target counts: names that are there already belong to their group.
            if let Some(later) = self.linked_later(ino, attr.layout.as_ref(), &meta) {
                return Ok(Prepared::Fate(later));
            }
            if let Some(record) = self.existing(entry, &meta)? {
                self.adopt(entry, ino, meta).await?;
                return Ok(Prepared::Fate(Fate::Done(record)));
            }
        }
        let failed = |errno: Errno| EntryError::Source { what: "open", errno: errno.into() };
        let opened = self.context.tree.open(ino).await.map_err(failed)?;
        let prepared = self.opened(entry, ino, &opened).await;
        // Nothing was written through it: an error here says nothing about the copy.
        let _ = self.context.tree.close(opened.handle).await;
        prepared
    }

    /// The item of its own that a file with several names becomes, on the node that all of them go to.
    fn linked_later(&self, ino: Ino, layout: Option<&Layout>, meta: &Meta) -> Option<Fate> {
        if self.copy.how == How::Linked || meta.kind != Kind::File || meta.nlink <= 1 || !self.job.preserve.hardlinks {
            return None;
        }
        // Also a file without data needs one node for all its names.
        let tree = &self.context.tree;
        let place = tree.place(ino, layout).or_else(|| tree.place(ino, None));
        Some(Fate::Later { how: How::Linked, place, bytes: meta.size })
    }

    /// Hash of the target's path.
    fn path(&self, entry: &Entry) -> u128 {
        path_hash(&join(&self.copy.dir.pfs_path(), entry.target_name()))
    }

    /// In a round: a file that the target had before this job drained it counts as drained.
    async fn adopt(&self, entry: &Entry, ino: Ino, meta: Meta) -> Result<(), EntryError> {
        let Some(drained) = self.context.config.drained.as_ref().filter(|_| self.context.round().is_some()) else {
            return Ok(());
        };
        let path = self.path(entry);
        if !drained.has_touched(path) {
            let watch = settle::look(self.context, ino).await?;
            self.settles.push(Settling { watch, path, meta, checksum: None });
        }
        Ok(())
    }

    /// What a round of this job has put at the target, if any has: the checksum, if that is what the source is now.
    fn drained(&self, entry: &Entry, source: &Meta) -> Option<Option<Option<u128>>> {
        let drained = self.context.config.drained.as_ref()?;
        let path = self.path(entry);
        let found = if entry.is_changed { None } else { drained.find(path, source) };
        drained.has_touched(path).then_some(found)
    }

    /// What is at the target already: the record, if it need not be copied.
    fn existing(&self, entry: &Entry, source: &Meta) -> Result<Option<EntryRecord>, EntryError> {
        let failed = EntryError::target("stat");
        let dir = self.dir.as_fd();
        let Some(there) = pfs::stat_name(dir, entry.target_name()).map_err(&failed)? else { return Ok(None) };
        if there.kind == Kind::Directory {
            return Err(EntryError::TargetKind { found: there.kind.text(), wanted: source.kind.text() });
        }
        if !there.looks_like(source) {
            return Ok(None);
        }
        let drained = self.drained(entry, source);
        let earlier = self.earlier(entry, source).map(|copied| copied.checksum);
        // Of what this job has put there size and time are the job's own, and prove nothing.
        let earlier = if drained == Some(None) { earlier } else { drained.flatten().or(earlier) };
        if earlier.is_none() && (self.job.update == Update::All || drained.is_some()) {
            return Ok(None);
        }
        let is_first = earlier.is_some() && self.context.round().is_none();
        let state = if is_first { EntryState::Copied } else { EntryState::Unchanged };
        let checksum = earlier.flatten();
        let wanted = self.context.identity.wanted(source, self.job.preserve);
        let mut not_kept = wanted.not_kept;
        if self.job.preserve.mode && there.mode != wanted.mode {
            let set = pfs::open_file(dir, entry.target_name()).and_then(|fd| pfs::set_mode(fd.as_fd(), wanted.mode));
            not_kept.mode = set.is_err();
        }
        Ok(Some(record(entry, source, checksum, state, not_kept)))
    }

    /// What an earlier life of this daemon copied to this name, if it is what the source is now.
    fn earlier(&self, entry: &Entry, source: &Meta) -> Option<&Copied> {
        if !self.context.journal.has_earlier() {
            return None;
        }
        let copied = self.context.journal.earlier(self.path(entry))?;
        ((copied.size, copied.mtime) == (source.size, source.mtime)).then_some(copied)
    }

    async fn opened(&self, entry: &Entry, ino: Ino, opened: &Opened) -> Result<Prepared<'_>, EntryError> {
        let before = Meta::from(&opened.attr);
        if before.kind != Kind::File {
            return Err(EntryError::Special(before.kind.text()));
        }
        let layout = opened.attr.layout.as_ref();
        if let Some(later) = self.linked_later(ino, layout, &before) {
            return Ok(Prepared::Fate(later));
        }
        // What a round has copied counts only if one watch spans all of the copy: one node does it.
        let is_one_node = self.copy.how == How::Linked || self.context.round().is_some();
        let is_spread = !is_one_node && is_spread(layout, before.size);
        if self.copy.how == How::Batch && (before.size >= ALONE_MIN_BYTES || is_spread) {
            let place = self.context.tree.place(ino, layout);
            return Ok(Prepared::Fate(Fate::Later { how: How::Alone, place, bytes: before.size }));
        }
        if is_spread {
            return self.begin_spread(entry, opened, &before).map(Prepared::Fate);
        }
        let watch = match self.context.round() {
            None => None,
            Some(selection) => match settle::begin(self.context, selection.takes, ino, opened, &before).await? {
                None => return Ok(Prepared::Fate(Fate::Busy { bytes: before.size })),
                watch => watch,
            },
        };
        let (fd, temporary) = self.create(entry)?;
        let checksum = self.contents(opened, &before, fd.as_fd()).await?;
        let not_kept = self.attributes(ino, &before, fd.as_fd()).await?;
        if !self.getattr(ino).await?.is_same_version(&before) {
            return Err(EntryError::Changed);
        }
        let record = record(entry, &before, checksum, EntryState::Copied, not_kept);
        let target = entry.target_name().to_vec();
        let (fd, meta) = (Arc::new(fd), before);
        Ok(Prepared::Pending(Box::new(Pending { fd, temporary, target, meta, record, is_checked: false, watch })))
    }

    pub(crate) fn create(&self, entry: &Entry) -> Result<(OwnedFd, Option<Temporary<'_>>), EntryError> {
        let failed = EntryError::target("create");
        let dir = self.dir.as_fd();
        self.touch(entry)?;
        if self.job.atomic == Atomic::None {
            return Ok((pfs::create_in_place(dir, entry.target_name()).map_err(&failed)?, None));
        }
        loop {
            let name = self.temporary_name(entry.target_name());
            match pfs::create_exclusive(dir, &name) {
                Ok(fd) => return Ok((fd, Some(Temporary { dir, name: Some(name) }))),
                Err(errno) if errno == Errno::EEXIST.into() => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// In a round: the target is about to get a copy.
    fn touch(&self, entry: &Entry) -> Result<(), EntryError> {
        let Some(drained) = self.context.config.drained.as_ref().filter(|_| self.context.round().is_some()) else {
            return Ok(());
        };
        drained.touch(std::iter::once(self.path(entry))).map_err(|error| {
            let errno = OsError(error.raw_os_error().unwrap_or(Errno::EIO.raw()));
            EntryError::Source { what: "take note of", errno }
        })
    }

    fn temporary_name(&self, target: &[u8]) -> Vec<u8> {
        temporary::name_for(self.context, self.attempt, target)
    }

    async fn contents(&self, opened: &Opened, meta: &Meta, target: BorrowedFd<'_>) -> Result<Option<u128>, EntryError> {
        let is_hashed = self.job.verify == Verify::Checksum;
        let skips_holes = self.job.preserve.sparse && meta.may_have_holes();
        if meta.size > SMALL_MAX_BYTES || skips_holes {
            let how = stream::How { number: self.number, size: meta.size, skips_holes, is_hashed };
            return stream::copy_out(self.context, how, opened.handle, target).await;
        }
        self.context.pace(self.number, meta.size).await;
        let mut data = Buffer::new(meta.size as usize);
        if !data.is_empty() {
            let failed = |errno: Errno| EntryError::Source { what: "read", errno: errno.into() };
            let got = self.context.tree.read_at(opened.handle, 0, &mut data).await.map_err(failed)?;
            if got < data.len() {
                return Err(EntryError::Changed);
            }
            pfs::write_at(target, 0, &data).map_err(EntryError::target("write"))?;
        }
        Ok(is_hashed.then(|| xxh3_128(&data)))
    }

    pub(crate) async fn attributes(&self, ino: Ino, source: &Meta, target: BorrowedFd<'_>) -> Result<Kept, EntryError> {
        let xattrs = self.xattrs(ino).await?;
        let wanted = self.context.identity.wanted(source, self.job.preserve);
        let mut not_kept = apply(target, &wanted, &xattrs)?;
        if self.passes_acl_on {
            not_kept.acl |= !drop_inherited(target, &xattrs)?;
        }
        if self.job.preserve.times {
            pfs::set_times(target, source.atime, source.mtime).map_err(EntryError::target("set the times of"))?;
        }
        not_kept = not_kept.or(wanted.not_kept);
        Ok(not_kept)
    }

    async fn xattrs(&self, ino: Ino) -> Result<Xattrs, EntryError> {
        xattrs(self.context, self.job, ino).await
    }

    async fn settled_symlink(&self, entry: &Entry, ino: Ino) -> Result<Fate, EntryError> {
        if self.context.round().is_none() {
            return self.symlink(entry, ino).await;
        }
        let watch = settle::look(self.context, ino).await?;
        let meta = self.getattr(ino).await?;
        self.touch(entry)?;
        let fate = self.symlink(entry, ino).await?;
        if matches!(fate, Fate::Done(_)) {
            self.settles.push(Settling { watch, path: self.path(entry), meta, checksum: None });
        }
        Ok(fate)
    }

    async fn symlink(&self, entry: &Entry, ino: Ino) -> Result<Fate, EntryError> {
        if !self.job.preserve.symlinks {
            return Err(EntryError::LinkLeftOut);
        }
        let failed = |errno: Errno| EntryError::Source { what: "read", errno: errno.into() };
        let points_to = self.context.tree.readlink(ino).await.map_err(failed)?;
        let meta = self.getattr(ino).await?;
        let dir = self.dir.as_fd();
        let name = entry.target_name();
        if !self.copy.is_new
            && let Some(there) = pfs::stat_name(dir, name).map_err(EntryError::target("stat"))?
        {
            if there.kind == Kind::Directory {
                return Err(EntryError::TargetKind { found: there.kind.text(), wanted: meta.kind.text() });
            }
            let is_same = there.kind == Kind::Symlink && pfs::read_link(dir, name).is_ok_and(|old| old == points_to);
            if is_same && (self.job.update == Update::Changed || self.context.only_names(self.job)) {
                return Ok(Fate::Done(record(entry, &meta, None, EntryState::Unchanged, Kept::default())));
            }
        }
        if self.context.only_names(self.job) {
            return Ok(Fate::Done(record(entry, &meta, None, EntryState::NotAsked, Kept::default())));
        }
        let failed = EntryError::target("create");
        let temporary = Temporary { dir, name: Some(self.temporary_name(name)) };
        let new = temporary.name.as_deref().unwrap_or(name);
        pfs::symlink(&points_to, dir, new).map_err(&failed)?;
        let wanted = self.context.identity.wanted(&meta, self.job.preserve);
        let mut not_kept = wanted.not_kept;
        if wanted.uid.is_some() || wanted.gid.is_some() {
            not_kept.owner |= pfs::set_owner_of_name(dir, new, wanted.uid, wanted.gid).is_err();
        }
        if self.job.preserve.times {
            not_kept.times = pfs::set_times_of_name(dir, new, meta.atime, meta.mtime).is_err();
        }
        temporary.rename(name).map_err(EntryError::target("rename"))?;
        Ok(Fate::Done(record(entry, &meta, None, EntryState::Copied, not_kept)))
    }

    /// One name of a file that has several.
    async fn linked(&self, entry: &Entry) -> Result<Fate, EntryError> {
        let ino = entry.ino.ok_or(EntryError::source("find")(Errno::ENOENT.into()))?;
        let meta = self.getattr(ino).await?;
        let key = (0, ino.get());
        let fate = self.linked_name(entry, key).await?;
        if matches!(fate, Fate::Done(_)) {
            self.context.links.done(key, meta.nlink);
        }
        Ok(fate)
    }

    async fn linked_name(&self, entry: &Entry, key: GroupKey) -> Result<Fate, EntryError> {
        let group = self.context.links.group(key);
        let mut made = group.lock().await;
        if let Some(first) = &*made
            && let Some(fate) = self.link(entry, first)?
        {
            return Ok(fate);
        }
        let prepared = vec![self.prepare(entry).await];
        let fate = self.commit(prepared).await.pop().ok_or(EntryError::Changed)?;
        let Fate::Done(mut record) = fate else { return Ok(fate) };
        if made.is_some() {
            record.not_kept.hardlinks = true;
        } else {
            let (dir, name) = (self.copy.dir.clone(), entry.target_name().to_vec());
            *made = Some(Made { ino: None, dir, name, record: record.clone() });
        }
        Ok(Fate::Done(record))
    }

    /// Links to the first name. `None` where the PFS cannot do that: the contents are copied instead.
    fn link(&self, entry: &Entry, first: &Made) -> Result<Option<Fate>, EntryError> {
        let failed = EntryError::target("link");
        let dir = self.dir.as_fd();
        let from = pfs::open_below(&first.dir.pfs_root, &first.dir.below).map_err(&failed)?;
        let original = pfs::stat_name(from.as_fd(), &first.name).map_err(&failed)?;
        let there = pfs::stat_name(dir, entry.target_name()).map_err(&failed)?;
        let mut record = first.record.clone();
        record.name.clone_from(&entry.name);
        record.target.clone_from(&entry.target);
        if let (Some(original), Some(there)) = (&original, &there)
            && (original.dev, original.ino) == (there.dev, there.ino)
        {
            // Renaming one name of a file over another would leave both.
            return Ok(Some(Fate::Done(record)));
        }
        if let Some(there) = there.filter(|there| there.kind == Kind::Directory) {
            return Err(EntryError::TargetKind { found: there.kind.text(), wanted: Kind::File.text() });
        }
        let name = self.temporary_name(entry.target_name());
        match pfs::link(from.as_fd(), &first.name, dir, &name) {
            Ok(()) => {}
            Err(OsError(libc_errno)) if cannot_link(libc_errno) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        self.touch(entry)?;
        let temporary = Temporary { dir, name: Some(name) };
        temporary.rename(entry.target_name()).map_err(EntryError::target("rename"))?;
        record.state = EntryState::Copied;
        Ok(Some(Fate::Done(record)))
    }

    pub(crate) async fn commit(&self, prepared: Vec<Prepared<'_>>) -> Vec<Fate> {
        let pending = prepared.iter().filter_map(|prepared| match prepared {
            Prepared::Pending(pending) => Some((pending.fd.clone(), pending.meta.size)),
            Prepared::Fate(_) => None,
        });
        let mut synced = self.sync(pending.collect()).await.into_iter();
        let publish = |prepared| match prepared {
            Prepared::Fate(fate) => fate,
            Prepared::Pending(pending) => match synced.next() {
                Some(Ok(())) => self.publish(*pending).map(Fate::Done).into(),
                Some(Err(errno)) => Fate::Failed(EntryError::target("sync")(errno)),
                None => Fate::Failed(EntryError::target("sync")(Errno::EIO.into())),
            },
        };
        prepared.into_iter().map(publish).collect()
    }

    /// Makes files of these sizes durable, each with its own result: the small ones with one call where that means the same.
    async fn sync(&self, files: Vec<(Arc<OwnedFd>, u64)>) -> Vec<Result<(), OsError>> {
        let is_small = |at: &usize| files[*at].1 <= SYNCFS_MAX_BYTES;
        let (small, large): (Vec<usize>, Vec<usize>) = (0..files.len()).partition(is_small);
        let mut results = vec![Ok(()); files.len()];
        let each = async |which: Vec<usize>, results: &mut Vec<_>| {
            let fds = which.iter().map(|at| files[*at].0.clone()).collect();
            for (at, result) in which.into_iter().zip(sync_all(&self.context.runtime, fds).await) {
                results[at] = result;
            }
        };
        each(large, &mut results).await;
        let is_one_call = self.syncs_whole && small.len() >= SYNCFS_MIN;
        // If something went wrong there, each file says for itself whether it was this one.
        if !is_one_call || pfs::sync_file_system(self.dir.as_fd()).is_err() {
            each(small, &mut results).await;
        }
        results
    }

    /// Checks a file that was synced, and gives it its name.
    fn publish(&self, pending: Pending<'_>) -> Result<EntryRecord, EntryError> {
        let checked = self.check(&pending);
        if checked.is_err() && pending.temporary.is_none() {
            // In place it must not pass for unchanged next time.
            let _ = pfs::set_times(pending.fd.as_fd(), Default::default(), Default::default());
        }
        checked?;
        if let Some(temporary) = pending.temporary {
            temporary.rename(&pending.target).map_err(EntryError::target("rename"))?;
        }
        if let Some(watch) = pending.watch {
            let path = path_hash(&join(&self.copy.dir.pfs_path(), &pending.target));
            self.settles.push(Settling { watch, path, meta: pending.meta, checksum: pending.record.checksum });
        }
        Ok(pending.record)
    }

    fn check(&self, pending: &Pending<'_>) -> Result<(), EntryError> {
        let failed = EntryError::target("read back");
        let fd = pending.fd.as_fd();
        let expected = pending.meta.size;
        if self.job.verify != Verify::None {
            let found = pfs::stat(fd).map_err(&failed)?.size;
            if found != expected {
                return Err(EntryError::Size { found, expected });
            }
        }
        let Some(expected) = pending.record.checksum.filter(|_| !pending.is_checked) else { return Ok(()) };
        let found = stream::checksum_out(fd, pending.meta.size).map_err(&failed)?.unwrap_or_default();
        if found == expected { Ok(()) } else { Err(EntryError::Checksum { found, expected }) }
    }
}

/// Makes files durable, each with its own result; several at a time. A file system's server or journal takes about as long
/// for many that ask together as for one.
async fn sync_all(runtime: &Handle, files: Vec<Arc<OwnedFd>>) -> Vec<Result<(), OsError>> {
    if let [file] = files.as_slice() {
        return vec![pfs::sync(file.as_fd())];
    }
    let share = files.len().div_ceil(SYNCS_MAX).max(1);
    let tasks: Vec<_> = files
        .chunks(share)
        .map(|files| {
            let files = files.to_vec();
            (files.len(), runtime.spawn_blocking(move || files.iter().map(|file| pfs::sync(file.as_fd())).collect()))
        })
        .collect();
    let mut results = Vec::with_capacity(files.len());
    for (count, task) in tasks {
        let lost = |_| vec![Err(Errno::EIO.into()); count];
        results.append(&mut task.await.unwrap_or_else(lost));
    }
    results
}

fn cannot_link(errno: i32) -> bool {
    [Errno::EXDEV, Errno::EPERM, Errno::EMLINK, Errno::EOPNOTSUPP, Errno::ENOENT]
        .iter()
        .any(|known| known.raw() == errno)
}

pub(crate) fn record(
    entry: &Entry,
    meta: &Meta,
    checksum: Option<u128>,
    state: EntryState,
    not_kept: Kept,
) -> EntryRecord {
    EntryRecord {
        name: entry.name.clone(),
        target: entry.target.clone(),
        kind: if meta.kind == Kind::Symlink { EntryKind::Symlink } else { EntryKind::File },
        size: if meta.kind == Kind::File { meta.size } else { 0 },
        mtime: meta.mtime,
        checksum,
        state,
        not_kept,
    }
}

/// Extended attributes to carry over: name and value.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Whether a directive carries this attribute over.
pub(crate) fn is_wanted_xattr(job: &StageJob, name: &[u8]) -> bool {
    job.preserve.xattr && name.starts_with(b"user.") || job.preserve.acl && is_acl(name)
}

pub(crate) fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

/// An instance inode's extended attributes.
pub(crate) async fn xattrs(context: &Context, job: &StageJob, ino: Ino) -> Result<Xattrs, EntryError> {
    if !job.preserve.xattr && !job.preserve.acl {
        return Ok(Vec::new());
    }
    let failed = |errno: Errno| EntryError::Source { what: "read attributes of", errno: errno.into() };
    let names = match context.tree.list_xattr(ino).await {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        names => names.map_err(failed)?,
    };
    let mut xattrs = Vec::new();
    for name in names.into_iter().filter(|name| is_wanted_xattr(job, name)) {
        let value = context.tree.get_xattr(ino, &name).await.map_err(failed)?;
        xattrs.push((name, value));
    }
    Ok(xattrs)
}

/// Gives a file or directory of the PFS its owner, extended attributes and mode, in this order: a change of owner drops
/// set-id bits. What is not permitted is told; other errors are errors.
pub(crate) fn apply(target: BorrowedFd<'_>, wanted: &Wanted, xattrs: &Xattrs) -> Result<Kept, EntryError> {
    let mut not_kept = Kept::default();
    let mut mode = wanted.mode;
    if wanted.uid.is_some() || wanted.gid.is_some() {
        not_kept.owner = !permitted(pfs::set_owner(target, wanted.uid, wanted.gid), "set the owner of")?;
        if not_kept.owner {
            mode &= 0o1777;
        }
    }
    // Setting the others needs the right to write, which an access list may take from the owner.
    let (acls, others): (Vec<_>, Vec<_>) = xattrs.iter().partition(|(name, _)| is_acl(name));
    for (name, value) in others.into_iter().chain(acls) {
        let is_set = permitted(pfs::set_xattr(target, name, value), "set attributes of")?;
        if is_acl(name) { not_kept.acl |= !is_set } else { not_kept.xattr |= !is_set }
    }
    not_kept.mode = !permitted(pfs::set_mode(target, mode), "set the mode of")?;
    Ok(not_kept)
}

/// Takes from what was made in a directory with a default ACL those ACLs that its source does not have. Whether it could be done.
pub(crate) fn drop_inherited(target: BorrowedFd<'_>, xattrs: &Xattrs) -> Result<bool, EntryError> {
    let mut is_done = true;
    for acl in [ACL_ACCESS, ACL_DEFAULT] {
        if !xattrs.iter().any(|(name, _)| name == acl) && pfs::has_xattr(target, acl) {
            is_done &= permitted(pfs::remove_xattr(target, acl), "remove inherited attributes of")?;
        }
    }
    Ok(is_done)
}

/// Whether it was done; what the file system does not permit or support is no error.
pub(crate) fn permitted(result: Result<(), OsError>, what: &'static str) -> Result<bool, EntryError> {
    let soft = [Errno::EPERM, Errno::EACCES, Errno::EOPNOTSUPP, Errno::EINVAL];
    match result {
        Ok(()) => Ok(true),
        Err(errno) if soft.iter().any(|known| OsError::from(*known) == errno) => Ok(false),
        Err(errno) => Err(EntryError::target(what)(errno)),
    }
}

/// Removes temporaries that other attempts of the job left in a directory.
pub(crate) fn remove_stale(context: &Context, dir: BorrowedFd<'_>, attempt: u32) {
    remove_temporaries(context, dir, |found, _| found != attempt);
}

/// Removes this node's own temporaries of an earlier life of its daemon.
pub(crate) fn remove_leftovers(context: &Context, dirs: &[Dir]) {
    for place in dirs {
        match context.direction {
            Direction::Out => {
                if let Ok(dir) = pfs::open_below(&place.pfs_root, &place.below) {
                    remove_temporaries(context, dir.as_fd(), |_, node| node == context.config.node.get());
                }
            }
            Direction::In => context.runtime.block_on(remove_temporaries_in(context, place.ino)),
        }
        if let Err(error) = context.journal.ended(place) {
            tracing::warn!(%error, "the stager's journal cannot be written");
        }
    }
}

/// The same in a directory of the instance.
async fn remove_temporaries_in(context: &Context, dir: Ino) {
    let mut cookie = 0;
    while let Ok(page) = context.tree.readdir(dir, cookie, READDIR_MAX).await {
        for entry in &page.entries {
            cookie = entry.cookie;
            let node = temporary::parse(entry.name.as_bytes(), context.config.job_id).map(|(_, node)| node);
            if node == Some(context.config.node.get())
                && let Err(errno) = context.tree.unlink(dir, &entry.name).await
            {
                tracing::debug!(%errno, name = %entry.name.as_bytes().escape_ascii(), "a temporary could not be removed");
            }
        }
        if page.is_end || page.entries.is_empty() {
            return;
        }
    }
}

fn remove_temporaries(context: &Context, dir: BorrowedFd<'_>, is_stale: impl Fn(u32, u16) -> bool) {
    let Ok(mut listing) = pfs::Listing::open(dir) else { return };
    while let Ok(Some((name, _))) = listing.next() {
        let is_stale =
            temporary::parse(&name, context.config.job_id).is_some_and(|(attempt, node)| is_stale(attempt, node));
        if is_stale && let Err(errno) = pfs::unlink(dir, &name) {
            tracing::debug!(%errno, name = %name.escape_ascii(), "a stale temporary could not be removed");
        }
    }
}
