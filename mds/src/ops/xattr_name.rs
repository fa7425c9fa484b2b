//! Which extended attributes there can be.

use burstfs_types::{Errno, FileKind, limits};

/// Checks a name as `xattr(7)` has it. Of `system.` there are the ACLs; what else has a meaning for the kernel is refused, so that
/// nobody believes that it is in force.
pub(super) fn check(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > limits::XATTR_NAME_MAX_BYTES {
        return Err(Errno::ERANGE);
    }
    if super::acl::is_acl(name) {
        return Ok(());
    }
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(*prefix)).ok_or(Errno::EOPNOTSUPP)?;
    if rest.is_empty() || rest.contains(&0) { Err(Errno::EINVAL) } else { Ok(()) }
}

/// `user.` attributes are for what has contents of the user's.
pub(super) fn check_kind(name: &[u8], kind: FileKind) -> Result<(), Errno> {
    let has_contents = matches!(kind, FileKind::Regular | FileKind::Directory);
    if has_contents || !name.starts_with(b"user.") { Ok(()) } else { Err(Errno::EPERM) }
}
