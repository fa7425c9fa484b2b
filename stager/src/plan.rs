//! What a directive would move, found by looking and without moving anything.
//!
//! Owns the walk over a source and the look at a destination, both on file systems that this process can see, as the user
//! who runs it. Does not own what the figures are shown for, nor the estimate's rates.
//!
//! Streaming: directories wait in a queue that stays short, since a directory's sub-directories are walked at once when there is no
//! room for them in it; entries are counted as they are read. Memory grows with the number of threads, with the depth of the
//! tree, and with the files that have several names (16 bytes for each, up to a bound), not with the number of entries.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use burstfs_types::Errno;
use rustix::fs::{Access, AtFlags};
use thiserror::Error;

use crate::error::OsError;
use crate::identity::Identity;
use crate::item::join;
use crate::job::{SourceType, StageJob, Update};
use crate::start::{StartError, check_type, directory_target, file_target, split, trimmed};
use crate::tree::{Kind, Meta};
use crate::{glob, names, pfs};

/// A file system's server answers many as fast as one.
const THREADS: usize = 8;
/// Directories that wait at most.
const WAITING_MAX: usize = 4096;
/// Listings that one thread has open at most; what is deeper waits in the queue also when that is long.
const OPEN_MAX: usize = 24;
/// Files with several names that are told apart at most; further ones count once for each name.
const LINKED_MAX: usize = 1_000_000;
/// Problems that are named; all are counted.
const PROBLEMS_MAX: usize = 20;

/// What a directive's source has, and what of that the target has already.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Regular files, each name counted.
    pub files: u64,
    /// Their bytes; a file with several names once.
    pub bytes: u64,
    /// What these take on the file system that they are on: less than `bytes` where there are holes.
    pub allocated_bytes: u64,
    /// Bytes of the largest file.
    pub largest_bytes: u64,
    /// Directories, the source itself included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Files and links that the target has with the same size and modification time.
    pub unchanged_files: u64,
    /// Bytes of those.
    pub unchanged_bytes: u64,
    /// Entries that cannot be copied: unreadable, of a kind that is refused, not there.
    pub problems: u64,
    /// The first of them: path and reason.
    pub first_problems: Vec<String>,
}

impl Survey {
    /// What would move: files (and links), and bytes.
    pub fn to_copy(&self) -> (u64, u64) {
        ((self.files + self.symlinks).saturating_sub(self.unchanged_files), self.bytes - self.unchanged_bytes)
    }

    fn problem(&mut self, path: &[u8], why: impl std::fmt::Display) {
        self.problems += 1;
        if self.first_problems.len() < PROBLEMS_MAX {
            self.first_problems.push(format!("{}: {why}", path.escape_ascii()));
        }
    }

    fn add(&mut self, other: Survey) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.allocated_bytes += other.allocated_bytes;
        self.largest_bytes = self.largest_bytes.max(other.largest_bytes);
        self.directories += other.directories;
        self.symlinks += other.symlinks;
        self.unchanged_files += other.unchanged_files;
        self.unchanged_bytes += other.unchanged_bytes;
        self.problems += other.problems;
        self.first_problems.extend(other.first_problems);
        self.first_problems.truncate(PROBLEMS_MAX);
    }
}

/// A directory that waits to be walked: paths below the roots.
struct Directory {
    source: Vec<u8>,
    /// `None`: the target has nothing there.
    target: Option<Vec<u8>>,
    below: Vec<u8>,
    /// Only entries that the last name of the job's pattern matches.
    is_pattern: bool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Directory>,
    working: usize,
    linked: HashSet<(u64, u64)>,
    total: Survey,
}

struct Walk<'a> {
    job: &'a StageJob,
    identity: Identity,
    state: Mutex<State>,
    changed: Condvar,
}

/// Walks a job's source. `target` is what the destination is called on this host, if it can be seen: then it is looked at, too.
/// The source is a path of this host, whatever the direction. Fails when the source is not there or cannot be used at all.
pub fn survey(job: &StageJob, target: Option<&[u8]>) -> Result<Survey, String> {
    let walk = Walk { job, identity: Identity::of_process(), state: Mutex::default(), changed: Condvar::new() };
    walk.begin(target).map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| walk.work());
        }
    });
    Ok(walk.state.into_inner().unwrap_or_else(PoisonError::into_inner).total)
}

