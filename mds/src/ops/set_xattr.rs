//! Sets an extended attribute.

use burstfs_proto::mds::{SetXattr, XattrMode};
use burstfs_types::{Errno, Ino, limits};

use super::{acl, xattr_name};
use crate::namespace::{Namespace, OpError};

/// Linux's `XATTR_LIST_MAX`: what `listxattr(2)` can return, each name with its NUL.
const NAMES_MAX_BYTES: usize = 65_536;

pub(crate) fn set_xattr(ns: &mut Namespace<'_>, request: &SetXattr) -> Result<(), OpError> {
    xattr_name::check(&request.name)?;
    if request.value.len() > limits::XATTR_VALUE_MAX_BYTES {
        return Err(Errno::E2BIG.into());
    }
    if acl::is_acl(&request.name) {
        return acl::set(ns, request);
    }
    let mut inode = ns.existing(request.ino)?;
    xattr_name::check_kind(&request.name, inode.kind())?;
    let is_there = inode.xattrs > 0 && ns.xattr(request.ino, &request.name)?.is_some();
    match (request.mode, is_there) {
        (XattrMode::Create, true) => return Err(Errno::EEXIST.into()),
        (XattrMode::Replace, false) => return Err(Errno::ENODATA.into()),
        (XattrMode::Any | XattrMode::Replace, true) => {}
        (XattrMode::Any | XattrMode::Create, false) => {
            check_room(ns, request.ino, request.name.len())?;
            inode.xattrs += 1;
        }
    }
    inode.ctime = ns.now;
    ns.put_inode(request.ino, &inode);
    ns.put_xattr(request.ino, &request.name, request.value.clone());
    Ok(())
}

/// Whether the inode may have one more attribute, with a name of so many bytes.
pub(super) fn check_room(ns: &mut Namespace<'_>, ino: Ino, name_len: usize) -> Result<(), OpError> {
    let used: usize = ns.xattr_names(ino)?.iter().map(|name| name.len() + 1).sum();
    if used + name_len + 1 > NAMES_MAX_BYTES { Err(Errno::ENOSPC.into()) } else { Ok(()) }
}
