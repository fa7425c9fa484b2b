//! The bodies of the queue's items and of records. All nodes of an instance run the same build, so there is one version,
//! checked by its number.

use burstfs_types::{Ino, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::EntryError;
use crate::spread::Spread;

const VERSION: u8 = 1;

/// Bytes that are no item or record of this build.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("not an item or record of this version of the stager")]
pub(crate) struct Undecodable;

/// One piece of work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Position in the list of jobs.
    pub(crate) job: u16,
    /// Which attempt at draining: part of temporary names.
    pub(crate) attempt: u32,
    pub(crate) step: Step,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Resolve source and destination. `is_published`: an earlier attempt has put all of a directory there at once.
    Start { is_published: bool },
    /// List a directory, from some point on.
    List { dir: Dir, from: From },
    /// Copy entries of a directory.
    Copy(Copy),
    /// Go on with a list of names, from a byte of the file on. `dir` is the root of both sides.
    Names { dir: Dir, at: u64, is_nul: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum From {
    /// The first page. `is_new`: the target directory was made just now and is empty.
    Beginning { is_new: bool },
    /// A listing of the instance goes on behind a cookie.
    Cookie { cookie: u64, is_new: bool },
    /// A listing of the PFS goes on in this node's open stream; if that is gone, from the beginning.
    Stream { number: u64, is_new: bool },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) dir: Dir,
    /// The target directory was empty before this attempt: nothing to look for there.
    pub(crate) is_new: bool,
    pub(crate) how: How,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum How {
    /// Small entries; large files and hard links that turn up become items of their own.
    Batch,
    /// One large file.
    Alone,
    /// Names of files that have several: one at a time, all of a group on one node.
    Linked,
    /// One file whose bytes are on several nodes, out of the instance: the next of its stripes.
    Spread(Box<Spread>),
}

/// A directory on both sides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Dir {
    /// Absolute path of the tree's root on the PFS; links in it are followed.
    pub(crate) pfs_root: Vec<u8>,
    /// Path of the tree's root in the instance, for people.
    pub(crate) instance_root: Vec<u8>,
    /// Below both; empty for the root itself.
    pub(crate) below: Vec<u8>,
    /// In the instance.
    pub(crate) ino: Ino,
}

impl Dir {
    pub(crate) fn child(&self, name: &[u8], ino: Ino) -> Dir {
        Dir { below: join(&self.below, name), ino, ..self.clone() }
    }

    pub(crate) fn pfs_path(&self) -> Vec<u8> {
        join(&self.pfs_root, &self.below)
    }

    pub(crate) fn instance_path(&self) -> Vec<u8> {
        join(&self.instance_root, &self.below)
    }
}

/// `a/b`, where either may be empty.
pub(crate) fn join(a: &[u8], b: &[u8]) -> Vec<u8> {
    if a.is_empty() || b.is_empty() || a.ends_with(b"/") {
        return [a, b].concat();
    }
    [a, b"/", b].concat()
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    /// The target's name where it differs.
    pub(crate) target: Option<Vec<u8>>,
    /// In the instance, when that is the source.
    pub(crate) ino: Option<Ino>,
    pub(crate) kind: EntryKind,
    /// Bytes that were counted as found already.
    pub(crate) counted: Option<u64>,
    /// False when the MDS knows of no change since a round has drained it.
    pub(crate) is_changed: bool,
}

impl Entry {
    pub(crate) fn target_name(&self) -> &[u8] {
        self.target.as_deref().unwrap_or(&self.name)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink,
    /// Neither; or not known before it is looked at.
    Other,
}

impl EntryKind {
    pub(crate) fn text(self) -> &'static str {
        match self {
            EntryKind::File => "file",
            EntryKind::Directory => "directory",
            EntryKind::Symlink => "symlink",
            EntryKind::Other => "other",
        }
    }
}

/// What came of work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    /// A job's source was found. With it, where its copy is made when it appears at once, and where it then goes.
    Started { job: u16, publication: Option<Publication> },
    /// A job could not begin.
    NotStarted { job: u16, is_source_missing: bool, reason: String, errno: Option<i32> },
    /// A directory's attributes, to be set when all below it is done.
    Directory(DirectoryDone),
    /// Announces what an item found: entries and directories that will have records later.
    Announced { job: u16, entries: u64, dirs: u64 },
    /// A directory was listed to its end.
    Listed { job: u16 },
    /// In a round: files that are to be drained yet, since they have changed, or may change.
    Changed { job: u16, files: u64, bytes: u64 },
    /// Entries with their fate.
    Entries { job: u16, source_dir: Vec<u8>, target_dir: Vec<u8>, entries: Vec<EntryRecord> },
}

