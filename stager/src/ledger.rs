//! What came of everything, on node 0: records as they arrive, spilled to a file; figures; directories' last touch.
//!
//! The files are new for each queue: when node 0's daemon is restarted, all work is seeded again, and every node's
//! journal makes that say the same. Memory does not grow with the number of entries.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_proto::stage::{Direction, Item};
use burstfs_types::{Code, Errno, Failure, Ino, amount};
use thiserror::Error;

use crate::drain::permitted;
use crate::engine::Done;
use crate::error::{Cure, EntryError};
use crate::item::{
    self, DirectoryDone, EntryKind, EntryRecord, EntryState, Kept, Publication, Record, Step, Work, join,
};
use crate::job::StageJob;
use crate::journal::{frame_bytes, read_frame};
use crate::tree::Change;
use crate::{InstanceTree, pfs, publish};

/// The ledger's files cannot be made.
#[derive(Debug, Error)]
#[error("the stager's records {path}: {source}")]
pub struct LedgerError {
    path: PathBuf,
    source: io::Error,
}

/// How a direction ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Everything is at the target.
    pub is_complete: bool,
    /// What to show when it is not, of all directives together.
    pub failure: Option<Failure>,
    /// What is missing, in words.
    pub reasons: Vec<String>,
    /// What can help; where several errors came, against the one that is most easily helped.
    pub cure: Cure,
    /// By directive: what it lacks, if anything.
    pub shortfalls: Vec<Option<Shortfall>>,
}

/// Why a directive is not complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortfall {
    /// The failure to show.
    pub failure: Failure,
    /// What can help; where several errors came, against the one that is most easily helped.
    pub cure: Cure,
}

impl Outcome {
    /// What to show for the directives that `counts` is true of: the failure that tells most, and of all of theirs the cure that helps most.
    /// `None` when nothing of theirs is missing.
    pub fn shortfall(&self, counts: impl Fn(usize) -> bool) -> Option<Shortfall> {
        let chosen = self.shortfalls.iter().enumerate().filter(|(index, _)| counts(*index));
        let short: Vec<&Shortfall> = chosen.filter_map(|(_, short)| short.as_ref()).collect();
        let telling = short.iter().min_by_key(|short| rank(short.failure.code))?;
        let cure = short.iter().map(|short| short.cure).max().unwrap_or(telling.cure);
        Some(Shortfall { failure: telling.failure.clone(), cure })
    }
}

/// Of several failures the first by this is shown: what somebody can do something about, then what is known best.
fn rank(code: Code) -> u8 {
    match code {
        Code::DrainNoSpace | Code::StageInNoSpace => 0,
        Code::DrainFailed | Code::StageInFailed => 1,
        Code::JobEndUnknown => 2,
        Code::OutputMissing => 3,
        _ => 4,
    }
}

/// Figures over all entries of a directive, or of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) directories: u64,
    pub(crate) copied: u64,
    pub(crate) unchanged: u64,
    pub(crate) failed: u64,
    pub(crate) not_attempted: u64,
    pub(crate) not_asked: u64,
    pub(crate) bytes_copied: u64,
    pub(crate) bytes_unchanged: u64,
    /// Of what failed or was not attempted, as far as it is known.
    pub(crate) bytes_missing: u64,
    /// In the order of [`NOT_KEPT_WORDS`].
    pub(crate) not_kept: [u64; NOT_KEPT_WORDS.len()],
}

impl Totals {
    fn add(&mut self, other: &Totals) {
        self.directories += other.directories;
        self.copied += other.copied;
        self.unchanged += other.unchanged;
        self.failed += other.failed;
        self.not_attempted += other.not_attempted;
        self.not_asked += other.not_asked;
        self.bytes_copied += other.bytes_copied;
        self.bytes_unchanged += other.bytes_unchanged;
        self.bytes_missing += other.bytes_missing;
        self.not_kept.iter_mut().zip(other.not_kept).for_each(|(count, more)| *count += more);
    }
}

pub(crate) const NOT_KEPT_WORDS: [&str; 6] = ["mode", "times", "owner", "acl", "xattr", "hardlinks"];

