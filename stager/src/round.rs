//! A round: one drain while the job runs, or a look at how much there is to drain.
//!
//! Owns what a round is told (which directives, which files) and what it comes to. Does not own when there is one: node 0's
//! daemon decides.
//!
//! A round and the drain at the end differ in what may happen meanwhile: the job goes on writing. So a round leaves out what
//! changes under its hands, reports it as busy, and is never the last word about any file; only the drain at the end writes a
//! receipt.

use std::time::Duration;

use burstfs_proto::mgs::RoundFigures;
use serde::{Deserialize, Serialize};

use crate::item::{self, EntryKind, EntryState, Record, join};
use crate::job::StageJob;

/// Which files of the directives' sources a round is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Takes {
    /// All that are not known to be drained as they are. One that is open for writing is copied as it is, and stays changed.
    Changed,
    /// Of those that the MDS knows to have changed, the ones that nobody has open for writing and that have not changed for so
    /// long.
    Quiet(Duration),
    /// None: how much has changed is counted.
    Nothing,
}

/// What a round is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Selection {
    /// Only what is at or below this path of the instance; `None`: everything.
    pub below: Option<Vec<u8>>,
    /// Which files.
    pub takes: Takes,
}

impl Selection {
    /// Whether the entry at `path` of the instance is chosen, or may have chosen ones below it.
    pub(crate) fn concerns(&self, path: &[u8]) -> bool {
        let Some(below) = &self.below else { return true };
        is_at_or_below(path, below) || is_at_or_below(below, path)
    }
}

/// Whether `path` is `root` or below it; both absolute.
fn is_at_or_below(path: &[u8], root: &[u8]) -> bool {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// When an engine works.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Occasion {
    /// Before the job, or after it: nobody writes.
    #[default]
    Alone,
    /// The job runs.
    Round(Selection),
}

/// What every node is told of a round.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoundPlan {
    /// The directives.
    pub jobs: Vec<StageJob>,
    /// Of these.
    pub selection: Selection,
}

impl RoundPlan {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        item::encode(self)
    }

    /// `None` for bytes that are no plan of this build.
    pub fn decode(bytes: &[u8]) -> Option<RoundPlan> {
        item::decode(bytes).ok()
    }

    /// Leaves out the directives that have nothing at, below or above the path that the round is about.
    pub fn narrowed(mut self) -> RoundPlan {
        let RoundPlan { jobs, selection } = &mut self;
        jobs.retain(|job| selection.concerns(job.source.strip_suffix(b"/").unwrap_or(&job.source)));
        self
    }
}

/// What a round has come to, on node 0.
#[derive(Debug, Default)]
pub struct RoundTally {
    figures: RoundFigures,
    first_failure: Option<String>,
}

impl RoundTally {
    /// Takes the records of a finished item.
    pub fn accept(&mut self, records: &[Vec<u8>]) {
        for body in records {
            match item::decode::<Record>(body) {
                Ok(record) => self.count(&record),
                Err(error) => self.failed(error.to_string()),
            }
        }
    }

    /// Work that nobody will do.
    pub fn give_up(&mut self, reason: &str) {
        self.failed(reason.to_owned());
    }

    /// So far.
    pub fn figures(&self) -> RoundFigures {
        self.figures
    }

    /// The first thing that went wrong.
    pub fn first_failure(&self) -> Option<&str> {
        self.first_failure.as_deref()
    }

    fn failed(&mut self, reason: String) {
        self.figures.failed += 1;
        self.first_failure.get_or_insert(reason);
    }

    fn count(&mut self, record: &Record) {
        match record {
            Record::NotStarted { is_source_missing: true, .. } => {}
            Record::NotStarted { reason, .. } => self.failed(reason.clone()),
            Record::Entries { source_dir, entries, .. } => {
                for entry in entries {
                    let is_file = u64::from(entry.kind != EntryKind::Directory);
                    match &entry.state {
                        EntryState::Copied => {
                            self.figures.files += is_file;
                            self.figures.bytes += entry.size;
                        }
                        EntryState::Unchanged => self.figures.unchanged += is_file,
                        EntryState::NotAttempted { .. } => self.figures.busy += is_file,
                        // At the end only.
                        EntryState::NotAsked => {}
                        EntryState::Failed { reason, .. } => {
                            self.failed(format!("{}: {reason}", join(source_dir, &entry.name).escape_ascii()));
                        }
                    }
                }
            }
            Record::Changed { files, bytes, .. } => {
                self.figures.changed_files += files;
                self.figures.changed_bytes += bytes;
            }
            Record::Started { .. } | Record::Directory(_) | Record::Announced { .. } | Record::Listed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::stage::Direction;

    use super::*;

    fn selection(below: &str) -> Selection {
        Selection { below: Some(below.into()), takes: Takes::Changed }
    }

    #[test]
    fn a_path_concerns_what_is_below_it_and_the_way_to_it() {
        let out = selection("/out/a");
        for (path, expected) in
            [("/out", true), ("/out/a", true), ("/out/a/b", true), ("/out/ab", false), ("/", true), ("/x", false)]
        {
            assert_eq!(out.concerns(path.as_bytes()), expected, "{path}");
        }
        assert!(selection("/").concerns(b"/x") && selection("/out/").concerns(b"/out"));
    }

    #[test]
    fn directives_elsewhere_are_left_out() {
        let job = |source: &str| StageJob::new(Direction::Out, source, "/t");
        let jobs = vec![job("/out/"), job("/log"), job("/")];
        let plan = RoundPlan { jobs, selection: selection("/out/a") }.narrowed();
        let sources: Vec<_> = plan.jobs.iter().map(|job| job.source.as_slice()).collect();
        assert_eq!(sources, [b"/out/".as_slice(), b"/"]);
        assert_eq!(RoundPlan::decode(&plan.encode()), Some(plan));
        assert_eq!(RoundPlan::decode(b"?"), None);
    }
}
