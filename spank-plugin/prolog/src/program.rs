//! Runs `burstfs-node` from the prolog or epilog, and waits for it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// The most of the program's standard error that is passed on.
const MESSAGES_MAX_BYTES: u64 = 16 << 10;

/// The first descriptor that is not standard input, output or error.
const FIRST_OTHER_FD: libc::c_uint = 3;

/// How the program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) messages: Vec<String>,
}

/// Runs `program` with `arguments` in a clean environment.
///
/// Its standard error is a file in memory, not a pipe: what it leaves running in the background may keep a pipe open,
/// and reading it to the end would then not end. Slurm's own descriptors are closed, for the same reason.
pub(crate) fn run(program: &Path, arguments: &[OsString], environment: &[(&str, OsString)]) -> io::Result<Ended> {
    let mut messages = anonymous_file()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages.try_clone()?);
    // SAFETY: runs between fork and exec in the child; close_range is a plain system call and allocates nothing.
    // CLOEXEC keeps the descriptor by which the standard library reports a failed exec.
    unsafe { command.pre_exec(close_others_on_exec) };
    let status = command.status()?;
    messages.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    messages.take(MESSAGES_MAX_BYTES).read_to_end(&mut text)?;
    let lines = String::from_utf8_lossy(&text).lines().map(|line| line.replace(char::is_control, " ")).collect();
    Ok(Ended { status, messages: lines })
}

fn close_others_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: takes numbers only.
    match unsafe { libc::close_range(FIRST_OTHER_FD, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn anonymous_file() -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor that comes back is new and belongs to nobody else.
    unsafe {
        match libc::memfd_create(c"burstfs-node".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, environment: &[(&str, OsString)]) -> Ended {
        run(Path::new("/bin/sh"), &["-c".into(), script.into()], environment).unwrap()
    }

    #[test]
    fn has_a_clean_environment_and_no_descriptors_of_ours() {
        let open = File::open("/etc/passwd").unwrap();
        // SAFETY: duplicates a descriptor that is open; the copy, unlike the original, outlives an exec.
        let inherited = unsafe { libc::dup(std::os::fd::AsRawFd::as_raw_fd(&open)) };
        assert!(inherited > 2);
        let ended = shell("ls -l /proc/self/fd/ >&2; pwd >&2; env >&2", &[("A", "b c".into())]);
        // SAFETY: closes the copy, which nobody else knows.
        unsafe { libc::close(inherited) };
        assert!(ended.status.success());
        let shown = ended.messages.join("\n");
        assert!(!shown.contains("/etc/passwd"), "{shown}");
        let environment: Vec<&str> = shown.lines().skip_while(|line| *line != "/").skip(1).collect();
        let is_the_shells =
            |line: &str| line.starts_with("PWD=") || line.starts_with("_=") || line.starts_with("SHLVL=");
        let allowed = ["A=b c", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        assert!(environment.contains(&"A=b c"), "{shown}");
        assert!(environment.iter().all(|line| allowed.contains(line) || is_the_shells(line)), "{shown}");
    }

    #[test]
    fn does_not_wait_for_what_is_left_in_the_background() {
        let ended = shell("(read never <&3) 3<>/dev/null & echo started >&2; exit 3", &[]);
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.messages, ["started"]);
    }

    #[test]
    fn says_when_the_program_is_not_there() {
        assert_eq!(run(Path::new("/nowhere/x"), &[], &[]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
