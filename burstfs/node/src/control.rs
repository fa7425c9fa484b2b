//! The protocol between a node's supervisor and its `burstfsd`: JSON values, one a line, over an inherited unix stream
//! socket.
//!
//! Owns the messages, and their way to and from bytes. Does not own the socket: [`encode`] and [`LineDecoder`] do no I/O,
//! so that the helper's poll loop and the daemon's runtime use the same code.
//!
//! ```text
//! supervisor                                         burstfsd
//!   {"start": {..}}            --------------------->             once, first
//!                              <---------------------  {"state": "starting"} {"state": "staging_in"} {"progress": {..}}
//!                              <---------------------  {"warning": {..}}    where the job starts without all of its input
//!                              <---------------------  {"ready": {"environment": {..}}}  or  {"failed": {..}}
//!   "cancel"                   --------------------->             before ready: answer "failed" and end
//!   "client_gone"              --------------------->             unmounted here: begin the end
//!                              <---------------------  {"state": "draining"} "durable" {"progress": {..}}
//!                              <---------------------  {"drained": {"complete": true, "failure": null, ..}}
//!   "stop"                     --------------------->             exit
//! ```
//! Between "client_gone" and "drained", where a directive depends on how the job ended:
//! ```text
//!                              <---------------------  "ask_job_end"         of the daemon that carries the MGS
//!   {"job_end": "success"}     --------------------->             what Slurm or the journal says; null: not known
//!                              <---------------------  {"job_end": "success"} of every daemon: what the MGS has told it
//! ```
//! When the drain is not complete the supervisor starts another daemon, which holds what is left ("held" in its description):
//! ```text
//!                              <---------------------  {"state": "held"}
//!   "resume"                   --------------------->             an attempt now, not only when it is time
//!                              <---------------------  {"state": "draining"} {"progress": {..}} {"drained": {..}}
//!   {"removed": {..}}          --------------------->             what is held is removed now: tell the user
//!   "stop"                     --------------------->             exit
//! ```
//! A daemon whose supervisor dies sees the end of the stream and goes on serving.
//!
//! Failure: whatever a peer sends costs at most [`LINE_MAX_BYTES`] of memory; a line that is longer, or that is no
//! message, is an error and the connection is of no further use.

use std::collections::BTreeMap;

use burstfs_types::{Failure, JobEnd, NodeIndex};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::description::InstanceDescription;
use crate::held::Hope;

/// The longest line, its newline included.
pub const LINE_MAX_BYTES: usize = 1 << 20;
/// The descriptor at which `burstfsd` finds its end of the control socket.
pub const CONTROL_FD: i32 = 3;
/// The descriptor at which `burstfsd` finds `/dev/fuse`, when it serves a mount.
pub const FUSE_FD: i32 = 4;
/// The descriptor at which it then finds its end of the socket for [backing ids](crate::backing), if there is one.
pub const BACKING_FD: i32 = 5;

/// What the supervisor says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeMessage {
    /// What to be. The first message, and sent once.
    Start(Box<InstanceDescription>),
    /// The mount of this node is gone: begin the end.
    ClientGone,
    /// Give up starting.
    Cancel,
    /// How the job ended, as [`DaemonMessage::AskJobEnd`] has asked; `None`: Slurm does not say.
    JobEnd(Option<JobEnd>),
    /// Try at once to drain what is held.
    Resume,
    /// What is held is removed now; why.
    Removed(Failure),
    /// Exit now.
    Stop,
}

/// What `burstfsd` says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonMessage {
    /// How far it is.
    State(State),
    /// The job can start.
    Ready {
        /// What the job finds in its environment.
        environment: BTreeMap<String, String>,
    },
    /// The job is to be told this when it starts: said before `Ready`, on one node.
    Warning(Failure),
    /// It cannot go on.
    Failed(Failure),
    /// Counters, from time to time while it stages or waits.
    Progress(Progress),
    /// The end of the drain.
    Drained {
        /// Everything that was to be drained is where it should be: the node's data may go.
        complete: bool,
        /// Why not.
        failure: Option<Failure>,
        /// What can make another attempt come to more.
        hope: Hope,
        /// As [`Held::suspects`](crate::held::Held::suspects).
        suspects: Vec<NodeIndex>,
    },
    /// The job is over on all nodes, none of which was lost, and what it wrote on this one is on its disk.
    Durable,
    /// How did the job end? Asked by the daemon that carries the MGS, once the job's end has come to its node.
    AskJobEnd,
    /// So the job ended, as the MGS has told all nodes; it is to be kept in mind until the instance's end.
    JobEnd(JobEnd),
}

/// How far an instance is on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Looking for the other nodes.
    Starting,
    /// Copying input.
    StagingIn,
    /// The job may use it.
    Ready,
    /// Waiting for a time, for nodes or for a word to try again what could not be drained.
    Held,
    /// Copying output.
    Draining,
    /// Nothing is left to copy.
    Drained,
}

/// Counters that only rise. The supervisor's no-progress timer starts again whenever one of them has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Files done by this node.
    pub files_done: u64,
    /// Files to do, as far as known.
    pub files_total: u64,
    /// Bytes done by this node.
    pub bytes_done: u64,
    /// Bytes to do, as far as known.
    pub bytes_total: u64,
    /// Raised whenever anything that this node waits for has moved on another node: whoever waits at a barrier for
    /// nodes that are alive and at work is not stuck.
    pub advances: u64,
    /// Bytes that the instance uses on this node's NVMe.
    pub used_bytes: u64,
}