/// One job's accounts: what was announced must have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) is_started: bool,
    pub(crate) not_started: Option<NotStarted>,
    pub(crate) totals: Totals,
    /// Entries that are not at the target.
    missing: u64,
    first_failure: Option<String>,
    /// Against the error that is most easily helped; `None` without one.
    cure: Option<Cure>,
    /// The errno of the first that found no room.
    no_room: Option<i32>,
    pub(crate) publication: Option<Publication>,
    pub(crate) is_published: bool,
    /// It is whole, and did not get its name.
    is_unpublished: bool,
    /// Its first error ends it.
    stops_at_error: bool,
    announced: u64,
    recorded: u64,
    announced_dirs: u64,
    listed: u64,
}

impl Tally {
    fn of(job: &StageJob) -> Tally {
        Tally { stops_at_error: job.stops_at_error, ..Tally::default() }
    }

    /// Whether an error has ended the directive.
    fn has_stopped(&self) -> bool {
        self.stops_at_error && self.totals.failed > 0
    }

    /// Whether all that was found is at the target.
    fn is_whole(&self) -> bool {
        self.is_started && self.missing == 0 && (self.announced, self.announced_dirs) == (self.recorded, self.listed)
    }

    /// Where an entry of the target's directory `dir` is in the end.
    pub(crate) fn published(&self, dir: &[u8]) -> Option<Vec<u8>> {
        let Publication { beside, at } = self.publication.as_ref().filter(|_| self.is_published)?;
        Some([at.as_slice(), dir.strip_prefix(beside.as_slice())?].concat())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct NotStarted {
    pub(crate) is_source_missing: bool,
    pub(crate) reason: String,
}

struct Spill {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Spill {
    fn create(path: PathBuf) -> Result<Spill, LedgerError> {
        let open = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        match open {
            Ok(file) => Ok(Spill { file: BufWriter::new(file), path }),
            Err(source) => Err(LedgerError { path, source }),
        }
    }
}

pub(crate) struct Inner {
    entries: Spill,
    /// Bodies with their length behind, to be read from the end.
    directories: Spill,
    pub(crate) tallies: Vec<Tally>,
    /// A directive has been ended by an error, and nobody knows yet.
    has_new_stop: bool,
    problem: Option<String>,
    pub(crate) reasons: Vec<String>,
    pub(crate) is_complete: bool,
}

/// Node 0's records of one direction. Every method may be called from any thread.
pub struct Ledger {
    pub(crate) direction: Direction,
    pub(crate) jobs: Vec<StageJob>,
    job_id: u32,
    stage_dir: PathBuf,
    inner: Mutex<Inner>,
}

impl Ledger {
    /// New, empty files in `stage_dir`. `job_id` is Slurm's.
    pub fn create(
        stage_dir: &Path,
        direction: Direction,
        jobs: Vec<StageJob>,
        job_id: u32,
    ) -> Result<Ledger, LedgerError> {
        let name = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let inner = Inner {
            entries: Spill::create(stage_dir.join(format!("{name}.records")))?,
            directories: Spill::create(stage_dir.join(format!("{name}.directories")))?,
            tallies: jobs.iter().map(Tally::of).collect(),
            has_new_stop: false,
            problem: None,
            reasons: Vec::new(),
            is_complete: false,
        };
        Ok(Ledger { direction, jobs, job_id, stage_dir: stage_dir.to_owned(), inner: Mutex::new(inner) })
    }

    pub(crate) fn is_published(&self, job: u16) -> bool {
        self.direction == Direction::Out && publish::is_marked(&self.stage_dir, job)
    }

    /// Gives every directory its name that is to appear at once and is there as a whole. What could not be published, in words.
    fn publish(&self, inner: &mut Inner) -> Vec<String> {
        let mut failed = Vec::new();
        for (job, tally) in (0_u16..).zip(&mut inner.tallies) {
            let Some(publication) = tally.publication.clone().filter(|_| tally.is_whole()) else { continue };
            match publish::publish(&publication, self.job_id) {
                Ok(replaced) => {
                    tally.is_published = true;
                    if let Some(before) = replaced {
                        tracing::info!(before = %before.escape_ascii(), "what was there is kept");
                    }
                    if let Err(errno) = publish::mark(&self.stage_dir, job) {
                        tracing::warn!(%errno, "it is not noted that a directory was published");
                    }
                }
                Err(error) => {
                    let words = format!("{}: {error}", publication.at.escape_ascii());
                    tally.cure = tally.cure.max(Some(Cure::of(error.errno().map(|errno| errno.0))));
                    tally.first_failure.get_or_insert_with(|| words.clone());
                    tally.is_unpublished = true;
                    failed.push(words);
                }
            }
        }
        failed
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the records of a finished item; to be called once for each.
    pub fn accept(&self, records: &[Vec<u8>]) {
        let mut inner = self.inner();
        for body in records {
            match item::decode::<Record>(body) {
                Ok(record) => inner.accept(&record, body),
                Err(error) => inner.problem(format!("a record cannot be read: {error}")),
            }
        }
    }

    /// Whether a directive has been ended by an error since this was asked last: work that waits may be withdrawn then.
    pub fn take_stop(&self) -> bool {
        std::mem::take(&mut self.inner().has_new_stop)
    }

    /// Whether an item is of a directive that an error has ended.
    pub fn has_stopped(&self, item: &Item) -> bool {
        let inner = self.inner();
        let is_of = |work: Work| inner.tallies.get(usize::from(work.job)).is_some_and(Tally::has_stopped);
        inner.tallies.iter().any(Tally::has_stopped) && item::decode::<Work>(&item.body).is_ok_and(is_of)
    }

    /// Takes note of work that nobody will do, for instance because its node was lost.
    pub fn give_up(&self, items: &[Item], reason: &str) {
        for item in items {
            match item::decode::<Work>(&item.body) {
                Ok(work) => {
                    let records: Vec<Vec<u8>> = given_up(&work, reason).records.iter().map(item::encode).collect();
                    self.accept(&records);
                }
                Err(error) => self.inner().problem(format!("an item cannot be read: {error}")),
            }
        }
    }

    /// Sets directories' modes and times, the deepest first, and closes the accounts. Call it when the queue is over.
    /// `problems` are what the caller knows to be missing (nodes that were lost, a queue that was not finished): any makes
    /// the result INCOMPLETE.
    pub async fn finish(self: &Arc<Ledger>, tree: Arc<dyn InstanceTree>, problems: &[String]) -> Outcome {
        let ledger = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let for_directories = tree.clone();
        let task = tokio::task::spawn_blocking(move || runtime.block_on(ledger.finish_directories(&*for_directories)));
        let space = match tree.space().await {
            Ok(space) => format!(" of {} bytes, {} of them free", space.capacity, space.available),
            Err(_) => String::new(),
        };
        let finished = task.await;
        let mut inner = self.inner();
        if finished.is_err() {
            inner.problem("setting the directories' attributes failed".to_owned());
        }
        let mut of_all = problems.to_vec();
        of_all.extend(inner.problem.clone());
        let unpublished = if of_all.is_empty() { self.publish(&mut inner) } else { Vec::new() };
        let shortfalls = inner.tallies.iter().zip(&self.jobs).map(|(tally, job)| {
            let of_it = tally.reasons(job);
            let is_short = !(of_all.is_empty() && of_it.is_empty()) || tally.is_unpublished;
            let reasons = || [of_all.as_slice(), &of_it].concat();
            is_short.then(|| tally.shortfall(self.direction, job, &reasons(), &space))
        });
        let shortfalls = shortfalls.collect();
        inner.close(of_all, unpublished, &self.jobs);
        let (failure, cure) = (None, Cure::None);
        let outcome =
            Outcome { is_complete: inner.is_complete, failure, reasons: inner.reasons.clone(), cure, shortfalls };
        match outcome.shortfall(|_| true) {
            Some(Shortfall { failure, cure }) => Outcome { failure: Some(failure), cure, ..outcome },
            None => outcome,
        }
    }

    async fn finish_directories(&self, tree: &dyn InstanceTree) {
        let reader = self.inner().read_directories();
        let mut reader = match reader {
            Ok(reader) => reader,
            Err(error) => return self.inner().problem(format!("the records of directories: {error}")),
        };

        loop {
            match reader.previous() {
                Ok(None) => return,
                Ok(Some(directory)) => self.finish_directory(tree, directory).await,
                Err(error) => return self.inner().problem(format!("the records of directories: {error}")),
            }
        }
    }

    async fn finish_directory(&self, tree: &dyn InstanceTree, directory: DirectoryDone) {
        let done = match self.direction {
            Direction::In => finish_in(tree, &directory).await,
            Direction::Out => finish_out(&directory),
        };
        let (state, not_kept) = match done {
            Ok(not_kept) => (EntryState::Copied, directory.not_kept.or(not_kept)),
            Err(error) => {
                let errno = error.errno().map(|errno| errno.0);
                (EntryState::Failed { reason: error.to_string(), errno }, Kept::default())
            }
        };
        let is_plain = state == EntryState::Copied && not_kept == Kept::default();
        let mut inner = self.inner();
        if let Some(tally) = inner.tallies.get_mut(usize::from(directory.job)) {
            tally.totals.directories += 1;
        }
        if is_plain {
            return;
        }
        let (instance, pfs) = (directory.dir.instance_path(), directory.dir.pfs_path());
        let (source_dir, target_dir) = match self.direction {
            Direction::In => (pfs, instance),
            Direction::Out => (instance, pfs),
        };
        let entries = vec![EntryRecord { not_kept, ..EntryRecord::of_directory(state) }];
        let record = Record::Entries { job: directory.job, source_dir, target_dir, entries };
        inner.accept(&Record::Announced { job: directory.job, entries: 1, dirs: 0 }, &[]);
        inner.accept(&record, &item::encode(&record));
    }

    /// Hands every entry to `each`, in the order of arrival.
    pub(crate) fn for_each<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(&[u8], &[u8], EntryRecord) -> Result<(), E>,
    ) -> Result<(), E> {
        let tallies = self.inner().tallies.clone();
        let mut reader = {
            let mut inner = self.inner();
            inner.entries.file.flush()?;
            BufReader::new(File::open(&inner.entries.path)?)
        };
        while let Some(body) = read_frame(&mut reader)? {
            let Ok(Record::Entries { job, source_dir, target_dir, entries }) = item::decode(&body) else { continue };
            let published = tallies.get(usize::from(job)).and_then(|tally| tally.published(&target_dir));
            let target_dir = published.unwrap_or(target_dir);
            for entry in entries {
                each(&source_dir, &target_dir, entry)?;
            }
        }
        Ok(())
    }
}

async fn finish_in(tree: &dyn InstanceTree, directory: &DirectoryDone) -> Result<Kept, EntryError> {
    let change = Change {
        mode: directory.mode,
        atime: directory.times.map(|(atime, _)| atime),
        mtime: directory.times.map(|(_, mtime)| mtime),
        ..Change::default()
    };
    if directory.dir.ino != Ino::ROOT && !change.is_empty() {
        let failed = |errno: Errno| EntryError::Target { what: "set the attributes of", errno: errno.into() };
        let mut tries = 0;
        while let Err(errno) = tree.setattr(directory.dir.ino, change).await {
            tries += 1;
            if tries > 1 {
                return Err(failed(errno));
            }
        }
    }
    Ok(Kept::default())
}

fn finish_out(directory: &DirectoryDone) -> Result<Kept, EntryError> {
    let dir = &directory.dir;
    let fd = pfs::open_below(&dir.pfs_root, &dir.below).map_err(EntryError::target("open"))?;
    let mut not_kept = Kept::default();
    if let Some(mode) = directory.mode {
        not_kept.mode = !permitted(pfs::set_mode(fd.as_fd(), mode), "set the mode of")?;
    }
    if let Some((atime, mtime)) = directory.times {
        not_kept.times = !permitted(pfs::set_times(fd.as_fd(), atime, mtime), "set the times of")?;
    }
    pfs::sync(fd.as_fd()).map_err(EntryError::target("sync"))?;
    Ok(not_kept)
}

impl Inner {
    fn problem(&mut self, problem: String) {
        tracing::error!(%problem, "the stager's records");
        self.problem.get_or_insert(problem);
    }

    fn accept(&mut self, record: &Record, body: &[u8]) {
        let job = match record {
            Record::Started { job, .. }
            | Record::NotStarted { job, .. }
            | Record::Announced { job, .. }
            | Record::Listed { job }
            | Record::Changed { job, .. }
            | Record::Entries { job, .. } => *job,
            Record::Directory(directory) => directory.job,
        };
        let Some(tally) = self.tallies.get_mut(usize::from(job)) else {
            return self.problem(format!("a record of directive {job}, which there is not"));
        };
        match record {
            Record::Started { publication, .. } => {
                tally.is_started = true;
                tally.publication.clone_from(publication);
            }
            Record::NotStarted { is_source_missing, reason, errno, .. } => {
                tally.not_started = Some(NotStarted { is_source_missing: *is_source_missing, reason: reason.clone() });
                tally.note_errno(*errno);
            }
            Record::Announced { entries, dirs, .. } => {
                tally.announced += entries;
                tally.announced_dirs += dirs;
            }
            Record::Listed { .. } => tally.listed += 1,
            // Of rounds only, which have no ledger.
            Record::Changed { .. } => {}
            Record::Directory(_) => {
                let len = (body.len() as u32).to_le_bytes();
                let written =
                    self.directories.file.write_all(body).and_then(|()| self.directories.file.write_all(&len));
                self.check(written);
            }
            Record::Entries { source_dir, entries, .. } => {
                tally.recorded += entries.len() as u64;
                let is_there = |entry: &&EntryRecord| matches!(entry.state, EntryState::Copied | EntryState::Unchanged);
                tally.missing += (entries.len() - entries.iter().filter(is_there).count()) as u64;
                let had_stopped = tally.has_stopped();
                for entry in entries {
                    tally.count(source_dir, entry);
                }
                self.has_new_stop |= !had_stopped && tally.has_stopped();
                let written = self.entries.file.write_all(&frame_bytes(body));
                self.check(written);
            }
        }
    }

    fn check(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.problem(format!("records cannot be written: {error}"));
        }
    }

    fn read_directories(&mut self) -> io::Result<Backwards> {
        self.directories.file.flush()?;
        let mut file = File::open(&self.directories.path)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok(Backwards { file, end })
    }

    /// Over all directives.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.tallies.iter().for_each(|tally| totals.add(&tally.totals));
        totals
    }

    /// Writes down everything that keeps the result from being complete: `of_all` concerns no one directive.
    fn close(&mut self, of_all: Vec<String>, unpublished: Vec<String>, jobs: &[StageJob]) {
        let mut reasons = of_all;
        for (tally, job) in self.tallies.iter().zip(jobs) {
            reasons.extend(tally.gaps(job));
        }
        reasons.extend(not_done(&self.totals()));
        reasons.extend(unpublished);
        self.is_complete = reasons.is_empty();
        self.reasons = reasons;
    }
}

/// What entries keep a result from being complete.
fn not_done(totals: &Totals) -> Vec<String> {
    let counted = [(totals.failed, "failed"), (totals.not_attempted, "were not attempted")];
    let counted = counted.into_iter().filter(|(count, _)| *count > 0);
    counted.map(|(count, what)| format!("{count} entries {what}")).collect()
}

impl Tally {
    fn note_errno(&mut self, errno: Option<i32>) {
        let cure = Cure::of(errno);
        self.cure = self.cure.max(Some(cure));
        if let (Cure::MakeRoom, Some(errno)) = (cure, errno) {
            self.no_room.get_or_insert(errno);
        }
    }

