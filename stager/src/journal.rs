//! One node's journal of a direction: what it has copied, so that a restarted daemon neither says less in the receipt
//! than is true nor leaves temporaries.
//!
//! Append-only frames in `<stage_dir>/<direction>.journal`: length, XXH3 of the body, body. Not synced: a process's death
//! loses nothing, and what a node's death loses is copied again. A torn frame ends the journal.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use burstfs_types::Timestamp;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::item::{self, Dir};

/// Longest frame that is believed.
const FRAME_MAX: u32 = 1 << 20;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Frame {
    /// Temporaries may be in this directory from now on.
    Began(Dir),
    /// No more.
    Ended(Dir),
    /// These files are at the target, durable and verified.
    Copied(Vec<Copied>),
}

/// A file that is at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Copied {
    /// Of the target's path.
    pub(crate) path_hash: u128,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) checksum: Option<u128>,
}

/// The hash of a target's path, as [`Copied`] has it.
pub(crate) fn path_hash(path: &[u8]) -> u128 {
    xxh3_128(path)
}

pub(crate) struct Journal {
    file: Mutex<File>,
    earlier: HashMap<u128, Copied>,
}

impl Journal {
    /// Opens or makes the journal; with it come the directories that an earlier life may have left temporaries in.
    pub(crate) fn open(path: &Path) -> io::Result<(Journal, Vec<Dir>)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut earlier = HashMap::new();
        let mut open_dirs: Vec<Dir> = Vec::new();
        let good = read_frames(&mut file, |frame| match frame {
            Frame::Began(dir) => open_dirs.push(dir),
            // One of the batches of this directory; others may be under way.
            Frame::Ended(dir) => {
                if let Some(at) = open_dirs.iter().position(|open| *open == dir) {
                    open_dirs.swap_remove(at);
                }
            }
            Frame::Copied(files) => earlier.extend(files.into_iter().map(|copied| (copied.path_hash, copied))),
        })?;
        file.set_len(good)?;
        Ok((Journal { file: Mutex::new(file), earlier }, open_dirs))
    }

    pub(crate) fn began(&self, dir: &Dir) -> io::Result<()> {
        self.append(&Frame::Began(dir.clone()))
    }

    pub(crate) fn ended(&self, dir: &Dir) -> io::Result<()> {
        self.append(&Frame::Ended(dir.clone()))
    }

    pub(crate) fn copied(&self, files: Vec<Copied>) -> io::Result<()> {
        if files.is_empty() { Ok(()) } else { self.append(&Frame::Copied(files)) }
    }

    /// What an earlier life copied to this path, if it did.
    pub(crate) fn earlier(&self, path_hash: u128) -> Option<&Copied> {
        self.earlier.get(&path_hash)
    }

    /// Whether there was an earlier life.
    pub(crate) fn has_earlier(&self) -> bool {
        !self.earlier.is_empty()
    }

    fn append(&self, frame: &Frame) -> io::Result<()> {
        let frame = frame_bytes(&item::encode(frame));
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame)
    }
}

/// `body` with its length and checksum in front.
pub(crate) fn frame_bytes(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(body.len() + 12);
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&xxh3_64(body).to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// The next frame's body. `None` at the end, and at a frame that is torn.
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 12];
    if !fill(from, &mut head)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    if len > FRAME_MAX {
        return Ok(None);
    }
    let mut body = vec![0; len as usize];
    if !fill(from, &mut body)? || xxh3_64(&body).to_le_bytes() != head[4..12] {
        return Ok(None);
    }
    Ok(Some(body))
}

fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hands each frame to `each`; the length of the good part.
fn read_frames(file: &mut File, mut each: impl FnMut(Frame)) -> io::Result<u64> {
    file.rewind()?;
    let mut reader = BufReader::new(file);
    let mut good = 0;
    while let Some(body) = read_frame(&mut reader)? {
        let Ok(frame) = item::decode(&body) else { break };
        each(frame);
        good += body.len() as u64 + 12;
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_tail_is_dropped_and_what_was_copied_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.journal");
        let copied = Copied { path_hash: 7, size: 3, mtime: Timestamp { secs: 1, nanos: 2 }, checksum: Some(9) };
        let place = |below: &[u8]| Dir {
            pfs_root: b"/t".to_vec(),
            instance_root: b"/".to_vec(),
            below: below.to_vec(),
            ino: burstfs_types::Ino::ROOT,
        };
        {
            let (journal, left) = Journal::open(&path).unwrap();
            assert!(left.is_empty());
            journal.began(&place(b"a")).unwrap();
            journal.copied(vec![copied]).unwrap();
            journal.ended(&place(b"a")).unwrap();
            // Two batches of one directory, of which one has ended.
            journal.began(&place(b"b")).unwrap();
            journal.began(&place(b"b")).unwrap();
            journal.ended(&place(b"b")).unwrap();
        }
        let whole = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[5, 0, 0, 0, 1, 2]).unwrap();
        let (journal, left) = Journal::open(&path).unwrap();
        assert_eq!(left, [place(b"b")]);
        assert_eq!(journal.earlier(7), Some(&copied));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), whole);
    }
}
