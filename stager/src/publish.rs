//! A directory that appears at its destination at once (`atomic=dir`): it is made beside it, under a name that says of which job,
//! and renamed when all of it is there.
//!
//! What is at the destination already is exchanged with it and kept beside it, as `<name>.before-<job>`: nothing at the target is
//! ever removed. Where the file system cannot exchange two names there is a moment with neither.
//!
//! A crash before the rename leaves the directory under its own name, where the next attempt goes on; a crash after it leaves the
//! whole. A marker in the stage directory tells the next attempt that it was published.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{EntryError, OsError};
use crate::item::{Publication, join};
use crate::pfs;
use crate::start::split;

/// Where a directory that is to appear at `at` is made; `None` for a root, which cannot be renamed to.
pub(crate) fn beside(at: &[u8], job_id: u32) -> Option<Vec<u8>> {
    let (dir, name) = split(at);
    (!name.is_empty()).then(|| join(dir, &[b".", name, format!(".burstfs-{job_id}-dir").as_bytes()].concat()))
}

/// Publishes. What was there before is then at the path that is returned.
pub(crate) fn publish(publication: &Publication, job_id: u32) -> Result<Option<Vec<u8>>, EntryError> {
    let failed = |errno: Errno| EntryError::target("publish")(errno.into());
    let Publication { beside, at } = publication;
    let rename = |from: &[u8], to: &[u8], flags| renameat_with(CWD, from, CWD, to, flags);
    let before = [at.as_slice(), format!(".before-{job_id}").as_bytes()].concat();
    let replaced = match rename(beside, at, RenameFlags::empty()) {
        // There was nothing, or an empty directory.
        Ok(()) => None,
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            replace(beside, at, &before, rename).map_err(failed)?;
            Some(before)
        }
        Err(errno) => return Err(failed(errno)),
    };
    let parent = pfs::open_root(split(at).0).map_err(EntryError::target("publish"))?;
    pfs::sync(parent.as_fd()).map_err(EntryError::target("publish"))?;
    Ok(replaced)
}

fn replace(
    beside: &[u8],
    at: &[u8],
    before: &[u8],
    rename: impl Fn(&[u8], &[u8], RenameFlags) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match rename(beside, at, RenameFlags::EXCHANGE) {
        // It has the old one's place now.
        Ok(()) => rename(beside, before, RenameFlags::empty()),
        Err(Errno::INVAL | Errno::NOSYS) => {
            rename(at, before, RenameFlags::empty())?;
            rename(beside, at, RenameFlags::empty())
        }
        Err(errno) => Err(errno),
    }
}

fn marker(stage_dir: &Path, job: u16) -> PathBuf {
    stage_dir.join(format!("published.{job}"))
}

/// Whether an earlier attempt has published the directory of `job`.
pub(crate) fn is_marked(stage_dir: &Path, job: u16) -> bool {
    marker(stage_dir, job).exists()
}

/// Notes that it is published.
pub(crate) fn mark(stage_dir: &Path, job: u16) -> Result<(), OsError> {
    let raw = |error: std::io::Error| OsError(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
    File::create(marker(stage_dir, job)).and_then(|file| file.sync_all()).map_err(raw)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn what_was_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("run").as_os_str().as_bytes().to_vec();
        let publication = Publication { beside: beside(&at, 7).unwrap(), at: at.clone() };
        assert!(publication.beside.ends_with(b"/.run.burstfs-7-dir"));
        let path = |name: &str| dir.path().join(name);
        let make = |text: &str| {
            fs::create_dir(path(".run.burstfs-7-dir")).unwrap();
            fs::write(path(".run.burstfs-7-dir/f"), text).unwrap();
        };
        make("first");
        assert_eq!(publish(&publication, 7), Ok(None));
        make("second");
        let before = publish(&publication, 7).unwrap().unwrap();
        assert!(before.ends_with(b"/run.before-7"));
        assert_eq!(fs::read_to_string(path("run/f")).unwrap(), "second");
        assert_eq!(fs::read_to_string(path("run.before-7/f")).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(beside(b"/", 7), None);
    }
}
