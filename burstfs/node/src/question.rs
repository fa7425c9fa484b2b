//! A question to Slurm: a command that is run, says something, and ends.
//!
//! Owns the process, of which nothing is left when this is dropped. Whoever asks polls [`Question::pidfd`], and gives it up when it
//! takes too long. What a command is to say fits into a pipe, so that it ends by itself.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

/// A command that was asked and has not been heard.
#[derive(Debug)]
pub(crate) struct Question {
    child: Child,
    pidfd: OwnedFd,
}

/// What a command said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// Whether it ended with 0.
    pub(crate) has_succeeded: bool,
    pub(crate) said: String,
    pub(crate) complained: String,
}

impl Question {
    /// Runs `command`, which finds Slurm's configuration as this process does, in its environment.
    pub(crate) fn ask(mut command: Command) -> Option<Question> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let program = command.get_program().to_owned();
        let complain = |error: &std::io::Error| log::info!("cannot run {}: {error}", program.display());
        let mut child = spawned.inspect_err(complain).ok()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        match pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => Some(Question { child, pidfd }),
            Some(Err(_)) | None => {
                let _ = child.kill();
                let _ = child.wait();
                None
            }
        }
    }

    /// Readable when the answer is there.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the answer is there, or comes within `patience`.
    pub(crate) fn has_ended(&self, patience: Duration) -> bool {
        matches!(process::wait_readable(self.pidfd(), Some(patience)), Ok(true))
    }

    /// What it said. To be called when it has ended.
    pub(crate) fn answer(mut self) -> Option<Answer> {
        let (mut said, mut complained) = (String::new(), String::new());
        self.child.stdout.take()?.read_to_string(&mut said).ok()?;
        self.child.stderr.take()?.read_to_string(&mut complained).ok()?;
        Some(Answer { has_succeeded: self.child.wait().ok()?.success(), said, complained })
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // Nothing happens to one that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
