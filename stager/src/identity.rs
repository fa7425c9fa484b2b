//! Who copies: what owners and modes it may give.

use rustix::process::{getegid, geteuid, getgroups};

use crate::item::Kept;
use crate::job::Preserve;
use crate::tree::Meta;

/// The process's user and groups.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Owner and mode that a copy shall get, and what of the source's that leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    /// To set; `None`: as it comes.
    pub(crate) uid: Option<u32>,
    /// To set; `None`: as it comes.
    pub(crate) gid: Option<u32>,
    /// Permission bits.
    pub(crate) mode: u16,
    /// The source's owner cannot be given.
    pub(crate) not_kept: Kept,
}

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;

impl Identity {
    pub(crate) fn of_process() -> Identity {
        let groups = getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw()).collect();
        Identity { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
    }

    fn may_give_gid(&self, gid: u32) -> bool {
        self.uid == 0 || gid == self.gid || self.groups.contains(&gid)
    }

    /// What the permission bits say about reading, without asking the file system.
    pub(crate) fn may_read(&self, meta: &Meta) -> bool {
        let bit = if meta.uid == self.uid {
            0o400
        } else if meta.gid == self.gid || self.groups.contains(&meta.gid) {
            0o040
        } else {
            0o004
        };
        self.uid == 0 || meta.mode & bit != 0
    }

    /// What the copy of `source` gets. A set-id bit is kept only together with the owner that it speaks of. Without
    /// `preserve=mode` a file that is new gets its source's permissions under the usual umask of 022.
    pub(crate) fn wanted(&self, source: &Meta, preserve: Preserve) -> Wanted {
        let uid_kept = source.uid == self.uid || self.uid == 0;
        let gid_kept = self.may_give_gid(source.gid);
        let mut mode = if preserve.mode { source.mode & 0o7777 } else { source.mode & 0o755 };
        if !preserve.owner || !uid_kept {
            mode &= if source.uid == self.uid { !0 } else { !SET_UID };
        }
        if !preserve.owner || !gid_kept {
            mode &= if source.gid == self.gid { !0 } else { !SET_GID };
        }
        let not_kept = Kept { owner: preserve.owner && !(uid_kept && gid_kept), ..Kept::default() };
        Wanted {
            uid: (preserve.owner && self.uid == 0).then_some(source.uid),
            gid: (preserve.owner && gid_kept).then_some(source.gid),
            mode,
            not_kept,
        }
    }
}