    fn count(&mut self, source_dir: &[u8], entry: &EntryRecord) {
        if let EntryState::Failed { errno, .. } = &entry.state {
            self.note_errno(*errno);
        }
        let totals = &mut self.totals;
        let is_file = u64::from(entry.kind != EntryKind::Directory);
        match &entry.state {
            EntryState::Copied => {
                totals.copied += is_file;
                totals.bytes_copied += entry.size;
            }
            EntryState::Unchanged => {
                totals.unchanged += is_file;
                totals.bytes_unchanged += entry.size;
            }
            EntryState::Failed { reason, .. } => {
                totals.failed += 1;
                totals.bytes_missing += entry.size;
                self.first_failure
                    .get_or_insert_with(|| format!("{}: {reason}", join(source_dir, &entry.name).escape_ascii()));
            }
            EntryState::NotAttempted { .. } => {
                totals.not_attempted += 1;
                totals.bytes_missing += entry.size;
            }
            EntryState::NotAsked => totals.not_asked += 1,
        }
        for word in entry.not_kept.words() {
            if let Some(at) = NOT_KEPT_WORDS.iter().position(|known| *known == word) {
                totals.not_kept[at] += 1;
            }
        }
    }

    /// What of the directive was not begun, or got lost.
    fn gaps(&self, job: &StageJob) -> Vec<String> {
        let source = job.source.escape_ascii();
        let mut gaps = Vec::new();
        if let Some(not_started) = &self.not_started {
            gaps.push(format!("{source}: {}", not_started.reason));
        } else if !self.is_started {
            gaps.push(format!("{source}: not begun"));
        }
        if self.announced_dirs != self.listed {
            gaps.push(format!("{source}: {} of {} directories listed", self.listed, self.announced_dirs));
        }
        if self.announced != self.recorded {
            gaps.push(format!("{source}: {} of {} entries accounted for", self.recorded, self.announced));
        }
        gaps
    }

