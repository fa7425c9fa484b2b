//! One page of a directory: sub-directories are made and become items, other entries become batches.
//!
//! A listing of the PFS that does not fit into one item stays open on its node, and a new item placed there goes on with
//! it: positions of one node's listing need not mean anything on another, nor after a restart. If the stream is gone,
//! the directory is listed again from its beginning; what was copied is then found unchanged.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use burstfs_proto::stage::Direction;
use burstfs_spec::GlobName;
use burstfs_types::{Errno, FileKind, Ino, Name, NodeIndex};
use futures_util::stream::{self, StreamExt};

use crate::batch::ALONE_MIN_BYTES;
use crate::drain;
use crate::engine::{Context, Done};
use crate::error::EntryError;
use crate::fill;
use crate::item::{
    Copy, Dir, DirectoryDone, Entry, EntryKind, EntryRecord, EntryState, From, How, Kept, Record, Step, Work, join,
};
use crate::job::{SourceType, StageJob};
use crate::pfs;
use crate::round::Takes;
use crate::tree::{Kind, Meta, Page, PageEntry};
use crate::{survey, temporary};

/// Names of one batch: few, so that a directory of some hundred files is work for all nodes.
const BATCH_MAX: usize = 128;
/// A page ends when its items have about so many bytes.
pub(crate) const PAGE_MAX_BYTES: usize = 256 << 10;
/// Entries of one call to the instance.
pub(crate) const READDIR_MAX: u32 = 1024;
/// Directories that are made at the same time.
const MKDIRS: usize = 16;
/// Files that the MDS is asked about at the same time.
const CHANGES: usize = 64;

/// Listings of the PFS that wait for their next item, by number.
pub(crate) type Streams = HashMap<u64, pfs::Listing>;

/// Lists one page.
pub(crate) async fn list(context: &Context, job: &StageJob, number: u16, attempt: u32, dir: Dir, from: From) -> Done {
    let mut tries = 0;
    loop {
        let mut page = PageWork::new(context, job, number, attempt, &dir);
        let result = match context.direction {
            Direction::Out => page.page_of_tree(from).await,
            Direction::In => page.page_of_pfs(from).await,
        };
        match result {
            Ok(()) => return page.finish(),
            Err(error) if context.config.retry.allows(&error, tries) => {
                tokio::time::sleep(context.config.retry.delay(tries)).await;
                tries += 1;
            }
            Err(error) => return failed(context, number, &dir, &error),
        }
    }
}

/// The directory could not be listed: it has failed, with all that nobody saw in it.
pub(crate) fn failed(context: &Context, job: u16, dir: &Dir, error: &EntryError) -> Done {
    context.progress.failed();
    let errno = error.errno().map(|errno| errno.0);
    let state = EntryState::Failed { reason: format!("the directory cannot be listed: {error}"), errno };
    let entries = vec![EntryRecord::of_directory(state)];
    let records = vec![
        Record::Announced { job, entries: 1, dirs: 0 },
        entries_record(context, job, dir, entries),
        Record::Listed { job },
    ];
    Done { items: Vec::new(), records }
}

pub(crate) fn entries_record(context: &Context, job: u16, dir: &Dir, entries: Vec<EntryRecord>) -> Record {
    let (instance, pfs) = (dir.instance_path(), dir.pfs_path());
    let (source_dir, target_dir) = match context.direction {
        Direction::In => (pfs, instance),
        Direction::Out => (instance, pfs),
    };
    Record::Entries { job, source_dir, target_dir, entries }
}

/// Which entries of a page the MDS knows to have changed, or cannot say; false for what is neither file nor link.
pub(crate) async fn changed_files(context: &Context, entries: &[PageEntry]) -> Vec<bool> {
    let ask = async |entry: &PageEntry| match entry.kind {
        FileKind::Regular | FileKind::Symlink => is_changed(context, entry.ino).await,
        FileKind::Directory | FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => false,
    };
    stream::iter(entries).map(ask).buffered(CHANGES).collect().await
}

