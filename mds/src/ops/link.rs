//! Gives a file another name.

use burstfs_proto::mds::Link;
use burstfs_types::{Attr, Errno, FileKind, limits};

use super::same_mdt;
use crate::namespace::{Namespace, OpError};

pub(crate) fn link(ns: &mut Namespace<'_>, request: &Link) -> Result<Attr, OpError> {
    same_mdt(request.ino, ns.mdt)?;
    same_mdt(request.new_parent, ns.mdt)?;
    let mut inode = ns.existing(request.ino)?;
    let mut parent = ns.directory(request.new_parent)?;
    if inode.kind() == FileKind::Directory {
        return Err(Errno::EPERM.into());
    }
    if ns.dentry(request.new_parent, &request.new_name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if inode.nlink == 0 {
        // Its last name is gone, and so will it be.
        return Err(Errno::ENOENT.into());
    }
    if inode.nlink >= limits::LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    inode.nlink += 1;
    inode.ctime = ns.now;
    ns.put_inode(request.ino, &inode);
    ns.add_entry(&mut parent, &request.new_name, request.ino, inode.kind());
    ns.save_directory(parent);
    Ok(inode.attr(request.ino))
}
