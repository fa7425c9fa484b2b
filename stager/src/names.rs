//! `list=FILE`: the entries that a file names, relative to the source, one a line (or one a NUL byte, if the file has any).
//!
//! As with rsync's `--files-from`, lines that begin with `#` or `;` and empty ones say nothing, leading slashes are dropped, and
//! the directories on the way to an entry are made with their attributes; a directory that is named is copied with all that is
//! below it. A name that is not there is an entry that has failed.
//!
//! A name may stand there twice, so the target is looked at also where its directory was made just now.
//!
//! The file is read a part at a time, one item after the other on one node: the directories' records arrive in order, and
//! memory does not grow with the list, but for 24 bytes for each directory on the way.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use burstfs_proto::stage::Direction;
use burstfs_types::{Errno, Ino, Name};

use crate::engine::{Context, Done};
use crate::error::{EntryError, OsError};
use crate::item::{Dir, EntryKind, Record, Step, Work, join};
use crate::job::StageJob;
use crate::journal::path_hash;
use crate::list::{PAGE_MAX_BYTES, PageWork, failed, make_dir, make_dir_in};
use crate::pfs;
use crate::tree::{Kind, PageEntry};

/// What is read at once; also a name's longest line.
const CHUNK_BYTES: usize = 64 << 10;

/// Where to go on with a list.
pub(crate) struct Page {
    /// The root of both sides.
    pub(crate) dir: Dir,
    /// In the list.
    pub(crate) at: u64,
    pub(crate) is_nul: bool,
}

/// Whether names end with NUL bytes.
pub(crate) fn is_nul_separated(list: &[u8]) -> Result<bool, OsError> {
    Ok(chunk(list, 0)?.contains(&0))
}

fn chunk(list: &[u8], at: u64) -> Result<Vec<u8>, OsError> {
    let file = pfs::open_path(list)?;
    let mut bytes = vec![0; CHUNK_BYTES];
    let got = pfs::read_at(file.as_fd(), at, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Hands every path that a list names to `each`.
pub(crate) fn for_each(list: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), OsError> {
    let is_nul = is_nul_separated(list)?;
    let mut at = 0;
    loop {
        let bytes = chunk(list, at)?;
        let is_last = bytes.len() < CHUNK_BYTES;
        let mut read = 0;
        for (line, end) in lines(&bytes, is_nul, is_last) {
            read = end;
            if let Some(path) = entry_path(line, is_nul) {
                each(&path);
            }
        }
        match read {
            _ if is_last => return Ok(()),
            0 => return Err(Errno::ENAMETOOLONG.into()),
            read => at += read as u64,
        }
    }
}

/// The paths that a part of a list names, and where the next part begins; `None` after the last.
pub(crate) fn part(list: &[u8], at: u64, is_nul: bool) -> Result<(Vec<Vec<u8>>, Option<u64>), EntryError> {
    let bytes = chunk(list, at).map_err(EntryError::source("read the list of"))?;
    let is_last = bytes.len() < CHUNK_BYTES;
    let (mut paths, mut read) = (Vec::new(), 0);
    for (line, end) in lines(&bytes, is_nul, is_last) {
        read = end;
        paths.extend(entry_path(line, is_nul));
    }
    Ok((paths, (!is_last && read > 0).then_some(at + read as u64)))
}

/// Does a part of a list.
pub(crate) async fn names(context: &Context, job: &StageJob, number: u16, attempt: u32, page: Page) -> Done {
    let mut tries = 0;
    loop {
        let list = job.list.as_deref().unwrap_or_default();
        let read = chunk(list, page.at).map_err(EntryError::source("read the list of"));
        let result = match read {
            Ok(bytes) => NamesWork::new(context, job, number, attempt, &page).run(&bytes).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(done) => return done,
            Err(error) if context.config.retry.allows(&error, tries) => {
                tokio::time::sleep(context.config.retry.delay(tries)).await;
                tries += 1;
            }
            Err(error) => return failed(context, number, &page.dir, &error),
        }
    }
}

/// The lines of a part, each with the offset behind it; `is_last`: the part reaches the end of the file.
fn lines(bytes: &[u8], is_nul: bool, is_last: bool) -> impl Iterator<Item = (&[u8], usize)> {
    let end = if is_nul { 0 } else { b'\n' };
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let (line, len) = match rest.iter().position(|byte| *byte == end) {
            Some(len) => (&rest[..len], len + 1),
            None if is_last => (rest, rest.len()),
            None => return None,
        };
        at += len;
        let line = if is_nul { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
        Some((line, at))
    })
}

/// What a line names: a path without empty and `.` components. `None` when it names nothing.
fn entry_path(line: &[u8], is_nul: bool) -> Option<Vec<u8>> {
    if !is_nul && (line.starts_with(b"#") || line.starts_with(b";")) {
        return None;
    }
    let names = line.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let path = names.collect::<Vec<_>>().join(&b'/');
    (!path.is_empty()).then_some(path)
}

/// Directory and name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        None => (b"", path),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}

struct NamesWork<'a> {
    context: &'a Context,
    job: &'a StageJob,
    number: u16,
    attempt: u32,
    page: &'a Page,
    ways: HashMap<Vec<u8>, Dir>,
    done: Done,
    bytes: usize,
    records: Vec<Record>,
}