/// Whether a file has to be taken for changed; it has, when the MDS cannot be asked.
pub(crate) async fn is_changed(context: &Context, ino: Ino) -> bool {
    context.tree.change(ino).await.map_or(true, |change| change.is_changed)
}

/// Whether the directive leaves an entry of `dir` out.
pub(crate) fn is_left_out(job: &StageJob, dir: &Dir, name: &[u8], is_directory: bool) -> bool {
    if let Some(last) = pattern(job, dir) {
        let is_other_type = match job.source_type {
            SourceType::File => is_directory,
            SourceType::Directory => !is_directory,
            SourceType::Auto | SourceType::List => false,
        };
        if is_other_type || !last.matches(name) {
            return true;
        }
    }
    let path = || join(job.filter_prefix(), &join(&dir.below, name));
    !job.filters.is_empty() && job.filters.is_excluded(&path(), is_directory)
}

/// The pattern of which this directory has the matches: nothing else of it is copied, and not the directory itself.
fn pattern<'a>(job: &'a StageJob, dir: &Dir) -> Option<&'a GlobName> {
    let glob = job.glob.as_ref().filter(|glob| !glob.is_contents() && dir.below.is_empty());
    glob.and_then(|glob| glob.names().last())
}

/// What a page has come to so far.
pub(crate) struct PageWork<'a> {
    context: &'a Context,
    job: &'a StageJob,
    number: u16,
    attempt: u32,
    dir: &'a Dir,
    is_new: bool,
    bytes: usize,
    batches: HashMap<Option<NodeIndex>, Vec<Entry>>,
    refused: Vec<EntryRecord>,
    entries: u64,
    dirs: u64,
    entry_bytes: u64,
    done: Done,
}

impl<'a> PageWork<'a> {
    pub(crate) fn new(
        context: &'a Context,
        job: &'a StageJob,
        number: u16,
        attempt: u32,
        dir: &'a Dir,
    ) -> PageWork<'a> {
        PageWork {
            context,
            job,
            number,
            attempt,
            dir,
            is_new: false,
            bytes: 0,
            batches: HashMap::new(),
            refused: Vec::new(),
            entries: 0,
            dirs: 0,
            entry_bytes: 0,
            done: Done::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= PAGE_MAX_BYTES
    }

    /// An entry to copy.
    fn push(&mut self, place: Option<NodeIndex>, entry: Entry) {
        self.bytes += entry.name.len() + 32;
        self.entries += 1;
        self.entry_bytes += entry.counted.unwrap_or(0);
        if entry.counted.is_some_and(|bytes| bytes >= ALONE_MIN_BYTES) {
            self.push_copy(place, How::Alone, vec![entry]);
            return;
        }
        let batch = self.batches.entry(place).or_default();
        batch.push(entry);
        if batch.len() >= BATCH_MAX {
            let entries = std::mem::take(batch);
            self.push_copy(place, How::Batch, entries);
        }
    }

    fn push_copy(&mut self, place: Option<NodeIndex>, how: How, entries: Vec<Entry>) {
        let copy = Copy { dir: self.dir.clone(), is_new: self.is_new, how, entries };
        self.push_step(place, Step::Copy(copy));
    }

    fn push_step(&mut self, place: Option<NodeIndex>, step: Step) {
        let work = Work { job: self.number, attempt: self.attempt, step };
        self.bytes += self.dir.pfs_root.len() + self.dir.instance_root.len() + self.dir.below.len() + 32;
        self.done.push_item(place, &work);
    }

    /// An entry that has failed already.
    pub(crate) fn refuse(&mut self, name: &[u8], kind: EntryKind, error: &EntryError) {
        self.bytes += name.len() + 96;
        self.entries += 1;
        self.context.progress.failed();
        let entry = Entry { name: name.to_vec(), target: None, ino: None, kind, counted: None, is_changed: true };
        self.refused.push(EntryRecord::failed(&entry, error));
    }