impl Walk<'_> {
    fn begin(&self, target: Option<&[u8]>) -> Result<(), StartError> {
        let target_is_dir =
            |path: &[u8]| pfs::stat_path(path).ok().flatten().is_some_and(|meta| meta.kind == Kind::Directory);
        let existing = |path: Vec<u8>| target_is_dir(&path).then_some(path);
        if let Some(found) = &self.job.glob {
            let is_pattern = !found.is_contents();
            let target = target.map(|path| trimmed(path).to_vec()).and_then(existing);
            for source in glob::expand_pfs(self.job, found)? {
                self.push(Directory { source, target: target.clone(), below: Vec::new(), is_pattern });
            }
            return Ok(());
        }
        let failed = |errno: OsError| StartError::source(Errno::from_raw(errno.0));
        let meta = pfs::stat_path(&self.job.source).map_err(failed)?.ok_or(StartError::SourceMissing)?;
        check_type(self.job, meta.kind)?;
        let mut destined = self.job.clone();
        if let Some(target) = target {
            destined.destination = target.to_vec();
        }
        if let Some(list) = &self.job.list {
            let target = target.map(|path| trimmed(path).to_vec()).and_then(existing);
            return self.named(list, target);
        }
        if meta.kind == Kind::Directory {
            let target = target.map(|_| directory_target(&destined)).and_then(existing);
            let source = pfs::canonical(&self.job.source).map_err(failed)?;
            self.push(Directory { source, target, below: Vec::new(), is_pattern: false });
            return Ok(());
        }
        let (dir, name) = file_target(&destined, target.is_some_and(target_is_dir));
        let there = target.and_then(|_| pfs::stat_path(&join(&dir, &name)).ok().flatten());
        let mut survey = Survey::default();
        self.file(&mut survey, &self.job.source, &meta, there.as_ref());
        let opened = pfs::open_path(&self.job.source);
        if let Err(errno) = opened {
            survey.problem(&self.job.source, errno);
        }
        self.state().total.add(survey);
        Ok(())
    }

    /// The entries of a list: what it names is counted here, directories wait.
    fn named(&self, list: &[u8], target: Option<Vec<u8>>) -> Result<(), StartError> {
        let mut survey = Survey::default();
        let failed = |errno| StartError::List { path: list.to_vec(), errno };
        names::for_each(list, |path| {
            let source = join(&self.job.source, path);
            let (parent, name) = names::split(path);
            let looked =
                pfs::open_below(&self.job.source, parent).and_then(|dir| Ok((pfs::stat_name(dir.as_fd(), name)?, dir)));
            match looked {
                Ok((Some(meta), _)) if meta.kind == Kind::Directory => {
                    let target = target.as_ref().map(|target| join(target, path));
                    self.push(Directory { source, target, below: path.to_vec(), is_pattern: false });
                }
                Ok((Some(meta), dir)) if !self.job.filters.is_excluded(path, false) => {
                    let there = target.as_ref().and_then(|target| {
                        let dir = pfs::open_below(target, parent).ok()?;
                        pfs::stat_name(dir.as_fd(), name).ok().flatten()
                    });
                    self.entry(&mut survey, &source, dir.as_fd(), name, &meta, there.as_ref());
                }
                Ok((Some(_), _)) => {}
                Ok((None, _)) => survey.problem(&source, "not there"),
                Err(errno) => survey.problem(&source, errno),
            }
        })
        .map_err(failed)?;
        self.state().total.add(survey);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, directory: Directory) {
        self.state().waiting.push_back(directory);
        self.changed.notify_one();
    }

    /// One thread: walks directories until none is left and nobody can bring up another.
    fn work(&self) {
        let mut survey = Survey::default();
        loop {
            let mut state = self.state();
            let next = loop {
                // The deepest first, so that few wait.
                if let Some(next) = state.waiting.pop_back() {
                    state.working += 1;
                    break Some(next);
                }
                if state.working == 0 {
                    break None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let Some(next) = next else { break };
            self.directory(&mut survey, next, 0);
            let mut state = self.state();
            state.working -= 1;
            if state.working == 0 && state.waiting.is_empty() {
                self.changed.notify_all();
            }
        }
        self.state().total.add(survey);
    }

    fn directory(&self, survey: &mut Survey, directory: Directory, depth: usize) {
        // Where a pattern's matches are is not itself copied.
        survey.directories += u64::from(!directory.is_pattern);
        let listed = self.list(survey, &directory, depth);
        if let Err(errno) = listed {
            survey.problem(&directory.source, format!("cannot be listed: {errno}"));
        }
    }

    fn list(&self, survey: &mut Survey, directory: &Directory, depth: usize) -> Result<(), OsError> {
        let dir = open_long(&directory.source)?;
        let target = directory.target.as_ref().and_then(|path| open_long(path).ok());
        let mut listing = pfs::Listing::open(dir.as_fd())?;
        while let Some((name, _)) = listing.next()? {
            let path = join(&directory.source, &name);
            let meta = match pfs::stat_name(dir.as_fd(), &name) {
                Ok(Some(meta)) => meta,
                // It went while we looked.
                Ok(None) => continue,
                Err(errno) => {
                    survey.problem(&path, errno);
                    continue;
                }
            };
            if self.is_left_out(directory, &name, meta.kind == Kind::Directory) {
                continue;
            }
            if meta.kind == Kind::Directory {
                self.below(survey, directory, &name, target.is_some(), depth);
                continue;
            }
            let there = target.as_ref().and_then(|target| pfs::stat_name(target.as_fd(), &name).ok().flatten());
            self.entry(survey, &path, dir.as_fd(), &name, &meta, there.as_ref());
        }
        Ok(())
    }

    /// A sub-directory: for whoever is free, or at once.
    fn below(&self, survey: &mut Survey, above: &Directory, name: &[u8], has_target: bool, depth: usize) {
        let below = Directory {
            source: join(&above.source, name),
            target: above.target.as_ref().filter(|_| has_target).map(|target| join(target, name)),
            below: join(&above.below, name),
            is_pattern: false,
        };
        if depth >= OPEN_MAX || self.state().waiting.len() < WAITING_MAX {
            self.push(below);
        } else {
            self.directory(survey, below, depth + 1);
        }
    }

    fn is_left_out(&self, directory: &Directory, name: &[u8], is_directory: bool) -> bool {
        if directory.is_pattern
            && let Some(last) = self.job.glob.as_ref().and_then(|glob| glob.names().last())
        {
            let is_other_type = match self.job.source_type {
                SourceType::File => is_directory,
                SourceType::Directory => !is_directory,
                SourceType::Auto | SourceType::List => false,
            };
            if is_other_type || !last.matches(name) {
                return true;
            }
        }
        let path = || join(self.job.filter_prefix(), &join(&directory.below, name));
        !self.job.filters.is_empty() && self.job.filters.is_excluded(&path(), is_directory)
    }

    /// An entry that is no directory.
    fn entry(
        &self,
        survey: &mut Survey,
        path: &[u8],
        dir: BorrowedFd<'_>,
        name: &[u8],
        meta: &Meta,
        there: Option<&Meta>,
    ) {
        match meta.kind {
            Kind::File => {
                // Access control lists may allow what the bits do not.
                if !self.identity.may_read(meta) && !is_readable(dir, name) {
                    survey.problem(path, "you may not read it");
                }
                self.file(survey, path, meta, there);
            }
            Kind::Symlink => {
                survey.symlinks += 1;
                let is_same = there.is_some_and(|there| {
                    (there.kind, there.size, there.mtime) == (Kind::Symlink, meta.size, meta.mtime)
                });
                survey.unchanged_files += u64::from(is_same && self.job.update == Update::Changed);
            }
            Kind::Directory | Kind::Special(_) => survey.problem(path, format!("a {}", meta.kind.text())),
        }
    }

    fn file(&self, survey: &mut Survey, path: &[u8], meta: &Meta, there: Option<&Meta>) {
        survey.files += 1;
        survey.largest_bytes = survey.largest_bytes.max(meta.size);
        let is_first = meta.nlink < 2 || !self.job.preserve.hardlinks || self.is_first_name(meta);
        let bytes = if is_first { meta.size } else { 0 };
        survey.bytes += bytes;
        survey.allocated_bytes += if is_first { meta.size.min(meta.blocks.saturating_mul(512)) } else { 0 };
        match there {
            Some(there) if there.kind == Kind::Directory => survey.problem(path, "the target has a directory there"),
            Some(there) if there.looks_like(meta) && self.job.update == Update::Changed => {
                survey.unchanged_files += 1;
                survey.unchanged_bytes += bytes;
            }
            Some(_) | None => {}
        }
    }

    fn is_first_name(&self, meta: &Meta) -> bool {
        let mut state = self.state();
        state.linked.len() >= LINKED_MAX || state.linked.insert((meta.dev, meta.ino))
    }
}

/// Opens a directory, also by a path that is longer than the kernel takes.
fn open_long(path: &[u8]) -> Result<OwnedFd, OsError> {
    if path.len() < 4096 { pfs::open_root(path) } else { pfs::open_below(b"/", path) }
}

fn is_readable(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::accessat(dir, name, Access::READ_OK, AtFlags::EACCESS).is_ok()
}

/// A place where a copy goes, as this host sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The nearest directory that is there.
    pub directory: Vec<u8>,
    /// Whether this user can make something there.
    pub is_writable: bool,
    /// What the user can still write on the file system.
    pub free_bytes: u64,
    /// How many files more it takes; `None` where it does not say.
    pub free_files: Option<u64>,
    /// The user's quota there, as far as the file system tells.
    pub quota: Option<Quota>,
}

