//! Starts `burstfsd` as the job's user, and the supervisor.
//!
//! A child is made by fork and prepared by ordinary code, since this process has one thread. What it may keep is listed
//! here and nothing else passes: descriptors, environment, capabilities, groups, signal dispositions, session, cgroup.
//!
//! Failure: a child that cannot be prepared or executed says which step failed and why through a pipe that closes at
//! exec; it never goes on with more rights than it should have.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use burstfs_node::control::{BACKING_FD, CONTROL_FD, FUSE_FD};
use rustix::process::Pid;

use crate::error::{Context, NodeError};
use crate::process::{self, Child};

/// What the kernel spares when memory is short: a job that eats its node's memory should not lose its data with it.
const OOM_SCORE_ADJ: &str = "-500";
/// What a daemon may lock at least: twice all that it registers with one RDMA device, at most (docs/rdma.md).
const LOCKED_MEMORY_BYTES: u64 = 3 << 30;
/// Where the supervisor finds its listening socket.
pub(crate) const LISTENER_FD: i32 = 3;

/// Descriptors are parked from here on while the low numbers are filled.
const HIGH_FD: i32 = 64;

/// Who and what `burstfsd` is.
pub(crate) struct DaemonSpec<'a> {
    pub(crate) program: &'a Path,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) control: BorrowedFd<'a>,
    /// The device of its mount, and its end of the socket for backing ids.
    pub(crate) fuse: Option<BorrowedFd<'a>>,
    pub(crate) backing: Option<BorrowedFd<'a>>,
    pub(crate) log: BorrowedFd<'a>,
    /// Files to write `0` to.
    pub(crate) cgroup_files: Vec<PathBuf>,
    pub(crate) environment: Vec<CString>,
}

/// Starts `burstfsd`. Returns when it has been executed.
pub(crate) fn daemon(spec: &DaemonSpec<'_>) -> Result<Child, NodeError> {
    let program = c_string(spec.program.as_os_str().as_bytes())?;
    let mut descriptors = vec![(spec.log, 1), (spec.log, 2), (spec.control, CONTROL_FD)];
    descriptors.extend(spec.fuse.map(|fuse| (fuse, FUSE_FD)));
    descriptors.extend(spec.backing.filter(|_| spec.fuse.is_some()).map(|backing| (backing, BACKING_FD)));
    spawn(&program, &[&program], &spec.environment, &descriptors, || become_user(spec))
}

/// Starts this program again as the supervisor. It is out of slurmd's session, so that the end of a prolog, and a
/// prolog's time-out, do not end it.
pub(crate) fn supervisor(
    arguments: &[&str],
    listener: BorrowedFd<'_>,
    log: BorrowedFd<'_>,
) -> Result<Child, NodeError> {
    let descriptors = [(log, 1), (log, 2), (listener, LISTENER_FD)];
    this_program(&[&["supervise"], arguments].concat(), &descriptors, || {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        Ok(())
    })
}

