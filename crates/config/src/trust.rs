//! Whether root can believe that an administrator wrote a file.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::Problem;

const STICKY: u32 = 0o1000;

/// `file` is what `path` named when it was opened. The file must be root's alone to write, and so must be every directory
/// on the way, since who can write a directory can put another file in the place of one in it. In a sticky directory
/// nobody can do that to root's files.
pub(crate) fn check(file: &File, path: &Path) -> Result<(), Problem> {
    let metadata = file.metadata().map_err(Problem::Unreadable)?;
    if !metadata.is_file() {
        return Err(Problem::Untrusted { path: path.to_owned(), reason: "is no regular file" });
    }
    let place = path.canonicalize().map_err(Problem::Unreadable)?;
    check_one(&place, &metadata, false)?;
    for directory in place.ancestors().skip(1) {
        let metadata = directory.metadata().map_err(Problem::Unreadable)?;
        check_one(directory, &metadata, metadata.mode() & STICKY != 0)?;
    }
    Ok(())
}

fn check_one(path: &Path, metadata: &Metadata, is_sticky: bool) -> Result<(), Problem> {
    match distrust(metadata.uid(), metadata.gid(), metadata.mode(), is_sticky) {
        None => Ok(()),
        Some(reason) => Err(Problem::Untrusted { path: path.to_owned(), reason }),
    }
}

fn distrust(uid: u32, gid: u32, mode: u32, is_sticky: bool) -> Option<&'static str> {
    if uid != 0 {
        return Some("does not belong to root");
    }
    if is_sticky {
        return None;
    }
    if mode & 0o020 != 0 && gid != 0 {
        return Some("can be written by its group");
    }
    (mode & 0o002 != 0).then_some("can be written by everybody")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_own_files_are_trusted() {
        assert_eq!(distrust(0, 0, 0o100_644, false), None);
        assert_eq!(distrust(0, 50, 0o100_644, false), None);
        assert_eq!(distrust(0, 0, 0o40_775, false), None);
        assert!(distrust(0, 50, 0o100_664, false).is_some());
        assert!(distrust(0, 0, 0o100_646, false).is_some());
        assert!(distrust(7001, 0, 0o100_644, false).is_some());
        assert_eq!(distrust(0, 0, 0o41_777, true), None);
        assert!(distrust(7001, 0, 0o41_777, true).is_some());
    }
}