/// What a user's quota leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// `None`: no limit.
    pub free_bytes: Option<u64>,
    /// `None`: no limit.
    pub free_files: Option<u64>,
}

/// A destination that could not be looked at.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DestinationError {
    /// Something else stands where a directory would have to be.
    #[error("{path}: not a directory", path = .0.escape_ascii())]
    NotADirectory(Vec<u8>),
    /// The file system's own words.
    #[error("{path}: {errno}", path = .path.escape_ascii())]
    Os {
        /// Where.
        path: Vec<u8>,
        /// Why.
        errno: OsError,
    },
}

impl DestinationError {
    /// Whether it is this user who may not.
    pub fn is_permission(&self) -> bool {
        let denied = [Errno::EACCES, Errno::EPERM].map(OsError::from);
        matches!(self, DestinationError::Os { errno, .. } if denied.contains(errno))
    }
}

/// Looks at the nearest directory of a path.
pub fn destination(path: &[u8]) -> Result<Destination, DestinationError> {
    let mut directory = trimmed(path).to_vec();
    let failed = |path: &[u8]| {
        let path = path.to_vec();
        move |errno: OsError| DestinationError::Os { path, errno }
    };
    loop {
        match pfs::stat_path(&directory) {
            Ok(Some(meta)) if meta.kind == Kind::Directory => break,
            Ok(Some(_)) if directory == trimmed(path) => {}
            Ok(Some(_)) => return Err(DestinationError::NotADirectory(directory)),
            Ok(None) => {}
            Err(errno) if errno == Errno::ENOTDIR.into() => {}
            Err(errno) => return Err(failed(&directory)(errno)),
        }
        directory = split(&directory).0.to_vec();
    }
    let is_writable = rustix::fs::access(&directory[..], Access::WRITE_OK.union(Access::EXEC_OK)).is_ok();
    let space = rustix::fs::statvfs(&directory[..]).map_err(|errno| failed(&directory)(errno.into()))?;
    let quota = pfs::open_root(&directory).ok().and_then(|opened| pfs::user_quota(opened.as_fd()));
    Ok(Destination {
        is_writable,
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        free_files: (space.f_files > 0).then_some(space.f_favail),
        quota,
        directory,
    })
}
