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
    /// The failure to show when it is not.
    pub failure: Option<Failure>,
    /// What is missing, in words.
    pub reasons: Vec<String>,
    /// What can help; where several errors came, against the one that is most easily helped.
    pub cure: Cure,
}

/// Figures over all entries.
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

pub(crate) const NOT_KEPT_WORDS: [&str; 6] = ["mode", "times", "owner", "acl", "xattr", "hardlinks"];

/// One job's accounts: what was announced must have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) is_started: bool,
    pub(crate) not_started: Option<NotStarted>,
    /// Entries that are not at the target.
    missing: u64,
    pub(crate) publication: Option<Publication>,
    pub(crate) is_published: bool,
    announced: u64,
    recorded: u64,
    announced_dirs: u64,
    listed: u64,
}

impl Tally {
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
    pub(crate) totals: Totals,
    first_failure: Option<String>,
    cure: Cure,
    /// The directive and the errno of the first that found no room.
    no_room: Option<(u16, i32)>,
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
            tallies: vec![Tally::default(); jobs.len()],
            totals: Totals::default(),
            first_failure: None,
            cure: Cure::None,
            no_room: None,
            problem: None,
            reasons: Vec::new(),
            is_complete: false,
        };
        Ok(Ledger { direction, jobs, job_id, stage_dir: stage_dir.to_owned(), inner: Mutex::new(inner) })
    }

    pub(crate) fn is_published(&self, job: u16) -> bool {
        self.direction == Direction::Out && publish::is_marked(&self.stage_dir, job)
    }

    /// Gives every directory its name that is to appear at once and is there as a whole.
    fn publish(&self, inner: &mut Inner) {
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
                    inner.cure = inner.cure.max(Cure::of(error.errno().map(|errno| errno.0)));
                    inner.first_failure.get_or_insert_with(|| words.clone());
                    inner.reasons.push(words);
                }
            }
        }
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
        inner.reasons = problems.to_vec();
        inner.close(&self.jobs);
        if problems.is_empty() && inner.problem.is_none() {
            self.publish(&mut inner);
        }
        inner.is_complete = inner.reasons.is_empty();
        let failure = (!inner.is_complete).then(|| inner.failure(self.direction, &self.jobs, &space));
        Outcome { is_complete: inner.is_complete, failure, reasons: inner.reasons.clone(), cure: inner.cure }
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
        inner.totals.directories += 1;
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
                self.note_errno(job, *errno);
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
                for entry in entries {
                    self.count(job, source_dir, entry);
                }
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

    fn note_errno(&mut self, job: u16, errno: Option<i32>) {
        let cure = Cure::of(errno);
        self.cure = self.cure.max(cure);
        if let (Cure::MakeRoom, Some(errno)) = (cure, errno) {
            self.no_room.get_or_insert((job, errno));
        }
    }

    fn count(&mut self, job: u16, source_dir: &[u8], entry: &EntryRecord) {
        if let EntryState::Failed { errno, .. } = &entry.state {
            self.note_errno(job, *errno);
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

    fn read_directories(&mut self) -> io::Result<Backwards> {
        self.directories.file.flush()?;
        let mut file = File::open(&self.directories.path)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok(Backwards { file, end })
    }

    /// Writes down everything that keeps the result from being complete.
    fn close(&mut self, jobs: &[StageJob]) {
        let mut reasons = std::mem::take(&mut self.reasons);
        reasons.extend(self.problem.clone());
        for (tally, job) in self.tallies.iter().zip(jobs) {
            let source = job.source.escape_ascii();
            if job.waits_for().is_some() {
                // Slurm may say it yet.
                self.cure = self.cure.max(Cure::Wait);
            }
            if let Some(not_started) = &tally.not_started {
                reasons.push(format!("{source}: {}", not_started.reason));
            } else if !tally.is_started {
                reasons.push(format!("{source}: not begun"));
            }
            if tally.announced_dirs != tally.listed {
                reasons.push(format!("{source}: {} of {} directories listed", tally.listed, tally.announced_dirs));
            }
            if tally.announced != tally.recorded {
                reasons.push(format!("{source}: {} of {} entries accounted for", tally.recorded, tally.announced));
            }
        }
        if self.totals.failed > 0 {
            reasons.push(format!("{} entries failed", self.totals.failed));
        }
        if self.totals.not_attempted > 0 {
            reasons.push(format!("{} entries were not attempted", self.totals.not_attempted));
        }
        self.reasons = reasons;
    }

    fn failure(&self, direction: Direction, jobs: &[StageJob], space: &str) -> Failure {
        let failed = self.totals.failed + self.totals.not_attempted;
        let first = match (&self.first_failure, self.reasons.first()) {
            (Some(first), _) => first.clone(),
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        let more = if failed > 1 { format!(" ({failed} entries in all)") } else { String::new() };
        if direction == Direction::In {
            if self.no_room.is_some() {
                let copied = self.totals.bytes_copied;
                let message = format!(
                    "stage_in: no space left in the instance{space}, after {copied} bytes were copied, at {first}{more}; ask \
                     for more with capacity="
                );
                return Failure::new(Code::StageInNoSpace, message);
            }
            return Failure::new(Code::StageInFailed, format!("stage_in: {first}{more}"));
        }
        if let Some((job, errno)) = self.no_room {
            return self.no_room_at(jobs.get(usize::from(job)), errno);
        }
        if self.totals.failed > 0 {
            return Failure::new(Code::DrainFailed, format!("stage_out: {first}{more}"));
        }
        if let Some((job, on)) = jobs.iter().find_map(|job| Some((job, job.waits_for()?))) {
            let source = job.source.escape_ascii();
            let message =
                format!("stage_out: Slurm does not say how the job ended, and {source} is drained only after {on}");
            return Failure::new(Code::JobEndUnknown, message);
        }
        let missing = self
            .tallies
            .iter()
            .zip(jobs)
            .find(|(tally, _)| tally.not_started.as_ref().is_some_and(|not_started| not_started.is_source_missing));
        match missing {
            Some((_, job)) => {
                let message = format!("stage_out: {} is not there", job.source.escape_ascii());
                Failure::new(Code::OutputMissing, message)
            }
            None if self.tallies.iter().any(|tally| tally.not_started.is_some()) => {
                Failure::new(Code::DrainFailed, format!("stage_out: {first}"))
            }
            None => Failure::new(Code::DrainIncomplete, format!("stage_out: {}", self.reasons.join("; "))),
        }
    }
}

impl Inner {
    /// A drain that found no room.
    fn no_room_at(&self, job: Option<&StageJob>, errno: i32) -> Failure {
        let what = if errno == Errno::EDQUOT.raw() { "quota exceeded" } else { "no space left" };
        let place = job.map_or_else(String::new, |job| format!(" on {}", job.destination.escape_ascii()));
        let done = self.totals.bytes_copied + self.totals.bytes_unchanged;
        let (done, all) = (amount(done), amount(done + self.totals.bytes_missing));
        Failure::new(Code::DrainNoSpace, format!("stage_out: {what}{place} after {done} of {all}"))
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
