//! What this node has drained while the job runs: for each target's path which version of which file it is.
//!
//! Owns the node's file `<stage_dir>/drained`: append-only frames as the journal's, not synced: a process's death loses
//! nothing, and a node's death loses the data, too. The last word about a path counts.
//!
//! A version is the source's size and times, of which a user can set all but ctime. It is recorded only of a file that nobody
//! had open for writing while it was read, that did not change meanwhile, and whose change the MDS has forgotten since
//! (`drain::Drain::settle`). So a file is as it was drained if the MDS knows of no change and its version is the same: what has
//! written through a mapping after the last close has moved ctime.
//!
//! Invariants: a path is named here before a copy of this job gets that name at the target, so that a target's size and time,
//! which the copy has made, are never taken for a proof.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::item;
use crate::journal::{frame_bytes, read_frame};
use crate::tree::Meta;

/// The file's name.
const FILE: &str = "drained";

/// One version of a file of the instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Version {
    ino: u64,
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Version {
    fn of(meta: &Meta) -> Version {
        Version { ino: meta.ino, size: meta.size, mtime: meta.mtime, ctime: meta.ctime }
    }
}

/// A word about a target's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Word {
    /// Some version is there, or will be in a moment.
    Touched,
    /// This version is there, durable and verified.
    Drained(Version, Option<u128>),
}

/// What this node has drained while the job runs. Every method may be called from any thread.
#[derive(Debug)]
pub struct DrainedFiles {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    words: HashMap<u128, Word>,
}

impl DrainedFiles {
    /// Opens or makes the file in `stage_dir`.
    pub fn open(stage_dir: &Path) -> io::Result<DrainedFiles> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(stage_dir.join(FILE))?;
        let (mut words, mut good) = (HashMap::new(), 0);
        let mut reader = BufReader::new(&mut file);
        while let Some(body) = read_frame(&mut reader)? {
            let Ok(frame) = item::decode::<Vec<(u128, Word)>>(&body) else { break };
            words.extend(frame);
            good += body.len() as u64 + 12;
        }
        file.set_len(good)?;
        Ok(DrainedFiles { inner: Mutex::new(Inner { file, words }) })
    }

    /// Whether an earlier life has left the file in `stage_dir`.
    pub fn was_in(stage_dir: &Path) -> bool {
        stage_dir.join(FILE).exists()
    }

    /// The paths with these hashes are about to get copies.
    pub(crate) fn touch(&self, paths: impl Iterator<Item = u128>) -> io::Result<()> {
        self.append(paths.map(|path| (path, Word::Touched)).collect())
    }

    /// These files are at the target, as they were when they had these attributes.
    pub(crate) fn drained(&self, files: &[(u128, Meta, Option<u128>)]) -> io::Result<()> {
        let word =
            |(path, meta, checksum): &(u128, Meta, Option<u128>)| (*path, Word::Drained(Version::of(meta), *checksum));
        self.append(files.iter().map(word).collect())
    }

    /// The checksum of what is at the target, if it is what `source` is now. The MDS must know of no change to it.
    pub(crate) fn find(&self, path: u128, source: &Meta) -> Option<Option<u128>> {
        match self.inner().words.get(&path)? {
            Word::Drained(version, checksum) if *version == Version::of(source) => Some(*checksum),
            Word::Drained(..) | Word::Touched => None,
        }
    }

    /// Whether this node has put a copy there, or was about to.
    pub(crate) fn has_touched(&self, path: u128) -> bool {
        self.inner().words.contains_key(&path)
    }

    fn append(&self, words: Vec<(u128, Word)>) -> io::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let frame = frame_bytes(&item::encode(&words));
        let mut inner = self.inner();
        inner.file.write_all(&frame)?;
        inner.words.extend(words);
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    fn meta(size: u64, ctime: i64) -> Meta {
        let time = |secs| Timestamp { secs, nanos: 5 };
        Meta {
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 1,
            gid: 1,
            size,
            blocks: 8,
            atime: time(0),
            mtime: time(1),
            ctime: time(ctime),
            dev: 0,
            ino: 7,
        }
    }

    #[test]
    fn the_last_word_counts_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!DrainedFiles::was_in(dir.path()));
        let files = DrainedFiles::open(dir.path()).unwrap();
        files.touch([1, 2].into_iter()).unwrap();
        assert!(files.has_touched(1) && files.find(1, &meta(3, 4)).is_none());
        files.drained(&[(1, meta(3, 4), Some(9)), (2, meta(5, 4), None)]).unwrap();
        files.touch([2].into_iter()).unwrap();
        drop(files);
        OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap().write_all(&[9, 0, 0]).unwrap();
        let files = DrainedFiles::open(dir.path()).unwrap();
        assert_eq!(files.find(1, &meta(3, 4)), Some(Some(9)));
        assert_eq!(files.find(1, &meta(3, 5)), None, "its ctime has moved");
        assert_eq!(files.find(2, &meta(5, 4)), None, "a later copy may be there");
        assert!(files.has_touched(2) && !files.has_touched(3));
    }
}
