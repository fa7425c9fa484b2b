//! Removes an empty directory, whose inode may be on another MDT.

use burstfs_proto::mds::Rmdir;
use burstfs_types::{Errno, FileKind, Ino};

use super::peer_remove_dir::peer_remove_dir;
use crate::namespace::{Namespace, OpError, PeerDone, PeerWork};

pub(crate) fn rmdir(ns: &mut Namespace<'_>, request: &Rmdir) -> Result<(), OpError> {
    let mut parent = ns.directory(request.parent)?;
    let dentry = ns.dentry(request.parent, &request.name)?.ok_or(Errno::ENOENT)?;
    if dentry.kind != FileKind::Directory {
        return Err(Errno::ENOTDIR.into());
    }
    remove_inode(ns, dentry.ino)?;
    ns.remove_entry(&mut parent, &request.name, dentry);
    ns.save_directory(parent);
    Ok(())
}

/// Removes the inode of the empty directory `ino`, or asks its MDT to.
pub(super) fn remove_inode(ns: &mut Namespace<'_>, ino: Ino) -> Result<(), OpError> {
    if ino.mdt() == ns.mdt {
        return peer_remove_dir(ns, &burstfs_proto::mds::PeerRemoveDir { ino });
    }
    if ns.peer == Some(PeerDone::Removed(ino)) { Ok(()) } else { Err(OpError::NeedsPeer(PeerWork::Remove(ino))) }
}
