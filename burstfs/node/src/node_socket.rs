//! The supervisor's own socket, `node.sock` in the run directory: how `start`, `stop`, `list` and `recover` talk to it.
//!
//! Only root gets there: the directory is 0700, and the peer's user is checked. The messages are lines of JSON as in the
//! control protocol. A client that sees the end of the stream before its answer looks at what is left and goes on from
//! there; so the supervisor owes nobody an answer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use burstfs_node::control::{LineDecoder, Progress, encode};
use burstfs_node::held::Held;
use burstfs_types::Failure;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::dirs::TrustedDir;
use crate::error::{Context, NodeError};
use crate::process;

pub(crate) const SOCKET: &str = "node.sock";

/// What is asked of a supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Say when the outcome has been recorded.
    Outcome,
    /// End the instance on this node, and say when that is done.
    Stop,
    /// Say how things are.
    Status,
    /// Try at once to drain what is held.
    Resume,
    /// Remove what is held, and say when that is done.
    Discard,
}

/// What a supervisor answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The outcome can be read.
    Recorded,
    /// The end has begun; the supervisor's process id.
    Stopping { pid: i32 },
    /// Nothing of the instance is left but, perhaps, what goes on by itself.
    Stopped(Report),
    /// What was asked is for held data, and this is none; or it has begun. The supervisor's process id.
    Heard { is_held: bool, pid: i32 },
    /// How things are.
    Status(Status),
}

/// How an instance ended on this node.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What is kept, and why.
    pub(crate) held: Option<Held>,
    /// The drain goes on.
    pub(crate) is_draining: bool,
    /// What did not go as it should.
    pub(crate) warnings: Vec<Failure>,
}

/// How things are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) state: String,
    pub(crate) supervisor_pid: i32,
    pub(crate) daemon_pid: Option<i32>,
    pub(crate) restarts: u32,
    pub(crate) progress: Progress,
    pub(crate) held: Option<Held>,
}

/// Where the socket is, short enough for a socket's address however long the directory's path is.
fn address(run: &TrustedDir) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", run.as_fd().as_raw_fd()))
}

fn socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)
}

/// A new listening socket in `run`; one that an earlier supervisor left is replaced.
pub(crate) fn listen(run: &TrustedDir) -> Result<OwnedFd, NodeError> {
    run.remove_file(SOCKET)?;
    let open = || {
        let listener = socket(SocketFlags::NONBLOCK)?;
        rustix::net::bind(&listener, &address(run)?)?;
        rustix::net::listen(&listener, 64)?;
        Ok::<_, Errno>(listener)
    };
    open().context(|| format!("listen at {}", run.path().join(SOCKET).display()))
}

/// One end of a connection, with what has been read of the next message.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    decoder: LineDecoder,
}

/// What a read brought.
#[derive(Debug)]
pub(crate) enum Received<T> {
    Message(T),
    /// Nothing complete yet.
    Nothing,
    /// The other end is gone.
    End,
}

impl Connection {
    /// The next client, if one is waiting.
    pub(crate) fn accept(listener: BorrowedFd<'_>) -> Option<Connection> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::accept_with(listener, flags).ok()?;
        let root = rustix::net::sockopt::socket_peercred(&fd).is_ok_and(|peer| peer.uid.is_root());
        root.then(|| Connection { fd, decoder: LineDecoder::default() })
    }

    /// Connects to the supervisor of `run`; `None` when there is none.
    pub(crate) fn open(run: &TrustedDir) -> Option<Connection> {
        let fd = socket(SocketFlags::empty()).ok()?;
        rustix::net::connect(&fd, &address(run).ok()?).ok()?;
        Some(Connection { fd, decoder: LineDecoder::default() })
    }

    /// Sends a message. Messages are far smaller than a socket's buffer: one that does not fit at once goes to a peer
    /// that does not read, and is an error.
    pub(crate) fn send<T: Serialize>(&self, message: &T) -> Result<(), NodeError> {
        let line = encode(message)?;
        let sent = rustix::net::send(&self.fd, &line, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        match sent.context(|| "send".to_owned())? {
            count if count == line.len() => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::WriteZero)).context(|| "send".to_owned()),
        }
    }

    /// The next message, if there is one; reads at most once.
    pub(crate) fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Received<T> {
        match self.decoder.next_message() {
            Ok(Some(message)) => return Received::Message(message),
            Err(_) => return Received::End,
            Ok(None) => {}
        }
        let mut buffer = [0; 4096];
        match rustix::net::recv(&self.fd, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Received::End,
            Ok((count, _)) => self.decoder.push(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => return Received::End,
        }
        match self.decoder.next_message() {
            Ok(Some(message)) => Received::Message(message),
            Ok(None) => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    /// Waits for the next message; `None` when the other end is gone, or `patience` is over.
    pub(crate) fn wait<T: serde::de::DeserializeOwned>(&mut self, patience: Option<Duration>) -> Option<T> {
        let end = patience.map(|patience| Instant::now() + patience);
        loop {
            match self.receive() {
                Received::Message(message) => return Some(message),
                Received::End => return None,
                Received::Nothing => {}
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match process::wait_readable(self.fd.as_fd(), left) {
                Ok(true) => {}
                Ok(false) | Err(_) => return None,
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
