//! Directories and files below directories that only root can change.
//!
//! Every path that root touches is opened component by component without following links, and each directory on the
//! way must be one that nobody but root could have put there. What lies below is then named relative to a descriptor.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, NodeError};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that only root can write, with its path for messages and for what needs a path.
#[derive(Debug)]
pub(crate) struct TrustedDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl TrustedDir {
    /// Opens an absolute path. The directories above may also be root's with the sticky bit: an entry of root's in
    /// there cannot be replaced by others.
    pub(crate) fn open(path: &Path) -> Result<TrustedDir, NodeError> {
        let mut dir = root()?;
        for name in names(path)? {
            dir = dir.step(name)?;
        }
        dir.require_private()?;
        Ok(dir)
    }

    /// Opens an absolute path whose last component is made (0755) when it is not there.
    pub(crate) fn open_or_make(path: &Path) -> Result<TrustedDir, NodeError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return TrustedDir::open(path) };
        let mut dir = root()?;
        for part in names(parent)? {
            dir = dir.step(part)?;
        }
        dir.make(name.as_ref(), 0o755)?;
        let dir = dir.step(name.as_ref())?;
        dir.require_private()?;
        Ok(dir)
    }

    /// The directory `name` in here, which must be root's alone too.
    pub(crate) fn open_dir(&self, name: &str) -> Result<TrustedDir, NodeError> {
        let dir = self.step(name.as_ref())?;
        dir.require_private()?;
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn step(&self, name: &Path) -> Result<TrustedDir, NodeError> {
        let path = self.path.join(name);
        let fd = match rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(NodeError::Untrusted { path, why: "is not a directory, or is a symbolic link" });
            }
            other => other.context(|| format!("open {}", path.display()))?,
        };
        let dir = TrustedDir { fd, path };
        let stat = dir.stat()?;
        let others_write = stat.st_mode & 0o022 != 0;
        if stat.st_uid != 0 || (others_write && stat.st_mode & 0o1000 == 0) {
            return Err(NodeError::Untrusted { path: dir.path, why: "can be written by others than root" });
        }
        Ok(dir)
    }

    fn require_private(&self) -> Result<(), NodeError> {
        let stat = self.stat()?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            let path = self.path.clone();
            return Err(NodeError::Untrusted { path, why: "can be written by others than root" });
        }
        Ok(())
    }

    fn stat(&self) -> Result<Stat, NodeError> {
        rustix::fs::fstat(&self.fd).context(|| format!("stat {}", self.path.display()))
    }

    /// Makes `name`; `false` when something of that name is there.
    pub(crate) fn make(&self, name: &Path, mode: u32) -> Result<bool, NodeError> {
        let what = || format!("make {}", self.path.join(name).display());
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(errno).context(what),
        }
        // The mode is what was asked for, whatever the umask. Only root can have replaced the name meanwhile.
        rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode), AtFlags::empty()).context(what)?;
        Ok(true)
    }

    /// Makes the directory `name` and gives it away.
    pub(crate) fn make_for(&self, name: &str, mode: u32, uid: u32, gid: u32) -> Result<(), NodeError> {
        self.make(name.as_ref(), 0o700)?;
        let what = || format!("hand over {}", self.path.join(name).display());
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty()).context(what)?;
        let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).context(what)?;
        rustix::fs::fchown(&fd, Some(owner.0), Some(owner.1)).context(what)
    }

    /// The names of the directories in here.
    pub(crate) fn directories(&self) -> Result<Vec<String>, NodeError> {
        let what = || format!("list {}", self.path.display());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).context(what)? {
            let entry = entry.context(what)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) && name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens a file of root's in here.
    pub(crate) fn open_file(&self, name: &str, flags: OFlags, mode: u32) -> Result<File, NodeError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode));
        Ok(File::from(fd.context(|| format!("open {}", self.path.join(name).display()))?))
    }

    /// Writes `value` so that a reader sees all of it or what was there before.
    pub(crate) fn write_json<T: Serialize>(&self, name: &str, value: &T, mode: u32) -> Result<(), NodeError> {
        let what = || format!("write {}", self.path.join(name).display());
        let mut bytes = serde_json::to_vec(value).map_err(std::io::Error::from).context(what)?;
        bytes.push(b'\n');
        let temporary = format!("{name}.new");
        self.remove_file(&temporary)?;
        let mut file = self.open_file(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
        file.write_all(&bytes).context(what)?;
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).context(what)
    }

    /// Reads what [`TrustedDir::write_json`] wrote; `None` when it is not there.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, NodeError> {
        let file = match self.open_file(name, OFlags::RDONLY, 0) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let path = || self.path.join(name).display().to_string();
        let mut bytes = Vec::new();
        file.take(8 << 20).read_to_end(&mut bytes).context(|| format!("read {}", path()))?;
        let value = serde_json::from_slice(&bytes).map_err(|source| NodeError::Damaged { path: path(), source })?;
        Ok(Some(value))
    }

    /// Removes a file; it need not be there.
    pub(crate) fn remove_file(&self, name: &str) -> Result<(), NodeError> {
        self.unlink(name, AtFlags::empty())
    }

    /// Removes an empty directory; it need not be there.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<(), NodeError> {
        self.unlink(name, AtFlags::REMOVEDIR)
    }

    fn unlink(&self, name: &str, flags: AtFlags) -> Result<(), NodeError> {
        match rustix::fs::unlinkat(&self.fd, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).context(|| format!("remove {}", self.path.join(name).display())),
        }
    }

    /// Bytes that root's users may still write here: what `df` calls available.
    pub(crate) fn available_bytes(&self) -> Result<u64, NodeError> {
        let stat = rustix::fs::fstatvfs(&self.fd).context(|| format!("statfs {}", self.path.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl AsFd for TrustedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn root() -> Result<TrustedDir, NodeError> {
    let fd = rustix::fs::openat(CWD, "/", DIRECTORY, Mode::empty()).context(|| "open /".to_owned())?;
    Ok(TrustedDir { fd, path: PathBuf::from("/") })
}

/// The components of an absolute path without `.` and `..`.
fn names(path: &Path) -> Result<Vec<&Path>, NodeError> {
    let mut components = path.components();
    let plain = |component| match component {
        Component::Normal(name) => Some(Path::new(name)),
        _ => None,
    };
    let refused = || NodeError::Untrusted { path: path.to_owned(), why: "is not an absolute path without \"..\"" };
    if components.next() != Some(Component::RootDir) {
        return Err(refused());
    }
    components.map(|component| plain(component).ok_or_else(refused)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn refuses_what_others_control() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        std::fs::create_dir_all(path("ours/sub")).unwrap();
        assert!(TrustedDir::open(&path("ours/sub")).is_ok());
        symlink(path("ours"), path("link")).unwrap();
        assert!(matches!(TrustedDir::open(&path("link/sub")), Err(NodeError::Untrusted { .. })));
        std::fs::set_permissions(path("ours"), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(TrustedDir::open(&path("ours")), Err(NodeError::Untrusted { .. })));
        assert!(matches!(TrustedDir::open(&path("ours/sub")), Err(NodeError::Untrusted { .. })));
        std::fs::set_permissions(path("ours"), PermissionsExt::from_mode(0o1777)).unwrap();
        assert!(TrustedDir::open(&path("ours/sub")).is_ok());
        assert!(TrustedDir::open(&path("ours/../ours")).is_err());
        assert!(TrustedDir::open(Path::new("relative")).is_err());
        assert!(TrustedDir::open(&path("absent")).unwrap_err().is_not_found());
    }
}
