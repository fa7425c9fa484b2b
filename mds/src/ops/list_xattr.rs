//! Names of the extended attributes.

use burstfs_proto::mds::ListXattr;

use crate::namespace::{Namespace, OpError};

pub(crate) fn list_xattr(ns: &mut Namespace<'_>, request: &ListXattr) -> Result<Vec<Vec<u8>>, OpError> {
    match ns.existing(request.ino)?.xattrs {
        0 => Ok(Vec::new()),
        _ => ns.xattr_names(request.ino),
    }
}
