//! What a stage-in will bring, seen before it has: for whoever opens a name that has not arrived.

use burstfs_proto::stage::Item;
use std::os::fd::AsFd;

use crate::item::{self, Copy, Dir, EntryState, Record, Step, Work, join};
use crate::job::StageJob;
use crate::start::{StartError, check_type, directory_target, file_target, is_left_out, split, trimmed};
use crate::tree::Kind;
use crate::{EntryError, OsError, pfs};

/// Where a directive's files arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// A directory of the instance.
    pub dir: Vec<u8>,
    /// The one name in it that is brought; `None`: whatever the source has.
    pub only: Option<Vec<u8>>,
}

/// Whether a directive brings a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Brings {
    /// It does, or its source cannot be looked at just now.
    Maybe,
    /// It does not.
    No,
}

/// Where the files of `job` arrive. `destination_is_dir`: the instance has a directory there. Looks at the source, which may take
/// as long as the PFS likes. The error says why the directive cannot begin.
pub fn destination(job: &StageJob, destination_is_dir: bool) -> Result<Destination, String> {
    if job.glob.is_some() || job.list.is_some() {
        return Ok(Destination { dir: trimmed(&job.destination).to_vec(), only: None });
    }
    let failed = |errno: OsError| EntryError::Source { what: "find", errno }.to_string();
    let meta = pfs::stat_path(&job.source).map_err(failed)?;
    let meta = meta.ok_or_else(|| StartError::SourceMissing.to_string())?;
    check_type(job, meta.kind).map_err(|error| error.to_string())?;
    if meta.kind == Kind::Directory {
        return Ok(Destination { dir: directory_target(job), only: None });
    }
    let (dir, name) = file_target(job, destination_is_dir);
    Ok(Destination { dir, only: Some(name) })
}

/// Whether `job` brings what is `below` its destination ([`destination`]). Looks at the source, which may take as long as the PFS
/// likes.
pub fn brings(job: &StageJob, below: &[u8]) -> Brings {
    if job.glob.is_some() || job.list.is_some() || below.is_empty() {
        return Brings::Maybe;
    }
    let Ok(Some(root)) = pfs::stat_path(&job.source) else { return Brings::Maybe };
    if root.kind != Kind::Directory {
        return Brings::Maybe;
    }
    let (parent, name) = match below.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&below[..at], &below[at + 1..]),
        None => (&b""[..], below),
    };
    let found = pfs::open_below(&job.source, parent).and_then(|dir| pfs::stat_name(dir.as_fd(), name));
    match found {
        Ok(Some(meta)) if is_wanted(job, below, meta.kind) => Brings::Maybe,
        Ok(_) => Brings::No,
        Err(errno) if is_gone(errno) => Brings::No,
        Err(_) => Brings::Maybe,
    }
}

fn is_gone(errno: OsError) -> bool {
    [burstfs_types::Errno::ENOENT, burstfs_types::Errno::ENOTDIR].into_iter().any(|gone| errno == gone.into())
}

/// Whether the filters leave neither it nor a directory on the way out.
fn is_wanted(job: &StageJob, below: &[u8], kind: Kind) -> bool {
    if matches!(kind, Kind::Special(_)) || is_left_out(job, true) {
        return false;
    }
    let prefix = job.filter_prefix();
    let ends = below.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let mut dirs = ends.map(|end| &below[..end]);
    let is_excluded = |path: &[u8], is_directory| job.filters.is_excluded(&join(prefix, path), is_directory);
    !dirs.any(|dir| is_excluded(dir, true)) && !is_excluded(below, kind == Kind::Directory)
}

/// Whether the work of `item` has to be done for `path` of the instance to arrive: a file, or with a slash at its end a directory
/// and all that is below it.
pub fn is_needed_for(item: &Item, path: &[u8]) -> bool {
    let Ok(Work { step, .. }) = item::decode::<Work>(&item.body) else { return false };
    match step {
        Step::Start { .. } => true,
        Step::List { dir, .. } | Step::Names { dir, .. } => leads_to(&dir, path),
        Step::Copy(copy) => brings_it(&copy, path),
    }
}

fn leads_to(dir: &Dir, path: &[u8]) -> bool {
    let at = dir.instance_path();
    is_below(path, &at) || (path.ends_with(b"/") && is_below(&at, trimmed(path)))
}

fn brings_it(copy: &Copy, path: &[u8]) -> bool {
    let at = copy.dir.instance_path();
    if path.ends_with(b"/") {
        return is_below(&at, trimmed(path));
    }
    let (dir, name) = split(path);
    trimmed(&at) == dir && copy.entries.iter().any(|entry| entry.target_name() == name)
}

