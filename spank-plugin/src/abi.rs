//! The C side: symbols that Slurm looks up, and calls into Slurm. All `unsafe` code that touches Slurm is here.

// Public for Slurm, which finds them by name; no crate can reach them.
#![allow(unreachable_pub)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_config::DEFAULT_PATH;
use burstfs_spank_sys::{
    FAILURE, S_CTX_ALLOCATOR, S_CTX_LOCAL, S_CTX_REMOTE, S_CTX_SLURMD, S_JOB_ID, S_SLURM_RESTART_COUNT,
    SLURM_VERSION_NUMBER, SUCCESS, c_string, config_argument, guard, spank_context, spank_get_item, spank_getenv,
    spank_item_t, spank_job_control_setenv, spank_option, spank_option_register, spank_setenv, spank_t, spank_unsetenv,
};

use crate::host::Host;
use crate::submit::{self, Refused, Submission};
use crate::{slurm, task};

/// The name by which Slurm knows the plugin; the option's variables are named for it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "Slurm's names")]
pub static plugin_name: [u8; 8] = *b"burstfs\0";

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

/// The exit status of sbatch, salloc and srun when a value of an option is refused.
const REFUSED_STATUS: c_int = 255;

/// What one callback leaves for the next one in the same process. slurmstepd's tasks get a copy by fork.
struct State {
    config: Option<PathBuf>,
    submission: Option<Submission>,
    /// Within an allocation, where srun makes a step of a job that has its file system or has not.
    is_in_job: bool,
    /// The job asked for burstfs, as far as this step can see.
    is_requested: bool,
}

static STATE: Mutex<State> =
    Mutex::new(State { config: None, submission: None, is_in_job: false, is_requested: false });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| DEFAULT_PATH.into())
    }
}

/// Slurm, as the process that loaded the plugin has it.
struct Slurm(spank_t);

/// For the option's callback, which gets no handle.
const NO_HANDLE: Slurm = Slurm(ptr::null_mut());

impl Slurm {
    fn number(&self, item: spank_item_t) -> Option<u32> {
        let mut number = 0_u32;
        // SAFETY: the items that this is called with are written as one u32.
        let rc = unsafe { spank_get_item(self.0, item, &raw mut number) };
        (rc as c_int == SUCCESS).then_some(number)
    }

    /// Slurm's answer to reading a variable of the job into `buffer`.
    fn read_variable(&self, name: &str, buffer: &mut [u8]) -> c_int {
        let name = c_string(name);
        let length = c_int::try_from(buffer.len()).unwrap_or(0);
        // SAFETY: the buffer has the length that is said; the name is a C string.
        unsafe { spank_getenv(self.0, name.as_ptr(), buffer.as_mut_ptr().cast::<c_char>(), length) as c_int }
    }
}

impl Host for Slurm {
    fn has_job_variable(&self, name: &str) -> bool {
        // One that does not fit is there all the same: Slurm then has written as much as fits.
        let mut buffer = [0_u8; 2];
        self.read_variable(name, &mut buffer);
        buffer[0] != 0
    }

    fn set_job_variable(&self, name: &str, value: &str) -> bool {
        let (name, value) = (c_string(name), c_string(value));
        // SAFETY: both are C strings; Slurm copies them.
        unsafe { spank_setenv(self.0, name.as_ptr(), value.as_ptr(), 1) as c_int == SUCCESS }
    }

    fn unset_job_variable(&self, name: &str) {
        let name = c_string(name);
        // SAFETY: a C string that is only read. A variable that is not there is no matter.
        unsafe { spank_unsetenv(self.0, name.as_ptr()) };
    }

    fn set_control_variable(&self, name: &str, value: &str) -> bool {
        let (name, value) = (c_string(name), c_string(value));
        // SAFETY: both are C strings; Slurm copies them.
        unsafe { spank_job_control_setenv(self.0, name.as_ptr(), value.as_ptr(), 1) as c_int == SUCCESS }
    }

    fn job_id(&self) -> Option<u32> {
        self.number(S_JOB_ID)
    }

    fn restart_count(&self) -> Option<u32> {
        self.number(S_SLURM_RESTART_COUNT)
    }

    fn error(&self, line: &str) {
        burstfs_spank_sys::error(line);
    }

    fn info(&self, line: &str) {
        burstfs_spank_sys::info(line);
    }

    fn tell(&self, line: &str) {
        burstfs_spank_sys::tell(line);
    }
}

fn context() -> c_uint {
    // SAFETY: reads a variable of Slurm's.
    unsafe { spank_context() }
}

fn is_submitting() -> bool {
    matches!(context(), S_CTX_ALLOCATOR | S_CTX_LOCAL)
}