    fn is_left_out(&self, name: &[u8], is_directory: bool) -> bool {
        is_left_out(self.job, self.dir, name, is_directory)
    }

    /// A directory that nobody has asked for, with all that is in it.
    pub(crate) fn name_only(&mut self, name: &[u8]) {
        self.bytes += name.len() + 64;
        self.entries += 1;
        let record = EntryRecord { name: name.to_vec(), ..EntryRecord::of_directory(EntryState::NotAsked) };
        self.refused.push(record);
    }

    /// A sub-directory that is there on both sides.
    fn push_dir(&mut self, name: &[u8], ino: Ino, is_new: bool) {
        self.dirs += 1;
        self.bytes += name.len();
        let place = match self.context.direction {
            Direction::Out => self.context.tree.place(ino, None),
            Direction::In => None,
        };
        let dir = self.dir.child(name, ino);
        self.push_step(place, Step::List { dir, from: From::Beginning { is_new } });
    }

    /// Whether the target directory was empty before this attempt.
    pub(crate) fn set_new(&mut self, is_new: bool) {
        self.is_new = is_new;
    }

    /// No more entries come.
    pub(crate) fn close_batches(&mut self) {
        for (place, entries) in std::mem::take(&mut self.batches) {
            if !entries.is_empty() {
                self.push_copy(place, How::Batch, entries);
            }
        }
    }

    /// The end of the page; `next` goes on with the directory.
    fn close(&mut self, next: Option<From>) {
        self.close_batches();
        match next {
            None => self.done.records.push(Record::Listed { job: self.number }),
            Some(from) => {
                let place = match from {
                    From::Stream { .. } => Some(self.context.config.node),
                    From::Beginning { .. } | From::Cookie { .. } => self.context.tree.place(self.dir.ino, None),
                };
                self.push_step(place, Step::List { dir: self.dir.clone(), from });
            }
        }
    }

    pub(crate) fn finish(mut self) -> Done {
        self.context.progress.found(self.entries, self.entry_bytes);
        let mut records = vec![Record::Announced { job: self.number, entries: self.entries, dirs: self.dirs }];
        if !self.refused.is_empty() {
            records.push(entries_record(self.context, self.number, self.dir, std::mem::take(&mut self.refused)));
        }
        records.append(&mut self.done.records);
        Done { items: self.done.items, records }
    }

    fn has_attributes(&self) -> bool {
        self.dir.ino != Ino::ROOT && pattern(self.job, self.dir).is_none()
    }

    /// The attributes of this directory that are set at the end of all.
    fn push_attributes(&mut self, meta: &Meta, mode: u16, not_kept: Kept) {
        let preserve = self.job.preserve;
        self.done.records.push(Record::Directory(DirectoryDone {
            job: self.number,
            dir: self.dir.clone(),
            mode: preserve.mode.then_some(mode),
            times: preserve.times.then_some((meta.atime, meta.mtime)),
            not_kept,
        }));
    }

    // Out of the instance.

    async fn page_of_tree(&mut self, from: From) -> Result<(), EntryError> {
        let target = pfs::open_below(&self.dir.pfs_root, &self.dir.below).map_err(EntryError::target("open"))?;
        let mut cookie = 0;
        match from {
            From::Beginning { is_new } => {
                self.is_new = is_new;
                self.begin_out(&target).await?;
            }
            From::Cookie { cookie: at, is_new } => (cookie, self.is_new) = (at, is_new),
            From::Stream { is_new, .. } => self.is_new = is_new,
        }
        loop {
            let failed = |errno: Errno| EntryError::Source { what: "list", errno: errno.into() };
            let Page { entries, is_end } =
                self.context.tree.readdir(self.dir.ino, cookie, READDIR_MAX).await.map_err(failed)?;
            let is_end = is_end || entries.is_empty();
            let count = entries.len();
            let chosen = self.choose(&entries).await;
            for (index, (entry, chosen)) in entries.into_iter().zip(chosen).enumerate() {
                cookie = entry.cookie;
                if let Some(is_changed) = chosen {
                    self.tree_entry(entry, is_changed, &target);
                }
                if self.is_full() && !(is_end && index + 1 == count) {
                    self.close(Some(From::Cookie { cookie, is_new: self.is_new }));
                    return Ok(());
                }
            }
            if is_end {
                self.close(None);
                // The sub-directories that were made are as durable as the copies in them.
                return pfs::sync(target.as_fd()).map_err(EntryError::target("sync"));
            }
        }
    }

