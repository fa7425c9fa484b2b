//! The daemon's end of the control socket, in tokio's terms.
//!
//! Owns the socket. A supervisor that dies closes it; the daemon then goes on serving, since the job's data is here: the
//! receiver of messages stays open and silent, and what the daemon says is dropped.

use std::os::unix::net::UnixStream as StdUnixStream;

use anyhow::{Context, bail};
use burstfs_node::control::{DaemonMessage, LineDecoder, NodeMessage, encode};
use burstfs_node::description::InstanceDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Bytes of one read.
const READ_BYTES: usize = 8 << 10;
/// Messages that wait to be written or handled; both sides send a handful in an instance's life, and progress.
const QUEUE: usize = 64;

/// The way to the supervisor.
#[derive(Clone)]
pub(crate) struct Supervisor {
    outgoing: mpsc::Sender<DaemonMessage>,
}

impl Supervisor {
    /// One whose words a test hears.
    #[cfg(test)]
    pub(crate) fn overheard() -> (Supervisor, mpsc::Receiver<DaemonMessage>) {
        let (outgoing, said) = mpsc::channel(QUEUE);
        (Supervisor { outgoing }, said)
    }

    /// Says something. A supervisor that is gone is no error: nobody is left to be told.
    pub(crate) async fn say(&self, message: DaemonMessage) {
        if self.outgoing.send(message).await.is_err() {
            tracing::debug!("the supervisor is gone; nobody hears what this daemon says");
        }
    }
}

/// Takes the control socket over and waits for the description of the instance. Returns it with the messages that follow
/// and the way back.
pub(crate) async fn open(
    socket: StdUnixStream,
) -> anyhow::Result<(InstanceDescription, mpsc::Receiver<NodeMessage>, Supervisor)> {
    socket.set_nonblocking(true).context("control socket")?;
    let (mut reading, writing) = UnixStream::from_std(socket).context("control socket")?.into_split();
    let mut decoder = LineDecoder::default();
    let Some(first) = receive(&mut reading, &mut decoder).await? else {
        bail!("the supervisor closed the control socket before it said what to be");
    };
    let NodeMessage::Start(description) = first else { bail!("the supervisor's first message was {first:?}") };
    let (incoming, messages) = mpsc::channel(QUEUE);
    let (outgoing, queue) = mpsc::channel(QUEUE);
    tokio::spawn(pump_in(reading, decoder, incoming));
    tokio::spawn(pump_out(writing, queue));
    Ok((*description, messages, Supervisor { outgoing }))
}

async fn receive(socket: &mut OwnedReadHalf, decoder: &mut LineDecoder) -> anyhow::Result<Option<NodeMessage>> {
    loop {
        if let Some(message) = decoder.next_message().context("control socket")? {
            return Ok(Some(message));
        }
        let mut buffer = [0; READ_BYTES];
        match socket.read(&mut buffer).await.context("control socket")? {
            0 => return Ok(None),
            len => decoder.push(&buffer[..len]),
        }
    }
}

async fn pump_in(mut socket: OwnedReadHalf, mut decoder: LineDecoder, incoming: mpsc::Sender<NodeMessage>) {
    loop {
        match receive(&mut socket, &mut decoder).await {
            Ok(Some(message)) => {
                if incoming.send(message).await.is_err() {
                    return;
                }
            }
            Ok(None) => break tracing::warn!("the supervisor is gone; this daemon goes on serving"),
            Err(error) => break tracing::error!("control socket: {error:#}; this daemon goes on serving"),
        }
    }
    // Keeps the channel open: its end would look like a message that never comes to those who wait.
    incoming.closed().await;
}

async fn pump_out(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<DaemonMessage>) {
    while let Some(message) = queue.recv().await {
        let line = match encode(&message) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!("cannot say {message:?}: {error}");
                continue;
            }
        };
        if let Err(error) = socket.write_all(&line).await {
            tracing::debug!("control socket: {error}");
        }
    }
}
