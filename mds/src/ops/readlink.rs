//! A symbolic link's target.

use burstfs_proto::mds::Readlink;
use burstfs_types::Errno;

use crate::namespace::{Namespace, OpError};
use crate::record::Body;

pub(crate) fn readlink(ns: &mut Namespace<'_>, request: &Readlink) -> Result<Vec<u8>, OpError> {
    match ns.existing(request.ino)?.body {
        Body::Symlink { target } => Ok(target),
        _ => Err(Errno::EINVAL.into()),
    }
}
