//! Why an entry could not be copied, and what to do about it.

use std::fmt;

use burstfs_types::Errno;
use thiserror::Error;

/// An errno of either side, with all of Linux's numbers (the PFS's may be any).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OsError(pub i32);

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl From<Errno> for OsError {
    fn from(errno: Errno) -> OsError {
        OsError(errno.raw())
    }
}

impl From<rustix::io::Errno> for OsError {
    fn from(errno: rustix::io::Errno) -> OsError {
        OsError(errno.raw_os_error())
    }
}

/// Why an entry could not be copied: the text is what the receipt says.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum EntryError {
    /// The side that is read.
    #[error("cannot {what} the source: {errno}")]
    Source {
        /// A verb.
        what: &'static str,
        /// Why.
        errno: OsError,
    },
    /// The side that is written.
    #[error("cannot {what} the target: {errno}")]
    Target {
        /// A verb.
        what: &'static str,
        /// Why.
        errno: OsError,
    },
    /// Size or times differ before and after reading.
    #[error("the source changed while it was read")]
    Changed,
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
    /// Neither file, directory nor link.
    #[error("not a regular file, directory or symbolic link, but a {0}")]
    Special(&'static str),
    /// `preserve=` without `symlinks`.
    #[error("a symbolic link, which preserve= leaves out")]
    LinkLeftOut,
    /// A name of `list=` with `..` in it.
    #[error("the list names something outside the source")]
    OutsideSource,
    /// The target, read again, is not the source.
    #[error("the target differs from the source after the copy: checksum {found:032x}, expected {expected:032x}")]
    Checksum {
        /// Of the target.
        found: u128,
        /// Of the source.
        expected: u128,
    },
    /// The target has another size.
    #[error("the target has {found} bytes after the copy, expected {expected}")]
    Size {
        /// Of the target.
        found: u64,
        /// Of the source.
        expected: u64,
    },
    /// Something else has the name.
    #[error("the target exists and is a {found}, not a {wanted}")]
    TargetKind {
        /// What is there.
        found: &'static str,
        /// What should be.
        wanted: &'static str,
    },
}

/// Whether trying again can help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// As often as the policy allows.
    Often,
    /// One more time.
    Once,
    /// No.
    Never,
}

impl EntryError {
    pub(crate) fn source(what: &'static str) -> impl Fn(OsError) -> EntryError {
        move |errno| EntryError::Source { what, errno }
    }

    pub(crate) fn target(what: &'static str) -> impl Fn(OsError) -> EntryError {
        move |errno| EntryError::Target { what, errno }
    }

    /// The errno, where there is one.
    pub fn errno(&self) -> Option<OsError> {
        match self {
            EntryError::Source { errno, .. } | EntryError::Target { errno, .. } => Some(*errno),
            EntryError::Changed
            | EntryError::Cancelled
            | EntryError::Special(_)
            | EntryError::LinkLeftOut
            | EntryError::OutsideSource
            | EntryError::Checksum { .. }
            | EntryError::Size { .. }
            | EntryError::TargetKind { .. } => None,
        }
    }

    pub(crate) fn again(&self) -> Again {
        match self {
            EntryError::Source { errno, .. } | EntryError::Target { errno, .. } => again(*errno),
            EntryError::Changed => Again::Often,
            EntryError::Checksum { .. } | EntryError::Size { .. } => Again::Once,
            EntryError::Special(_)
            | EntryError::LinkLeftOut
            | EntryError::OutsideSource
            | EntryError::TargetKind { .. }
            | EntryError::Cancelled => Again::Never,
        }
    }
}

/// What can help against an error once it was tried again in vain: what to tell the user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cure {
    /// Nothing that this stager knows of.
    None,
    /// Time, or an administrator: the file system has failed.
    Wait,
    /// Permission.
    Permit,
    /// Room, or quota.
    MakeRoom,
}

