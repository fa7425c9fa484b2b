//! Makes a named pipe, a socket's name, a device file, or a regular file without opening it.

use burstfs_proto::mds::Mknod;
use burstfs_types::{Attr, Errno, FileKind};

use super::acl;
use super::create::regular;
use super::layout;
use crate::namespace::{Namespace, OpError};
use crate::record::{Body, Inode};

pub(crate) fn mknod(ns: &mut Namespace<'_>, request: &Mknod) -> Result<Attr, OpError> {
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    if ns.dentry(request.parent, &request.name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    let owner = (request.uid, request.gid);
    let inherited = acl::inherit(ns, &parent, false, request.mode, request.umask)?;
    let special = |body| {
        let inode = Inode::new(inherited.mode, owner.0, parent.group_for(owner.1), body, ns.now);
        inode.with_xattrs(inherited.count())
    };
    let inode = match request.kind {
        FileKind::Fifo => special(Body::Fifo),
        FileKind::Socket => special(Body::Socket),
        FileKind::Character(device) => special(Body::Character(device)),
        FileKind::Block(device) => special(Body::Block(device)),
        FileKind::Regular => {
            let file = layout::new_file(parent.layout.inherited(), request.parent);
            regular(ns, &parent, &inherited, owner, file)
        }
        FileKind::Directory | FileKind::Symlink => return Err(Errno::EPERM.into()),
    };
    let ino = ns.make_inode(&inode)?;
    inherited.put(ns, ino);
    ns.add_entry(&mut parent, &request.name, ino, request.kind);
    ns.save_directory(parent);
    Ok(inode.attr(ino))
}
