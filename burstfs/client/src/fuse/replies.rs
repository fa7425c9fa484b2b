//! Answers to the kernel.

use std::time::Duration;

use burstfs_net::RpcError;
use burstfs_types::Attr;
use fuser::{
    FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use tracing::{debug, warn};

use super::convert;
use super::passthrough::{Io, Use};
use crate::fs::{FsError, Looked, RemoteError};

/// Without a lease entries and attributes are valid for no time: another node may change them at any moment.
pub(super) const TTL: Duration = Duration::ZERO;
/// Inode numbers are never reused in an instance.
const GENERATION: Generation = Generation(0);
/// What comes here: direct I/O. There is a FLUSH at each close, although a write that has returned is with its OST: nothing else says
/// that a process has closed a file, and with that has given up its locks.
const DIRECT_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// A reply that can be an error.
pub(super) trait ReplyError: Send + 'static {
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! reply_error {
    ($($reply:ty),*) => {
        $(impl ReplyError for $reply {
            fn refuse(self, errno: fuser::Errno) {
                self.error(errno);
            }
        })*
    };
}

reply_error!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

pub(super) fn refuse<R: ReplyError>(reply: R, error: &FsError) {
    // What a service or an argument refuses is ordinary; what did not arrive is worth a line each.
    match error {
        FsError::Remote { source: RemoteError::Rpc(RpcError::Errno(_)), .. } => {
            debug!(%error, "an operation was refused")
        }
        // The loss was told once.
        error if error.is_of_lost_node() => debug!(%error, "an operation needs a lost node"),
        FsError::Remote { .. } | FsError::Damaged { .. } | FsError::WrongReply { .. } => {
            warn!(%error, "an operation failed")
        }
        _ => debug!(%error, "an operation was refused"),
    }
    reply.refuse(convert::errno(error));
}

pub(super) fn looked(reply: ReplyEntry, looked: Looked) {
    match looked.attr {
        Some(attr) => {
            reply.entry_with_ttls(&looked.attr_valid, &looked.entry_valid, &convert::file_attr(&attr), GENERATION);
        }
        None if looked.entry_valid.is_zero() => reply.error(fuser::Errno::ENOENT),
        None => reply.entry(&looked.entry_valid, &convert::nothing(), GENERATION),
    }
}

pub(super) fn entry(reply: ReplyEntry, attr: Attr) {
    reply.entry(&TTL, &convert::file_attr(&attr), GENERATION);
}

pub(super) fn attributes(reply: ReplyAttr, attr: Attr) {
    leased_attributes(reply, (attr, TTL));
}

pub(super) fn leased_attributes(reply: ReplyAttr, (attr, valid): (Attr, Duration)) {
    reply.attr(&valid, &convert::file_attr(&attr));
}

pub(super) fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// A value for a caller who asked for its size (0) or has room for `size` bytes.
pub(super) fn sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

/// How the kernel is to do an open file's I/O.
#[derive(Clone, Copy)]
pub(super) struct OpenReply {
    flags: FopenFlags,
    backing: Option<u32>,
}

impl OpenReply {
    pub(super) fn of(passed: Option<&Use>) -> OpenReply {
        match passed.map_or(Io::Daemon, Use::io) {
            Io::Daemon => OpenReply { flags: DIRECT_FLAGS, backing: None },
            Io::DaemonMapped(id) => OpenReply { flags: DIRECT_FLAGS, backing: Some(id) },
            // What the kernel has written is accounted for at the FLUSH, too.
            Io::Kernel(id) => OpenReply { flags: FopenFlags::empty(), backing: Some(id) },
        }
    }

    pub(super) fn opened(self, reply: ReplyOpen, handle: FileHandle) {
        let Some(id) = self.backing else { return reply.opened(handle, self.flags) };
        // SAFETY: the table of ids owns it, and outlives the reply; `into_raw` leaves it open.
        let backing = unsafe { reply.wrap_backing(id) };
        reply.opened_passthrough(handle, self.flags, &backing);
        backing.into_raw();
    }

    pub(super) fn created(self, reply: ReplyCreate, handle: FileHandle, attr: &Attr) {
        let attr = convert::file_attr(attr);
        let Some(id) = self.backing else { return reply.created(&TTL, &attr, GENERATION, handle, self.flags) };
        // SAFETY: as in `opened`.
        let backing = unsafe { reply.wrap_backing(id) };
        reply.created_passthrough(&TTL, &attr, GENERATION, handle, self.flags, &backing);
        backing.into_raw();
    }
}