/// Whether `path` is `dir`, or below it.
fn is_below(path: &[u8], dir: &[u8]) -> bool {
    let rest = if dir == b"/" { Some(path) } else { path.strip_prefix(trimmed(dir)) };
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Paths of the instance that will not arrive, as the records of finished work say.
pub fn not_brought(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    for body in records {
        let Ok(Record::Entries { target_dir, entries, .. }) = item::decode::<Record>(body) else { continue };
        let missing = entries.iter().filter(|entry| match entry.state {
            EntryState::Failed { .. } | EntryState::NotAttempted { .. } => true,
            EntryState::Copied | EntryState::Unchanged | EntryState::NotAsked => false,
        });
        // The record of a directory has no name: it is the directory's attributes that failed.
        let named = missing.filter(|entry| !entry.name.is_empty());
        paths.extend(named.map(|entry| join(&target_dir, entry.target.as_ref().unwrap_or(&entry.name))));
    }
    paths
}

#[cfg(test)]
mod tests {
    use burstfs_proto::stage::Direction;
    use burstfs_types::Ino;

    use super::*;
    use crate::item::{Entry, EntryKind, EntryRecord, From, How};

    fn dir(below: &[u8]) -> Dir {
        Dir { pfs_root: b"/pfs".to_vec(), instance_root: b"/in".to_vec(), below: below.to_vec(), ino: Ino::ROOT }
    }

    fn entry(name: &[u8]) -> Entry {
        Entry { name: name.to_vec(), target: None, ino: None, kind: EntryKind::File, counted: None, is_changed: true }
    }

    fn item(step: Step) -> Item {
        Item { place: None, body: item::encode(&Work { job: 0, attempt: 1, step }) }
    }

    #[test]
    fn what_is_needed_is_the_way_and_the_file() {
        let list = |below: &[u8]| item(Step::List { dir: dir(below), from: From::Beginning { is_new: true } });
        let copy = |below: &[u8], name: &[u8]| {
            item(Step::Copy(Copy {
                dir: dir(below),
                is_new: true,
                how: How::Batch,
                entries: vec![entry(b"x"), entry(name)],
            }))
        };
        let file = b"/in/a/f";
        assert!(is_needed_for(&list(b""), file) && is_needed_for(&list(b"a"), file));
        assert!(!is_needed_for(&list(b"a/b"), file) && !is_needed_for(&list(b"ab"), file));
        assert!(is_needed_for(&copy(b"a", b"f"), file));
        assert!(!is_needed_for(&copy(b"a", b"g"), file) && !is_needed_for(&copy(b"", b"f"), file));
        let directory = b"/in/a/";
        assert!(is_needed_for(&list(b""), directory) && is_needed_for(&list(b"a/b"), directory));
        assert!(is_needed_for(&copy(b"a/b", b"f"), directory) && !is_needed_for(&copy(b"b", b"f"), directory));
    }

    #[test]
    fn the_source_says_what_is_brought() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(source.path().join("a/b")).unwrap();
        std::fs::write(source.path().join("a/b/f"), "f").unwrap();
        std::fs::write(source.path().join("a/g.log"), "g").unwrap();
        let path = source.path().as_os_str().as_encoded_bytes();
        let mut job = StageJob::new(Direction::In, [path, b"/"].concat(), "/in");
        assert_eq!(destination(&job, false), Ok(Destination { dir: b"/in".to_vec(), only: None }));
        assert_eq!(brings(&job, b"a/b/f"), Brings::Maybe);
        assert_eq!(brings(&job, b"a/g.log"), Brings::Maybe);
        for not in [&b"a/h"[..], b"b", b"a/b/f/g", b"a/c/f"] {
            assert_eq!(brings(&job, not), Brings::No, "{}", not.escape_ascii());
        }
        let filter = burstfs_spec::Filter::new(burstfs_spec::FilterAction::Exclude, "*.log").unwrap();
        job.filters = burstfs_spec::Filters::new(vec![filter]);
        assert_eq!(brings(&job, b"a/g.log"), Brings::No);
        assert_eq!(brings(&job, b"a/b/f"), Brings::Maybe);
        let file = StageJob::new(Direction::In, [path, b"/a/g.log"].concat(), "/in/x");
        assert_eq!(destination(&file, false), Ok(Destination { dir: b"/in".to_vec(), only: Some(b"x".to_vec()) }));
        let missing = StageJob::new(Direction::In, [path, b"/z"].concat(), "/in/x");
        assert!(destination(&missing, false).is_err());
    }

    #[test]
    fn what_has_failed_is_named_by_its_place() {
        let failed = EntryRecord::not_attempted(&entry(b"f"), "cancelled");
        let record = Record::Entries {
            job: 0,
            source_dir: b"/pfs".to_vec(),
            target_dir: b"/in/a".to_vec(),
            entries: vec![failed],
        };
        assert_eq!(not_brought(&[item::encode(&record), b"?".to_vec()]), [b"/in/a/f".to_vec()]);
    }
}