impl Progress {
    /// Whether `self` is further than `before`. Space and totals do not count: they change without anything being done.
    pub fn is_beyond(&self, before: &Progress) -> bool {
        self.files_done > before.files_done || self.bytes_done > before.bytes_done || self.advances > before.advances
    }
}

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Longer than [`LINE_MAX_BYTES`].
    #[error("a line of the control protocol has more than {LINE_MAX_BYTES} bytes")]
    TooLong,
    /// Not a message.
    #[error("not a message of the control protocol")]
    Malformed(#[source] serde_json::Error),
}

/// One line with its newline.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let mut line = serde_json::to_vec(message).map_err(ControlError::Malformed)?;
    line.push(b'\n');
    if line.len() > LINE_MAX_BYTES { Err(ControlError::TooLong) } else { Ok(line) }
}

/// The message of one line, without its newline.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(line).map_err(ControlError::Malformed)
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct LineDecoder {
    pending: Vec<u8>,
    /// How much of `pending` is known to contain no newline: a line that comes in small pieces is scanned once.
    scanned: usize,
}

impl LineDecoder {
    /// Takes what was read. Call [`LineDecoder::next_message`] until it has no more before the next `push`: then never more than
    /// one line and one read are held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next complete message; `None` when more bytes are needed.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let newline = self.pending[self.scanned..].iter().position(|byte| *byte == b'\n');
        let Some(end) = newline.map(|at| at + self.scanned) else {
            self.scanned = self.pending.len();
            return if self.pending.len() >= LINE_MAX_BYTES { Err(ControlError::TooLong) } else { Ok(None) };
        };
        if end >= LINE_MAX_BYTES {
            return Err(ControlError::TooLong);
        }
        let message = decode(&self.pending[..end])?;
        self.pending.drain(..=end);
        self.scanned = 0;
        if self.pending.is_empty() {
            // A start message can be large and comes once: its memory is not kept for the hours after.
            self.pending = Vec::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::Code;

    use super::*;

    fn all(decoder: &mut LineDecoder) -> Vec<DaemonMessage> {
        std::iter::from_fn(|| decoder.next_message().unwrap()).collect()
    }

    #[test]
    fn messages_have_the_documented_form() {
        let text = |message: &DaemonMessage| String::from_utf8(encode(message).unwrap()).unwrap();
        assert_eq!(text(&DaemonMessage::State(State::StagingIn)), "{\"state\":\"staging_in\"}\n");
        assert_eq!(
            text(&DaemonMessage::Ready { environment: BTreeMap::from([("BURSTFS".into(), "/b".into())]) }),
            "{\"ready\":{\"environment\":{\"BURSTFS\":\"/b\"}}}\n"
        );
        assert_eq!(
            text(&DaemonMessage::Failed(Failure::new(Code::StageInFailed, "x"))),
            "{\"failed\":{\"code\":\"E207\",\"message\":\"x\"}}\n"
        );
        assert_eq!(
            text(&DaemonMessage::Drained {
                complete: true,
                failure: None,
                hope: Hope::default(),
                suspects: Vec::new()
            }),
            "{\"drained\":{\"complete\":true,\"failure\":null,\
             \"hope\":{\"errors_may_pass\":false,\"nodes_may_return\":false},\"suspects\":[]}}\n"
        );
        assert_eq!(encode(&NodeMessage::ClientGone).unwrap(), b"\"client_gone\"\n");
        assert_eq!(encode(&NodeMessage::Cancel).unwrap(), b"\"cancel\"\n");
        assert_eq!(encode(&NodeMessage::Stop).unwrap(), b"\"stop\"\n");
        let progress: DaemonMessage = decode(b"{\"progress\":{\"files_done\":3}}").unwrap();
        assert_eq!(progress, DaemonMessage::Progress(Progress { files_done: 3, ..Progress::default() }));
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_messages() {
        let messages = [
            DaemonMessage::State(State::Starting),
            DaemonMessage::Progress(Progress { bytes_done: 7, ..Progress::default() }),
            DaemonMessage::Drained {
                complete: false,
                failure: Some(Failure::new(Code::DrainFailed, "quota\n")),
                hope: Hope::ALL,
                suspects: vec![NodeIndex::new(3)],
            },
        ];
        let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
        for step in 1..stream.len() {
            let mut decoder = LineDecoder::default();
            let seen: Vec<DaemonMessage> = stream
                .chunks(step)
                .flat_map(|chunk| {
                    decoder.push(chunk);
                    all(&mut decoder)
                })
                .collect();
            assert_eq!(seen, messages, "step {step}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut decoder = LineDecoder::default();
        decoder.push(&vec![b'['; LINE_MAX_BYTES - 1]);
        assert!(matches!(decoder.next_message::<DaemonMessage>(), Ok(None)));
        decoder.push(b"[");
        assert!(matches!(decoder.next_message::<DaemonMessage>(), Err(ControlError::TooLong)));
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        for line in
            ["", "{}", "[", "{\"state\":\"dead\"}", "{\"failed\":{\"code\":\"E999\",\"message\":\"\"}}", "\u{0}"]
        {
            assert!(decode::<DaemonMessage>(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(decode::<DaemonMessage>("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn only_work_is_progress() {
        let before = Progress { files_done: 1, ..Progress::default() };
        assert!(!before.is_beyond(&before));
        assert!(!Progress { used_bytes: 9, bytes_total: 9, ..before }.is_beyond(&before));
        assert!(Progress { advances: 1, ..before }.is_beyond(&before));
    }
}
