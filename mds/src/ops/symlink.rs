//! Makes a symbolic link.

use burstfs_proto::mds::Symlink;
use burstfs_types::{Attr, Errno, FileKind, limits};

use crate::namespace::{Namespace, OpError};
use crate::record::{Body, Inode};

/// Linux shows this mode for every symbolic link; nothing checks it.
const SYMLINK_MODE: u16 = 0o777;

pub(crate) fn symlink(ns: &mut Namespace<'_>, request: &Symlink) -> Result<Attr, OpError> {
    check_target(&request.target)?;
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    if ns.dentry(request.parent, &request.name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    let body = Body::Symlink { target: request.target.clone() };
    let inode = Inode::new(SYMLINK_MODE, request.uid, parent.group_for(request.gid), body, ns.now);
    let ino = ns.make_inode(&inode)?;
    ns.add_entry(&mut parent, &request.name, ino, FileKind::Symlink);
    ns.save_directory(parent);
    Ok(inode.attr(ino))
}

fn check_target(target: &[u8]) -> Result<(), Errno> {
    match target {
        [] => Err(Errno::ENOENT),
        _ if target.len() > limits::SYMLINK_TARGET_MAX_BYTES => Err(Errno::ENAMETOOLONG),
        _ if target.contains(&0) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}
