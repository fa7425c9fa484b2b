//! Renames within this MDT: where all inodes are its own, and directories keep their parent, so that no rename can make a cycle.
//! All others are transactions (`crate::txn`).
//!
//! Cookies belong to names. A replaced name keeps its own, so that a listing in progress shows it once; a new name comes
//! last, so that a listing in progress shows the file at least once.

use burstfs_proto::mds::{Rename, RenameMode};
use burstfs_types::{Errno, FileKind, Ino};

use super::rmdir;
use crate::namespace::{Directory, Namespace, OpError};
use crate::record::Dentry;

pub(crate) fn rename(ns: &mut Namespace<'_>, request: &Rename) -> Result<(), OpError> {
    ns.needs_here(request.parent)?;
    ns.needs_here(request.new_parent)?;
    let mut parents = Parents::read(ns, request)?;
    let source = ns.dentry(request.parent, &request.name)?.ok_or(Errno::ENOENT)?;
    let target = ns.dentry(request.new_parent, &request.new_name)?;
    match (request.mode, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
        (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
        // Two names of one inode, or one name: nothing to do (`rename(2)`).
        (_, Some(target)) if target.ino == source.ino => return Ok(()),
        (RenameMode::Replace, Some(target)) => check_replaceable(source.kind, target.kind)?,
        (RenameMode::Exchange, Some(_)) | (_, None) => {}
    }
    let is_exchange = request.mode == RenameMode::Exchange;
    check_is_here(ns, &parents, source, target, is_exchange)?;
    match target {
        Some(target) if is_exchange => exchange(ns, &mut parents, request, (source, target))?,
        Some(target) => replace(ns, &mut parents, request, (source, target))?,
        None => {
            ns.remove_entry(&mut parents.old, &request.name, source);
            ns.add_entry(parents.target(), &request.new_name, source.ino, source.kind);
        }
    }
    parents.save(ns);
    touch_inode(ns, source.ino)
}

/// The two directories, which may be one.
struct Parents {
    old: Directory,
    other: Option<Directory>,
}

impl Parents {
    fn read(ns: &mut Namespace<'_>, request: &Rename) -> Result<Parents, OpError> {
        let old = ns.directory_with(request.parent, &request.name)?;
        let new = ns.directory_with(request.new_parent, &request.new_name)?;
        let other = if new.ino == old.ino { None } else { Some(new) };
        Ok(Parents { old, other })
    }

    fn target(&mut self) -> &mut Directory {
        self.other.as_mut().unwrap_or(&mut self.old)
    }

    fn save(self, ns: &mut Namespace<'_>) {
        ns.save_directory(self.old);
        if let Some(other) = self.other {
            ns.save_directory(other);
        }
    }
}

/// Says that the rename is one of several MDTs if it is, or needs the rename lock, which is the business of transactions.
fn check_is_here(
    ns: &Namespace<'_>,
    parents: &Parents,
    source: Dentry,
    target: Option<Dentry>,
    is_exchange: bool,
) -> Result<(), OpError> {
    ns.needs_here(source.ino)?;
    target.map_or(Ok(()), |target| ns.needs_here(target.ino))?;
    let is_directory = |dentry: &Dentry| dentry.kind == FileKind::Directory;
    let moves = is_directory(&source) || is_exchange && target.as_ref().is_some_and(is_directory);
    if parents.other.is_some() && moves { Err(OpError::Several) } else { Ok(()) }
}

/// Whether what is renamed may take the place of what is there.
pub(crate) fn check_replaceable(source: FileKind, target: FileKind) -> Result<(), Errno> {
    match (source == FileKind::Directory, target == FileKind::Directory) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        (true, true) | (false, false) => Ok(()),
    }
}

fn replace(
    ns: &mut Namespace<'_>,
    parents: &mut Parents,
    request: &Rename,
    (source, target): (Dentry, Dentry),
) -> Result<(), OpError> {
    if target.kind == FileKind::Directory {
        rmdir::remove_inode(ns, target.ino)?;
    } else {
        ns.drop_name(target.ino)?;
    }
    // Takes the source's directory from the parent's nlink, which is right as the target's is replaced by it.
    ns.remove_entry(&mut parents.old, &request.name, source);
    ns.touch(parents.target());
    ns.put_dentry(request.new_parent, &request.new_name, Dentry { cookie: target.cookie, ..source });
    Ok(())
}

fn exchange(
    ns: &mut Namespace<'_>,
    parents: &mut Parents,
    request: &Rename,
    (source, target): (Dentry, Dentry),
) -> Result<(), OpError> {
    ns.touch(&mut parents.old);
    ns.touch(parents.target());
    ns.put_dentry(request.parent, &request.name, Dentry { cookie: source.cookie, ..target });
    ns.put_dentry(request.new_parent, &request.new_name, Dentry { cookie: target.cookie, ..source });
    touch_inode(ns, target.ino)
}

/// A renamed inode's ctime.
fn touch_inode(ns: &mut Namespace<'_>, ino: Ino) -> Result<(), OpError> {
    if let Some(mut inode) = ns.inode(ino)? {
        inode.ctime = ns.now;
        ns.put_inode(ino, &inode);
    }
    Ok(())
}