/// Starts this program again as the broker of backing ids.
pub(crate) fn broker(
    arguments: &[&str],
    descriptors: &[(BorrowedFd<'_>, i32)],
    cgroup_files: &[PathBuf],
) -> Result<Child, NodeError> {
    this_program(arguments, descriptors, || {
        enter_cgroups(cgroup_files);
        Ok(())
    })
}

/// Gives up what the broker does not need: files are accessed as the user, and one capability is left. From then on the
/// process ends with its supervisor.
pub(crate) fn become_broker(uid: u32, gid: u32) -> io::Result<()> {
    drop_bounding_set()?;
    // SAFETY: plain system calls; an empty list is a valid one.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain system calls. They return the value before, so what came of them is asked for with a value that is none.
    let (fs_uid, fs_gid) = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if fs_uid.cast_unsigned() != uid || fs_gid.cast_unsigned() != gid {
        return Err(io::Error::other("the user of file accesses did not change"));
    }
    set_capabilities(CAP_SYS_ADMIN)?;
    // Each change of credentials takes this back, so it comes last. SAFETY: a plain system call.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn this_program(
    arguments: &[&str],
    descriptors: &[(BorrowedFd<'_>, i32)],
    prepare: impl FnOnce() -> Result<(), Step>,
) -> Result<Child, NodeError> {
    let program = std::env::current_exe().context(|| "find this program".to_owned())?;
    let program = c_string(program.as_os_str().as_bytes())?;
    let mut owned = vec![program.clone()];
    for argument in arguments {
        owned.push(c_string(argument.as_bytes())?);
    }
    let argv: Vec<&CString> = owned.iter().collect();
    spawn(&program, &argv, &clean_environment(), descriptors, prepare)
}

/// What both programs find in their environment.
pub(crate) fn clean_environment() -> Vec<CString> {
    let keep = ["PATH", "SLURM_CONF"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    keep.filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()).collect()
}

fn c_string(bytes: &[u8]) -> Result<CString, NodeError> {
    CString::new(bytes).map_err(io::Error::from).context(|| "pass an argument with a NUL".to_owned())
}

/// A step of a child that failed.
type Step = (&'static str, io::Error);

fn spawn(
    program: &CString,
    arguments: &[&CString],
    environment: &[CString],
    descriptors: &[(BorrowedFd<'_>, i32)],
    prepare: impl FnOnce() -> Result<(), Step>,
) -> Result<Child, NodeError> {
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (failed, report) = pipe.context(|| "make a pipe".to_owned())?;
    let child = process::fork_with(|| {
        // Out of the way of the numbers that are filled below.
        let Ok(report) = rustix::io::fcntl_dupfd_cloexec(&report, HIGH_FD) else { return 127 };
        let (step, error) = match arrange(descriptors, prepare) {
            Ok(()) => ("execute", exec(program, arguments, environment)),
            Err(failed) => failed,
        };
        let _ = fs::File::from(report).write_all(format!("{step}: {error}").as_bytes());
        127
    });
    let child = child.context(|| "fork".to_owned())?;
    drop(report);
    let mut words = String::new();
    fs::File::from(failed).read_to_string(&mut words).context(|| "hear from a child".to_owned())?;
    if words.is_empty() {
        return Ok(child);
    }
    let _ = child.wait_for(std::time::Duration::from_secs(1));
    let what = format!("start {}", program.to_string_lossy());
    Err(io::Error::other(words)).context(|| what)
}

/// In the child: session, signals, what is particular, descriptors.
fn arrange(descriptors: &[(BorrowedFd<'_>, i32)], prepare: impl FnOnce() -> Result<(), Step>) -> Result<(), Step> {
    rustix::process::setsid().map_err(at("setsid"))?;
    reset_signals().map_err(|error| ("signals", error))?;
    rustix::process::chdir("/").map_err(at("chdir"))?;
    prepare()?;
    place_descriptors(descriptors)
}

fn at(step: &'static str) -> impl Fn(rustix::io::Errno) -> Step {
    move |errno| (step, errno.into())
}

/// slurmd's children may inherit ignored and blocked signals.
fn reset_signals() -> io::Result<()> {
    for signal in 1..=31 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: sets the default disposition of an existing signal.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero signal set is a valid, and the empty, set; both pointers are valid or null.
    let done = unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts each descriptor at its number, `/dev/null` at 0, and closes all others.
fn place_descriptors(descriptors: &[(BorrowedFd<'_>, i32)]) -> Result<(), Step> {
    let null = fs::File::open("/dev/null").map_err(|error| ("open /dev/null", error))?;
    let step = at("descriptors");
    // First out of the way of the numbers that are to be filled.
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, HIGH_FD);
    let mut moved = vec![(above(null.as_fd()).map_err(&step)?, 0)];
    for (fd, number) in descriptors {
        moved.push((above(*fd).map_err(&step)?, *number));
    }
    for (fd, number) in &moved {
        // SAFETY: duplicates onto a number that this process, about to be another program, no longer uses otherwise.
        if unsafe { libc::dup2(fd.as_raw_fd(), *number) } < 0 {
            return Err(("descriptors", io::Error::last_os_error()));
        }
    }
    // The numbers have no gap.
    let last = moved.iter().map(|(_, number)| *number).max().unwrap_or(0);
    // SAFETY: marks every other descriptor to be closed by exec; none is closed here.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, last + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked != 0 {
        return Err(("descriptors", io::Error::last_os_error()));
    }
    Ok(())
}

/// Only returns when it fails.
fn exec(program: &CString, arguments: &[&CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: Vec<&CString>| {
        let mut pointers: Vec<*const libc::c_char> = strings.into_iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, envp) = (pointers(arguments.to_vec()), pointers(environment.iter().collect()));
    // SAFETY: both arrays are null-terminated and point to C strings that live until the call has failed.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Takes every privilege away, in the order in which that is possible.
fn become_user(spec: &DaemonSpec<'_>) -> Result<(), Step> {
    enter_cgroups(&spec.cgroup_files);
    // Not allowed everywhere (a container without CAP_SYS_RESOURCE): then the daemon is treated like any process.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    raise_open_files();
    raise_locked_memory();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    drop_bounding_set().map_err(|error| ("bounding set", error))?;
    let groups: Vec<libc::gid_t> = spec.groups.to_vec();
    // SAFETY: plain system calls; the array lives through the call.
    check("setgroups", unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: as above.
    check("setresgid", unsafe { libc::setresgid(spec.gid, spec.gid, spec.gid) })?;
    // SAFETY: as above. Leaving uid 0 clears the permitted, effective and ambient sets.
    check("setresuid", unsafe { libc::setresuid(spec.uid, spec.uid, spec.uid) })?;
    // SAFETY: as above.
    check("no_new_privs", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    set_capabilities(0).map_err(|error| ("capabilities", error))?;
    // SAFETY: must fail; if it did not, this process would still be able to become root.
    if unsafe { libc::setuid(0) } == 0 {
        return Err(("give up root", io::Error::other("root could be taken back")));
    }
    Ok(())
}

fn enter_cgroups(files: &[PathBuf]) {
    for file in files {
        // One that cannot be entered is not worth a job: the supervisor looks whether there is one left.
        let _ = fs::OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(b"0"));
    }
}

fn check(step: &'static str, result: libc::c_int) -> Result<(), Step> {
    if result == 0 { Ok(()) } else { Err((step, io::Error::last_os_error())) }
}

/// RocksDB and thousands of object files: the soft limit of a login shell is too small.
fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

/// RDMA's registered memory is locked, and the limit that slurmd was started with is seldom enough for it. Where it cannot be raised
/// (no CAP_SYS_RESOURCE), burstfsd says what it misses and uses TCP.
fn raise_locked_memory() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    // No limit is `None`.
    let raised = |value: Option<u64>| value.map(|bytes| bytes.max(LOCKED_MEMORY_BYTES));
    (limit.current, limit.maximum) = (raised(limit.current), raised(limit.maximum));
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, limit);
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: a plain system call.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first that the kernel does not know.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

const CAP_SYS_ADMIN: u32 = 1 << 21;

/// Leaves the capabilities in `kept`, of the first 32, effective and permitted. Clears the inheritable set too, which a
/// change of user leaves alone.
fn set_capabilities(kept: u32) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let sets = [kept, kept, 0, 0, 0, 0_u32];
    // SAFETY: the kernel reads a header of two words and, for version 3, six words of sets; process 0 is the caller.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The process as a number, for a file or a message.
pub(crate) fn raw_pid(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}
