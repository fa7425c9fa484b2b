//! The sending half of a connection.
//!
//! Whoever pushes a message while nobody is writing writes it himself, at once, and with it all that others push
//! meanwhile, many messages to a system call. When the socket takes no more, the connection's writing task goes on. So a
//! small message costs no switch to another task, and messages are never written by two at a time.
//!
//! ```text
//!            push                    socket full               socket empty
//!   idle ------------> in charge: pusher --------> in charge: task ---+
//!    ^  <-- nothing left --/                                 ^--------+
//!    `---------------------------- nothing left ---------------/
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_proto::frame::{HEADER_LEN, Header};
use bytes::Bytes;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::region::{Region, Source};

/// Messages to one system call.
const BATCH_MESSAGES: usize = 16;
const PARTS: usize = 3;

/// A message to send, with what it holds until it is away.
pub(super) struct Frame {
    head: [u8; HEADER_LEN],
    body: Bytes,
    bulk: Payload,
    _held: Vec<OwnedSemaphorePermit>,
}

/// The bulk segment of a message.
pub(super) enum Payload {
    /// None.
    None,
    /// A request's.
    Source(Source),
    /// A reply's: all of the region.
    Region(Region),
}

impl Payload {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Payload::None => &[],
            Payload::Source(source) => source,
            Payload::Region(region) => region,
        }
    }
}

impl Frame {
    /// A message; `held` is let go when it is written, or when the connection is lost.
    pub(super) fn new(header: &Header, body: Bytes, bulk: Payload, held: Vec<OwnedSemaphorePermit>) -> Frame {
        Frame { head: header.encode(), body, bulk, _held: held }
    }

    fn parts(&self) -> [&[u8]; PARTS] {
        [&self.head, &self.body, self.bulk.bytes()]
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// The messages of one connection that are to be written.
pub(super) struct Queue {
    half: OwnedWriteHalf,
    state: Mutex<State>,
    /// The writing task is in charge now, or the queue has ended.
    handed_over: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Frame>,
    /// What the one in charge left when the socket was full.
    batch: Batch,
    someone_in_charge: bool,
    ended: bool,
}

/// Messages that are being written.
#[derive(Default)]
struct Batch {
    frames: VecDeque<Frame>,
    /// Of the first message.
    written: usize,
}

enum Progress {
    NothingLeft,
    SocketFull,
    Ended,
}

impl Queue {
    pub(super) fn new(half: OwnedWriteHalf) -> Queue {
        Queue { half, state: Mutex::default(), handed_over: Notify::new() }
    }

    /// Sends a message, now or as soon as the socket takes it. On an ended connection the message is dropped.
    pub(super) fn push(&self, frame: Frame) {
        {
            let mut state = self.state();
            if state.ended {
                return;
            }
            state.waiting.push_back(frame);
            if state.someone_in_charge {
                return;
            }
            state.someone_in_charge = true;
        }
        if let Progress::SocketFull = self.write() {
            self.handed_over.notify_one();
        }
    }

    /// The writing task.
    pub(super) async fn run(&self) {
        loop {
            self.handed_over.notified().await;
            loop {
                if self.half.writable().await.is_err() {
                    return self.close();
                }
                match self.write() {
                    Progress::NothingLeft => break,
                    Progress::SocketFull => {}
                    Progress::Ended => return,
                }
            }
            if self.state().ended {
                return;
            }
        }
    }

    /// Ends the connection in both directions.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = self.state();
            state.ended = true;
            std::mem::take(&mut state.waiting)
        };
        drop(dropped);
        // An error means that the connection is gone already.
        let _ = rustix::net::shutdown(self.half.as_ref(), rustix::net::Shutdown::Both);
        self.handed_over.notify_one();
    }

    /// Writes until nothing is left or the socket is full. Only for the one in charge.
    fn write(&self) -> Progress {
        let mut batch = std::mem::take(&mut self.state().batch);
        loop {
            {
                let mut state = self.state();
                if state.ended {
                    return Progress::Ended;
                }
                let room = BATCH_MESSAGES - batch.frames.len();
                let next = state.waiting.len().min(room);
                batch.frames.extend(state.waiting.drain(..next));
                if batch.frames.is_empty() {
                    state.someone_in_charge = false;
                    return Progress::NothingLeft;
                }
            }
            match self.half.try_write_vectored(&batch.slices()) {
                Ok(len) => batch.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.state().batch = batch;
                    return Progress::SocketFull;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The reading side sees the end, and says why.
                    self.close();
                    return Progress::Ended;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut skip = self.written;
        let mut slices = Vec::with_capacity(self.frames.len() * PARTS);
        for part in self.frames.iter().flat_map(|frame| frame.parts()) {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                slices.push(IoSlice::new(&part[skipped..]));
            }
        }
        slices
    }

    fn advance(&mut self, len: usize) {
        self.written += len;
        while let Some(first) = self.frames.front() {
            let first_len = first.len();
            if self.written < first_len {
                break;
            }
            self.written -= first_len;
            self.frames.pop_front();
        }
    }
}
