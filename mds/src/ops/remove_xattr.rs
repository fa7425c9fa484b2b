//! Removes an extended attribute.

use burstfs_proto::mds::RemoveXattr;
use burstfs_types::{ACL_DEFAULT, Errno};

use super::{acl, xattr_name};
use crate::namespace::{Namespace, OpError};

pub(crate) fn remove_xattr(ns: &mut Namespace<'_>, request: &RemoveXattr) -> Result<(), OpError> {
    xattr_name::check(&request.name)?;
    let mut inode = ns.existing(request.ino)?;
    if inode.xattrs == 0 || ns.xattr(request.ino, &request.name)?.is_none() {
        // Of ACLs `removexattr(2)` wants only that there is none afterwards.
        return if acl::is_acl(&request.name) { Ok(()) } else { Err(Errno::ENODATA.into()) };
    }
    if request.name == ACL_DEFAULT {
        // The shards of a directory have it, too.
        inode = ns.existing_with_shards(request.ino)?;
    }
    inode.xattrs -= 1;
    inode.ctime = ns.now;
    ns.put_inode(request.ino, &inode);
    ns.remove_xattr(request.ino, &request.name);
    Ok(())
}
