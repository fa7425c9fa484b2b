//! Extended attributes.

use burstfs_proto::Rpc;
use burstfs_proto::mds::{GetAttr, GetXattr, ListXattr, RemoveXattr, SetXattr, XattrMode};
use burstfs_types::{ACL_ACCESS, ACL_DEFAULT, Errno, Ino, limits};

use super::ClientFs;
use super::error::FsError;
use super::file::has_set_id;

/// The name spaces that are stored. Of `system.*` only the ACLs are: its other names would mean something to the kernel that nobody
/// here would enforce.
const NAME_SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// The name space of what the file system itself says of an inode; see `super::layout`.
const OWN_SPACE: &[u8] = b"burstfs.";

/// What a program may do that is not started by root. The mount is nosuid, where it means nothing; but the kernel asks for
/// it before the first write to each file. So it cannot be set, and nobody has to be asked whether it was.
const CAPABILITY: &[u8] = b"security.capability";

impl ClientFs {
    /// `getxattr(2)`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if name.starts_with(OWN_SPACE) {
            return self.layout_attribute(ino, name).await;
        }
        if name == CAPABILITY {
            return Err(FsError::Refused { rpc: GetXattr::NAME, errno: Errno::ENODATA });
        }
        check_name(name)?;
        self.targets.mds(ino.mdt(), GetXattr { ino, name: name.to_vec() }).await
    }

    /// `setxattr(2)`.
    pub async fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        if name.starts_with(OWN_SPACE) {
            return self.set_layout_attribute(ino, name, value).await;
        }
        if name == CAPABILITY {
            return Err(FsError::Unsupported { what: "a capability of a file on a nosuid mount" });
        }
        check_name(name)?;
        let request = SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode, kill_set_gid: false };
        self.set_attribute(request).await
    }

    /// Sets who may use an inode (`system.posix_acl_access`). A set-group-id inode stays so only if `may_keep_set_gid` says that the
    /// caller may have that of its group, whose number it is given.
    pub async fn set_access_acl(
        &self,
        ino: Ino,
        value: &[u8],
        may_keep_set_gid: impl FnOnce(u32) -> bool + Send,
    ) -> Result<(), FsError> {
        let attr = self.targets.mds(ino.mdt(), GetAttr { ino }).await?;
        let kill_set_gid = has_set_id(attr.mode) && !may_keep_set_gid(attr.gid);
        let (name, mode) = (ACL_ACCESS.to_vec(), XattrMode::Any);
        let request = SetXattr { ino, name, value: value.to_vec(), mode, kill_set_gid };
        self.set_attribute(request).await
    }

    async fn set_attribute(&self, request: SetXattr) -> Result<(), FsError> {
        let ino = request.ino;
        let set = self.targets.mds(ino.mdt(), request).await;
        self.told(set, &[ino], &[]).await
    }

    /// `listxattr(2)`.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        self.targets.mds(ino.mdt(), ListXattr { ino }).await
    }

    /// `removexattr(2)`.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        if name.starts_with(OWN_SPACE) {
            return self.remove_layout_attribute(ino, name).await;
        }
        check_name(name)?;
        let removed = self.targets.mds(ino.mdt(), RemoveXattr { ino, name: name.to_vec() }).await;
        self.told(removed, &[ino], &[]).await
    }
}

fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > limits::XATTR_NAME_MAX_BYTES {
        return Err(FsError::Invalid { what: "the name of an extended attribute" });
    }
    if name == ACL_ACCESS || name == ACL_DEFAULT {
        return Ok(());
    }
    let is_stored = NAME_SPACES.iter().any(|space| name.len() > space.len() && name.starts_with(space));
    if is_stored { Ok(()) } else { Err(FsError::Unsupported { what: "the extended attribute's name space" }) }
}
