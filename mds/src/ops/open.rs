//! Registers an open.

use burstfs_proto::mds::Open;
use burstfs_types::{Attr, Errno, FileKind};

use crate::namespace::{Namespace, OpError};

pub(crate) fn open(ns: &mut Namespace<'_>, request: &Open) -> Result<Attr, OpError> {
    let inode = ns.existing(request.ino)?;
    match inode.kind() {
        FileKind::Regular => {
            ns.open(request.ino, &inode, request.writes);
            Ok(inode.attr(request.ino))
        }
        FileKind::Directory => Err(Errno::EISDIR.into()),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => {
            Err(Errno::EINVAL.into())
        }
    }
}
