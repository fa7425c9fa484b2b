//! Processes: children with a descriptor each, identities that survive the reuse of process ids, and their end.
//!
//! Nothing is ever ended by name. A process is known by its pidfd, by the cgroup that was made for it, or by what it was
//! recorded with: process id, start time and user.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Exited(status) => write!(f, "exit status {status}"),
            End::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// A child of this process that has not been waited for.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// A child just forked.
    pub(crate) fn adopt(pid: Pid) -> Result<Child, Errno> {
        // Until it is waited for, the id cannot be anybody else's.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Child { pid, pidfd })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when the child has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its end, if it has ended.
    pub(crate) fn try_wait(&self) -> Result<Option<End>, Errno> {
        let status = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG)?;
        Ok(status.map(|(_, status)| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Killed(signal.unwrap_or(0)),
        }))
    }

    /// Its end, if it comes within `patience`.
    pub(crate) fn wait_for(&self, patience: Duration) -> Result<Option<End>, Errno> {
        if wait_readable(self.pidfd(), Some(patience))? { self.try_wait() } else { Ok(None) }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        kill(self.pidfd());
    }
}

/// Ends the process behind `pidfd`; it may have ended already.
pub(crate) fn kill(pidfd: BorrowedFd<'_>) {
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

/// Whether `fd` became readable, or its other end closed, within `patience`.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> Result<bool, Errno> {
    let end = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = end.map(|end| timespec(end.saturating_duration_since(Instant::now())));
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A poll time-out; more than a day is a day.
pub(crate) fn timespec(duration: Duration) -> rustix::event::Timespec {
    let bounded = duration.min(Duration::from_secs(86_400));
    rustix::event::Timespec {
        tv_sec: i64::try_from(bounded.as_secs()).unwrap_or(86_400),
        tv_nsec: bounded.subsec_nanos().into(),
    }
}

/// Runs `body` in a forked child, whose exit status it returns. This process has one thread, so that the child may do
/// whatever this process may.
pub(crate) fn fork_with(body: impl FnOnce() -> i32) -> Result<Child, Errno> {
    // SAFETY: there is no other thread whose locks the child could find taken; the child leaves by `_exit` only.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => {
            // A panic must not run the parent's code a second time.
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(255);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        pid => Child::adopt(Pid::from_raw(pid).ok_or(Errno::CHILD)?),
    }
}

/// What the last system call of the C library left.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// What tells a process from a later one with the same id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The boot that it ran in.
    pub(crate) boot_id: String,
    pub(crate) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since the boot.
    pub(crate) start_time: u64,
    /// Its real user.
    pub(crate) uid: u32,
}

impl Identity {
    /// The identity of a process that cannot end meanwhile: a child not waited for, or this process.
    pub(crate) fn of(pid: Pid, uid: u32) -> Option<Identity> {
        let pid = pid.as_raw_nonzero().get();
        Some(Identity { boot_id: boot_id(), pid, start_time: Stat::read(pid)?.start_time, uid })
    }

    /// The process, if it still runs.
    pub(crate) fn find(&self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Checked after the pidfd is held: what matches now is what the pidfd means.
        let stat = Stat::read(self.pid)?;
        let same = self.boot_id == boot_id() && stat.start_time == self.start_time && stat.uid == self.uid;
        same.then_some(pidfd)
    }

    /// Whether it still runs: a zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        self.find().is_some_and(|pidfd| matches!(wait_readable(pidfd.as_fd(), Some(Duration::ZERO)), Ok(false)))
    }

    /// Ends it and what it started: every process of its session. A session's number is not given to a new process
    /// while a member lives; a stranger that got the number after the last one is told by his user or by his age.
    pub(crate) fn kill_session(&self) {
        if self.boot_id != boot_id() {
            return;
        }
        let mut ended: Vec<OwnedFd> = self.find().into_iter().collect();
        for pid in all_pids() {
            let pidfd = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
            let Some(stat) = Stat::read(pid) else { continue };
            let ours = stat.session == self.pid && stat.uid == self.uid && stat.start_time >= self.start_time;
            ended.extend(pidfd.filter(|_| ours));
        }
        end_all(&ended);
    }
}

/// How long processes that were killed may take to be gone, all together.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Kills all of `pidfds` and waits until they are gone; whether they are.
pub(crate) fn end_all(pidfds: &[OwnedFd]) -> bool {
    for pidfd in pidfds {
        kill(pidfd.as_fd());
    }
    let end = Instant::now() + END_PATIENCE;
    let is_gone = |pidfd: &OwnedFd| {
        let left = end.saturating_duration_since(Instant::now());
        matches!(wait_readable(pidfd.as_fd(), Some(left)), Ok(true))
    };
    // A process in an uninterruptible wait ends when the mount that it waits for is aborted, or answers again.
    let are_gone = pidfds.iter().all(is_gone);
    if !are_gone {
        crate::log::warning!("a process of the instance does not end");
    }
    are_gone
}

/// All process ids of this pid namespace.
pub(crate) fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The boot's name.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

struct Stat {
    session: i32,
    start_time: u64,
    uid: u32,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let uid_line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let uid = uid_line.split_whitespace().next()?.parse().ok()?;
        let (session, start_time) = parse_stat(&text)?;
        Some(Stat { session, start_time, uid })
    }
}

/// Session and start time of `/proc/<pid>/stat`; the command's name may contain anything, so fields are counted from its
/// last `)`.
fn parse_stat(text: &[u8]) -> Option<(i32, u64)> {
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = std::str::from_utf8(&text[close + 1..]).ok()?.split_whitespace().collect();
    // The first field after the name is number 3; session is 6, start time 22.
    Some((fields.get(3)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let text = b"77 (a) R 1 (x) S 1 77 55 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1";
        assert_eq!(parse_stat(text), Some((55, 123_456)));
        assert_eq!(parse_stat(b"77 (a"), None);
    }

    #[test]
    fn an_identity_is_of_one_process_only() {
        let child = fork_with(|| {
            // SAFETY: waits for a signal, touches nothing.
            unsafe { libc::pause() }
        })
        .unwrap();
        let identity = Identity::of(child.pid(), 0).unwrap();
        assert!(identity.is_alive());
        let other = Identity { start_time: identity.start_time + 1, ..identity.clone() };
        assert!(!other.is_alive());
        child.kill();
        assert_eq!(child.wait_for(Duration::from_secs(10)), Ok(Some(End::Killed(9))));
        assert!(!identity.is_alive());
    }
}
