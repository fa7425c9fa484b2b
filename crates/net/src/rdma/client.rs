//! The client's end of an RDMA connection.
//!
//! A request's life here: *enlisted* with its memory taken out of its region where that is lent; *answered* when its reply is
//! there; *over* when its window is invalid. Its caller hears of it then, or when it is lost. Lock order: the list of requests,
//! then the connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_proto::frame::{Header, Kind};
use burstfs_types::Errno;
use burstfs_verbs::{Block, Lent};
use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::warn;

use super::connection::{Cause, Outgoing, Returned, Role, Wire};
use super::wire::{self, CARRIED_MAX_BYTES, Carried, Message, Text};
use super::{Rdma, handshake, unreachable};
use crate::auth::Identity;
use crate::error::{ProtocolError, RpcError};
use crate::hello;
use crate::region::{Region, RegionPool};
use crate::transport::{ClientBulk, Link, Lost, LostCause, Outcome, Reply, Request, checksum_error, result_of};

/// Connects through one of the devices, and goes through the hello.
pub(super) async fn connect(
    transport: &Rdma,
    rail: usize,
    address: SocketAddr,
    identity: &Identity,
) -> Result<Arc<dyn Link>, RpcError> {
    let rail = &transport.rails[rail];
    let endpoint = handshake::connect(&rail.client, rail.address, address).await?;
    let wire = Wire::new(endpoint, &rail.client.buffers, false).map_err(unreachable)?;
    let shared = Arc::new(Shared {
        wire: wire.clone(),
        waiting: Mutex::new(Some(HashMap::new())),
        replies: AtomicU64::new(0),
        copies: transport.copies.clone(),
        server: address,
    });
    tokio::spawn(wire.clone().run(shared.clone()));
    // From here on dropping the link ends the connection.
    let link = Arc::new(RdmaLink(shared));
    handshake::over(&wire, |mut stream| async move { hello::open(&mut stream, identity, address).await }).await?;
    wire.proven();
    Ok(link)
}

/// What callers have. Its drop ends the connection, whose task has the rest.
struct RdmaLink(Arc<Shared>);

impl Drop for RdmaLink {
    fn drop(&mut self) {
        self.0.wire.close(Cause::Closed);
    }
}

struct Shared {
    wire: Arc<Wire>,
    /// Requests that are not over, by xid; `None` once the connection is.
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
    replies: AtomicU64,
    /// Registered memory for the bytes of requests that are in other memory.
    copies: RegionPool,
    server: SocketAddr,
}

struct Waiter {
    request: Request,
    done: oneshot::Sender<Outcome>,
    /// Registered memory in place of the request's own.
    copy: Option<Region>,
    /// Whether the server has a window on its memory.
    lent: bool,
    answer: Option<Answer>,
}

/// A reply whose request is not over yet.
struct Answer {
    header: Header,
    result: Result<Bytes, Errno>,
    filled: usize,
    /// What the server says became of the request's bulk data.
    damage: Option<ProtocolError>,
    /// What it carried; else the bytes are in the sink.
    carried: Option<Bytes>,
}

impl Link for RdmaLink {
    fn submit(&self, request: Request, done: oneshot::Sender<Outcome>) {
        let waiter = Waiter { request, done, copy: None, lent: false, answer: None };
        match how(&waiter.request.bulk) {
            How::Copied(len) => {
                let shared = self.0.clone();
                tokio::spawn(async move { shared.submit_copy(waiter, len).await });
            }
            how => self.0.launch(waiter, how),
        }
    }

    fn is_closed(&self) -> bool {
        self.0.wire.is_over()
    }

    fn replies(&self) -> u64 {
        self.0.replies.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.0.wire.close(Cause::Closed);
    }
}

/// How a request's bulk data moves.
enum How {
    /// There is none, or it goes with the messages.
    Carried,
    /// Through a window on its own memory.
    Window,
    /// Through a window on a copy of so many bytes.
    Copied(usize),
}

fn how(bulk: &ClientBulk) -> How {
    let (len, registered) = match bulk {
        ClientBulk::None => (0, false),
        ClientBulk::Source(source) => (source.len(), source.hold().is_some()),
        ClientBulk::Sink(region) => (region.len(), region.hold().is_some()),
    };
    match (len > CARRIED_MAX_BYTES, registered) {
        (false, _) => How::Carried,
        (true, true) => How::Window,
        (true, false) => How::Copied(len),
    }
}

