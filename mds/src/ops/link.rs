//! Gives a file another name.

use burstfs_proto::mds::Link;
use burstfs_types::{Attr, Errno, FileKind};

use crate::namespace::{Namespace, OpError};
use crate::txn::with_one_more_name;

pub(crate) fn link(ns: &mut Namespace<'_>, request: &Link) -> Result<Attr, OpError> {
    ns.needs_here(request.ino)?;
    let inode = ns.existing(request.ino)?;
    let mut parent = ns.directory_with(request.new_parent, &request.new_name)?;
    if inode.kind() == FileKind::Directory {
        return Err(Errno::EPERM.into());
    }
    if ns.dentry(request.new_parent, &request.new_name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    let inode = with_one_more_name(ns, request.ino)?;
    ns.put_inode(request.ino, &inode);
    ns.add_entry(&mut parent, &request.new_name, request.ino, inode.kind());
    ns.save_directory(parent);
    Ok(inode.attr(request.ino))
}
