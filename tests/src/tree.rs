//! Trees of files: made to be awkward, and compared by everything that has to survive staging.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

/// What a tree of files is, by relative path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    kind: Kind,
    mode: u32,
    mtime: (i64, i64),
    uid: u32,
    gid: u32,
}

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(PathBuf),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Directory => write!(f, "directory"),
            Kind::File(bytes) => write!(f, "file of {} bytes", bytes.len()),
            Kind::Symlink(target) => write!(f, "symlink to {}", target.display()),
        }
    }
}

impl Tree {
    /// Reads the tree below `root`, without `root` itself.
    pub fn read(root: &Path) -> Result<Tree> {
        let mut entries = BTreeMap::new();
        collect(root, root, &mut entries)?;
        Ok(Tree(entries))
    }

    /// An error that names every difference to `other`.
    pub fn ensure_same(&self, other: &Tree, what: &str) -> Result<()> {
        let names = self.0.keys().chain(other.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let differs = |name: &&&PathBuf| self.0.get(**name) != other.0.get(**name);
        let lines: Vec<String> = names
            .iter()
            .filter(differs)
            .map(|name| format!("{}:\n  {:?}\n  {:?}", name.display(), self.0.get(*name), other.0.get(*name)))
            .collect();
        ensure!(lines.is_empty(), "{what} differ:\n{}", lines.join("\n"));
        Ok(())
    }

    /// Makes an awkward tree at `root`, which must not exist: sizes around the block's, modes, nanoseconds in the past,
    /// links, names. All of it belongs to `root`'s parent's owner.
    pub fn make(root: &Path) -> Result<Tree> {
        let owner = fs::metadata(root.parent().context("no parent")?)?.uid();
        fs::create_dir(root)?;
        for (index, size) in [0, 1, 4095, 4096, 65_537, 1 << 20, (5 << 20) + 3].into_iter().enumerate() {
            fill_file(&root.join(format!("size-{size}")), size, index as u64)?;
        }
        let deep = root.join("a/b/c/d");
        fs::create_dir_all(&deep)?;
        fs::create_dir(root.join("empty directory"))?;
        for name in ["ümläut and spaces", "-dash", "new\nline", &"n".repeat(255)] {
            fill_file(&deep.join(name), 100, 7)?;
        }
        for index in 0..50 {
            fill_file(&root.join("a").join(format!("many-{index}")), 3000 + index, index as u64)?;
        }
        symlink("size-1", root.join("link"))?;
        symlink("../../size-4096", root.join("a/b/up"))?;
        symlink("nowhere", root.join("dangling"))?;
        dress(root, owner)?;
        Tree::read(root)
    }
}

/// `size` bytes that differ from seed to seed and have no period.
pub fn bytes_of(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A file of [`bytes_of`].
pub fn fill_file(path: &Path, size: usize, seed: u64) -> Result<()> {
    Ok(File::create(path).with_context(|| path.display().to_string())?.write_all(&bytes_of(size, seed))?)
}

/// Owner, modes and times, children before parents, so that nothing done later changes them.
fn dress(path: &Path, owner: u32) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, Some(owner), Some(owner))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            dress(&entry?.path(), owner)?;
        }
    } else {
        chown(path, Some(owner), Some(owner))?;
    }
    let salt = path.as_os_str().len() as u64;
    let modes = if metadata.is_dir() { [0o755, 0o700, 0o750] } else { [0o644, 0o600, 0o755] };
    let mode = modes[usize::try_from(salt)? % modes.len()];
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + salt * 86_400, 123_456_789);
    File::open(path)?.set_times(FileTimes::new().set_modified(time))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn collect(root: &Path, dir: &Path, entries: &mut BTreeMap<PathBuf, Entry>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let kind = if metadata.is_dir() {
            collect(root, &path, entries)?;
            Kind::Directory
        } else if metadata.is_symlink() {
            Kind::Symlink(fs::read_link(&path)?)
        } else {
            Kind::File(fs::read(&path)?)
        };
        // A symlink's own times are kept by few tools and promised by none.
        let mtime = if metadata.is_symlink() { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) };
        let entry = Entry { kind, mode: metadata.mode() & 0o7777, mtime, uid: metadata.uid(), gid: metadata.gid() };
        entries.insert(path.strip_prefix(root)?.to_owned(), entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_itself_and_not_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = Tree::make(&dir.path().join("one")).unwrap();
        first.ensure_same(&Tree::read(&dir.path().join("one")).unwrap(), "the same").unwrap();
        fs::write(dir.path().join("one/size-1"), "x").unwrap();
        let changed = Tree::read(&dir.path().join("one")).unwrap();
        assert!(first.ensure_same(&changed, "it").unwrap_err().to_string().contains("size-1"));
    }
}
