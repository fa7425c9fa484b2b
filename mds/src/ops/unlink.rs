//! Removes a name of what is no directory.

use burstfs_proto::mds::Unlink;
use burstfs_types::{Errno, FileKind};

use crate::namespace::{Namespace, OpError};

pub(crate) fn unlink(ns: &mut Namespace<'_>, request: &Unlink) -> Result<(), OpError> {
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    let dentry = ns.dentry(request.parent, &request.name)?.ok_or(Errno::ENOENT)?;
    if dentry.kind == FileKind::Directory {
        return Err(Errno::EISDIR.into());
    }
    ns.needs_here(dentry.ino)?;
    ns.remove_entry(&mut parent, &request.name, dentry);
    ns.save_directory(parent);
    ns.drop_name(dentry.ino)
}
