//! Locks of processes on two nodes of an instance, by real system calls on real mounts. Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use nix::mount::MntFlags;
use nix::sys::signal::Signal;
use rustix::fs::FlockOperation;
use support::mount::mounts;

/// Another process that does what it is told: this program again, as [`a_process_that_locks`].
struct Process {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    fn on(file: &Path) -> Process {
        let mut child = Command::new("/proc/self/exe")
            .args(["--ignored", "--exact", "a_process_that_locks", "--nocapture"])
            .env("BURSTFS_LOCKED_FILE", file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (say, answers) = mpsc::channel();
        std::thread::spawn(move || {
            // The test harness says something, too.
            let lines = said.lines().map_while(Result::ok);
            for answer in lines.filter_map(|line| Some(line.split_once("=> ")?.1.to_owned())) {
                let _ = say.send(answer);
            }
        });
        let mut process = Process { child, orders, answers };
        assert_eq!(process.answer(), "ready");
        process
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// What it says next.
    fn answer(&mut self) -> String {
        self.answers.recv().unwrap()
    }

    fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }

    /// Waits until it sleeps in its system call.
    fn is_waiting(&self) {
        while self.locking().is_none() {
            std::thread::yield_now();
        }
    }

    /// The thread of it that is in a system call that locks.
    fn locking(&self) -> Option<u32> {
        let calls = [libc::SYS_fcntl.to_string(), libc::SYS_flock.to_string()];
        let is_locking = |thread: &u32| {
            let call = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
            call.split(' ').next().is_some_and(|call| calls.iter().any(|lock| lock == call))
        };
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.map(|thread| thread.unwrap().file_name().into_string().unwrap().parse().unwrap()).find(is_locking)
    }