/// A directory that appears at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Publication {
    /// Where it is made.
    pub(crate) beside: Vec<u8>,
    /// Where it appears.
    pub(crate) at: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DirectoryDone {
    pub(crate) job: u16,
    pub(crate) dir: Dir,
    pub(crate) mode: Option<u16>,
    pub(crate) times: Option<(Timestamp, Timestamp)>,
    pub(crate) not_kept: Kept,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct EntryRecord {
    /// Empty for the directory itself.
    pub(crate) name: Vec<u8>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) kind: EntryKind,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) checksum: Option<u128>,
    pub(crate) state: EntryState,
    pub(crate) not_kept: Kept,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum EntryState {
    Copied,
    Unchanged,
    Failed {
        reason: String,
        errno: Option<i32>,
    },
    NotAttempted {
        reason: String,
    },
    /// `when=manual`, and nobody has asked for it since it changed; or `on=`, and the job had another end.
    NotAsked,
}

/// What of an entry could not be carried over (or, while copying: shall not be).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) mode: bool,
    pub(crate) times: bool,
    pub(crate) owner: bool,
    pub(crate) acl: bool,
    pub(crate) xattr: bool,
    pub(crate) hardlinks: bool,
}

impl Kept {
    /// The `preserve=` words.
    pub(crate) fn words(self) -> impl Iterator<Item = &'static str> {
        [
            (self.mode, "mode"),
            (self.times, "times"),
            (self.owner, "owner"),
            (self.acl, "acl"),
            (self.xattr, "xattr"),
            (self.hardlinks, "hardlinks"),
        ]
        .into_iter()
        .filter_map(|(is_lost, word)| is_lost.then_some(word))
    }

    pub(crate) fn or(self, other: Kept) -> Kept {
        Kept {
            mode: self.mode | other.mode,
            times: self.times | other.times,
            owner: self.owner | other.owner,
            acl: self.acl | other.acl,
            xattr: self.xattr | other.xattr,
            hardlinks: self.hardlinks | other.hardlinks,
        }
    }
}

impl EntryRecord {
    pub(crate) fn failed(entry: &Entry, error: &EntryError) -> EntryRecord {
        let errno = error.errno().map(|errno| errno.0);
        EntryRecord::not_copied(entry, EntryState::Failed { reason: error.to_string(), errno })
    }

    pub(crate) fn not_attempted(entry: &Entry, reason: &str) -> EntryRecord {
        EntryRecord::not_copied(entry, EntryState::NotAttempted { reason: reason.to_owned() })
    }

    /// The record of a directory itself.
    pub(crate) fn of_directory(state: EntryState) -> EntryRecord {
        let (name, kind) = (Vec::new(), EntryKind::Directory);
        let entry = Entry { name, target: None, ino: None, kind, counted: None, is_changed: true };
        EntryRecord::not_copied(&entry, state)
    }

    /// The record of an entry that was not copied.
    pub(crate) fn not_copied(entry: &Entry, state: EntryState) -> EntryRecord {
        EntryRecord {
            name: entry.name.clone(),
            target: entry.target.clone(),
            kind: entry.kind,
            size: entry.counted.unwrap_or(0),
            mtime: Timestamp::default(),
            checksum: None,
            state,
            not_kept: Kept::default(),
        }
    }
}

/// The bytes of an item or record.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Encoding these types to memory has no way to fail; an empty body would be refused by `decode` and counted.
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

/// Reads an item or record.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Undecodable> {
    match body.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| Undecodable),
        _ => Err(Undecodable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_round_trip_and_garbage_is_refused() {
        let work = Work { job: 3, attempt: 7, step: Step::Start { is_published: false } };
        assert_eq!(decode(&encode(&work)), Ok(work));
        assert_eq!(decode::<Work>(b""), Err(Undecodable));
        assert_eq!(decode::<Work>(&[VERSION, 0xff, 0xff, 0xff]), Err(Undecodable));
    }

    #[test]
    fn joins_have_one_slash() {
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"/x", b""), b"/x");
        assert_eq!(join(b"", b"a"), b"a");
        assert_eq!(join(b"a", b"b"), b"a/b");
    }
}
