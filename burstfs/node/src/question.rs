//! A question to Slurm: a command that is run, says something, and ends.
//!
//! Owns the process, of which nothing is left when this is dropped. Whoever asks polls [`Question::pidfd`], and gives it up when it
//! takes too long. What a command is to say fits into a pipe, so that it ends by itself. One whose answer is not wanted any more is let
//! end all the same, if that is soon: `slurmctld` puts an error into its log for each that hangs up on it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

/// How long a command that nobody listens to any more may take to end; usually it needs milliseconds.
const FAREWELL: Duration = Duration::from_secs(1);

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
        // It has ended already, or will in a moment; nothing happens to one that has been waited for.
        self.has_ended(FAREWELL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(script: &str) -> Question {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Question::ask(command).unwrap()
    }

    #[test]
    fn one_that_is_not_listened_to_ends_by_itself() {
        let said = tempfile::NamedTempFile::new().unwrap();
        drop(ask(&format!("sleep 0.05; echo all of it > {}", said.path().display())));
        assert_eq!(std::fs::read_to_string(said.path()).unwrap(), "all of it\n");
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let question = ask("exec sleep 1000");
        let pid = question.child.id();
        drop(question);
        assert!(!std::path::Path::new("/proc").join(pid.to_string()).exists());
    }
}
