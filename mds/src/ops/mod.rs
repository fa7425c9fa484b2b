//! The operations: one file each, synchronous functions over [`Namespace`].
//!
//! Owns what POSIX says of each operation. An operation never logs, retries, waits, or reads a clock, and takes no lock:
//! the driver (`crate::mdt`) does, by [`plan`], and commits what the operation wrote, or drops it when it fails.
//!
//! Where an operation concerns another MDT it stops with [`OpError::Several`], before it has written anything, and is run as a
//! transaction (`crate::txn`).

pub(crate) mod acl;
mod close;
mod create;
mod get_attr;
mod get_xattr;
mod layout;
mod link;
mod list_xattr;
mod lookup;
mod mkdir;
mod mknod;
mod open;
mod readdir;
mod readlink;
mod remove_xattr;
pub(crate) mod rename;
mod rmdir;
mod set_attr;
mod set_xattr;
mod symlink;
mod unlink;
mod xattr_name;

use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_types::{Errno, Ino, Name};

use crate::namespace::{Namespace, OpError};

/// What an operation must have locked.
#[derive(Default, Debug)]
pub(crate) struct Plan<'r> {
    /// Inodes, by number.
    pub(crate) inos: Vec<Ino>,
    /// Entries that it changes: with them their directories and the inodes that they name.
    pub(crate) entries: Vec<(Ino, &'r Name)>,
}

impl<'r> Plan<'r> {
    fn ino(ino: Ino) -> Plan<'r> {
        Plan { inos: vec![ino], ..Plan::default() }
    }

    fn entry(parent: Ino, name: &'r Name) -> Plan<'r> {
        Plan { entries: vec![(parent, name)], ..Plan::default() }
    }
}

