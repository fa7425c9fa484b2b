//! Changes attributes.

use burstfs_proto::mds::{SetAttr, SetTime};
use burstfs_types::{Attr, FileKind, Ino, Timestamp};

use crate::namespace::{Namespace, OpError, S_ISGID, S_ISUID, S_IXGRP};

pub(crate) fn set_attr(ns: &mut Namespace<'_>, request: &SetAttr) -> Result<Attr, OpError> {
    let old = ns.existing_with_shards(request.ino)?;
    let mut new = old.clone();
    let time = |set: SetTime| match set {
        SetTime::Now => ns.now,
        SetTime::At(time) => Timestamp { secs: time.secs, nanos: time.nanos.min(999_999_999) },
    };
    new.mode = request.mode.map_or(new.mode, |mode| mode & 0o7777);
    new.mode = with_closed_root(request.ino, old.mode, new.mode);
    new.uid = request.uid.unwrap_or(new.uid);
    new.gid = request.gid.unwrap_or(new.gid);
    new.atime = request.atime.map_or(new.atime, time);
    new.mtime = request.mtime.map_or(new.mtime, time);
    if request.kill_set_id && new.kind() != FileKind::Directory {
        new.mode = without_set_id(new.mode);
    }
    if changes_something(request) || new != old {
        new.ctime = ns.now;
        ns.put_inode(request.ino, &new);
    }
    if request.opens && new.kind() == FileKind::Regular {
        ns.open(request.ino, &new, true);
    }
    Ok(new.attr(request.ino))
}

/// What the root directory denies to group and others it denies for good: it is the door of a job's file system, and a user who
/// copies a tree's modes onto it, or tries to open it, opens it to nobody.
pub(super) fn with_closed_root(ino: Ino, old: u16, new: u16) -> u16 {
    if ino == Ino::ROOT { new & (old | !0o077) } else { new }
}

/// A chmod to the mode that is there is a change as well: it moves ctime.
fn changes_something(request: &SetAttr) -> bool {
    let SetAttr { ino: _, mode, uid, gid, atime, mtime, kill_set_id: _, opens: _ } = request;
    mode.is_some() || uid.is_some() || gid.is_some() || atime.is_some() || mtime.is_some()
}

/// Set-group-id without group execution is not a privilege (it once meant mandatory locking) and stays.
fn without_set_id(mode: u16) -> u16 {
    let set_group_id = if mode & S_IXGRP != 0 { S_ISGID } else { 0 };
    mode & !(S_ISUID | set_group_id)
}
