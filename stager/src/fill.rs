//! Entries from a directory of the PFS, into the instance.
//!
//! Files get their name at once where nobody uses the instance before the stage-in is over. One that fails is removed again.
//! The modification time is set last, so that a half-written file never passes for unchanged.
//!
//! Where the job's processes are at work meanwhile ([`StageJob::is_shared`]) a file is made under a temporary name, and gets its own
//! when it is whole. Then nothing is ever replaced: what has a name is an earlier life's copy, or the job's own.

use std::os::fd::{AsFd, OwnedFd};

use burstfs_types::{Errno, Ino, Name, NodeIndex};
use xxhash_rust::xxh3::xxh3_128;

use crate::batch::{ALONE_MIN_BYTES, Fate, SMALL_MAX_BYTES, overlap};
use crate::buffer::Buffer;
use crate::drain::{Xattrs, is_acl, is_wanted_xattr, record};
use crate::engine::Context;
use crate::error::EntryError;
use crate::item::{Copy, Entry, EntryKind, EntryRecord, EntryState, How, Kept};
use crate::job::{StageJob, Update, Verify};
use crate::links::{GroupKey, Made};
use crate::pfs;
use crate::stream;
use crate::temporary;
use crate::tree::{Change, Kind, Meta, Opened};

/// A batch's source directory.
pub(crate) struct Fill<'a> {
    context: &'a Context,
    job: &'a StageJob,
    number: u16,
    attempt: u32,
    copy: &'a Copy,
    dir: OwnedFd,
}

/// A call's error as one of the target's.
fn target(what: &'static str) -> impl Fn(Errno) -> EntryError {
    move |errno| EntryError::Target { what, errno: errno.into() }
}

