//! One end of a connection, the same for client and server: its endpoint, its credits, what it has to send, and the task that
//! takes completions.
//!
//! Whoever has something to send posts it at once, on his own thread, under the connection's lock; what finds no credit, no room
//! in the queue or no buffer stays in the outbox, and the connection's task posts it when a completion makes room. Only that task
//! takes completions. It polls as long as there are some, a little longer, letting the other tasks of its thread run in between, and
//! then waits for the device's event: an idle connection costs nothing.
//!
//! ```text
//!   hello ---- proven(): requests and replies may come ---- close(), a failed request, the peer's end, silence ---> ended
//! ```
//!
//! The end is in one place (`end`): the QP is destroyed, and only then is lent memory given back, with the cause.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burstfs_verbs::{
    Arena, Block, Completion, Depths, Done, Endpoint, Event, Exposure, Lent, Remote, VerbsError, WorkError,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant as TokioInstant;
use tracing::{debug, info};

use super::credits::{Credits, LEAST};
use super::wire::{Assembly, Kind, MORE, Message, PIECE_BYTES, PREFIX_LEN, Prefix, Text, WINDOW};
use crate::error::ProtocolError;
use crate::region::Region;

/// Receives that each side posts.
pub(super) const RECEIVES: u16 = 32;
const _: () = assert!(RECEIVES >= LEAST);
const SENDS: u32 = 128;
/// Requested; the device may grant fewer.
const INLINE_BYTES: u32 = 192;
const INLINE_MAX_BYTES: usize = 256;
/// The queues of one connection.
pub(super) const DEPTHS: Depths = Depths { sends: SENDS, receives: RECEIVES as u32, inline: INLINE_BYTES };
/// Room in the send queue that a request's window and its end need beside the request's own piece.
const WINDOW_ROOM: u32 = 4;
/// How long the task goes on polling after the last completion: about what an event costs.
const POLL_TIME: Duration = Duration::from_micros(20);
/// After so long without anything under way the peer's device is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After so many heartbeats without a completion, though something is under way, the connection is given up: for devices that
/// never do so themselves.
const SILENT_BEATS_MAX: u32 = 5;

/// What a work request leaves with the endpoint.
pub(super) enum Token {
    Receive,
    /// A piece that was sent, with its buffer and, for the last of a message, what the message held.
    Sent(Option<Block>, Vec<OwnedSemaphorePermit>),
    /// Bulk data that was written to the client.
    Written(#[allow(dead_code, reason = "held until the device has read it")] Region),
    /// Bulk data that was read from the client.
    Read(oneshot::Sender<Block>),
    /// A window that was made invalid: of which request.
    Retracted(u64),
    Heartbeat,
}

/// A message to send, with what belongs to it.
pub(super) struct Outgoing {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) text: Text,
    /// A client's: memory to expose before the message is sent, for the request of that number, and which part of it.
    pub(super) lend: Option<(u64, Lent, Range<usize>)>,
    /// A server's: bulk data to write before the message is sent.
    pub(super) write: Option<(Region, Remote)>,
    /// Let go when the message is away.
    pub(super) held: Vec<OwnedSemaphorePermit>,
}

impl Outgoing {
    pub(super) fn hello(bytes: &[u8]) -> Outgoing {
        let text = Text::hello(bytes);
        Outgoing { kind: Kind::Hello, flags: 0, text, lend: None, write: None, held: Vec::new() }
    }
}

/// Why a connection ended.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// By this side's wish.
    Closed,
    /// By the peer.
    Disconnected,
    /// A work request failed.
    Work(WorkError),
    /// The peer's device has not answered for long.
    Silent,
    /// A call of the library failed.
    Verbs(Arc<VerbsError>),
    /// The peer broke a rule.
    Protocol(ProtocolError),
}

/// Blocks that were lent to the peer, by the number of their request.
pub(super) type Returned = HashMap<u64, Block>;

/// What a side does with what its connection's task finds. Called without the connection's lock.
pub(super) trait Role: Send + Sync + 'static {
    /// A message has arrived; only for a side that takes them at once.
    fn message(&self, wire: &Wire, message: Message) -> Result<(), ProtocolError>;

    /// The window of a request is invalid; a block that was lent comes back.
    fn retracted(&self, number: u64, block: Option<Block>);

    /// The connection is over, and no device reaches anything that was lent.
    fn ended(&self, cause: &Cause, returned: Returned);
}