/// Takes the arguments that every callback gets.
///
/// # Safety
/// As [`config_argument`].
unsafe fn remember_arguments(argc: c_int, argv: *mut *mut c_char) -> PathBuf {
    // SAFETY: the caller's promise.
    let argument = unsafe { config_argument(argc, argv) };
    let mut state = state();
    if argument.is_some() {
        state.config = argument;
    }
    state.config()
}

/// An `sbatch` or `salloc` within a job finds that job's option in its environment and would take it for its own, and
/// would hand that job's mount on to the new job.
fn forget_outer_job() {
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    for name in submit::outer_job_variables(environment) {
        let name = c_string(&name);
        // SAFETY: Slurm initialises its plugins before it starts threads, so nobody reads the environment meanwhile.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
}

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init(spank: spank_t, argc: c_int, argv: *mut *mut c_char) -> c_int {
    guard(SUCCESS, || {
        // SAFETY: Slurm's arguments.
        unsafe { remember_arguments(argc, argv) };
        match context() {
            S_CTX_SLURMD => {
                if let Err(failure) = slurm::check_flags() {
                    NO_HANDLE.error(&format!("burstfs: {failure}"));
                }
                return SUCCESS;
            }
            S_CTX_ALLOCATOR if std::env::var_os("SLURM_JOB_ID").is_some() => forget_outer_job(),
            S_CTX_ALLOCATOR => {}
            S_CTX_LOCAL => state().is_in_job = std::env::var_os("SLURM_JOB_ID").is_some(),
            S_CTX_REMOTE => {}
            _ => return SUCCESS,
        }
        register_option(spank)
    })
}

fn register_option(spank: spank_t) -> c_int {
    let usage = c"a file system on the job's own nodes: SIZE, PROFILE or [VERB] KEY=VALUE..., repeatable";
    let mut option = spank_option {
        name: c"burstfs".as_ptr().cast_mut(),
        arginfo: c"directive".as_ptr().cast_mut(),
        usage: usage.as_ptr().cast_mut(),
        has_arg: 1,
        val: 0,
        cb: Some(option_given),
    };
    // SAFETY: Slurm copies the structure and its strings, and changes none.
    unsafe { spank_option_register(spank, &raw mut option) as c_int }
}

/// One `--burstfs=`, in the order script, environment, command line.
unsafe extern "C" fn option_given(_val: c_int, argument: *const c_char, remote: c_int) -> c_int {
    guard(FAILURE, || {
        let mut state = state();
        if remote != 0 || state.is_in_job || argument.is_null() {
            return SUCCESS;
        }
        // SAFETY: Slurm gives a C string that lives as long as the call.
        let directive = unsafe { CStr::from_ptr(argument) };
        let config = state.config();
        let submission = state.submission.get_or_insert_default();
        submission.add(&NO_HANDLE, &config, directive.to_bytes()).map_or(FAILURE, |()| SUCCESS)
    })
}

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init_post_opt(spank: spank_t, argc: c_int, argv: *mut *mut c_char) -> c_int {
    if !is_submitting() {
        return SUCCESS;
    }
    guard(FAILURE, || {
        // SAFETY: Slurm's arguments.
        let config = unsafe { remember_arguments(argc, argv) };
        let Some(submission) = state().submission.take() else { return SUCCESS };
        match submission.finish(&Slurm(spank), &config, &submit::user_values()) {
            Ok(()) => SUCCESS,
            Err(Refused) => refuse_submission(),
        }
    })
}

/// Ends the command, as Slurm does when an option's callback fails: some mistakes show only after the last option, and to a
/// failure of this callback Slurm answers with another exit status and two lines about plugins. Nothing is submitted yet, and
/// Slurm itself would call `exit` here.
fn refuse_submission() -> ! {
    // SAFETY: the command has one thread, and its handlers are those that run when Slurm exits at this place.
    unsafe { libc::exit(REFUSED_STATUS) }
}

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_user_init(spank: spank_t, _argc: c_int, _argv: *mut *mut c_char) -> c_int {
    guard(SUCCESS, || {
        if task::disinherit(&Slurm(spank)) {
            state().is_requested = true;
        }
        SUCCESS
    })
}

/// # Safety
/// Called by Slurm only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_task_init_privileged(
    spank: spank_t,
    argc: c_int,
    argv: *mut *mut c_char,
) -> c_int {
    let is_requested = state().is_requested;
    guard(if is_requested { FAILURE } else { SUCCESS }, || {
        // SAFETY: Slurm's arguments.
        let config = unsafe { remember_arguments(argc, argv) };
        task::admit(&Slurm(spank), &config, is_requested).map_or(FAILURE, |()| SUCCESS)
    })
}