    /// Which entries of a page are copied, and whether the MDS knows of changes to them.
    pub(crate) async fn choose(&self, entries: &[PageEntry]) -> Vec<Option<bool>> {
        let Some(selection) = self.context.round() else {
            let changed = match &self.context.config.drained {
                Some(_) => changed_files(self.context, entries).await,
                None => vec![true; entries.len()],
            };
            return changed.into_iter().map(Some).collect();
        };
        let changed = changed_files(self.context, entries).await;
        let choose = |(entry, is_changed): (&PageEntry, bool)| {
            // A file that input still arrives in is nobody's yet.
            let is_ours = temporary::parse(entry.name.as_bytes(), self.context.config.job_id).is_some();
            let is_chosen = !is_ours
                && selection.concerns(&self.dir.child(entry.name.as_bytes(), entry.ino).instance_path())
                && match (entry.kind, selection.takes) {
                    (FileKind::Directory, _) => true,
                    (FileKind::Regular | FileKind::Symlink, Takes::Changed) => true,
                    (FileKind::Regular | FileKind::Symlink, Takes::Quiet(quiet)) => {
                        is_changed && entry.attr.as_ref().is_none_or(|attr| survey::is_quiet(&Meta::from(attr), quiet))
                    }
                    // Refused by name at the end.
                    (FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_), _) => false,
                    (FileKind::Regular | FileKind::Symlink, Takes::Nothing) => false,
                };
            is_chosen.then_some(is_changed)
        };
        entries.iter().zip(changed).map(choose).collect()
    }

    pub(crate) async fn begin_out(&mut self, target: &OwnedFd) -> Result<(), EntryError> {
        if !self.is_new {
            drain::remove_stale(self.context, target.as_fd(), self.attempt);
        }
        if !self.has_attributes() || (self.context.round().is_some() && !self.is_new) {
            // The drain at the end sets the attributes of all directories.
            return Ok(());
        }
        let failed = |errno: Errno| EntryError::Source { what: "stat", errno: errno.into() };
        let meta = Meta::from(&self.context.tree.getattr(self.dir.ino).await.map_err(failed)?);
        let xattrs = drain::xattrs(self.context, self.job, self.dir.ino).await?;
        let mut wanted = self.context.identity.wanted(&meta, self.job.preserve);
        let mode = wanted.mode;
        // Work goes on in it: the final mode comes last.
        wanted.mode = if self.is_new {
            0o700
        } else {
            pfs::stat(target.as_fd()).map_err(EntryError::target("stat"))?.mode | 0o700
        };
        if !self.job.preserve.mode && self.is_new {
            wanted.mode = mode | 0o700;
        }
        let mut not_kept = drain::apply(target.as_fd(), &wanted, &xattrs)?.or(wanted.not_kept);
        // Also one that was there: it may be of an earlier attempt, and its ACL then inherited. Where the drain goes to is the user's.
        let is_copy = self.is_new || !self.dir.below.is_empty();
        if is_copy && self.job.preserve.acl {
            not_kept.acl |= !drain::drop_inherited(target.as_fd(), &xattrs)?;
        }
        // Of a directory that was there the mode may be somebody else's to set; whether it could be is seen at the end.
        not_kept.mode = false;
        self.push_attributes(&meta, mode, not_kept);
        Ok(())
    }

    pub(crate) fn tree_entry(&mut self, entry: PageEntry, is_changed: bool, target: &OwnedFd) {
        let name = entry.name.as_bytes();
        if self.is_left_out(name, entry.kind == FileKind::Directory) {
            return;
        }
        let kind = match entry.kind {
            FileKind::Directory if self.context.only_names(self.job) && !is_dir(target, name) => {
                return self.name_only(name);
            }
            FileKind::Directory => match make_dir(target, name) {
                Ok(is_new) => return self.push_dir(name, entry.ino, is_new),
                Err(error) => return self.refuse(name, EntryKind::Directory, &error),
            },
            FileKind::Regular => EntryKind::File,
            FileKind::Symlink => EntryKind::Symlink,
            FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => {
                return self.refuse(name, EntryKind::Other, &EntryError::Special(Kind::from(entry.kind).text()));
            }
        };
        let layout = entry.attr.as_ref().and_then(|attr| attr.layout.as_ref());
        let place = if kind == EntryKind::File { self.context.tree.place(entry.ino, layout) } else { None };
        let counted = entry.attr.as_ref().filter(|_| kind == EntryKind::File).map(|attr| attr.size);
        self.push(place, Entry { name: name.to_vec(), target: None, ino: Some(entry.ino), kind, counted, is_changed });
    }

    // Into the instance.

    async fn page_of_pfs(&mut self, from: From) -> Result<(), EntryError> {
        let failed = EntryError::source("list");
        let source = pfs::open_below(&self.dir.pfs_root, &self.dir.below).map_err(EntryError::source("open"))?;
        let waiting = match from {
            From::Stream { number, .. } => self.streams().remove(&number),
            From::Beginning { .. } | From::Cookie { .. } => None,
        };
        self.is_new = match (from, waiting.is_some()) {
            (From::Beginning { is_new } | From::Cookie { is_new, .. }, _) | (From::Stream { is_new, .. }, true) => {
                is_new
            }
            (From::Stream { .. }, false) => false,
        };
        if matches!(from, From::Beginning { .. }) {
            self.begin_in(&source).await?;
        }
        let mut listing = match waiting {
            Some(listing) => listing,
            None => pfs::Listing::open(source.as_fd()).map_err(&failed)?,
        };
        let mut dirs = Vec::new();
        let mut is_end = false;
        while !is_end && self.bytes + dirs.len() * (self.dir.below.len() + 256) < PAGE_MAX_BYTES {
            match listing.next().map_err(&failed)? {
                None => is_end = true,
                Some((name, kind)) => self.pfs_entry(&source, name, kind, &mut dirs)?,
            }
        }
        self.make_dirs_in(dirs).await;
        let next = (!is_end).then(|| {
            let number =
                (u64::from(self.context.temporary_number()) << 32) | u64::from(self.context.temporary_number());
            self.streams().insert(number, listing);
            From::Stream { number, is_new: self.is_new }
        });
        self.close(next);
        Ok(())
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.context.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn begin_in(&mut self, source: &OwnedFd) -> Result<(), EntryError> {
        if !self.has_attributes() {
            return Ok(());
        }
        let meta = pfs::stat(source.as_fd()).map_err(EntryError::source("stat"))?;
        let xattrs = fill::read_xattrs(self.job, source)?;
        let wanted = self.context.identity.wanted(&meta, self.job.preserve);
        let not_kept = fill::set_xattrs(self.context, self.dir.ino, &xattrs).await?.or(wanted.not_kept);
        let change = crate::Change { uid: wanted.uid, gid: wanted.gid, ..Default::default() };
        if !change.is_empty() {
            let failed = |errno: Errno| EntryError::Target { what: "set the owner of", errno: errno.into() };
            self.context.tree.setattr(self.dir.ino, change).await.map_err(failed)?;
        }
        self.push_attributes(&meta, wanted.mode, not_kept);
        Ok(())
    }

    pub(crate) fn pfs_entry(
        &mut self,
        source: &OwnedFd,
        name: Vec<u8>,
        kind: Option<EntryKind>,
        dirs: &mut Vec<Vec<u8>>,
    ) -> Result<(), EntryError> {
        let kind = match kind {
            Some(kind) if kind != EntryKind::Other => kind,
            _ => match pfs::stat_name(source.as_fd(), &name).map_err(EntryError::source("stat"))? {
                None => return Ok(()),
                Some(meta) => match meta.kind {
                    Kind::File => EntryKind::File,
                    Kind::Directory => EntryKind::Directory,
                    Kind::Symlink => EntryKind::Symlink,
                    Kind::Special(what) => {
                        if !self.is_left_out(&name, false) {
                            self.refuse(&name, EntryKind::Other, &EntryError::Special(what));
                        }
                        return Ok(());
                    }
                },
            },
        };
        if self.is_left_out(&name, kind == EntryKind::Directory) {
            return Ok(());
        }
        if kind == EntryKind::Directory {
            dirs.push(name);
        } else {
            self.push(None, Entry { name, target: None, ino: None, kind, counted: None, is_changed: true });
        }
        Ok(())
    }

    pub(crate) async fn make_dirs_in(&mut self, names: Vec<Vec<u8>>) {
        let (context, parent) = (self.context, self.dir.ino);
        let make = async |name: Vec<u8>| {
            let made = make_dir_in(context, parent, &name).await;
            (name, made)
        };
        let made: Vec<_> = stream::iter(names).map(make).buffered(MKDIRS).collect().await;
        for (name, made) in made {
            match made {
                Ok((ino, is_new)) => self.push_dir(&name, ino, is_new),
                Err(error) => self.refuse(&name, EntryKind::Directory, &error),
            }
        }
    }
}