/// A connection.
pub(super) struct Wire {
    state: Mutex<State>,
    /// Something for the task to do.
    wake: Notify,
    /// A piece in the inbox, or the end.
    arrived: Notify,
    completions: AsyncFd<OwnedFd>,
    events: AsyncFd<OwnedFd>,
    buffers: Arena,
    /// Whether messages are left in the inbox until somebody takes them.
    parks: bool,
}

struct State {
    endpoint: Endpoint<Token>,
    credits: Credits,
    proven: bool,
    outbox: VecDeque<Outgoing>,
    /// Reads and ends of windows: they need no credit.
    direct: VecDeque<Direct>,
    spare: Vec<Block>,
    exposures: HashMap<u64, Exposure>,
    /// Of requests whose windows could not be made invalid.
    returned: Returned,
    inbox: VecDeque<(Block, usize)>,
    assembly: Assembly,
    /// Set once; the task ends the connection then.
    over: Option<Cause>,
    ended: bool,
    /// Heartbeats since the last completion.
    silent_beats: u32,
}

enum Direct {
    Read(Block, usize, Remote, oneshot::Sender<Block>),
    Retract(u64),
}

/// What the task found, for its side.
enum Found {
    Message(Message),
    Retracted(u64, Option<Block>),
}

impl Wire {
    /// A connection of an endpoint that is connected, or about to be; receives are posted.
    pub(super) fn new(endpoint: Endpoint<Token>, buffers: &Arena, parks: bool) -> io::Result<Arc<Wire>> {
        let mut endpoint = endpoint;
        use std::os::fd::AsFd;
        let completions = super::readiness(endpoint.completion_fd())?;
        let events = super::readiness(endpoint.id().as_fd())?;
        let state = State {
            endpoint,
            credits: Credits::new(RECEIVES),
            proven: false,
            outbox: VecDeque::new(),
            direct: VecDeque::new(),
            spare: Vec::new(),
            exposures: HashMap::new(),
            returned: Returned::new(),
            inbox: VecDeque::new(),
            assembly: Assembly::default(),
            over: None,
            ended: false,
            silent_beats: 0,
        };
        Ok(Arc::new(Wire {
            state: Mutex::new(state),
            wake: Notify::new(),
            arrived: Notify::new(),
            completions,
            events,
            buffers: buffers.clone(),
            parks,
        }))
    }

    /// Posts the receives of an endpoint.
    pub(super) fn post_receives(endpoint: &mut Endpoint<Token>, buffers: &Arena) -> Result<(), VerbsError> {
        for _ in 0..RECEIVES {
            let block = buffers.take(PIECE_BYTES)?.ok_or_else(no_memory)?;
            endpoint.receive(block, Token::Receive)?;
        }
        Ok(())
    }

    /// Messages may come from now on, and no more of a hello.
    pub(super) fn proven(&self) {
        self.state().proven = true;
    }

    /// Sends a message, now or when it can be. Comes back where the connection is over.
    pub(super) fn push(&self, outgoing: Outgoing) -> Result<(), Box<Outgoing>> {
        let mut state = self.state();
        if state.over.is_some() {
            return Err(Box::new(outgoing));
        }
        state.outbox.push_back(outgoing);
        self.pump(&mut state);
        Ok(())
    }

    /// Reads `len` bytes from the client into a block; it comes back, or the sender of it is dropped.
    pub(super) fn read(&self, into: Block, len: usize, from: Remote) -> oneshot::Receiver<Block> {
        let (done, read) = oneshot::channel();
        let mut state = self.state();
        if state.over.is_none() {
            state.direct.push_back(Direct::Read(into, len, from, done));
            self.pump(&mut state);
        }
        read
    }

    /// Makes the window of a request invalid. `Role::retracted` hears when it is.
    pub(super) fn retract(&self, number: u64) {
        let mut state = self.state();
        if state.over.is_none() {
            state.direct.push_back(Direct::Retract(number));
            self.pump(&mut state);
        }
    }

    /// Ends the connection, soon.
    pub(super) fn close(&self, cause: Cause) {
        self.state().fail(cause);
        self.wake.notify_one();
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.state().over.is_some()
    }