    /// Everything that keeps the directive from being complete.
    fn reasons(&self, job: &StageJob) -> Vec<String> {
        [self.gaps(job), not_done(&self.totals)].concat()
    }

    /// What the directive, which is not complete, lacks; `reasons` are why.
    fn shortfall(&self, direction: Direction, job: &StageJob, reasons: &[String], space: &str) -> Shortfall {
        let failed = self.totals.failed + self.totals.not_attempted;
        let first = self.first_failure.as_ref().or(reasons.first()).cloned().unwrap_or_default();
        let more = if failed > 1 { format!(" ({failed} entries in all)") } else { String::new() };
        let failure = match direction {
            Direction::In => self.failure_in(&first, &more, space),
            Direction::Out => self.failure_out(job, &first, &more, reasons),
        };
        // Slurm may yet say what is waited for.
        let waiting = job.waits_for().map(|_| Cure::Wait);
        Shortfall { failure, cure: self.cure.max(waiting).unwrap_or(Cure::None) }
    }

    fn failure_in(&self, first: &str, more: &str, space: &str) -> Failure {
        if self.no_room.is_none() {
            return Failure::new(Code::StageInFailed, format!("stage_in: {first}{more}"));
        }
        let copied = self.totals.bytes_copied;
        let message = format!(
            "stage_in: no space left in the instance{space}, after {copied} bytes were copied, at {first}{more}; ask for more with \
             capacity="
        );
        Failure::new(Code::StageInNoSpace, message)
    }

