//! The daemon's end of the control socket, in tokio's terms.
//!
//! Owns the socket. A supervisor that dies closes it; the daemon then goes on serving, since the job's data is here: the
//! receiver of messages stays open and silent, and what the daemon says is dropped.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use burstfs_node::control::{DaemonMessage, LineDecoder, NodeMessage, encode};
use burstfs_node::description::InstanceDescription;
use burstfs_types::JobEnd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

/// Bytes of one read.
const READ_BYTES: usize = 8 << 10;
/// Messages that wait to be written or handled; both sides send a handful in an instance's life, and progress.
const QUEUE: usize = 64;
/// How long the supervisor may take to say how the job ended: a little longer than it waits for Slurm.
const JOB_END_PATIENCE: Duration = Duration::from_secs(45);

/// The way to the supervisor.
#[derive(Clone)]
pub(crate) struct Supervisor {
    outgoing: mpsc::Sender<DaemonMessage>,
    /// How the job ended, as the supervisor has answered last.
    job_end: Arc<watch::Sender<Option<JobEnd>>>,
}

impl Supervisor {
    /// One whose words a test hears.
    #[cfg(test)]
    pub(crate) fn overheard() -> (Supervisor, mpsc::Receiver<DaemonMessage>) {
        let (outgoing, said) = mpsc::channel(QUEUE);
        (Supervisor { outgoing, job_end: Arc::default() }, said)
    }

    /// Says something. A supervisor that is gone is no error: nobody is left to be told.
    pub(crate) async fn say(&self, message: DaemonMessage) {
        if self.outgoing.send(message).await.is_err() {
            tracing::debug!("the supervisor is gone; nobody hears what this daemon says");
        }
    }

    /// How the job ended, as the supervisor knows it of its journal or of Slurm; `None` when neither says. One asks at a time.
    pub(crate) async fn job_end(&self) -> Option<JobEnd> {
        let mut answers = self.job_end.subscribe();
        self.say(DaemonMessage::AskJobEnd).await;
        // An error would mean that the sender is gone, and it is here.
        if tokio::time::timeout(JOB_END_PATIENCE, answers.changed()).await.is_err() {
            tracing::info!("the supervisor does not say how the job ended");
            return None;
        }
        *answers.borrow()
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
    let supervisor = Supervisor { outgoing, job_end: Arc::default() };
    tokio::spawn(pump_in(reading, decoder, incoming, supervisor.job_end.clone()));
    tokio::spawn(pump_out(writing, queue));
    Ok((*description, messages, supervisor))
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

/// Passes on what the supervisor says; its answers go to who has asked.
async fn pump_in(
    mut socket: OwnedReadHalf,
    mut decoder: LineDecoder,
    incoming: mpsc::Sender<NodeMessage>,
    job_end: Arc<watch::Sender<Option<JobEnd>>>,
) {
    loop {
        match receive(&mut socket, &mut decoder).await {
            Ok(Some(NodeMessage::JobEnd(end))) => drop(job_end.send_replace(end)),
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