    /// The next bytes of the hello; `None` when the connection is over, or something else comes.
    pub(super) async fn next_hello(&self) -> Option<Vec<u8>> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.state();
                if let Some((block, len)) = state.inbox.pop_front() {
                    let hello = Prefix::decode(&block[..len]).ok().filter(|(prefix, _)| prefix.kind == Kind::Hello);
                    let bytes = hello.map(|(_, bytes)| bytes.to_vec());
                    self.post_again(&mut state, block);
                    return bytes;
                }
                if state.ended {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// The next message; `None` when the connection is over.
    pub(super) async fn next_message(&self) -> Result<Option<Message>, ProtocolError> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.state();
                while let Some((block, len)) = state.inbox.pop_front() {
                    let taken =
                        Prefix::decode(&block[..len]).and_then(|(prefix, rest)| state.assembly.take(prefix, rest));
                    self.post_again(&mut state, block);
                    if let Some(message) = taken? {
                        return Ok(Some(message));
                    }
                }
                if state.ended {
                    return match &state.over {
                        Some(Cause::Protocol(error)) => Err(error.clone()),
                        _ => Ok(None),
                    };
                }
            }
            arrived.await;
        }
    }

    /// The connection's task.
    pub(super) async fn run(self: Arc<Self>, role: Arc<dyn Role>) {
        let mut heartbeat = TokioInstant::now() + HEARTBEAT;
        // When there was something to do.
        let mut last = Instant::now();
        let cause = loop {
            let mut is_busy = self.work_or_fail(&*role);
            if !is_busy && last.elapsed() >= POLL_TIME {
                // A completion that came before it was asked for is not announced.
                self.arm();
                is_busy = self.work_or_fail(&*role);
                if !is_busy {
                    if let Some(cause) = self.over() {
                        break cause;
                    }
                    self.wait(&mut heartbeat).await;
                    last = Instant::now();
                    continue;
                }
            }
            if let Some(cause) = self.over() {
                break cause;
            }
            if is_busy {
                last = Instant::now();
            }
            // Whoever was given something goes first: on this thread he would wait until the polling is over.
            tokio::task::yield_now().await;
        };
        self.end(&*role, &cause).await;
    }

    fn over(&self) -> Option<Cause> {
        self.state().over.clone()
    }

    /// Waits for a completion that is announced, an event of the connection manager, somebody's word, or the next heartbeat.
    async fn wait(&self, heartbeat: &mut TokioInstant) {
        tokio::select! {
            biased;
            () = self.wake.notified() => {}
            ready = self.completions.readable() => if let Ok(mut ready) = ready { ready.clear_ready() },
            ready = self.events.readable() => {
                if let Ok(mut ready) = ready { ready.clear_ready() }
                self.take_events();
            }
            () = tokio::time::sleep_until(*heartbeat) => {
                self.beat();
                *heartbeat = TokioInstant::now() + HEARTBEAT;
            }
        }
    }

    /// Has the next completion announced by the descriptor.
    fn arm(&self) {
        let mut state = self.state();
        if state.over.is_none()
            && let Err(error) = state.endpoint.arm()
        {
            state.fail(Cause::Verbs(Arc::new(error)));
        }
    }

    /// Whether there was anything to do.
    fn work_or_fail(&self, role: &dyn Role) -> bool {
        self.work(role).unwrap_or_else(|error| {
            self.state().fail(Cause::Protocol(error));
            false
        })
    }

    /// Takes the completions that there are; whether there were any.
    fn work(&self, role: &dyn Role) -> Result<bool, ProtocolError> {
        let mut found = Vec::new();
        {
            let mut state = self.state();
            if state.over.is_some() {
                return Ok(false);
            }
            let completions = match state.endpoint.poll() {
                Ok(completions) => completions,
                Err(error) => {
                    state.fail(Cause::Verbs(Arc::new(error)));
                    return Ok(false);
                }
            };
            if completions.is_empty() {
                return Ok(false);
            }
            state.silent_beats = 0;
            for completion in completions {
                self.complete(&mut state, completion, &mut found)?;
            }
            self.pump(&mut state);
        }
        for found in found {
            match found {
                Found::Message(message) => role.message(self, message)?,
                Found::Retracted(number, block) => role.retracted(number, block),
            }
        }
        Ok(true)
    }

    fn complete(
        &self,
        state: &mut State,
        done: Completion<Token>,
        found: &mut Vec<Found>,
    ) -> Result<(), ProtocolError> {
        if let Err(error) = done.result
            && !matches!(done.token, Token::Retracted(_))
        {
            state.fail(Cause::Work(error));
        }
        match done.token {
            Token::Receive => {
                if let (Ok(Done::Received(len)), Some(block)) = (done.result, done.block) {
                    self.received(state, block, len, found)?;
                }
            }
            Token::Sent(buffer, held) => {
                drop(held);
                state.spare.extend(buffer);
            }
            Token::Read(waiting) => {
                if let (Ok(_), Some(block)) = (done.result, done.block) {
                    // Whoever waited may be gone.
                    let _ = waiting.send(block);
                }
            }
            Token::Retracted(number) => match done.result {
                Ok(_) => found.push(Found::Retracted(number, done.block)),
                Err(error) => {
                    // The end of the connection makes it invalid too, and gives it back.
                    state.returned(number, done.block);
                    state.fail(Cause::Work(error));
                }
            },
            Token::Written(_) | Token::Heartbeat => {}
        }
        Ok(())
    }

    fn received(
        &self,
        state: &mut State,
        block: Block,
        len: usize,
        found: &mut Vec<Found>,
    ) -> Result<(), ProtocolError> {
        let (prefix, rest) = Prefix::decode(&block[..len.min(block.len())])?;
        if !state.credits.receive(prefix.given_back) {
            return Err(ProtocolError::Piece("that gives back more than was taken"));
        }
        match prefix.kind {
            Kind::Nothing => self.post_again(state, block),
            Kind::Hello if state.proven => return Err(ProtocolError::Piece("of a hello after the hello")),
            // The server's task may see a first request before the side that led the hello says that it is over.
            Kind::Message if !state.proven && !self.parks => {
                return Err(ProtocolError::Piece("of a message before the hello's end"));
            }
            Kind::Message if !self.parks => {
                let taken = state.assembly.take(prefix, rest)?;
                self.post_again(state, block);
                found.extend(taken.map(Found::Message));
            }
            Kind::Hello | Kind::Message => {
                state.inbox.push_back((block, len));
                self.arrived.notify_one();
            }
        }
        Ok(())
    }

    /// Posts a receive again, and gives it back to the peer with the next message, or with one of its own.
    fn post_again(&self, state: &mut State, block: Block) {
        match state.endpoint.receive(block, Token::Receive) {
            Ok(()) => {
                state.credits.posted();
                self.pump(state);
            }
            Err(error) => state.fail(Cause::Verbs(Arc::new(error))),
        }
    }

    /// Posts what can be posted.
    fn pump(&self, state: &mut State) {
        if state.over.is_none()
            && let Err(error) = state.pump(&self.buffers)
        {
            state.fail(Cause::Verbs(Arc::new(error)));
        }
        if state.over.is_some() {
            self.wake.notify_one();
        }
    }

    fn take_events(&self) {
        let mut state = self.state();
        loop {
            match state.endpoint.id().event() {
                Ok(None) => return,
                Ok(Some(Event::Disconnected | Event::DeviceRemoved)) => state.fail(Cause::Disconnected),
                Ok(Some(event)) => debug!(?event, "RDMA connection"),
                Err(error) => return state.fail(Cause::Verbs(Arc::new(error))),
            }
        }
    }

    /// What is under way is answered or fails by itself; where nothing is, a probe is sent, which does.
    fn beat(&self) {
        let mut state = self.state();
        if state.over.is_some() {
            return;
        }
        if state.endpoint.sends_under_way() > 0 {
            state.silent_beats += 1;
            if state.silent_beats >= SILENT_BEATS_MAX {
                state.fail(Cause::Silent);
            }
        } else if let Err(error) = state.endpoint.probe(Token::Heartbeat) {
            state.fail(Cause::Verbs(Arc::new(error)));
        }
    }

    async fn end(self: &Arc<Self>, role: &dyn Role, cause: &Cause) {
        let wire = self.clone();
        // Taking a connection apart waits for the kernel.
        let closed = tokio::task::spawn_blocking(move || wire.state().close()).await;
        match cause {
            Cause::Closed => {}
            Cause::Disconnected => debug!("the peer ended the RDMA connection"),
            Cause::Silent => info!("RDMA connection lost: the peer's device does not answer"),
            Cause::Work(error) => info!(%error, "RDMA connection lost"),
            Cause::Verbs(error) => info!(%error, "RDMA connection lost"),
            Cause::Protocol(_) => {}
        }
        role.ended(cause, closed.unwrap_or_default());
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, cause: Cause) {
        self.over.get_or_insert(cause);
    }

    /// Memory of a request that comes back with the end.
    fn returned(&mut self, number: u64, block: Option<Block>) {
        self.returned.extend(block.map(|block| (number, block)));
    }

    /// Destroys the QP and gathers what was lent.
    fn close(&mut self) -> Returned {
        self.ended = true;
        let (completions, exposed) = self.endpoint.close();
        let mut returned = std::mem::take(&mut self.returned);
        let numbers: HashMap<Remote, u64> =
            self.exposures.drain().map(|(number, exposure)| (exposure.remote, number)).collect();
        for (remote, lent) in exposed {
            if let (Some(number), Lent::Block(block)) = (numbers.get(&remote), lent) {
                returned.insert(*number, block);
            }
        }
        for completion in completions {
            if let (Token::Retracted(number), Some(block)) = (completion.token, completion.block) {
                returned.insert(number, block);
            }
        }
        for outgoing in self.outbox.drain(..) {
            if let Some((number, Lent::Block(block), _)) = outgoing.lend {
                returned.insert(number, block);
            }
        }
        self.direct.clear();
        self.inbox.clear();
        self.spare.clear();
        returned
    }

    fn pump(&mut self, buffers: &Arena) -> Result<(), VerbsError> {
        while self.endpoint.room() > 0 {
            if let Some(direct) = self.direct.pop_front() {
                self.post_direct(direct)?;
                continue;
            }
            if !self.send_next(buffers)? {
                break;
            }
        }
        Ok(())
    }

    fn post_direct(&mut self, direct: Direct) -> Result<(), VerbsError> {
        match direct {
            Direct::Read(block, len, from, done) => self.endpoint.read(block, len, from, Token::Read(done)),
            Direct::Retract(number) => match self.exposures.remove(&number) {
                Some(exposure) => self.endpoint.retract(exposure, Token::Retracted(number)),
                None => Ok(()),
            },
        }
    }

    /// Posts the next piece of the next message, or what must come before it; false where nothing can be posted.
    fn send_next(&mut self, buffers: &Arena) -> Result<bool, VerbsError> {
        let Some(first) = self.outbox.front_mut() else {
            return self.give_back();
        };
        if let Some((region, remote)) = first.write.take() {
            let Some(hold) = region.hold() else {
                return Err(no_memory());
            };
            let len = region.len();
            self.endpoint.write(hold, len, remote, Token::Written(region))?;
            return Ok(true);
        }
        if !self.credits.may_send() {
            return self.give_back();
        }
        if let Some((number, lent, range)) = first.lend.take() {
            if self.endpoint.room() < WINDOW_ROOM {
                first.lend = Some((number, lent, range));
                return Ok(false);
            }
            match self.endpoint.expose(lent, range.clone()) {
                Ok(exposure) => {
                    first.text.set_window(exposure.remote);
                    first.flags |= WINDOW;
                    self.exposures.insert(number, exposure);
                }
                Err((error, lent)) => {
                    first.lend = Some((number, lent, range));
                    return Err(error);
                }
            }
        }
        self.send_piece(buffers)
    }

    fn send_piece(&mut self, buffers: &Arena) -> Result<bool, VerbsError> {
        let Some(first) = self.outbox.front_mut() else {
            return Ok(false);
        };
        let remaining = first.text.remaining();
        let len = remaining.min(PIECE_BYTES - PREFIX_LEN);
        let inline = PREFIX_LEN + len <= self.endpoint.inline_max().min(INLINE_MAX_BYTES);
        let mut small = [0; INLINE_MAX_BYTES];
        let mut buffer = None;
        if !inline {
            let taken = match self.spare.pop() {
                Some(block) => Some(block),
                None => buffers.take(PIECE_BYTES)?,
            };
            // All buffers of all connections are under way: a completion brings some back.
            let Some(block) = taken else { return Ok(false) };
            buffer = Some(block);
        }
        let piece: &mut [u8] = match &mut buffer {
            Some(block) => &mut block[..PREFIX_LEN + len],
            None => &mut small[..PREFIX_LEN + len],
        };
        let more = if len < remaining { MORE } else { 0 };
        let prefix = Prefix { kind: first.kind, flags: first.flags | more, given_back: self.credits.send() };
        piece[..PREFIX_LEN].copy_from_slice(&prefix.encode());
        first.text.fill(&mut piece[PREFIX_LEN..]);
        let held = if more == 0 { self.outbox.pop_front().map(|it| it.held) } else { None };
        let held = held.unwrap_or_default();
        match buffer {
            None => self.endpoint.send_inline(&small[..PREFIX_LEN + len], Token::Sent(None, held))?,
            Some(block) => self.endpoint.send(block.hold(), PREFIX_LEN + len, Token::Sent(Some(block), held))?,
        }
        Ok(true)
    }

    fn give_back(&mut self) -> Result<bool, VerbsError> {
        if !self.credits.should_give_back() {
            return Ok(false);
        }
        let prefix = Prefix { kind: Kind::Nothing, flags: 0, given_back: self.credits.send() };
        self.endpoint.send_inline(&prefix.encode(), Token::Sent(None, Vec::new()))?;
        Ok(true)
    }
}

fn no_memory() -> VerbsError {
    VerbsError { call: "registered memory", error: io::ErrorKind::OutOfMemory.into() }
}
