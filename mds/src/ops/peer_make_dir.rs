//! Makes a directory's inode without a name, for the MDT of its parent.

use burstfs_proto::mds::PeerMakeDir;
use burstfs_types::Attr;

use crate::namespace::{Namespace, OpError};
use crate::record::Inode;

pub(crate) fn peer_make_dir(ns: &mut Namespace<'_>, request: &PeerMakeDir) -> Result<Attr, OpError> {
    make_directory(ns, request)
}

pub(super) fn make_directory(ns: &mut Namespace<'_>, request: &PeerMakeDir) -> Result<Attr, OpError> {
    let body = Inode::directory(request.parent);
    let inode = Inode::new(request.mode, request.uid, request.gid, body, ns.now);
    let ino = ns.make_inode(&inode)?;
    Ok(inode.attr(ino))
}
