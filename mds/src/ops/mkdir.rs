//! Makes a directory, whose inode may be on another MDT.

use burstfs_placement::directory_home;
use burstfs_proto::mds::{Mkdir, PeerMakeDir};
use burstfs_types::{Attr, Errno, FileKind};

use super::peer_make_dir::make_directory;
use crate::namespace::{Namespace, OpError, PeerDone, PeerWork, S_ISGID};

pub(crate) fn mkdir(ns: &mut Namespace<'_>, request: &Mkdir) -> Result<Attr, OpError> {
    let mut parent = ns.directory(request.parent)?;
    if ns.dentry(request.parent, &request.name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    let make = PeerMakeDir {
        mode: request.mode | (parent.inode.mode & S_ISGID),
        uid: request.uid,
        gid: parent.group_for(request.gid),
        parent: request.parent,
    };
    let home = directory_home(request.parent, &request.name, ns.mdts);
    let attr = match ns.peer.take() {
        Some(PeerDone::Made(attr)) => attr,
        Some(PeerDone::Removed(_)) | None if home == ns.mdt => make_directory(ns, &make)?,
        Some(PeerDone::Removed(_)) | None => return Err(OpError::NeedsPeer(PeerWork::Make(home, make))),
    };
    ns.add_entry(&mut parent, &request.name, attr.ino, FileKind::Directory);
    ns.save_directory(parent);
    Ok(attr)
}
