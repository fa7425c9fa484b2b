//! Name to inode.

use burstfs_proto::mds::{Entry, Lookup};
use burstfs_types::{Errno, FileKind, Ino};

use crate::namespace::{Namespace, OpError};

pub(crate) fn lookup(ns: &mut Namespace<'_>, request: &Lookup) -> Result<Entry, OpError> {
    // An entry answers for its directory: most lookups read two records instead of three.
    match ns.dentry(request.parent, &request.name)? {
        Some(dentry) => entry(ns, dentry.ino, dentry.kind, true),
        None => {
            ns.directory_with(request.parent, &request.name)?;
            Err(Errno::ENOENT.into())
        }
    }
}

/// What an entry names, with attributes where this MDT has them and they are wanted.
pub(super) fn entry(ns: &mut Namespace<'_>, ino: Ino, kind: FileKind, with_attr: bool) -> Result<Entry, OpError> {
    let is_here = with_attr && ino.mdt() == ns.mdt;
    let attr = if is_here { ns.inode(ino)?.map(|inode| inode.attr(ino)) } else { None };
    Ok(Entry { ino, kind, attr })
}