impl<'a> Fill<'a> {
    pub(crate) fn open(
        context: &'a Context,
        job: &'a StageJob,
        number: u16,
        attempt: u32,
        copy: &'a Copy,
    ) -> Result<Fill<'a>, EntryError> {
        let dir = pfs::open_below(&copy.dir.pfs_root, &copy.dir.below)
            .map_err(EntryError::source("open the directory of"))?;
        Ok(Fill { context, job, number, attempt, copy, dir })
    }

    pub(crate) async fn group(&self, entries: &[Entry]) -> Vec<Fate> {
        if let (How::Linked, [entry]) = (&self.copy.how, entries) {
            return vec![self.linked(entry).await.into()];
        }
        overlap(entries, async |entry| self.entry(entry).await.into()).await
    }

    async fn entry(&self, entry: &Entry) -> Result<Fate, EntryError> {
        let kind = match entry.kind {
            EntryKind::File => Kind::File,
            EntryKind::Symlink => Kind::Symlink,
            EntryKind::Directory | EntryKind::Other => self.stat(entry)?.kind,
        };
        match kind {
            Kind::File => self.file(entry).await,
            Kind::Symlink => self.symlink(entry).await,
            Kind::Directory | Kind::Special(_) => Err(EntryError::Special(kind.text())),
        }
    }

    fn stat(&self, entry: &Entry) -> Result<Meta, EntryError> {
        let failed = EntryError::source("stat");
        let meta = pfs::stat_name(self.dir.as_fd(), &entry.name).map_err(&failed)?;
        meta.ok_or_else(|| failed(Errno::ENOENT.into()))
    }

    fn name(&self, entry: &Entry) -> Result<Name, EntryError> {
        Name::new(entry.target_name()).map_err(|_| target("create")(Errno::EINVAL))
    }

    async fn file(&self, entry: &Entry) -> Result<Fate, EntryError> {
        let source = pfs::open_file(self.dir.as_fd(), &entry.name).map_err(EntryError::source("open"))?;
        let before = pfs::stat(source.as_fd()).map_err(EntryError::source("stat"))?;
        if before.kind != Kind::File {
            return Err(EntryError::Special(before.kind.text()));
        }
        if self.copy.how != How::Linked && before.nlink > 1 && self.job.preserve.hardlinks {
            let place = Some(self.place_of_group(&before));
            return Ok(Fate::Later { how: How::Linked, place, bytes: before.size });
        }
        if self.copy.how == How::Batch && before.size >= ALONE_MIN_BYTES {
            return Ok(Fate::Later { how: How::Alone, place: None, bytes: before.size });
        }
        let name = self.name(entry)?;
        if let Some(record) = self.existing(entry, &name, &before).await? {
            return Ok(Fate::Done(record));
        }
        let wanted = self.context.identity.wanted(&before, self.job.preserve);
        let made = self.made_as(entry, &name)?;
        let opened = self.context.tree.create(self.copy.dir.ino, &made, wanted.mode).await.map_err(target("create"))?;
        let copied = self.opened(entry, &source, &before, &opened).await;
        let closed = self.context.tree.close(opened.handle).await.map_err(target("close"));
        let copied = match copied.and_then(|record| closed.map(|()| record)) {
            Ok(record) if made != name => self.publish(record, &made, &name).await,
            copied => copied,
        };
        if copied.is_err() {
            // Best effort: the entry is recorded as failed anyhow.
            let _ = self.context.tree.unlink(self.copy.dir.ino, &made).await;
        }
        copied.map(Fate::Done)
    }

    /// The name under which a file is made that will be `name`.
    fn made_as(&self, entry: &Entry, name: &Name) -> Result<Name, EntryError> {
        if !self.job.is_shared {
            return Ok(name.clone());
        }
        let temporary = temporary::name_for(self.context, self.attempt, entry.target_name());
        Name::new(temporary).map_err(|_| target("create")(Errno::EINVAL))
    }

    /// Gives a file its name, unless the job has given that to another meanwhile.
    async fn publish(&self, record: EntryRecord, made: &Name, name: &Name) -> Result<EntryRecord, EntryError> {
        let (tree, dir) = (&self.context.tree, self.copy.dir.ino);
        match tree.rename(dir, made, name).await {
            Ok(()) => Ok(record),
            Err(Errno::EEXIST) => {
                tree.unlink(dir, made).await.map_err(target("leave"))?;
                Ok(EntryRecord { state: EntryState::Unchanged, ..record })
            }
            Err(errno) => Err(target("name")(errno)),
        }
    }

    /// All names of a group go to one node, so that it knows the first.
    fn place_of_group(&self, meta: &Meta) -> NodeIndex {
        let hash = xxh3_128(&[meta.dev.to_le_bytes(), meta.ino.to_le_bytes()].concat()) as u64;
        NodeIndex::new((hash % u64::from(self.context.config.nodes.max(1))) as u16)
    }

    /// What has the name already: the record, if it need not be copied.
    async fn existing(&self, entry: &Entry, name: &Name, source: &Meta) -> Result<Option<EntryRecord>, EntryError> {
        if self.copy.is_new {
            return Ok(None);
        }
        let tree = &self.context.tree;
        let ino = match tree.lookup(self.copy.dir.ino, name).await {
            Err(Errno::ENOENT) => return Ok(None),
            ino => ino.map_err(target("stat"))?,
        };
        let unchanged = || Some(record(entry, source, None, EntryState::Unchanged, Kept::default()));
        if self.job.is_shared {
            return Ok(unchanged());
        }
        let there = Meta::from(&tree.getattr(ino).await.map_err(target("stat"))?);
        if there.kind == Kind::Directory {
            return Err(EntryError::TargetKind { found: there.kind.text(), wanted: source.kind.text() });
        }
        let is_same = match source.kind {
            Kind::Symlink => there.kind == Kind::Symlink && there.size == source.size && there.mtime == source.mtime,
            _ => there.looks_like(source),
        };
        if self.job.update == Update::Changed && is_same {
            return Ok(unchanged());
        }
        if there.kind != Kind::File || source.kind != Kind::File || there.nlink > 1 {
            tree.unlink(self.copy.dir.ino, name).await.map_err(target("replace"))?;
        }
        Ok(None)
    }

    async fn opened(
        &self,
        entry: &Entry,
        source: &OwnedFd,
        before: &Meta,
        opened: &Opened,
    ) -> Result<EntryRecord, EntryError> {
        let checksum = self.contents(source, before, opened).await?;
        self.check(opened, before, checksum).await?;
        let not_kept = self.attributes(source, before, opened.attr.ino).await?;
        let after = pfs::stat(source.as_fd()).map_err(EntryError::source("stat"))?;
        if !after.is_same_version(before) {
            return Err(EntryError::Changed);
        }
        Ok(record(entry, before, checksum, EntryState::Copied, not_kept))
    }

    async fn contents(&self, source: &OwnedFd, meta: &Meta, opened: &Opened) -> Result<Option<u128>, EntryError> {
        let is_hashed = self.job.verify == Verify::Checksum;
        let skips_holes = self.job.preserve.sparse && meta.may_have_holes();
        let (fd, handle) = (source.as_fd(), opened.handle);
        if meta.size > SMALL_MAX_BYTES || skips_holes {
            let how = stream::How { number: self.number, size: meta.size, skips_holes, is_hashed };
            return stream::copy_in(self.context, how, fd, handle).await;
        }
        self.context.pace(self.number, meta.size).await;
        let mut data = Buffer::new(meta.size as usize);
        if !data.is_empty() {
            let got = pfs::read_at(fd, 0, &mut data).map_err(EntryError::source("read"))?;
            if got < data.len() {
                return Err(EntryError::Changed);
            }
            self.context.tree.write_at(handle, 0, &data).await.map_err(target("write"))?;
        }
        Ok(is_hashed.then(|| xxh3_128(&data)))
    }

    async fn check(&self, opened: &Opened, source: &Meta, checksum: Option<u128>) -> Result<(), EntryError> {
        if self.job.verify == Verify::Size {
            let attr = self.context.tree.getattr(opened.attr.ino).await.map_err(target("stat"))?;
            if attr.size != source.size {
                return Err(EntryError::Size { found: attr.size, expected: source.size });
            }
        }
        let Some(expected) = checksum else { return Ok(()) };
        let found = if source.size > SMALL_MAX_BYTES || source.may_have_holes() {
            stream::checksum_in(self.context, opened.handle, source.size).await?.unwrap_or_default()
        } else {
            // One byte more, so that a longer file is noticed.
            let mut data = Buffer::new(source.size as usize + 1);
            let got = self.context.tree.read_at(opened.handle, 0, &mut data).await.map_err(target("read back"))?;
            xxh3_128(&data[..got])
        };
        if found == expected { Ok(()) } else { Err(EntryError::Checksum { found, expected }) }
    }

    async fn attributes(&self, source: &OwnedFd, meta: &Meta, ino: Ino) -> Result<Kept, EntryError> {
        let xattrs = read_xattrs(self.job, source)?;
        let not_kept = set_xattrs(self.context, ino, &xattrs).await?;
        let wanted = self.context.identity.wanted(meta, self.job.preserve);
        let times = self.job.preserve.times;
        let change = Change {
            // Writing drops set-id bits.
            mode: (wanted.mode & 0o6000 != 0).then_some(wanted.mode),
            uid: wanted.uid,
            gid: wanted.gid,
            atime: times.then_some(meta.atime),
            mtime: times.then_some(meta.mtime),
        };
        if !change.is_empty() {
            self.context.tree.setattr(ino, change).await.map_err(target("set the attributes of"))?;
        }
        Ok(not_kept.or(wanted.not_kept))
    }

    async fn symlink(&self, entry: &Entry) -> Result<Fate, EntryError> {
        if !self.job.preserve.symlinks {
            return Err(EntryError::LinkLeftOut);
        }
        let points_to = pfs::read_link(self.dir.as_fd(), &entry.name).map_err(EntryError::source("read"))?;
        let meta = self.stat(entry)?;
        let name = self.name(entry)?;
        if let Some(record) = self.existing(entry, &name, &meta).await? {
            return Ok(Fate::Done(record));
        }
        let tree = &self.context.tree;
        let ino = match tree.symlink(self.copy.dir.ino, &name, &points_to).await {
            Err(Errno::EEXIST) if self.job.is_shared => {
                return Ok(Fate::Done(record(entry, &meta, None, EntryState::Unchanged, Kept::default())));
            }
            made => made.map_err(target("create"))?,
        };
        let wanted = self.context.identity.wanted(&meta, self.job.preserve);
        let times = self.job.preserve.times;
        let change = Change {
            mode: None,
            uid: wanted.uid,
            gid: wanted.gid,
            atime: times.then_some(meta.atime),
            mtime: times.then_some(meta.mtime),
        };
        if !change.is_empty() {
            tree.setattr(ino, change).await.map_err(target("set the times of"))?;
        }
        Ok(Fate::Done(record(entry, &meta, None, EntryState::Copied, wanted.not_kept)))
    }

    /// One name of a file that has several.
    async fn linked(&self, entry: &Entry) -> Result<Fate, EntryError> {
        let meta = self.stat(entry)?;
        let key = (meta.dev, meta.ino);
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
            && let Some(fate) = self.link(entry, first).await?
        {
            return Ok(fate);
        }
        let fate = self.file(entry).await?;
        let Fate::Done(mut record) = fate else { return Ok(fate) };
        if made.is_some() {
            record.not_kept.hardlinks = true;
        } else {
            let name = self.name(entry)?;
            let found = self.context.tree.lookup(self.copy.dir.ino, &name).await;
            if self.job.is_shared && !self.is_ours(found, &record).await? {
                // The job's own, or gone already: no other name is to lead there.
                return Ok(Fate::Done(record));
            }
            let ino = found.map_err(target("stat"))?;
            let (dir, name) = (self.copy.dir.clone(), entry.target_name().to_vec());
            *made = Some(Made { ino: Some(ino), dir, name, record: record.clone() });
        }
        Ok(Fate::Done(record))
    }

    /// Whether what was found under a file's name is its copy.
    async fn is_ours(&self, found: Result<Ino, Errno>, record: &EntryRecord) -> Result<bool, EntryError> {
        let attr = match found {
            Ok(ino) => self.context.tree.getattr(ino).await,
            Err(errno) => Err(errno),
        };
        match attr {
            Ok(attr) => {
                let there = Meta::from(&attr);
                Ok(there.kind == Kind::File && (there.size, there.mtime) == (record.size, record.mtime))
            }
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(false),
            Err(errno) => Err(target("stat")(errno)),
        }
    }

    /// Links to the first name. `None` where the instance cannot do that: the contents are copied instead.
    async fn link(&self, entry: &Entry, first: &Made) -> Result<Option<Fate>, EntryError> {
        let Some(ino) = first.ino else { return Ok(None) };
        let (tree, dir, name) = (&self.context.tree, self.copy.dir.ino, self.name(entry)?);
        let mut record = first.record.clone();
        record.name.clone_from(&entry.name);
        record.target.clone_from(&entry.target);
        match tree.lookup(dir, &name).await {
            Ok(there) if there == ino => return Ok(Some(Fate::Done(record))),
            Ok(_) if self.job.is_shared => {
                record.state = EntryState::Unchanged;
                return Ok(Some(Fate::Done(record)));
            }
            Ok(_) => tree.unlink(dir, &name).await.map_err(target("replace"))?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(target("stat")(errno)),
        }
        match tree.link(ino, dir, &name).await {
            Ok(()) => {
                record.state = EntryState::Copied;
                Ok(Some(Fate::Done(record)))
            }
            Err(Errno::EXDEV | Errno::EMLINK | Errno::EPERM | Errno::EOPNOTSUPP) => Ok(None),
            Err(Errno::EEXIST) if self.job.is_shared => {
                record.state = EntryState::Unchanged;
                Ok(Some(Fate::Done(record)))
            }
            // The job has removed the first name, and with it the file.
            Err(Errno::ENOENT | Errno::ESTALE) if self.job.is_shared => Ok(None),
            Err(errno) => Err(target("link")(errno)),
        }
    }
}

/// Extended attributes of an open file or directory of the PFS.
pub(crate) fn read_xattrs(job: &StageJob, source: &OwnedFd) -> Result<Xattrs, EntryError> {
    if !job.preserve.xattr && !job.preserve.acl {
        return Ok(Vec::new());
    }
    let failed = EntryError::source("read attributes of");
    let names = pfs::list_xattr(source.as_fd()).map_err(&failed)?;
    let wanted = names.into_iter().filter(|name| is_wanted_xattr(job, name));
    wanted.map(|name| Ok((name.clone(), pfs::get_xattr(source.as_fd(), &name).map_err(&failed)?))).collect()
}

/// Sets extended attributes in the instance; what it does not support is told.
pub(crate) async fn set_xattrs(context: &Context, ino: Ino, xattrs: &Xattrs) -> Result<Kept, EntryError> {
    let mut not_kept = Kept::default();
    for (name, value) in xattrs {
        let is_set = match context.tree.set_xattr(ino, name, value).await {
            Ok(()) => true,
            Err(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EINVAL) => false,
            Err(errno) => return Err(target("set attributes of")(errno)),
        };
        if is_acl(name) { not_kept.acl |= !is_set } else { not_kept.xattr |= !is_set }
    }
    Ok(not_kept)
}