impl<'a> NamesWork<'a> {
    fn new(context: &'a Context, job: &'a StageJob, number: u16, attempt: u32, page: &'a Page) -> NamesWork<'a> {
        let root = page.dir.clone();
        NamesWork {
            context,
            job,
            number,
            attempt,
            page,
            ways: HashMap::from([(Vec::new(), root)]),
            done: Done::default(),
            bytes: 0,
            records: Vec::new(),
        }
    }

    async fn run(mut self, bytes: &[u8]) -> Result<Done, EntryError> {
        let is_last = bytes.len() < CHUNK_BYTES;
        let mut read = 0;
        // Entries of one directory that stand together become batches together.
        let mut run: Vec<Vec<u8>> = Vec::new();
        let mut named = HashSet::new();
        for (line, end) in lines(bytes, self.page.is_nul, is_last) {
            if self.bytes >= PAGE_MAX_BYTES {
                break;
            }
            read = end;
            let Some(path) = entry_path(line, self.page.is_nul) else { continue };
            if !named.insert(path_hash(&path)) {
                continue;
            }
            if run.last().is_some_and(|last| split(last).0 != split(&path).0) {
                self.entries(&run).await;
                run.clear();
            }
            self.bytes += path.len() + 32;
            run.push(path);
        }
        self.entries(&run).await;
        if read == 0 && !is_last {
            return Err(EntryError::Source {
                what: "understand a line of the list of",
                errno: Errno::ENAMETOOLONG.into(),
            });
        }
        if is_last && read == bytes.len() {
            self.records.push(Record::Listed { job: self.number });
        } else {
            let step =
                Step::Names { dir: self.page.dir.clone(), at: self.page.at + read as u64, is_nul: self.page.is_nul };
            let work = Work { job: self.number, attempt: self.attempt, step };
            self.done.push_item(Some(self.context.config.node), &work);
        }
        self.done.records = self.records;
        Ok(self.done)
    }

    /// Entries of one directory.
    async fn entries(&mut self, paths: &[Vec<u8>]) {
        let root = &self.page.dir.instance_root;
        let concerned = |path: &&Vec<u8>| self.context.round().is_none_or(|round| round.concerns(&join(root, path)));
        let paths: Vec<&Vec<u8>> = paths.iter().filter(concerned).collect();
        let Some(first) = paths.first() else { return };
        let parent = split(first).0.to_vec();
        let is_outside = parent.split(|byte| *byte == b'/').any(|name| name == b"..");
        if !is_outside && self.context.only_names(self.job) && !self.is_at_target(&parent) {
            return self.name_only(parent, &paths);
        }
        let made = if is_outside {
            Err(EntryError::OutsideSource)
        } else {
            let mut tries = 0;
            loop {
                match self.way(&parent).await {
                    Err(error) if self.context.config.retry.allows(&error, tries) => self.pause(&mut tries).await,
                    made => break made,
                }
            }
        };
        if made.as_ref().is_err_and(|error| self.is_not_there_yet(error)) {
            return;
        }
        self.bytes += self.page.dir.pfs_root.len() + self.page.dir.instance_root.len() + parent.len() + 96;
        let unmade = Dir { below: parent, ..self.page.dir.clone() };
        let dir = made.as_ref().unwrap_or(&unmade).clone();
        let mut work = PageWork::new(self.context, self.job, self.number, self.attempt, &dir);
        let opened = match &made {
            Ok(_) => self.open(&dir),
            Err(error) => Err(error.clone()),
        };
        for path in paths {
            let name = split(path).1;
            let mut tries = 0;
            loop {
                let pushed = match &opened {
                    Ok(opened) => self.entry(&mut work, opened, &dir, name).await,
                    Err(error) => Err(error.clone()),
                };
                match pushed {
                    Err(error) if opened.is_ok() && self.context.config.retry.allows(&error, tries) => {
                        self.pause(&mut tries).await
                    }
                    Err(error) if self.is_not_there_yet(&error) => break,
                    Err(error) => break work.refuse(name, EntryKind::Other, &error),
                    Ok(()) => break,
                }
            }
        }
        work.close_batches();
        let done = work.finish();
        self.done.items.extend(done.items);
        self.records.extend(done.records);
    }

    /// While the job runs, what a list names may still come.
    fn is_not_there_yet(&self, error: &EntryError) -> bool {
        let is_missing = matches!(error, EntryError::Source { errno, .. } if *errno == Errno::ENOENT.into());
        is_missing && self.context.round().is_some()
    }

    fn is_at_target(&self, below: &[u8]) -> bool {
        pfs::open_below(&self.page.dir.pfs_root, below).is_ok()
    }

    /// Entries of a directory that nobody has asked for.
    fn name_only(&mut self, parent: Vec<u8>, paths: &[&Vec<u8>]) {
        let dir = Dir { below: parent, ..self.page.dir.clone() };
        let mut work = PageWork::new(self.context, self.job, self.number, self.attempt, &dir);
        paths.iter().for_each(|path| work.name_only(split(path).1));
        self.bytes += paths.len() * 96;
        self.records.extend(work.finish().records);
    }

    async fn pause(&self, tries: &mut u32) {
        tokio::time::sleep(self.context.config.retry.delay(*tries)).await;
        *tries += 1;
    }

    /// The directory of the PFS: the source's or the target's.
    fn open(&self, dir: &Dir) -> Result<OwnedFd, EntryError> {
        let what = "open the directory of";
        let errno = match pfs::open_below(&dir.pfs_root, &dir.below) {
            Ok(opened) => return Ok(opened),
            Err(errno) => errno,
        };
        Err(match self.context.direction {
            Direction::In => EntryError::Source { what, errno },
            Direction::Out => EntryError::Target { what, errno },
        })
    }

    async fn entry(&self, work: &mut PageWork<'_>, opened: &OwnedFd, dir: &Dir, name: &[u8]) -> Result<(), EntryError> {
        if name == b".." {
            return Err(EntryError::OutsideSource);
        }
        match self.context.direction {
            Direction::In => {
                let missing = || EntryError::source("find")(Errno::ENOENT.into());
                let meta = pfs::stat_name(opened.as_fd(), name).map_err(EntryError::source("find"))?;
                let kind = match meta.ok_or_else(missing)?.kind {
                    Kind::File => EntryKind::File,
                    Kind::Directory => EntryKind::Directory,
                    Kind::Symlink => EntryKind::Symlink,
                    Kind::Special(_) => EntryKind::Other,
                };
                let mut dirs = Vec::new();
                work.pfs_entry(opened, name.to_vec(), Some(kind), &mut dirs)?;
                work.make_dirs_in(dirs).await;
            }
            Direction::Out => {
                let (ino, attr) = self.source(dir.ino, name).await?;
                let name = Name::new(name).map_err(|_| EntryError::source("find")(Errno::ENOENT.into()))?;
                let kind = attr.kind;
                let entry = PageEntry { name, ino, kind, attr: Some(attr), cookie: 0 };
                let chosen = work.choose(std::slice::from_ref(&entry)).await;
                if let Some(is_changed) = chosen.into_iter().next().flatten() {
                    work.tree_entry(entry, is_changed, opened);
                }
            }
        }
        Ok(())
    }

    async fn source(&self, dir: Ino, name: &[u8]) -> Result<(Ino, burstfs_types::Attr), EntryError> {
        let failed = |errno: Errno| EntryError::Source { what: "find", errno: errno.into() };
        let name = Name::new(name).map_err(|_| failed(Errno::ENOENT))?;
        let ino = self.context.tree.lookup(dir, &name).await.map_err(failed)?;
        let attr = self.context.tree.getattr(ino).await.map_err(failed)?;
        Ok((ino, attr))
    }

    /// The directory `path` below the root, with all directories on the way made.
    async fn way(&mut self, path: &[u8]) -> Result<Dir, EntryError> {
        if let Some(way) = self.ways.get(path) {
            return Ok(way.clone());
        }
        let (parent, name) = split(path);
        let above = Box::pin(self.way(parent)).await?;
        let (ino, is_new) = match self.context.direction {
            Direction::In => make_dir_in(self.context, above.ino, name).await?,
            Direction::Out => {
                let (ino, attr) = self.source(above.ino, name).await?;
                if Kind::from(attr.kind) != Kind::Directory {
                    return Err(EntryError::source("find")(Errno::ENOTDIR.into()));
                }
                let target = self.open(&above)?;
                let is_new = make_dir(&target, name)?;
                // The new name is as durable as what will be in it.
                pfs::sync(target.as_fd()).map_err(EntryError::target("sync"))?;
                (ino, is_new)
            }
        };
        let dir = above.child(name, ino);
        self.attributes(&dir, is_new).await?;
        self.bytes += path.len() + 64;
        self.ways.insert(path.to_vec(), dir.clone());
        Ok(dir)
    }

    /// Brings up the attributes of a directory on the way, once.
    async fn attributes(&mut self, dir: &Dir, is_new: bool) -> Result<(), EntryError> {
        let key = (self.number, path_hash(&join(&dir.pfs_root, &dir.below)));
        let is_first = self.context.named_dirs.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if !is_first {
            return Ok(());
        }
        let mut work = PageWork::new(self.context, self.job, self.number, self.attempt, dir);
        work.set_new(is_new);
        let opened = self.open(dir)?;
        let begun = match self.context.direction {
            Direction::In => work.begin_in(&opened).await,
            Direction::Out => work.begin_out(&opened).await,
        };
        if let Err(error) = begun {
            self.context.named_dirs.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            return Err(error);
        }
        self.records.extend(work.finish().records);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_rsyncs() {
        let text = b"a\n# no\n;no\r\n\n/b//./c/\r\n../d";
        let named = |bytes, is_nul, is_last| -> Vec<Vec<u8>> {
            lines(bytes, is_nul, is_last).filter_map(|(line, _)| entry_path(line, is_nul)).collect()
        };
        assert_eq!(named(text, false, true), [b"a".to_vec(), b"b/c".to_vec(), b"../d".to_vec()]);
        assert_eq!(named(text, false, false).len(), 2, "the last line goes on in the next part");
        assert_eq!(named(b"x\ny\0#z\0", true, true), [b"x\ny".to_vec(), b"#z".to_vec()]);
        assert_eq!(lines(b"ab\ncd\n", false, false).map(|(_, end)| end).collect::<Vec<_>>(), [3, 6]);
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
    }
}