    /// Sends a signal to the thread that waits for a lock.
    fn signal(&self, signal: Signal) {
        let thread = self.locking().unwrap();
        // SAFETY: the call takes numbers, and touches nobody's memory.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, self.child.id(), thread, signal as libc::c_int) };
        assert_eq!(sent, 0);
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn flock(typ: libc::c_int, first: i64, last: i64) -> libc::flock {
    // SAFETY: a `struct flock` is numbers, for which all zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence, lock.l_start) = (typ as libc::c_short, libc::SEEK_SET as libc::c_short, first);
    lock.l_len = if last == i64::MAX { 0 } else { last - first + 1 };
    lock
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> Result<(), String> {
    // SAFETY: the descriptor is open, and `lock` is a `struct flock` that the call may write to.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done == 0 { Ok(()) } else { Err(format!("{:?}", nix::errno::Errno::last())) }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Orders: `r|w|u FIRST LAST` with `try`, `wait`, or `who`; `flock shared|exclusive|unlock try|wait`; `reopen` opens and closes
/// the file once more; `fork` leaves a child that has the descriptor.
#[test]
#[ignore = "other tests run it"]
fn a_process_that_locks() {
    let Some(path) = std::env::var_os("BURSTFS_LOCKED_FILE") else { return };
    let file = open(Path::new(&path));
    extern "C" fn nothing(_: libc::c_int) {}
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(nothing),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(Signal::SIGUSR1, &action) }.unwrap();
    println!("=> ready");
    for order in io::stdin().lines() {
        let order = order.unwrap();
        let words: Vec<&str> = order.split(' ').collect();
        let answer = match words[..] {
            ["reopen"] => {
                drop(open(Path::new(&path)));
                "ok".to_owned()
            }
            ["flock", what, how] => {
                let operation = match (what, how) {
                    ("shared", "try") => FlockOperation::NonBlockingLockShared,
                    ("exclusive", "try") => FlockOperation::NonBlockingLockExclusive,
                    ("exclusive", "wait") => FlockOperation::LockExclusive,
                    _ => FlockOperation::Unlock,
                };
                let name =
                    |error: rustix::io::Errno| format!("{:?}", nix::errno::Errno::from_raw(error.raw_os_error()));
                rustix::fs::flock(&file, operation).map_or_else(name, |()| "ok".to_owned())
            }
            [typ, first, last, how] => {
                let typ = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]["rwu".find(typ).unwrap()];
                let last = if last == "end" { i64::MAX } else { last.parse().unwrap() };
                let mut lock = flock(typ, first.parse().unwrap(), last);
                let command = match how {
                    "try" => libc::F_SETLK,
                    "wait" => libc::F_SETLKW,
                    "who" => libc::F_GETLK,
                    _ => panic!("{order}"),
                };
                match fcntl(&file, command, &mut lock) {
                    Ok(()) if how != "who" => "ok".to_owned(),
                    Ok(()) if lock.l_type == libc::F_UNLCK as libc::c_short => "nobody".to_owned(),
                    Ok(()) => format!("{} {}+{} pid {}", lock.l_type, lock.l_start, lock.l_len, lock.l_pid),
                    Err(error) => error,
                }
            }
            _ => panic!("{order}"),
        };
        println!("=> {answer}");
    }
}

#[test]
fn ranges_exclude_one_another_between_nodes() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let (mut one, mut same_node) = (Process::on(&here.join("f")), Process::on(&here.join("f")));
    let mut other = Process::on(&there.join("f"));
    assert_eq!(one.ask("w 0 9 try"), "ok");
    for process in [&mut same_node, &mut other] {
        assert_eq!(process.ask("w 9 20 try"), "EAGAIN");
        assert_eq!(process.ask("r 0 end try"), "EAGAIN");
    }
    assert_eq!(other.ask("w 10 20 try"), "ok");
    // The middle of it is given up: two locks are left.
    assert_eq!(one.ask("u 3 5 try"), "ok");
    assert_eq!(other.ask("w 3 5 try"), "ok");
    assert_eq!(other.ask("w 2 2 try"), "EAGAIN");
    let pid = one.child.id();
    assert_eq!(same_node.ask("r 0 end who"), format!("1 0+3 pid {pid}"));
    // Who has it on another node has no number here.
    assert_eq!(other.ask("w 6 end who"), "1 6+4 pid 0");
    assert_eq!(other.ask("w 21 end who"), "nobody");
    assert_eq!(one.ask("r 0 2 try"), "ok");
    assert_eq!(other.ask("r 0 2 try"), "ok");
    assert_eq!(one.ask("w 0 2 try"), "EAGAIN");
    for process in [one, same_node, other] {
        process.kill();
    }
}

#[test]
fn locks_go_with_a_close_of_any_descriptor_and_with_the_process() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    for mount in [&here, &there] {
        let (mut one, mut other) = (Process::on(&mount.join("f")), Process::on(&there.join("f")));
        assert_eq!(one.ask("w 0 end try"), "ok");
        assert_eq!(other.ask("w 0 end try"), "EAGAIN");
        assert_eq!(one.ask("reopen"), "ok");
        assert_eq!(other.ask("w 0 end try"), "ok");
        assert_eq!(other.ask("u 0 end try"), "ok");
        assert_eq!(one.ask("w 0 end try"), "ok");
        other.order("w 0 end wait");
        other.is_waiting();
        one.kill();
        assert_eq!(other.answer(), "ok");
        other.kill();
    }
}

#[test]
fn who_waits_gets_the_lock_in_turn_or_can_be_interrupted() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let mut one = Process::on(&here.join("f"));
    let (mut second, mut third) = (Process::on(&there.join("f")), Process::on(&here.join("f")));
    assert_eq!(one.ask("w 0 9 try"), "ok");
    second.order("w 0 4 wait");
    second.is_waiting();
    third.order("w 5 9 wait");
    third.is_waiting();
    // A signal that is handled interrupts the call, and only that of its process; here and where the MDT is elsewhere.
    for process in [&mut second, &mut third] {
        process.signal(Signal::SIGUSR1);
        assert_eq!(process.answer(), "EINTR");
        process.order("w 0 9 wait");
        process.is_waiting();
    }
    // Nobody has it who has given up.
    third.kill();
    assert_eq!(one.ask("u 0 9 try"), "ok");
    assert_eq!(second.answer(), "ok");
    assert_eq!(one.ask("w 0 9 who"), "1 0+10 pid 0");
    second.kill();
    assert_eq!(one.ask("w 0 9 wait"), "ok");
    one.kill();
}