impl Shared {
    /// Waits for registered memory. What has it was answered sometime, so there is some in the end.
    async fn submit_copy(&self, mut waiter: Waiter, len: usize) {
        let Ok(mut copy) = self.copies.region(len).await else {
            return waiter.lost(LostCause::Disconnected);
        };
        if let ClientBulk::Source(source) = &waiter.request.bulk {
            copy.copy_from_slice(source);
        }
        waiter.copy = Some(copy);
        self.launch(waiter, How::Copied(len));
    }

    fn launch(&self, mut waiter: Waiter, how: How) {
        let mut carried = Carried::Nothing;
        let mut lend = None;
        match how {
            How::Carried => {
                if let ClientBulk::Source(source) = &waiter.request.bulk {
                    carried = Carried::Source(source.clone());
                }
            }
            How::Window | How::Copied(_) => lend = waiter.lend(),
        }
        let lent = lend.map(|(lent, range)| (waiter.request.xid.0, lent, range));
        waiter.lent = lent.is_some();
        let text = Text::new(&header(&waiter.request), waiter.request.body.clone(), carried);
        let outgoing =
            Outgoing { kind: wire::Kind::Message, flags: 0, text, lend: lent, write: None, held: Vec::new() };
        let xid = waiter.request.xid.0;
        let mut waiting = self.waiting();
        let refused = match waiting.as_mut().map(|map| map.entry(xid)) {
            // Both under the list's lock: the end finds the request with its memory, or neither.
            Some(Entry::Vacant(entry)) => {
                entry.insert(waiter);
                let back = self.wire.push(outgoing).err();
                back.and_then(|outgoing| Some((waiting.as_mut()?.remove(&xid)?, *outgoing)))
            }
            Some(Entry::Occupied(_)) | None => Some((waiter, outgoing)),
        };
        drop(waiting);
        if let Some((mut waiter, outgoing)) = refused {
            if let Some((_, Lent::Block(block), _)) = outgoing.lend {
                waiter.take_back(block);
            }
            waiter.lost(LostCause::Disconnected);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the caller of a request that is over.
    fn answer(&self, waiter: Waiter, answer: Answer) {
        self.replies.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = answer.damage.clone().or_else(|| damage(&waiter, &answer)) {
            warn!(server = %self.server, %error, "bulk data was damaged on its way");
            return waiter.lost(LostCause::Protocol(error));
        }
        let Waiter { mut request, done, copy, .. } = waiter;
        let sink = match std::mem::take(&mut request.bulk) {
            ClientBulk::Sink(region) => Some(filled(region, &answer, copy)),
            ClientBulk::None | ClientBulk::Source(_) => None,
        };
        // What was lent goes back before the caller goes on: his next request finds it free.
        drop(request);
        let _ = done.send(Ok(Reply { result: answer.result, sink }));
    }
}

/// What is wrong with the bytes that a reply brought.
fn damage(waiter: &Waiter, answer: &Answer) -> Option<ProtocolError> {
    let ClientBulk::Sink(region) = &waiter.request.bulk else { return None };
    let memory = waiter.copy.as_ref().unwrap_or(region);
    let bytes = answer.carried.as_deref().unwrap_or_else(|| &memory[..answer.filled]);
    let (expected, actual) = (answer.header.bulk_crc, crc32c::crc32c(bytes));
    let is_damaged = answer.filled > 0 && expected != actual;
    is_damaged.then(|| checksum_error(&answer.header, answer.filled, (expected, actual)))
}

/// The sink, cut to what was put into it.
fn filled(mut region: Region, answer: &Answer, copy: Option<Region>) -> Region {
    region.truncate(answer.filled);
    match (&answer.carried, copy) {
        (Some(bytes), _) => region.copy_from_slice(bytes),
        (None, Some(copy)) => region.copy_from_slice(&copy[..answer.filled]),
        (None, None) => {}
    }
    region
}

impl Waiter {
    /// What the server is to reach: memory to read is held, memory to write leaves its region.
    fn lend(&mut self) -> Option<(Lent, Range<usize>)> {
        match (&mut self.request.bulk, &mut self.copy) {
            (ClientBulk::Source(source), None) => {
                let (hold, at) = source.hold()?;
                Some((Lent::Hold(hold), at..at + source.len()))
            }
            (ClientBulk::Source(_), Some(copy)) => Some((Lent::Hold(copy.hold()?), 0..copy.len())),
            (ClientBulk::Sink(region), None) | (ClientBulk::Sink(_), Some(region)) => {
                let len = region.len();
                Some((Lent::Block(region.take_block()?), 0..len))
            }
            (ClientBulk::None, _) => None,
        }
    }

    /// The memory that had left its region.
    fn take_back(&mut self, block: Block) {
        match (&mut self.request.bulk, &mut self.copy) {
            (ClientBulk::Sink(region), None) | (_, Some(region)) => region.put_block(block),
            (ClientBulk::None | ClientBulk::Source(_), None) => {}
        }
    }

    /// A caller that has stopped waiting is no error: what he lent goes back with the message.
    fn lost(self, cause: LostCause) {
        let _ = self.done.send(Err(Box::new(Lost { cause, request: self.request })));
    }
}

fn header(request: &Request) -> Header {
    let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    Header {
        xid: request.xid,
        opcode: request.opcode,
        kind: Kind::Request,
        status: u32::try_from(request.xid.0.saturating_sub(request.oldest.0)).unwrap_or(u32::MAX),
        body_len: len(request.body.len()),
        bulk_len: len(request.bulk.source_len()),
        bulk_space: len(request.bulk.sink_len()),
        bulk_crc: if let ClientBulk::Source(source) = &request.bulk { source.crc() } else { 0 },
    }
}

impl Role for Shared {
    fn message(&self, wire: &Wire, message: Message) -> Result<(), ProtocolError> {
        let Message { header, written, body, bulk, window } = message;
        let (xid, opcode) = (header.xid, header.opcode);
        if header.kind != Kind::Reply || window.is_some() {
            return Err(ProtocolError::Direction { xid, opcode });
        }
        let mut waiting = self.waiting();
        let Some(Entry::Occupied(mut entry)) = waiting.as_mut().map(|map| map.entry(xid.0)) else {
            return Err(ProtocolError::UnknownReply { xid, opcode });
        };
        let waiter = entry.get_mut();
        if waiter.request.opcode != opcode || waiter.answer.is_some() {
            return Err(ProtocolError::UnknownReply { xid, opcode });
        }
        let (filled, room) = (header.bulk_len as usize, waiter.request.bulk.sink_len());
        if filled > room {
            return Err(ProtocolError::Overrun { xid, opcode, len: filled, room });
        }
        if written && !waiter.lent {
            return Err(ProtocolError::Piece("that says that bulk data was written where it could not be"));
        }
        // Of this request alone; its window goes as with any answer.
        let (result, damage) = match result_of(&header, body, &waiter.request.bulk) {
            Ok(result) => (result, None),
            Err(damage) => (Err(Errno::EIO), Some(damage)),
        };
        let answer = Answer { header, result, damage, filled, carried: (!written).then_some(bulk) };
        if waiter.lent {
            waiter.answer = Some(answer);
            wire.retract(xid.0);
            return Ok(());
        }
        let waiter = entry.remove();
        drop(waiting);
        self.answer(waiter, answer);
        Ok(())
    }

    fn retracted(&self, number: u64, block: Option<Block>) {
        let waiter = self.waiting().as_mut().and_then(|map| map.remove(&number));
        let Some(mut waiter) = waiter else { return };
        if let Some(block) = block {
            waiter.take_back(block);
        }
        match waiter.answer.take() {
            Some(answer) => self.answer(waiter, answer),
            None => waiter.lost(LostCause::Disconnected),
        }
    }

    fn ended(&self, cause: &Cause, returned: Returned) {
        let waiting = self.waiting().take();
        let cause = match cause {
            Cause::Protocol(error) => {
                warn!(server = %self.server, %error, "connection closed: the server broke the protocol");
                LostCause::Protocol(error.clone())
            }
            Cause::Closed | Cause::Disconnected | Cause::Silent | Cause::Work(_) | Cause::Verbs(_) => {
                LostCause::Disconnected
            }
        };
        let mut returned = returned;
        for (number, mut waiter) in waiting.unwrap_or_default() {
            if let Some(block) = returned.remove(&number) {
                waiter.take_back(block);
            }
            waiter.lost(cause.clone());
        }
    }
}
