//! Makes a regular file, or finds it, and opens it.

use burstfs_proto::mds::{Create, Created, LayoutOrigin, WantedLayout};
use burstfs_types::{Errno, FileKind};

use super::acl::{self, Inherited};
use super::layout;
use crate::namespace::{Directory, Namespace, OpError};
use crate::record::{Body, Dentry, Inode, RegularFile};

pub(crate) fn create(ns: &mut Namespace<'_>, request: &Create) -> Result<Created, OpError> {
    let mut parent = ns.directory_with(request.parent, &request.name)?;
    if let Some(dentry) = ns.dentry(request.parent, &request.name)? {
        return open_existing(ns, request, dentry);
    }
    let own = request.policy.map(|policy| WantedLayout { policy, origin: LayoutOrigin::Own });
    let file = layout::new_file(own.unwrap_or_else(|| parent.layout.inherited()), request.parent);
    let inherited = acl::inherit(ns, &parent, false, request.mode, request.umask)?;
    let mut inode = regular(ns, &parent, &inherited, (request.uid, request.gid), file);
    let ino = ns.make_inode(&inode)?;
    inherited.put(ns, ino);
    if let Body::Regular(file) = &mut inode.body {
        layout::choose_at_creation(ns, file, ino, request.near)?;
        ns.put_inode(ino, &inode);
    }
    ns.add_entry(&mut parent, &request.name, ino, FileKind::Regular);
    ns.save_directory(parent);
    ns.open(ino, &inode, true);
    Ok(Created { attr: inode.attr(ino), is_new: true })
}

/// A new regular file's inode.
pub(super) fn regular(
    ns: &Namespace<'_>,
    parent: &Directory,
    inherited: &Inherited,
    (uid, gid): (u32, u32),
    file: RegularFile,
) -> Inode {
    let body = Body::Regular(file);
    Inode::new(inherited.mode, uid, parent.group_for(gid), body, ns.now).with_xattrs(inherited.count())
}

fn open_existing(ns: &mut Namespace<'_>, request: &Create, dentry: Dentry) -> Result<Created, OpError> {
    if request.exclusive {
        return Err(Errno::EEXIST.into());
    }
    match dentry.kind {
        FileKind::Regular => {}
        FileKind::Directory => return Err(Errno::EISDIR.into()),
        // The kernel believed that the name was free, or it would have followed or opened this itself: ESTALE makes it
        // look again.
        FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => {
            return Err(Errno::ESTALE.into());
        }
    }
    if dentry.ino.mdt() != ns.mdt {
        return Err(Errno::EREMOTE.into());
    }
    let inode = ns.existing(dentry.ino)?;
    ns.open(dentry.ino, &inode, true);
    Ok(Created { attr: inode.attr(dentry.ino), is_new: false })
}
