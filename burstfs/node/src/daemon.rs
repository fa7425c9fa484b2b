//! A running `burstfsd`, as its supervisor sees it: the process, the control socket, and what it last said on stderr.
//!
//! What comes from the socket comes from a process of the user's, and is checked here.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use burstfs_node::control::{DaemonMessage, LineDecoder, NodeMessage, encode};
use burstfs_types::{Failure, limits};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Context, NodeError};
use crate::log;
use crate::process::{Child, Identity};
use crate::spawn::{self, DaemonSpec};
use crate::store::Launch;

/// How much of the log's end may be a daemon's last words.
const WORDS_MAX_BYTES: u64 = 4096;
const WORDS_MAX_LINES: usize = 3;
/// What a message of a failure may have.
const MESSAGE_MAX_BYTES: usize = 2048;
/// What the environment that it asks for may have.
const ENVIRONMENT_MAX_BYTES: usize = 64 << 10;
/// How long a daemon that was told to stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A `burstfsd` that has been started.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    identity: Identity,
    control: OwnedFd,
    decoder: LineDecoder,
    outgoing: Vec<u8>,
    log: File,
    log_start: u64,
}

/// What its socket brought.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(DaemonMessage),
    Nothing,
    /// It closed the socket, or said what no daemon says.
    Gone(String),
}

impl Daemon {
    /// Starts it; `cgroup_files` are where it goes, `fuse` is the device of its mount, `backing` its end of the socket for
    /// backing ids.
    pub(crate) fn start(
        launch: &Launch,
        cgroup_files: Vec<std::path::PathBuf>,
        fuse: Option<BorrowedFd<'_>>,
        backing: Option<BorrowedFd<'_>>,
    ) -> Result<Daemon, NodeError> {
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().context(|| "use the log".to_owned())?;
        let log = File::from(stderr);
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let (control, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .context(|| "make a socket".to_owned())?;
        let description = &launch.description;
        let child = spawn::daemon(&DaemonSpec {
            program: &launch.daemon,
            uid: description.uid,
            gid: description.gid,
            groups: &launch.groups,
            control: theirs.as_fd(),
            fuse,
            backing,
            log: log.as_fd(),
            cgroup_files,
            environment: spawn::clean_environment(),
        })?;
        let identity = Identity::of(child.pid(), description.uid)
            .ok_or_else(|| std::io::Error::other("no /proc"))
            .context(|| "tell burstfsd from other processes".to_owned())?;
        let decoder = LineDecoder::default();
        Ok(Daemon { child, identity, control, decoder, outgoing: Vec::new(), log, log_start })
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// What to wait for on the control socket.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Says something; what does not fit into the socket goes when it can.
    pub(crate) fn send(&mut self, message: &NodeMessage) -> Result<(), NodeError> {
        self.outgoing.extend(encode(message)?);
        self.flush();
        Ok(())
    }

    /// Sends what is waiting, as far as it fits. A daemon that is gone is noticed elsewhere.
    pub(crate) fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match rustix::net::send(&self.control, &self.outgoing, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.outgoing.clear(),
            }
        }
        self.outgoing = Vec::new();
    }

