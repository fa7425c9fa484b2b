//! What the device's errors mean.

use burstfs_types::Errno;

/// Whether after `error`, the answer to a change, no change may be acknowledged any more: the device or its file system
/// is broken, not just unwilling. After a failed sync Linux drops the dirty pages and the next sync succeeds, so trying again would hide the
/// loss. A read that failed says nothing about other bytes and is no matter of this function.
pub(crate) fn is_fatal(error: Errno) -> bool {
    use Errno::*;
    match error {
        // EIO is also what an errno without a name here becomes, EUCLEAN ("structure needs cleaning") for one.
        EIO | EROFS | ENODEV | ENXIO | ESTALE => true,
        // Full, over quota, too large: space may come back.
        ENOSPC | EDQUOT | EFBIG => false,
        // This process or the machine is short of something for a while.
        EINTR | EAGAIN | ENOMEM | EBUSY | ENFILE | EMFILE | ENOLCK | EDEADLK | ETIMEDOUT | ECANCELED => false,
        // The request asks for what this file system does not do, or does not make sense.
        EINVAL | ENOSYS | EOPNOTSUPP | EOVERFLOW | ERANGE | E2BIG | ESPIPE | ENODATA | EPROTO => false,
        // Somebody else was in the OST's directory: bad, but told per object.
        EPERM | ENOENT | EBADF | EACCES | EEXIST | EXDEV | ENOTDIR | EISDIR | EMLINK | ENAMETOOLONG | ENOTEMPTY
        | ELOOP | EREMOTE | EREMCHG => false,
    }
}

/// The errno of a system call, as the services name it.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_not_broken() {
        for error in [Errno::ENOSPC, Errno::EDQUOT, Errno::EMFILE] {
            assert!(!is_fatal(error), "{error}");
        }
        assert!(is_fatal(errno(rustix::io::Errno::UCLEAN)));
    }
}
