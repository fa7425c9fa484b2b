//! Removes an empty directory's inode, for the MDT of its parent.

use burstfs_proto::mds::PeerRemoveDir;
use burstfs_types::Errno;

use crate::namespace::{Namespace, OpError};

pub(crate) fn peer_remove_dir(ns: &mut Namespace<'_>, request: &PeerRemoveDir) -> Result<(), OpError> {
    match ns.directory(request.ino) {
        Ok(directory) => ns.remove_directory(directory),
        // Gone already: the parent's MDT asks again after it, or this MDT, was restarted.
        Err(OpError::Errno(Errno::ENOENT)) => Ok(()),
        Err(error) => Err(error),
    }
}
