//! Registers an open.

use burstfs_proto::mds::Open;
use burstfs_types::{Attr, Errno, FileKind};

use crate::namespace::{Namespace, OpError, Opened};

pub(crate) fn open(ns: &mut Namespace<'_>, request: &Open) -> Result<Attr, OpError> {
    let inode = ns.existing(request.ino)?;
    match inode.kind() {
        FileKind::Regular => {
            ns.effects.opened = Some(Opened::new(request.ino, &inode, request.writes));
            if request.writes {
                ns.mark_changed(request.ino);
            }
            Ok(inode.attr(request.ino))
        }
        FileKind::Directory => Err(Errno::EISDIR.into()),
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => {
            Err(Errno::EINVAL.into())
        }
    }
}
