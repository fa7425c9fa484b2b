//! Value of an extended attribute.

use burstfs_proto::mds::GetXattr;
use burstfs_types::Errno;

use super::{acl, xattr_name};
use crate::namespace::{Namespace, OpError};

pub(crate) fn get_xattr(ns: &mut Namespace<'_>, request: &GetXattr) -> Result<Vec<u8>, OpError> {
    xattr_name::check(&request.name)?;
    let inode = ns.existing(request.ino)?;
    if inode.xattrs == 0 {
        return Err(Errno::ENODATA.into());
    }
    let value = ns.xattr(request.ino, &request.name)?.ok_or(Errno::ENODATA)?;
    if acl::is_acl(&request.name) { acl::get(&inode, &request.name, value) } else { Ok(value) }
}