#[test]
fn a_circle_of_waiters_is_told_so() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let (mut one, mut other) = (Process::on(&here.join("f")), Process::on(&there.join("f")));
    assert_eq!(one.ask("w 0 0 try"), "ok");
    assert_eq!(other.ask("w 1 1 try"), "ok");
    one.order("w 1 1 wait");
    one.is_waiting();
    // Both are on their way to the queue; who comes second is told.
    other.order("w 0 0 wait");
    let (told, (loser, held), winner) = loop {
        let is_told = [&one, &other].map(|process| process.answers.try_recv().ok());
        match is_told {
            [Some(answer), None] => break (answer, (&mut one, 0), &mut other),
            [None, Some(answer)] => break (answer, (&mut other, 1), &mut one),
            [Some(_), Some(_)] => panic!("{is_told:?}"),
            [None, None] => std::thread::yield_now(),
        }
    };
    assert_eq!(told, "EDEADLK");
    assert_eq!(loser.ask(&format!("u {held} {held} try")), "ok");
    assert_eq!(winner.answer(), "ok");
    one.kill();
    other.kill();
}

#[test]
fn flock_and_open_file_descriptions() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let (mut one, mut other) = (Process::on(&here.join("f")), Process::on(&there.join("f")));
    assert_eq!(one.ask("flock shared try"), "ok");
    assert_eq!(other.ask("flock shared try"), "ok");
    assert_eq!(one.ask("flock exclusive try"), "EAGAIN");
    assert_eq!(other.ask("flock unlock try"), "ok");
    assert_eq!(one.ask("flock exclusive try"), "ok");
    // The close of another descriptor is nothing to it.
    assert_eq!(one.ask("reopen"), "ok");
    assert_eq!(other.ask("flock exclusive try"), "EAGAIN");
    other.order("flock exclusive wait");
    other.is_waiting();
    one.kill();
    assert_eq!(other.answer(), "ok");
    other.kill();

    let (mine, theirs) = (open(&here.join("f")), open(&there.join("f")));
    let mut lock = flock(libc::F_WRLCK, 0, 9);
    fcntl(&mine, libc::F_OFD_SETLK, &mut lock).unwrap();
    assert_eq!(fcntl(&theirs, libc::F_OFD_SETLK, &mut lock).unwrap_err(), "EAGAIN");
    let copy = mine.try_clone().unwrap();
    drop(mine);
    assert_eq!(fcntl(&theirs, libc::F_OFD_SETLK, &mut lock).unwrap_err(), "EAGAIN");
    drop(copy);
    fcntl(&theirs, libc::F_OFD_SETLKW, &mut lock).unwrap();
}

#[test]
fn locks_of_a_mount_that_is_aborted_are_given_up() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let mut other = Process::on(&there.join("f"));
    let mine = open(&here.join("f"));
    fcntl(&mine, libc::F_OFD_SETLK, &mut flock(libc::F_WRLCK, 0, 9)).unwrap();
    other.order("w 0 9 wait");
    other.is_waiting();
    let forced = nix::mount::umount2(here.path(), MntFlags::MNT_FORCE);
    assert_eq!(forced, Err(nix::errno::Errno::EBUSY));
    here.unmount(MntFlags::MNT_DETACH);
    assert_eq!(other.answer(), "ok");
    other.kill();
}

#[test]
fn a_mount_ends_while_somebody_waits_for_a_lock() {
    let ([here, there], _cluster) = mounts();
    File::create(here.join("f")).unwrap();
    let (mut one, mut other) = (Process::on(&here.join("f")), Process::on(&there.join("f")));
    assert_eq!(one.ask("w 0 9 try"), "ok");
    other.order("w 0 9 wait");
    other.is_waiting();
    let forced = nix::mount::umount2(there.path(), MntFlags::MNT_FORCE);
    assert_eq!(forced, Err(nix::errno::Errno::EBUSY));
    there.unmount(MntFlags::MNT_DETACH);
    assert_ne!(other.answer(), "ok");
    assert_eq!(one.ask("u 0 9 try"), "ok");
    assert_eq!(one.ask("w 0 end who"), "nobody");
    one.kill();
    other.kill();
}
