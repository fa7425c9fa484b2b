//! Makes a directory, whose inode may be on another MDT.

use burstfs_placement::directory_home;
use burstfs_proto::mds::Mkdir;
use burstfs_types::{Attr, Errno, FileKind};

use super::acl;
use crate::namespace::{Namespace, OpError, S_ISGID};
use crate::record::Inode;

pub(crate) fn mkdir(ns: &mut Namespace<'_>, request: &Mkdir) -> Result<Attr, OpError> {
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    if ns.dentry(request.parent, &request.name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if directory_home(request.parent, &request.name, ns.mdts) != ns.mdt {
        return Err(OpError::Several);
    }
    let inherited = acl::inherit(ns, &parent, true, request.mode, request.umask)?;
    let mode = inherited.mode | (parent.inode.mode & S_ISGID);
    let body = Inode::directory(parent.head(), parent.layout.inherited());
    let inode = Inode::new(mode, request.uid, parent.group_for(request.gid), body, ns.now);
    let inode = inode.with_xattrs(inherited.count());
    let ino = ns.make_inode(&inode)?;
    inherited.put(ns, ino);
    ns.add_entry(&mut parent, &request.name, ino, FileKind::Directory);
    ns.save_directory(parent);
    Ok(inode.attr(ino))
}
