//! Value of an extended attribute.

use burstfs_proto::mds::GetXattr;
use burstfs_types::Errno;

use super::xattr_name;
use crate::namespace::{Namespace, OpError};

pub(crate) fn get_xattr(ns: &mut Namespace<'_>, request: &GetXattr) -> Result<Vec<u8>, OpError> {
    xattr_name::check(&request.name)?;
    if ns.existing(request.ino)?.xattrs == 0 {
        return Err(Errno::ENODATA.into());
    }
    Ok(ns.xattr(request.ino, &request.name)?.ok_or(Errno::ENODATA)?)
}
