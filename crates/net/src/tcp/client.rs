//! The client's end of a TCP connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_proto::frame::{Header, Kind};
use burstfs_types::Xid;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::queue::{Frame, Payload, Queue};
use super::wire::{Ended, Incoming, len, wire_len};
use crate::error::ProtocolError;
use crate::region::Region;
use crate::transport::{ClientBulk, Link, Lost, LostCause, Outcome, Reply, Request, checksum_error, result_of};

/// Starts the tasks of a connection that has gone through its hello.
pub(super) fn start(stream: TcpStream, server: SocketAddr) -> Arc<dyn Link> {
    let (read, write) = stream.into_split();
    let link = Arc::new(TcpLink {
        queue: Queue::new(write),
        waiting: Mutex::new(Some(HashMap::new())),
        replies: AtomicU64::new(0),
    });
    let writer = link.clone();
    tokio::spawn(async move { writer.queue.run().await });
    let reader = Reader { link: link.clone(), incoming: Incoming::new(read), server };
    tokio::spawn(reader.run());
    link
}

struct TcpLink {
    queue: Queue,
    /// Requests without a reply, by xid; `None` once the connection is gone.
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
    replies: AtomicU64,
}

struct Waiter {
    request: Request,
    done: oneshot::Sender<Outcome>,
}

impl Waiter {
    /// A caller that has stopped waiting is no error: what he lent goes back with the message.
    fn lost(self, cause: LostCause) {
        let _ = self.done.send(Err(Box::new(Lost { cause, request: self.request })));
    }
}

impl TcpLink {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the waiter back when the connection is gone, or has a request of that number.
    fn enlist(&self, waiter: Waiter) -> Option<Waiter> {
        let mut waiting = self.waiting();
        let Some(map) = waiting.as_mut() else {
            return Some(waiter);
        };
        match map.entry(waiter.request.xid.0) {
            Entry::Vacant(entry) => {
                entry.insert(waiter);
                None
            }
            Entry::Occupied(_) => Some(waiter),
        }
    }

    fn end(&self, cause: &LostCause) {
        let waiting = self.waiting().take();
        self.queue.close();
        for waiter in waiting.unwrap_or_default().into_values() {
            waiter.lost(cause.clone());
        }
    }
}

impl Link for TcpLink {
    fn submit(&self, request: Request, done: oneshot::Sender<Outcome>) {
        let frame = frame(&request);
        match self.enlist(Waiter { request, done }) {
            None => self.queue.push(frame),
            Some(waiter) => waiter.lost(LostCause::Disconnected),
        }
    }

    fn is_closed(&self) -> bool {
        self.waiting().is_none()
    }

    fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.end(&LostCause::Disconnected);
    }
}

fn frame(request: &Request) -> Frame {
    let bulk = match &request.bulk {
        ClientBulk::None | ClientBulk::Sink(_) => Payload::None,
        ClientBulk::Source(source) => Payload::Source(source.clone()),
    };
    let header = Header {
        xid: request.xid,
        opcode: request.opcode,
        kind: Kind::Request,
        status: u32::try_from(request.xid.0.saturating_sub(request.oldest.0)).unwrap_or(u32::MAX),
        body_len: wire_len(request.body.len()),
        bulk_len: wire_len(bulk.bytes().len()),
        bulk_space: wire_len(request.bulk.sink_len()),
        bulk_crc: if let ClientBulk::Source(source) = &request.bulk { source.crc() } else { 0 },
    };
    Frame::new(&header, request.body.clone(), bulk, Vec::new())
}

/// The reading task.
struct Reader {
    link: Arc<TcpLink>,
    incoming: Incoming,
    server: SocketAddr,
}

impl Reader {
    async fn run(mut self) {
        let ended = loop {
            if let Err(ended) = self.reply().await {
                break ended;
            }
        };
        let server = self.server;
        let cause = match ended {
            Ended::Finished => {
                debug!(%server, "the server ended the connection");
                LostCause::Disconnected
            }
            Ended::Lost(error) => {
                info!(%server, %error, "connection lost");
                LostCause::Disconnected
            }
            Ended::Protocol(error) => {
                warn!(%server, %error, "connection closed: the server broke the protocol");
                LostCause::Protocol(error)
            }
        };
        self.link.end(&cause);
    }

    /// Reads one reply and hands it over. A request whose reply breaks off is lost with the others.
    async fn reply(&mut self) -> Result<(), Ended> {
        let header = self.incoming.header(Kind::Reply).await?;
        let mut waiter = self.take(&header)?;
        match self.rest(&header, &mut waiter.request.bulk).await {
            Ok(reply) => {
                self.link.replies.fetch_add(1, Ordering::Relaxed);
                match reply {
                    Ok(reply) => {
                        // What was lent goes back before the caller goes on: his next request finds it free.
                        drop(waiter.request);
                        let _ = waiter.done.send(Ok(reply));
                    }
                    Err(error) => {
                        warn!(server = %self.server, %error, "bulk data was damaged on its way");
                        waiter.lost(LostCause::Protocol(error));
                    }
                }
                Ok(())
            }
            Err(ended) => {
                // Back among the others, which are about to be told; unless `close` told them already.
                if let Some(waiter) = self.link.enlist(waiter) {
                    waiter.lost(LostCause::Disconnected);
                }
                Err(ended)
            }
        }
    }

    fn take(&self, header: &Header) -> Result<Waiter, Ended> {
        let mut waiting = self.link.waiting();
        let Header { xid: Xid(xid), opcode, .. } = *header;
        let Some(map) = waiting.as_mut() else {
            return Err(Ended::Finished);
        };
        match map.entry(xid) {
            Entry::Occupied(entry) if entry.get().request.opcode == opcode => Ok(entry.remove()),
            _ => Err(ProtocolError::UnknownReply { xid: header.xid, opcode }.into()),
        }
    }

    /// What follows a reply's header. The inner error is of this request alone: the connection is as good as before.
    async fn rest(&mut self, header: &Header, bulk: &mut ClientBulk) -> Result<Result<Reply, ProtocolError>, Ended> {
        let body = self.incoming.body(header).await?;
        let filled = len(header.bulk_len);
        let room = bulk.sink_len();
        if filled > room {
            let (xid, opcode) = (header.xid, header.opcode);
            return Err(ProtocolError::Overrun { xid, opcode, len: filled, room }.into());
        }
        if let ClientBulk::Sink(region) = bulk {
            let crc = self.incoming.bulk(&mut region[..filled]).await?;
            if crc != header.bulk_crc {
                return Ok(Err(checksum_error(header, filled, (header.bulk_crc, crc))));
            }
        }
        Ok(result_of(header, body, bulk).map(|result| Reply { result, sink: taken_sink(bulk, filled) }))
    }
}

fn taken_sink(bulk: &mut ClientBulk, filled: usize) -> Option<Region> {
    match std::mem::take(bulk) {
        ClientBulk::Sink(mut region) => {
            region.truncate(filled);
            Some(region)
        }
        ClientBulk::None | ClientBulk::Source(_) => None,
    }
}
