//! Removal of a tree that a user made: fd-relative, without following anything out of it.
//!
//! Concurrency: the user may still have processes with descriptors into the tree. The top is taken away from him first,
//! so that no path leads in any more; what such a process adds meanwhile is found by going round again, a bounded number
//! of times.
//!
//! Depth: a tree may be deeper than there are descriptors, or stack. A directory at [`DEPTH_MAX`] is moved up to the top
//! and removed from there.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags};
use rustix::io::Errno;

/// How deep the descent goes before it flattens.
const DEPTH_MAX: usize = 64;
/// How often a tree that somebody adds to is gone through again.
const ROUNDS_MAX: usize = 16;
/// Bytes of names that are read at once.
const LISTING_BYTES: usize = 32 << 10;

/// Removes the directory `name` in `parent` with everything in it. It need not be there.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    rustix::fs::fchown(&top, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
    rustix::fs::fchmod(&top, Mode::RWXU)?;
    let mut sweep = Sweep { top: top.as_fd(), moved: 0 };
    let mut fruitless = 0;
    while fruitless < ROUNDS_MAX {
        let moved = sweep.moved;
        // A descriptor of its own: a directory's is read once.
        sweep.empty(open_directory(top.as_fd(), c".")?.as_fd(), 0)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // What was too deep is in the top now, or somebody has added to it.
            Err(Errno::NOTEMPTY | Errno::EXIST) => fruitless += usize::from(sweep.moved == moved),
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::NOTEMPTY)
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

struct Sweep<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
}

impl Sweep<'_> {
    /// Removes what is in `dir`, except what is too deep, which is in the top afterwards.
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        let mut directories = Vec::new();
        let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            // Sub-directories wait until the listing is read: one buffer less for each level of the descent.
            if entry.file_type() == FileType::Directory || !unlink(dir, name)? {
                directories.push(name.to_owned());
            }
        }
        drop(buffer);
        directories.iter().try_for_each(|name| self.remove_directory(dir, name, depth + 1))
    }

    fn remove_directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Errno> {
        // Many are empty: ask the cheap question first.
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR) => return unlink(parent, name).map(drop),
            Err(errno) => return Err(errno),
        }
        if depth >= DEPTH_MAX {
            return self.move_up(parent, name);
        }
        let dir = match open_directory(parent, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return unlink(parent, name).map(drop),
            Err(errno) => return Err(errno),
        };
        self.empty(dir.as_fd(), depth)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // Somebody added to it: the next round finds it.
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let target = format!(".deep.{}", self.moved);
            match rustix::fs::renameat_with(parent, name, self.top, &target, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Removes what is not a directory; `false` when it is one.
fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn remove(top: &tempfile::TempDir, name: &CStr) -> Result<(), Errno> {
        remove_tree(fs::File::open(top.path()).unwrap().as_fd(), name)
    }

    #[test]
    fn links_out_of_the_tree_are_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        fs::create_dir_all(path("keep/sub")).unwrap();
        fs::write(path("keep/sub/file"), "x").unwrap();
        fs::create_dir_all(path("data/a/b")).unwrap();
        symlink(path("keep"), path("data/link")).unwrap();
        symlink(path("keep/sub"), path("data/a/link")).unwrap();
        symlink("/", path("data/a/b/root")).unwrap();
        fs::hard_link(path("keep/sub/file"), path("data/hard")).unwrap();
        assert_eq!(remove(&top, c"data"), Ok(()));
        assert!(!path("data").exists());
        assert_eq!(fs::read_to_string(path("keep/sub/file")).unwrap(), "x");
        assert_eq!(remove(&top, c"data"), Ok(()), "idempotent");
    }

    #[test]
    fn the_top_must_not_be_a_link() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("keep")).unwrap();
        symlink("keep", top.path().join("data")).unwrap();
        assert!(remove(&top, c"data").is_err());
        assert!(top.path().join("keep").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("data")).unwrap();
        let mut dir: OwnedFd = fs::File::open(top.path().join("data")).unwrap().into();
        for _ in 0..2_200 {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&dir, ".deep.1", Mode::RWXU).unwrap();
            dir = open_directory(dir.as_fd(), c"d").unwrap();
        }
        drop(dir);
        assert_eq!(remove(&top, c"data"), Ok(()));
        assert!(!top.path().join("data").exists());
    }

    #[test]
    fn many_entries_go() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["data/x", "data/y"] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
            for n in 0..3_000 {
                fs::write(top.path().join(dir).join(format!("{n:0100}")), "").unwrap();
            }
        }
        assert_eq!(remove(&top, c"data"), Ok(()));
        assert!(!top.path().join("data").exists());
    }
}
