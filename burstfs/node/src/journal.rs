//! What was done with an instance on this node, so that whoever comes after a crash knows what is left to do.
//!
//! Owns the file `<nvme>/<instance>/journal` (root, 0600): one JSON value a line, appended, each step **before** it is
//! done. Does not own what the steps do.
//!
//! Invariants: a line is written with one `write(2)` and is never changed; a process that dies leaves at most one
//! incomplete line, the last, which stands for a step that was not begun and is cut off before the next append.
//!
//! Durability: the page cache outlives any process, so a plain write is enough for a crash of the helper. Only what a
//! power loss must not undo is synced, see [`Journal::sync`].
//!
//! Failure: what cannot be read as a journal is [`JournalError::Corrupt`]; its instance's data is then kept, since
//! nobody can say that it was drained.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use burstfs_types::JobEnd;

use crate::held::Held;

/// No instance makes as many steps: each takes some 100 bytes, and a daemon that keeps ending is given up.
const JOURNAL_MAX_BYTES: u64 = 1 << 20;

/// One step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The instance's directories are made.
    MakeDirectories,
    /// The file system is mounted.
    Mount,
    /// `burstfsd` is started.
    StartDaemon {
        /// Not for the first time.
        restarted: bool,
    },
    /// The job is let in: from here on there may be data that exists nowhere else.
    Ready,
    /// The mount goes away, then the drain begins.
    Drain,
    /// What depends on how the job ended is drained by this from here on, whatever Slurm says later.
    JobEnd {
        /// How it ended.
        end: JobEnd,
    },
    /// The drain ended.
    Drained {
        /// Nothing is left that exists only here.
        complete: bool,
    },
    /// The job is over everywhere, and what it wrote here is on the disk: a power loss takes nothing of it any more.
    Durable,
    /// The data stays, for a time.
    Held(Held),
    /// The data is removed; nothing that follows needs it.
    Remove,
}

/// What the steps so far mean for the instance's data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The job has never been let in: the data can go.
    Unused,
    /// The job has been let in and has not ended, as far as this node knows.
    InUse,
    /// The job has ended and the drain has not.
    Draining,
    /// The drain is complete, or the removal has begun: the data can go.
    Disposable,
    /// The data is to be kept.
    Held(Held),
}