    /// The next message.
    pub(crate) fn hear(&mut self) -> Heard {
        loop {
            match self.decoder.next_message::<DaemonMessage>() {
                Ok(Some(message)) => {
                    return check(message).map_or_else(|why| Heard::Gone(why.to_owned()), Heard::Message);
                }
                Ok(None) => {}
                Err(error) => return Heard::Gone(error.to_string()),
            }
            let mut buffer = [0; 16 << 10];
            match rustix::net::recv(&self.control, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Heard::Gone("it closed its control socket".to_owned()),
                Ok((count, _)) => self.decoder.push(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Heard::Nothing,
                Err(errno) => return Heard::Gone(errno.to_string()),
            }
        }
    }

    /// Lets it exit by itself, for a moment. Returns whether it did.
    pub(crate) fn stop_patiently(&mut self) -> bool {
        let _ = self.send(&NodeMessage::Stop);
        matches!(self.child.wait_for(STOP_PATIENCE), Ok(Some(_)))
    }

    /// How it ended, in one line; to be called when it has, or is about to. Kills it if it has not.
    pub(crate) fn last_words(self) -> String {
        let (mut end, mut at_once) = (None, true);
        // A socket closes a little before the process that had it is gone.
        if let Ok(status) = self.child.wait_for(Duration::from_millis(500)) {
            end = status;
        }
        if end.is_none() {
            at_once = false;
            self.child.kill();
            end = self.child.wait_for(STOP_PATIENCE).ok().flatten();
        }
        let how = match end {
            Some(end) if at_once => end.to_string(),
            _ => "it did not exit".to_owned(),
        };
        let words = self.tail();
        if words.is_empty() { how } else { format!("{how}: {words}") }
    }

    /// The last lines that it wrote.
    fn tail(&self) -> String {
        let size = self.log.metadata().map_or(0, |metadata| metadata.len());
        let start = self.log_start.max(size.saturating_sub(WORDS_MAX_BYTES));
        let mut bytes = vec![0; usize::try_from(size.saturating_sub(start)).unwrap_or(0)];
        let count = self.log.read_at(&mut bytes, start).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..count]);
        // The supervisor writes to the same file.
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.trim().is_empty() && !line.contains(" burstfs-node: ")).collect();
        let last = &lines[lines.len().saturating_sub(WORDS_MAX_LINES)..];
        log::printable(&last.join(" / "), 512)
    }
}

/// Takes out of a message what could harm whoever reads it later, or refuses it.
fn check(message: DaemonMessage) -> Result<DaemonMessage, &'static str> {
    let one_line = |failure: Failure| Failure::new(failure.code, log::printable(&failure.message, MESSAGE_MAX_BYTES));
    match message {
        DaemonMessage::Ready { environment } if is_acceptable(&environment) => Ok(DaemonMessage::Ready { environment }),
        DaemonMessage::Ready { .. } => Err("it asked for an environment that no job gets"),
        DaemonMessage::Warning(failure) => Ok(DaemonMessage::Warning(one_line(failure))),
        DaemonMessage::Failed(failure) => Ok(DaemonMessage::Failed(one_line(failure))),
        DaemonMessage::Drained { suspects, .. } if suspects.len() > limits::NODES_MAX => {
            Err("it doubts more nodes than there can be")
        }
        DaemonMessage::Drained { complete, failure, hope, suspects } => {
            Ok(DaemonMessage::Drained { complete, failure: failure.map(one_line), hope, suspects })
        }
        message @ (DaemonMessage::State(_)
        | DaemonMessage::Progress(_)
        | DaemonMessage::Durable
        | DaemonMessage::AskJobEnd
        | DaemonMessage::JobEnd(_)) => Ok(message),
    }
}

/// Only burstfs's own variables, and those that it is documented to set; nothing that could change how root's code in
/// slurmstepd, or another user's, behaves.
fn is_acceptable(environment: &BTreeMap<String, String>) -> bool {
    let size: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    let ours = |name: &str| name == "TMPDIR" || name.starts_with("BURSTFS") || name.starts_with("DW_");
    let plain =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let printable = |value: &str| !value.chars().any(char::is_control);
    size <= ENVIRONMENT_MAX_BYTES
        && environment.iter().all(|(name, value)| ours(name) && plain(name) && printable(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_environments_pass() {
        let environment = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(is_acceptable(&environment("BURSTFS_JOB", "/burstfs/1")));
        assert!(is_acceptable(&environment("TMPDIR", "/burstfs/1/tmp")));
        for (name, value) in [("LD_PRELOAD", "/x"), ("BURSTFS_A=B", "x"), ("BURSTFS", "a\nLD_PRELOAD=/x"), ("PATH", "")]
        {
            assert!(!is_acceptable(&environment(name, value)), "{name}");
        }
        assert!(!is_acceptable(&environment("BURSTFS", &"x".repeat(ENVIRONMENT_MAX_BYTES))));
    }
}
