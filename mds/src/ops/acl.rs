//! ACLs: what an inode has, and what is made in a directory inherits.
//!
//! Owns their rules on an MDT; what a list is and how it follows from permission bits is `burstfs_types::Acl`'s business, and whom
//! it lets in the kernel's.
//!
//! An access ACL is stored as it was set, unless permission bits say the same. What of it stands for the nine bits is the
//! inode's mode, whatever is stored: so `chmod` changes the mask without touching it, and the two cannot disagree.

use burstfs_proto::mds::SetXattr;
use burstfs_types::{ACL_ACCESS, ACL_DEFAULT, Acl, Errno, FileKind, Ino};

use super::set_attr::with_closed_root;
use super::set_xattr::check_room;
use crate::namespace::{Directory, Namespace, OpError, S_ISGID};
use crate::record::Inode;

/// Whether `name` is that of an ACL.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

/// What a new inode gets of its directory's ACL.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Its permission bits.
    pub(crate) mode: u16,
    /// Its ACLs, as extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Inherited {
    /// How many attributes there are.
    pub(crate) fn count(&self) -> u32 {
        self.xattrs.len() as u32
    }

    /// Writes the attributes of the new inode `ino`, which counts them.
    pub(crate) fn put(self, ns: &mut Namespace<'_>, ino: Ino) {
        for (name, value) in self.xattrs {
            ns.put_xattr(ino, &name, value);
        }
    }
}

/// Permission bits and ACLs of what is made in `parent` with `mode`. Symbolic links have none, and need not ask.
pub(crate) fn inherit(
    ns: &mut Namespace<'_>,
    parent: &Directory,
    is_directory: bool,
    mode: u16,
    umask: Option<u16>,
) -> Result<Inherited, OpError> {
    let Some(umask) = umask else { return Ok(Inherited { mode, xattrs: Vec::new() }) };
    let default = if parent.inode.xattrs > 0 { ns.xattr(parent.ino, ACL_DEFAULT)? } else { None };
    let Some(value) = default else { return Ok(Inherited { mode: mode & !(umask & 0o777), xattrs: Vec::new() }) };
    let access = stored(&value)?.inherited(mode);
    let mode = mode & !0o777 | access.bits();
    let mut xattrs = Vec::new();
    if !access.is_only_bits() {
        xattrs.push((ACL_ACCESS.to_vec(), access.encode()));
    }
    if is_directory {
        xattrs.push((ACL_DEFAULT.to_vec(), value));
    }
    Ok(Inherited { mode, xattrs })
}

/// A list that was checked when it was set.
fn stored(value: &[u8]) -> Result<Acl, OpError> {
    Ok(Acl::decode(value).ok().flatten().ok_or(Errno::EIO)?)
}

/// The value of the ACL `name` of an inode.
pub(super) fn get(inode: &Inode, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>, OpError> {
    if name == ACL_ACCESS { Ok(stored(&value)?.with_bits(inode.mode).encode()) } else { Ok(value) }
}

/// Sets an ACL, or with one without entries removes it. Whether one may, must or must not be there is not asked: so it is with
/// `setxattr(2)` of ACLs everywhere.
pub(super) fn set(ns: &mut Namespace<'_>, request: &SetXattr) -> Result<(), OpError> {
    let is_access = request.name == ACL_ACCESS;
    // What is made in a directory depends on both: an access ACL changes its permission bits.
    let mut inode = ns.existing_with_shards(request.ino)?;
    let acl = Acl::decode(&request.value).map_err(|_| Errno::EINVAL)?;
    match inode.kind() {
        FileKind::Symlink => return Err(Errno::EOPNOTSUPP.into()),
        FileKind::Directory => {}
        _ if is_access => {}
        _ if acl.is_none() => return Ok(()),
        _ => return Err(Errno::EACCES.into()),
    }
    let to_store = acl.as_ref().is_some_and(|acl| !is_access || !acl.is_only_bits());
    if is_access && let Some(acl) = &acl {
        let kept = if request.kill_set_gid { !(S_ISGID | 0o777) } else { !0o777 };
        inode.mode = with_closed_root(request.ino, inode.mode, inode.mode & kept | acl.bits());
    }
    store(ns, request, &mut inode, to_store)?;
    inode.ctime = ns.now;
    ns.put_inode(request.ino, &inode);
    Ok(())
}

/// Writes or removes the attribute, and counts it in `inode`.
fn store(ns: &mut Namespace<'_>, request: &SetXattr, inode: &mut Inode, to_store: bool) -> Result<(), OpError> {
    let SetXattr { ino, name, value, .. } = request;
    let is_there = inode.xattrs > 0 && ns.xattr(*ino, name)?.is_some();
    match (is_there, to_store) {
        (false, true) => {
            check_room(ns, *ino, name.len())?;
            inode.xattrs += 1;
        }
        (true, false) => {
            inode.xattrs -= 1;
            ns.remove_xattr(*ino, name);
        }
        (true, true) | (false, false) => {}
    }
    if to_store {
        ns.put_xattr(*ino, name, value.clone());
    }
    Ok(())
}