/// What `request` needs locked; for reading it is the one inode of [`Plan::inos`].
pub(crate) fn plan(request: &MdsRequest) -> Plan<'_> {
    match request {
        MdsRequest::Lookup(it) => Plan::ino(it.parent),
        MdsRequest::GetAttr(it) => Plan::ino(it.ino),
        MdsRequest::SetAttr(it) => Plan::ino(it.ino),
        MdsRequest::Create(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Mknod(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Mkdir(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Unlink(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Rmdir(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Rename(it) => {
            Plan { entries: vec![(it.parent, &it.name), (it.new_parent, &it.new_name)], ..Plan::default() }
        }
        MdsRequest::Link(it) => Plan { inos: vec![it.ino], entries: vec![(it.new_parent, &it.new_name)] },
        MdsRequest::Symlink(it) => Plan::entry(it.parent, &it.name),
        MdsRequest::Readlink(it) => Plan::ino(it.ino),
        MdsRequest::Open(it) => Plan::ino(it.ino),
        MdsRequest::Close(it) => Plan::ino(it.ino),
        MdsRequest::Readdir(it) => Plan::ino(it.ino),
        MdsRequest::GetXattr(it) => Plan::ino(it.ino),
        MdsRequest::SetXattr(it) => Plan::ino(it.ino),
        MdsRequest::ListXattr(it) => Plan::ino(it.ino),
        MdsRequest::RemoveXattr(it) => Plan::ino(it.ino),
        MdsRequest::GetLayout(it) => Plan::ino(it.ino),
        MdsRequest::SetLayout(it) => Plan::ino(it.ino),
        MdsRequest::DecideLayout(it) => Plan::ino(it.ino),
        MdsRequest::ReserveAppend(it) => Plan::ino(it.ino),
        MdsRequest::EndAppends(it) => Plan::ino(it.ino),
        MdsRequest::Statfs(_)
        | MdsRequest::GetChange(_)
        | MdsRequest::EndChange(_)
        | MdsRequest::SetLock(_)
        | MdsRequest::Unlock(_)
        | MdsRequest::GetLock(_)
        | MdsRequest::AwaitLocks(_)
        | MdsRequest::LeaveQueue(_)
        | MdsRequest::LeasedLookup(_)
        | MdsRequest::LeasedGetAttr(_)
        | MdsRequest::PeerPrepare(_)
        | MdsRequest::PeerDecide(_)
        | MdsRequest::PeerOutcome(_)
        | MdsRequest::PeerLook(_)
        | MdsRequest::PeerParent(_)
        | MdsRequest::PeerRecords(_) => Plan::default(),
    }
}

/// Whether `request` may make an inode on this MDT.
pub(crate) fn needs_ino(request: &MdsRequest) -> bool {
    matches!(request, MdsRequest::Create(_) | MdsRequest::Mknod(_) | MdsRequest::Mkdir(_) | MdsRequest::Symlink(_))
}

/// Runs `request`.
pub(crate) fn run(ns: &mut Namespace<'_>, request: &MdsRequest) -> Result<MdsReply, OpError> {
    Ok(match request {
        MdsRequest::Lookup(it) => MdsReply::Lookup(lookup::lookup(ns, it)?),
        MdsRequest::GetAttr(it) => MdsReply::GetAttr(get_attr::get_attr(ns, it)?),
        MdsRequest::SetAttr(it) => MdsReply::SetAttr(set_attr::set_attr(ns, it)?),
        MdsRequest::Create(it) => MdsReply::Create(create::create(ns, it)?),
        MdsRequest::Mknod(it) => MdsReply::Mknod(mknod::mknod(ns, it)?),
        MdsRequest::Mkdir(it) => MdsReply::Mkdir(mkdir::mkdir(ns, it)?),
        MdsRequest::Unlink(it) => MdsReply::Unlink(unlink::unlink(ns, it)?),
        MdsRequest::Rmdir(it) => MdsReply::Rmdir(rmdir::rmdir(ns, it)?),
        MdsRequest::Rename(it) => MdsReply::Rename(rename::rename(ns, it)?),
        MdsRequest::Link(it) => MdsReply::Link(link::link(ns, it)?),
        MdsRequest::Symlink(it) => MdsReply::Symlink(symlink::symlink(ns, it)?),
        MdsRequest::Readlink(it) => MdsReply::Readlink(readlink::readlink(ns, it)?),
        MdsRequest::Open(it) => MdsReply::Open(open::open(ns, it)?),
        MdsRequest::Close(it) => MdsReply::Close(close::close(ns, it)?),
        MdsRequest::Readdir(it) => MdsReply::Readdir(readdir::readdir(ns, it)?),
        MdsRequest::GetXattr(it) => MdsReply::GetXattr(get_xattr::get_xattr(ns, it)?),
        MdsRequest::SetXattr(it) => MdsReply::SetXattr(set_xattr::set_xattr(ns, it)?),
        MdsRequest::ListXattr(it) => MdsReply::ListXattr(list_xattr::list_xattr(ns, it)?),
        MdsRequest::RemoveXattr(it) => MdsReply::RemoveXattr(remove_xattr::remove_xattr(ns, it)?),
        MdsRequest::GetLayout(it) => MdsReply::GetLayout(layout::get_layout(ns, it)?),
        MdsRequest::SetLayout(it) => MdsReply::SetLayout(layout::set_layout(ns, it)?),
        MdsRequest::DecideLayout(it) => MdsReply::DecideLayout(layout::decide_layout(ns, it)?),
        MdsRequest::ReserveAppend(it) => MdsReply::ReserveAppend(layout::reserve_append(ns, it)?),
        MdsRequest::EndAppends(it) => MdsReply::EndAppends(layout::end_appends(ns, it)?),
        // Answered by the driver: the count of inodes is not in the store, and transactions are not the operations' business.
        // Locks, leases and the record of changes are modules of their own.
        MdsRequest::Statfs(_)
        | MdsRequest::GetChange(_)
        | MdsRequest::EndChange(_)
        | MdsRequest::SetLock(_)
        | MdsRequest::Unlock(_)
        | MdsRequest::GetLock(_)
        | MdsRequest::AwaitLocks(_)
        | MdsRequest::LeaveQueue(_)
        | MdsRequest::LeasedLookup(_)
        | MdsRequest::LeasedGetAttr(_)
        | MdsRequest::PeerPrepare(_)
        | MdsRequest::PeerDecide(_)
        | MdsRequest::PeerOutcome(_)
        | MdsRequest::PeerLook(_)
        | MdsRequest::PeerParent(_)
        | MdsRequest::PeerRecords(_) => return Err(Errno::EPROTO.into()),
    })
}
