//! Removes an empty directory, whose inode may be on another MDT.

use burstfs_proto::mds::Rmdir;
use burstfs_types::{Errno, FileKind, Ino};

use crate::namespace::{Namespace, OpError};

pub(crate) fn rmdir(ns: &mut Namespace<'_>, request: &Rmdir) -> Result<(), OpError> {
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    let dentry = ns.dentry(request.parent, &request.name)?.ok_or(Errno::ENOENT)?;
    if dentry.kind != FileKind::Directory {
        return Err(Errno::ENOTDIR.into());
    }
    ns.needs_here(dentry.ino)?;
    remove_inode(ns, dentry.ino)?;
    ns.remove_entry(&mut parent, &request.name, dentry);
    ns.save_directory(parent);
    Ok(())
}

/// Removes the inode of the empty directory `ino` of this MDT.
pub(super) fn remove_inode(ns: &mut Namespace<'_>, ino: Ino) -> Result<(), OpError> {
    match ns.directory(ino) {
        // Its shards are on other MDTs.
        Ok(directory) if !directory.spread.others().is_empty() => Err(OpError::Several),
        Ok(directory) => ns.remove_directory(directory),
        // A name whose inode is gone breaks an invariant; removing the name heals it.
        Err(OpError::Errno(Errno::ENOENT)) => Ok(()),
        Err(error) => Err(error),
    }
}