/// Why there is no usable journal.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file could not be read or written.
    #[error("the journal cannot be read or written")]
    Io(#[from] io::Error),
    /// A line is no step.
    #[error("line {line} of the journal is not a step")]
    Corrupt {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Nobody wrote this: it is larger than any journal.
    #[error("the journal has {0} bytes")]
    TooLarge(u64),
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    steps: Vec<Step>,
}

impl Journal {
    /// Reads what is there; an empty file is a journal without steps. `file` is open for reading and writing.
    pub fn open(mut file: File) -> Result<Journal, JournalError> {
        let size = file.metadata()?.len();
        if size > JOURNAL_MAX_BYTES {
            return Err(JournalError::TooLarge(size));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let steps = parse(&bytes[..complete])?;
        if complete < bytes.len() {
            file.set_len(complete as u64)?;
        }
        file.seek(SeekFrom::Start(complete as u64))?;
        Ok(Journal { file, steps })
    }

    /// Records that `step` is about to be done.
    pub fn record(&mut self, step: Step) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(&step).map_err(io::Error::from)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.steps.push(step);
        Ok(())
    }

    /// Makes what was recorded survive a power loss. Needed where losing the record would let a recovery remove data:
    /// after [`Step::Ready`], [`Step::JobEnd`] and [`Step::Held`]; after [`Step::Durable`], so that it is of use. Losing any other step makes a recovery do more work or keep too much.
    pub fn sync(&self) -> Result<(), JournalError> {
        Ok(self.file.sync_data()?)
    }

    /// What was recorded, oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it is so long that only what ends the instance should still be recorded: its data may be tried in vain for
    /// days, by a daemon of its user's.
    pub fn is_long(&mut self) -> Result<bool, JournalError> {
        Ok(self.file.stream_position()? > JOURNAL_MAX_BYTES / 2)
    }

    /// Whether a power loss takes nothing of what the job wrote.
    pub fn is_durable(&self) -> bool {
        self.steps.contains(&Step::Durable)
    }

    /// How the job ended, if that was found out. The first word stays.
    pub fn job_end(&self) -> Option<JobEnd> {
        self.steps.iter().find_map(|step| if let Step::JobEnd { end } = step { Some(*end) } else { None })
    }

    /// What the steps mean for the data.
    pub fn standing(&self) -> Standing {
        self.steps.iter().fold(Standing::Unused, advance)
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Step>, JournalError> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let step = |(n, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|source| JournalError::Corrupt { line: n + 1, source })
    };
    lines.map(step).collect()
}

/// One step further. A removal, once begun, cannot be taken back, and held data is held until it is drained or removed.
fn advance(standing: Standing, step: &Step) -> Standing {
    match (standing, step) {
        (_, Step::Remove) => Standing::Disposable,
        (_, Step::Held(held)) => Standing::Held(held.clone()),
        (Standing::Unused, Step::Ready) => Standing::InUse,
        (Standing::InUse, Step::Drain) => Standing::Draining,
        (Standing::InUse | Standing::Draining | Standing::Held(_), Step::Drained { complete: true }) => {
            Standing::Disposable
        }
        (standing, _) => standing,
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::{Code, Failure};

    use super::*;
    use crate::held::Hope;

    fn reopen(file: &tempfile::NamedTempFile) -> Result<Journal, JournalError> {
        Journal::open(File::options().read(true).write(true).open(file.path()).unwrap())
    }

    fn life() -> Vec<Step> {
        vec![
            Step::MakeDirectories,
            Step::Mount,
            Step::StartDaemon { restarted: false },
            Step::Ready,
            Step::StartDaemon { restarted: true },
            Step::Drain,
            Step::Durable,
            Step::Drained { complete: true },
            Step::Remove,
        ]
    }

    #[test]
    fn every_cut_of_the_file_is_a_prefix_of_the_steps() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut journal = reopen(&file).unwrap();
        for step in life() {
            journal.record(step).unwrap();
        }
        journal.sync().unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(file.path(), &bytes[..cut]).unwrap();
            let mut journal = reopen(&file).unwrap();
            let count = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(journal.steps(), &life()[..count], "cut {cut}");
            journal.record(Step::Remove).unwrap();
            assert_eq!(reopen(&file).unwrap().steps().len(), count + 1, "cut {cut}");
        }
    }

    #[test]
    fn standing_follows_the_steps() {
        let held = Held {
            failure: Failure::new(Code::Held, "quota"),
            kept_until: Some(7),
            attempts: 1,
            hope: Hope { errors_may_pass: true, nodes_may_return: false },
            suspects: Vec::new(),
        };
        let standing = |steps: &[Step]| steps.iter().fold(Standing::Unused, advance);
        let all = life();
        assert_eq!(standing(&all[..3]), Standing::Unused);
        assert_eq!(standing(&all[..5]), Standing::InUse);
        assert_eq!(standing(&all[..6]), Standing::Draining);
        assert_eq!(standing(&all[..7]), Standing::Draining);
        assert_eq!(standing(&all[..8]), Standing::Disposable);
        assert_eq!(standing(&all), Standing::Disposable);
        let drain_failed = [&all[..7], &[Step::Drained { complete: false }]].concat();
        assert_eq!(standing(&drain_failed), Standing::Draining);
        let kept = [drain_failed, vec![Step::Held(held.clone()), Step::Drain]].concat();
        assert_eq!(standing(&kept), Standing::Held(held));
        let resumed = [kept, vec![Step::Drained { complete: true }]].concat();
        assert_eq!(standing(&resumed), Standing::Disposable);
    }

    #[test]
    fn how_the_job_ended_is_said_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut journal = reopen(&file).unwrap();
        for step in
            [Step::Ready, Step::Drain, Step::JobEnd { end: JobEnd::Failure }, Step::JobEnd { end: JobEnd::Success }]
        {
            journal.record(step).unwrap();
        }
        let journal = reopen(&file).unwrap();
        assert_eq!(journal.job_end(), Some(JobEnd::Failure));
        assert_eq!(journal.standing(), Standing::Draining);
    }

    #[test]
    fn a_broken_line_is_corrupt() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"step\":\"ready\"}\n{\"step\":\"rea\n{\"step\":\"drain\"}\n").unwrap();
        assert!(matches!(reopen(&file), Err(JournalError::Corrupt { line: 2, .. })));
        std::fs::write(file.path(), [0; 512]).unwrap();
        assert!(reopen(&file).unwrap().steps().is_empty(), "no newline: an incomplete line");
    }
}
