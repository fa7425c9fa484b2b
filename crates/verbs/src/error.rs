//! What the device and the connection manager say when something fails.

use std::ffi::CStr;
use std::io;

use thiserror::Error;

use crate::sys;

/// A call that failed.
#[derive(Debug, Error)]
#[error("{call}: {error}")]
pub struct VerbsError {
    /// Which.
    pub call: &'static str,
    /// The system's reason.
    pub error: io::Error,
}

impl VerbsError {
    pub(crate) fn new(call: &'static str, errno: i32) -> VerbsError {
        VerbsError { call, error: io::Error::from_raw_os_error(errno) }
    }

    pub(crate) fn last(call: &'static str) -> VerbsError {
        VerbsError { call, error: io::Error::last_os_error() }
    }

    /// Whether it is the limit of locked memory.
    pub fn is_memory_lock_limit(&self) -> bool {
        matches!(self.error.raw_os_error(), Some(libc::ENOMEM | libc::EPERM)) && self.call == "ibv_reg_mr"
    }
}

/// Why a work request did not succeed: the device's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkError(pub(crate) u32);

impl WorkError {
    /// It was not tried: the connection had failed before.
    pub fn is_flushed(self) -> bool {
        self.0 == sys::IBV_WC_WR_FLUSH_ERR
    }

    /// The peer's device refused the key, the address or the length.
    pub fn is_remote_access(self) -> bool {
        matches!(self.0, sys::IBV_WC_REM_ACCESS_ERR | sys::IBV_WC_REM_INV_REQ_ERR | sys::IBV_WC_REM_OP_ERR)
    }

    /// The peer's device does not answer.
    pub fn is_unanswered(self) -> bool {
        self.0 == sys::IBV_WC_RETRY_EXC_ERR
    }
}

impl std::fmt::Display for WorkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: the function takes any number and returns a string that lives as long as the library.
        let text = unsafe { CStr::from_ptr(sys::ibv_wc_status_str(self.0)) };
        f.write_str(&text.to_string_lossy())
    }
}

impl std::error::Error for WorkError {}

/// 0 is success, -1 says `errno`, and some verbs return the errno itself.
pub(crate) fn check(call: &'static str, result: i32) -> Result<(), VerbsError> {
    match result {
        0 => Ok(()),
        errno if errno > 0 => Err(VerbsError::new(call, errno)),
        _ => Err(VerbsError::last(call)),
    }
}

pub(crate) fn check_pointer<T>(call: &'static str, pointer: *mut T) -> Result<std::ptr::NonNull<T>, VerbsError> {
    std::ptr::NonNull::new(pointer).ok_or_else(|| VerbsError::last(call))
}
