//! Slurm's SPANK interface, of the Slurm that is installed where this is built, and what every callback of a plugin needs.
//!
//! Owns the bindings, the plugins' log lines, their arguments, and the guard that keeps a panic from leaving a plugin. The
//! functions of Slurm are found in the process that loads the plugin, so this links only into a plugin.

mod bindings;

use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

pub use bindings::*;

/// What a callback returns when all went well.
pub const SUCCESS: c_int = 0;
/// What a callback returns otherwise.
pub const FAILURE: c_int = -1;

/// `text` for Slurm, which takes it up to a NUL.
pub fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// An error: to the user of a command, else to slurmd's log.
pub fn error(line: &str) {
    let line = c_string(line);
    // SAFETY: the format takes one C string.
    unsafe { slurm_error(c"%s".as_ptr(), line.as_ptr()) };
}

/// Something to know: to the user of a command unless he asked for silence, else to slurmd's log.
pub fn info(line: &str) {
    let line = c_string(line);
    // SAFETY: the format takes one C string.
    unsafe { slurm_info(c"%s".as_ptr(), line.as_ptr()) };
}

/// Something for the job's output, without "error:" in front.
pub fn tell(line: &str) {
    let line = c_string(line);
    // SAFETY: the format takes one C string.
    unsafe { slurm_spank_log(c"%s".as_ptr(), line.as_ptr()) };
}

/// Runs a callback; a panic is a bug, is said, and becomes `after_panic`.
pub fn guard(after_panic: c_int, body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        // SAFETY: the format takes no argument.
        unsafe { slurm_error(c"burstfs: E601: a bug in the plugin; please report it".as_ptr()) };
        after_panic
    })
}

/// The configuration's path from the plugin's arguments in plugstack.conf (`config=PATH`).
///
/// # Safety
/// `argv` has `argc` C strings, as Slurm's callbacks get them.
pub unsafe fn config_argument(argc: c_int, argv: *mut *mut c_char) -> Option<PathBuf> {
    let count = usize::try_from(argc).unwrap_or(0);
    if argv.is_null() {
        return None;
    }
    // SAFETY: see above.
    let mut texts = (0..count).filter_map(|at| unsafe { CStr::from_ptr(*argv.add(at)) }.to_str().ok());
    texts.find_map(|text| text.strip_prefix("config=").map(PathBuf::from))
}