fn is_dir(parent: &OwnedFd, name: &[u8]) -> bool {
    let there = pfs::stat_name(parent.as_fd(), name);
    there.is_ok_and(|there| there.is_some_and(|meta| meta.kind == Kind::Directory))
}

/// Makes a directory at the PFS, or finds it and makes sure that its owner can work in it. Whether it is new.
pub(crate) fn make_dir(parent: &OwnedFd, name: &[u8]) -> Result<bool, EntryError> {
    let failed = EntryError::target("create");
    match pfs::mkdir(parent.as_fd(), name, 0o700) {
        Ok(()) => return Ok(true),
        Err(errno) if errno == Errno::EEXIST.into() => {}
        Err(errno) => return Err(failed(errno)),
    }
    let there = pfs::stat_name(parent.as_fd(), name).map_err(&failed)?;
    match there {
        Some(meta) if meta.kind == Kind::Directory => {
            if meta.mode & 0o700 != 0o700 {
                // If it cannot be set, what fails in it says so.
                let _ = pfs::set_mode_of_directory(parent.as_fd(), name, meta.mode | 0o700);
            }
            Ok(false)
        }
        Some(meta) => Err(EntryError::TargetKind { found: meta.kind.text(), wanted: Kind::Directory.text() }),
        None => Err(failed(Errno::ENOENT.into())),
    }
}

/// Makes a directory in the instance, or finds it. Whether it is new.
pub(crate) async fn make_dir_in(context: &Context, parent: Ino, name: &[u8]) -> Result<(Ino, bool), EntryError> {
    let failed = |errno: Errno| EntryError::Target { what: "create", errno: errno.into() };
    let name = Name::new(name).map_err(|_| failed(Errno::EINVAL))?;
    match context.tree.mkdir(parent, &name, 0o755).await {
        Ok(ino) => return Ok((ino, true)),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let ino = context.tree.lookup(parent, &name).await.map_err(failed)?;
    let there = Meta::from(&context.tree.getattr(ino).await.map_err(failed)?);
    match there.kind {
        Kind::Directory => Ok((ino, false)),
        kind => Err(EntryError::TargetKind { found: kind.text(), wanted: Kind::Directory.text() }),
    }
}
