//! The C side: symbols that Slurm looks up.

// Public for Slurm, which finds them by name; no crate can reach them.
#![allow(unreachable_pub)]

use std::ffi::{c_char, c_int, c_uint};

use burstfs_config::DEFAULT_PATH;
use burstfs_spank_sys::{SLURM_VERSION_NUMBER, SUCCESS, config_argument, error, guard, info, spank_t};

use crate::{is_information, run};

/// The name by which Slurm knows the plugin.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's names")]
pub static plugin_name: [u8; 15] = *b"burstfs_prolog\0";

/// What kind of plugin this is.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's names")]
pub static plugin_type: [u8; 6] = *b"spank\0";

/// The Slurm that this was built for; another major.minor refuses to load it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's names")]
pub static plugin_version: c_uint = SLURM_VERSION_NUMBER;

/// The plugin's own version.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's names")]
pub static spank_plugin_version: c_uint = 1;

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_job_prolog(_spank: spank_t, argc: c_int, argv: *mut *mut c_char) -> c_int {
    // SAFETY: Slurm's arguments.
    unsafe { run_script("prolog", argc, argv) }
}

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_job_epilog(_spank: spank_t, argc: c_int, argv: *mut *mut c_char) -> c_int {
    // SAFETY: Slurm's arguments.
    unsafe { run_script("epilog", argc, argv) }
}

/// # Safety
/// As [`config_argument`].
unsafe fn run_script(verb: &str, argc: c_int, argv: *mut *mut c_char) -> c_int {
    guard(SUCCESS, || {
        // SAFETY: the caller's promise.
        let config = unsafe { config_argument(argc, argv) }.unwrap_or_else(|| DEFAULT_PATH.into());
        match run(verb, &config, |name| std::env::var_os(name)) {
            Ok(lines) => {
                lines.iter().for_each(|line| if is_information(line) { info(line) } else { error(line) });
            }
            Err(failure) => error(&format!("burstfs: {failure}")),
        }
        SUCCESS
    })
}