    fn failure_out(&self, job: &StageJob, first: &str, more: &str, reasons: &[String]) -> Failure {
        let source = job.source.escape_ascii();
        if let Some(errno) = self.no_room {
            return self.no_room_at(job, errno);
        }
        if self.totals.failed > 0 || self.is_unpublished {
            return Failure::new(Code::DrainFailed, format!("stage_out: {first}{more}"));
        }
        if let Some(on) = job.waits_for() {
            let message =
                format!("stage_out: Slurm does not say how the job ended, and {source} is drained only after {on}");
            return Failure::new(Code::JobEndUnknown, message);
        }
        match &self.not_started {
            Some(NotStarted { is_source_missing: true, .. }) => {
                Failure::new(Code::OutputMissing, format!("stage_out: {source} is not there"))
            }
            Some(_) => Failure::new(Code::DrainFailed, format!("stage_out: {first}")),
            None => Failure::new(Code::DrainIncomplete, format!("stage_out: {}", reasons.join("; "))),
        }
    }

    /// A drain that found no room.
    fn no_room_at(&self, job: &StageJob, errno: i32) -> Failure {
        let what = if errno == Errno::EDQUOT.raw() { "quota exceeded" } else { "no space left" };
        let place = job.destination.escape_ascii();
        let done = self.totals.bytes_copied + self.totals.bytes_unchanged;
        let (done, all) = (amount(done), amount(done + self.totals.bytes_missing));
        Failure::new(Code::DrainNoSpace, format!("stage_out: {what} on {place} after {done} of {all}"))
    }
}

/// Reads directories' records from the last to the first: those below come before those above.
struct Backwards {
    file: File,
    end: u64,
}

impl Backwards {
    fn previous(&mut self) -> io::Result<Option<DirectoryDone>> {
        if self.end == 0 {
            return Ok(None);
        }
        let torn = || io::Error::from(io::ErrorKind::InvalidData);
        let mut len = [0; 4];
        self.end = self.end.checked_sub(4).ok_or_else(torn)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        self.end = self.end.checked_sub(len.into()).ok_or_else(torn)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        let mut body = vec![0; len as usize];
        self.file.read_exact(&mut body)?;
        match item::decode(&body) {
            Ok(Record::Directory(directory)) => Ok(Some(directory)),
            _ => Err(torn()),
        }
    }
}

/// The records of an item that is not done.
pub(crate) fn given_up(work: &Work, reason: &str) -> Done {
    let job = work.job;
    let not_attempted = || EntryState::NotAttempted { reason: reason.to_owned() };
    let both = |dir: &item::Dir, entries| Record::Entries {
        job,
        source_dir: dir.instance_path(),
        target_dir: dir.pfs_path(),
        entries,
    };
    let records = match &work.step {
        Step::Start { .. } => {
            vec![Record::NotStarted { job, is_source_missing: false, reason: reason.to_owned(), errno: None }]
        }
        Step::List { dir, .. } | Step::Names { dir, .. } => vec![
            Record::Announced { job, entries: 1, dirs: 0 },
            both(dir, vec![EntryRecord::of_directory(not_attempted())]),
            Record::Listed { job },
        ],
        Step::Copy(copy) => {
            let entries = copy.entries.iter().map(|entry| EntryRecord::not_attempted(entry, reason)).collect();
            vec![both(&copy.dir, entries)]
        }
    };
    Done { items: Vec::new(), records }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(dir: &Path, stops_at_error: &[bool]) -> Ledger {
        let job = |stops: &bool| StageJob { stops_at_error: *stops, ..StageJob::new(Direction::Out, "/out/", "/t") };
        Ledger::create(dir, Direction::Out, stops_at_error.iter().map(job).collect(), 42).unwrap()
    }

    fn entries(job: u16, errno: Option<i32>) -> Vec<u8> {
        let state = match errno {
            Some(errno) => EntryState::Failed { reason: "no".to_owned(), errno: Some(errno) },
            None => EntryState::Copied,
        };
        let entries =
            vec![EntryRecord { name: b"f".to_vec(), kind: EntryKind::File, ..EntryRecord::of_directory(state) }];
        item::encode(&Record::Entries { job, source_dir: b"/out".to_vec(), target_dir: b"/t".to_vec(), entries })
    }

    fn of(job: u16) -> Item {
        let work = Work { job, attempt: 1, step: Step::Start { is_published: false } };
        Item { place: None, body: item::encode(&work) }
    }

    #[test]
    fn the_first_error_ends_a_directive_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path(), &[false, true, true]);
        ledger.accept(&[entries(0, Some(5)), entries(1, None)]);
        assert!(!ledger.take_stop() && !(0..3).any(|job| ledger.has_stopped(&of(job))));
        ledger.accept(&[entries(1, Some(5))]);
        assert!(ledger.take_stop() && !ledger.take_stop(), "said once");
        assert_eq!([0, 1, 2].map(|job| ledger.has_stopped(&of(job))), [false, true, false]);
        ledger.accept(&[entries(1, Some(5))]);
        assert!(!ledger.take_stop());
        assert!(!ledger.has_stopped(&Item { place: None, body: b"?".to_vec() }));
    }
}