impl Cure {
    pub(crate) fn of(errno: Option<i32>) -> Cure {
        match errno.and_then(|raw| Errno::ALL.iter().find(|known| known.raw() == raw)) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Cure::MakeRoom,
            Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => Cure::Permit,
            // The entry itself is what the target cannot take.
            Some(Errno::ENAMETOOLONG | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EFBIG) => Cure::None,
            Some(_) => Cure::Wait,
            None if errno.is_some() => Cure::Wait,
            None => Cure::None,
        }
    }
}

/// What every errno of either side says about trying again. Interruptions, lost connections and servers that are away pass; an
/// I/O error of a parallel file system may have been a failover; no space, no quota and no permission do not change by
/// asking again (what becomes of the entry then is the ledger's matter). A call that hangs is no errno: it ends with one
/// when its file system gives it up.
fn again(errno: OsError) -> Again {
    match Errno::ALL.iter().copied().find(|known| known.raw() == errno.0) {
        None => again_of_others(errno.0),
        Some(errno) => match errno {
            Errno::EINTR | Errno::EAGAIN | Errno::EBUSY | Errno::EDEADLK | Errno::ETIMEDOUT | Errno::ESTALE => {
                Again::Often
            }
            Errno::EIO
            | Errno::ENXIO
            | Errno::ENOMEM
            | Errno::ENODEV
            | Errno::ENFILE
            | Errno::EMFILE
            | Errno::ENOLCK
            | Errno::EREMOTE
            | Errno::EREMCHG
            | Errno::EPROTO => Again::Once,
            Errno::EPERM
            | Errno::ENOENT
            | Errno::E2BIG
            | Errno::EBADF
            | Errno::EACCES
            | Errno::EEXIST
            | Errno::EXDEV
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::EINVAL
            | Errno::EFBIG
            | Errno::ENOSPC
            | Errno::ESPIPE
            | Errno::EROFS
            | Errno::EMLINK
            | Errno::ERANGE
            | Errno::ENAMETOOLONG
            | Errno::ENOSYS
            | Errno::ENOTEMPTY
            | Errno::ELOOP
            | Errno::ENODATA
            | Errno::EOVERFLOW
            | Errno::EOPNOTSUPP
            | Errno::EDQUOT
            | Errno::ECANCELED => Again::Never,
        },
    }
}

/// Of errors that no service of burstfs gives, and a parallel file system's client may.
fn again_of_others(errno: i32) -> Again {
    const PASSING: [i32; 10] = [
        libc::ENOLINK,
        libc::ECOMM,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::ECONNABORTED,
        libc::ECONNREFUSED,
        libc::ESHUTDOWN,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::EREMOTEIO,
    ];
    if PASSING.contains(&errno) { Again::Often } else { Again::Once }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_which_side_and_why() {
        let error = EntryError::target("write")(Errno::EDQUOT.into());
        assert_eq!(error.to_string(), "cannot write the target: Disk quota exceeded");
        assert_eq!(error.again(), Again::Never);
        assert_eq!(EntryError::source("read")(Errno::ESTALE.into()).again(), Again::Often);
        assert_eq!(EntryError::source("read")(Errno::EIO.into()).again(), Again::Once);
        assert_eq!([28, 122].map(|errno| Cure::of(Some(errno))), [Cure::MakeRoom; 2]);
        assert_eq!(
            [Some(13), Some(5), Some(107), Some(36), None].map(Cure::of),
            [Cure::Permit, Cure::Wait, Cure::Wait, Cure::None, Cure::None]
        );
        for (errno, expected) in [
            (libc::ETIMEDOUT, Again::Often),
            (libc::ESHUTDOWN, Again::Often),
            (libc::EHOSTUNREACH, Again::Often),
            (libc::EDQUOT, Again::Never),
            (libc::EROFS, Again::Never),
            (4095, Again::Once),
        ] {
            assert_eq!(EntryError::target("write")(OsError(errno)).again(), expected, "{errno}");
        }
    }
}
