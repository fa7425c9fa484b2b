//! One end of a reliable connection: its queue pair, its completions, and the memory that is under way.
//!
//! Owns: the QP with its CQ, and all memory of work requests that have not completed. Whoever posts gives the memory, or a
//! hold of it where the device only reads, together with a token, and gets both back with the completion. Invariants:
//!
//! 1. What a device may write to belongs to the endpoint: no code has access to it.
//! 2. What a device may read is not given to anybody else until the request completes.
//! 3. What is exposed to the peer belongs to the endpoint until the window is invalid, or the QP destroyed.
//! 4. Nothing is posted that the queues have no room for.
//!
//! Failure: any work request that fails ends the connection; the others complete as flushed. [`Endpoint::close`] destroys
//! the QP, after which no device touches the memory, and gives everything back.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::cm::{ConnectionId, set_non_blocking};
use crate::device::ProtectionDomain;
use crate::error::{VerbsError, WorkError, check, check_pointer};
use crate::memory::{Block, Hold};
use crate::sys;
use crate::table::Table;

/// Completions taken at a time.
const POLL_BATCH: usize = 16;

/// How deep an endpoint's queues are.
#[derive(Clone, Copy, Debug)]
pub struct Depths {
    /// Work requests that send, read, write, bind and invalidate.
    pub sends: u32,
    /// Posted receives.
    pub receives: u32,
    /// Bytes of a message that is sent from where it is; the device may grant fewer.
    pub inline: u32,
}

/// Memory at the peer, as it said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Remote {
    /// Where.
    pub address: u64,
    /// The key of the window.
    pub key: u32,
}

/// Memory lent to a device.
#[derive(Debug)]
pub enum Lent {
    /// For it to write to.
    Block(Block),
    /// For it to read.
    Hold(Hold),
}

/// A work request that is done.
#[derive(Debug)]
pub struct Completion<T> {
    /// Whether it succeeded.
    pub result: Result<Done, WorkError>,
    /// What the poster left with it.
    pub token: T,
    /// The block that was given to it.
    pub block: Option<Block>,
}

/// What came of a work request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// A message of so many bytes was received.
    Received(usize),
    /// What was posted has been done.
    Posted,
}

/// Memory that the peer may reach.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Exposure {
    number: u64,
    /// What the peer needs to reach it.
    pub remote: Remote,
}

struct Outstanding<T> {
    token: T,
    lent: Option<Lent>,
    /// Places of the send queue that are free when this completes; 0 for receives.
    places: u32,
    /// A window that this makes invalid.
    window: Option<Window>,
}

struct Exposed {
    window: Window,
    lent: Lent,
    remote: Remote,
}

/// An end of a connection. `T` is what posters leave with their requests.
pub struct Endpoint<T> {
    outstanding: Table<Outstanding<T>>,
    exposed: Table<Exposed>,
    windows: Vec<Window>,
    /// Places of the send queue that are taken.
    sends: u32,
    /// Of those, by requests since the last one that will report its completion.
    silent: u32,
    depths: Depths,
    completed: Vec<Completion<T>>,
    queue: Queue,
    domain: ProtectionDomain,
}

impl<T> Endpoint<T> {
    /// Makes the QP of an identifier whose route is resolved, or which was received.
    pub fn new(id: ConnectionId, domain: &ProtectionDomain, depths: Depths) -> Result<Endpoint<T>, VerbsError> {
        let (queue, granted) = Queue::new(id, domain, depths)?;
        Ok(Endpoint {
            outstanding: Table::new(),
            exposed: Table::new(),
            windows: Vec::new(),
            sends: 0,
            silent: 0,
            depths: Depths { inline: granted, ..depths },
            completed: Vec::new(),
            queue,
            domain: domain.clone(),
        })
    }

    /// The connection manager's part.
    pub fn id(&mut self) -> &mut ConnectionId {
        &mut self.queue.id
    }

    /// Bytes of the longest message that needs no block.
    pub fn inline_max(&self) -> usize {
        self.depths.inline as usize
    }

    /// Work requests for which the send queue has room.
    pub fn room(&self) -> u32 {
        if self.queue.is_alive() { self.depths.sends - self.sends } else { 0 }
    }

    /// Work requests that were posted and have not completed, receives apart.
    pub fn sends_under_way(&self) -> u32 {
        self.sends
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        !self.queue.is_alive()
    }

    /// Posts a receive into all of `block`.
    pub fn receive(&mut self, block: Block, token: T) -> Result<(), VerbsError> {
        let mut segment = self.segment(&block.0, block.len())?;
        let number =
            self.outstanding.put(Outstanding { token, lent: Some(Lent::Block(block)), places: 0, window: None });
        let mut request =
            sys::ibv_recv_wr { wr_id: number, next: std::ptr::null_mut(), sg_list: &raw mut segment, num_sge: 1 };
        let result = match self.queue.pair() {
            Some(pair) => {
                let mut bad = std::ptr::null_mut();
                // SAFETY: the QP is alive; the block is registered in the QP's domain and kept in the table until the
                // request completes or the QP is destroyed; the segment is copied by the call.
                check("ibv_post_recv", unsafe { sys::ibv_post_recv(pair.as_ptr(), &raw mut request, &mut bad) })
            }
            None => Err(VerbsError::new("ibv_post_recv", libc::ENOTCONN)),
        };
        if result.is_err() {
            self.outstanding.take(number);
        }
        result
    }

    /// Sends the first `len` bytes of a block.
    pub fn send(&mut self, from: Hold, len: usize, token: T) -> Result<(), VerbsError> {
        let segment = self.segment(&from, len)?;
        self.post(Some(segment), send_request(), Some(Lent::Hold(from)), token)
    }

    /// Sends bytes that are at most [`Endpoint::inline_max`]; they are copied at once.
    pub fn send_inline(&mut self, bytes: &[u8], token: T) -> Result<(), VerbsError> {
        if bytes.len() > self.inline_max() {
            return Err(VerbsError::new("ibv_post_send", libc::EMSGSIZE));
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let segment = sys::ibv_sge { addr: bytes.as_ptr() as u64, length, lkey: 0 };
        let mut request = send_request();
        request.send_flags |= sys::IBV_SEND_INLINE;
        self.post(Some(segment), request, None, token)
    }

    /// Reads `len` bytes of the peer's into the beginning of a block, which comes back with the completion.
    pub fn read(&mut self, into: Block, len: usize, from: Remote, token: T) -> Result<(), VerbsError> {
        let segment = self.segment(&into.0, len)?;
        self.post(Some(segment), remote_request(sys::IBV_WR_RDMA_READ, from), Some(Lent::Block(into)), token)
    }

    /// Writes the first `len` bytes of a block to the peer. What is sent after it arrives after it.
    pub fn write(&mut self, from: Hold, len: usize, to: Remote, token: T) -> Result<(), VerbsError> {
        let segment = self.segment(&from, len)?;
        self.post(Some(segment), remote_request(sys::IBV_WR_RDMA_WRITE, to), Some(Lent::Hold(from)), token)
    }

    /// Writes nothing, nowhere: completes when the peer's device has answered.
    pub fn probe(&mut self, token: T) -> Result<(), VerbsError> {
        let nowhere = Remote { address: 0, key: 0 };
        self.post(None, remote_request(sys::IBV_WR_RDMA_WRITE, nowhere), None, token)
    }

    /// Lets the peer, and through this connection only, reach the bytes of `range`: write to a block, read what is held.
    /// What is sent afterwards may name it. Takes one place of the send queue.
    pub fn expose(&mut self, lent: Lent, range: Range<usize>) -> Result<Exposure, (VerbsError, Lent)> {
        let (hold, access) = match &lent {
            Lent::Block(block) => (&block.0, sys::IBV_ACCESS_REMOTE_WRITE),
            Lent::Hold(hold) => (hold, sys::IBV_ACCESS_REMOTE_READ),
        };
        let refused = |errno| VerbsError::new("ibv_post_send (bind)", errno);
        let registration = hold.registration(&self.domain).filter(|_| hold.is_exposable());
        let registration = registration.filter(|_| !range.is_empty() && range.end <= hold.capacity());
        let Some(registration) = registration else {
            return Err((refused(libc::EINVAL), lent));
        };
        // Room for this and for the request that makes it invalid, or nothing could ever be taken back.
        if self.room() < 2 {
            return Err((refused(libc::EAGAIN), lent));
        }
        let mut window = match self.windows.pop().map_or_else(|| Window::new(&self.domain), Ok) {
            Ok(window) => window,
            Err(error) => return Err((error, lent)),
        };
        let key = window.next_key();
        let address = hold.address().wrapping_add(range.start) as u64;
        // SAFETY: all-zero is a value of this plain structure.
        let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
        request.opcode = sys::IBV_WR_BIND_MW;
        let bind_info = sys::ibv_mw_bind_info {
            mr: registration.as_ptr(),
            addr: address,
            length: range.len() as u64,
            mw_access_flags: access,
        };
        request.__bindgen_anon_2.bind_mw =
            sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 { mw: window.pointer.as_ptr(), rkey: key, bind_info };
        match self.queue.post_send(&mut request, None) {
            Ok(()) => {
                self.sends += 1;
                self.silent += 1;
                window.set_key(key);
                let remote = Remote { address, key };
                let number = self.exposed.put(Exposed { window, lent, remote });
                Ok(Exposure { number, remote })
            }
            Err(error) => {
                self.windows.push(window);
                Err((error, lent))
            }
        }
    }

    /// Makes exposed memory invalid; it comes back with the completion.
    pub fn retract(&mut self, exposure: Exposure, token: T) -> Result<(), VerbsError> {
        let Some(exposed) = self.exposed.take(exposure.number) else {
            return Err(VerbsError::new("ibv_post_send (invalidate)", libc::EINVAL));
        };
        // SAFETY: all-zero is a value of this plain structure.
        let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
        request.opcode = sys::IBV_WR_LOCAL_INV;
        request.__bindgen_anon_1.invalidate_rkey = exposed.remote.key;
        self.post_with(None, request, Some(exposed.lent), Some(exposed.window), token)
    }

    /// Takes the completions that there are.
    pub fn poll(&mut self) -> Result<Vec<Completion<T>>, VerbsError> {
        loop {
            // SAFETY: all-zero is a value of this plain structure.
            let mut batch: [sys::ibv_wc; POLL_BATCH] = unsafe { std::mem::zeroed() };
            let count = self.queue.poll(&mut batch)?;
            for work in &batch[..count] {
                self.complete(work);
            }
            if count < POLL_BATCH {
                return Ok(std::mem::take(&mut self.completed));
            }
        }
    }

    /// Asks for the descriptor to become readable at the next completion. Completions must be taken once more afterwards:
    /// one that came before is not announced.
    pub fn arm(&mut self) -> Result<(), VerbsError> {
        self.queue.arm()
    }

    /// A descriptor that is readable when a completion was announced.
    pub fn completion_fd(&self) -> BorrowedFd<'_> {
        self.queue.completion_fd()
    }

    /// Ends it: when this returns no device reaches any of its memory. Everything that was under way comes back, as failed, and
    /// what was exposed.
    pub fn close(&mut self) -> (Vec<Completion<T>>, Vec<(Remote, Lent)>) {
        self.queue.disconnect();
        // The windows before the QP: a soft device counts a bound window as a user of its QP, and waits for it.
        self.windows.clear();
        let exposed = self.exposed.drain().into_iter().map(|exposed| (exposed.remote, exposed.lent)).collect();
        let flushed = Err(WorkError(sys::IBV_WC_WR_FLUSH_ERR));
        let outstanding = self.outstanding.drain();
        let outstanding: Vec<_> = outstanding.into_iter().map(|it| (it.token, it.lent)).collect();
        self.queue.destroy();
        let mut completions = std::mem::take(&mut self.completed);
        for (token, lent) in outstanding {
            let block = if let Some(Lent::Block(block)) = lent { Some(block) } else { None };
            completions.push(Completion { result: flushed, token, block });
        }
        (completions, exposed)
    }

    /// The first `len` bytes of a block, which must be memory of this endpoint's domain.
    fn segment(&self, hold: &Hold, len: usize) -> Result<sys::ibv_sge, VerbsError> {
        let registration =
            hold.registration(&self.domain).ok_or_else(|| VerbsError::new("ibv_post_send", libc::EINVAL))?;
        let length = u32::try_from(len.min(hold.capacity())).unwrap_or(u32::MAX);
        // SAFETY: a registration lives as long as its slab, which the hold keeps.
        let lkey = unsafe { registration.as_ref().lkey };
        Ok(sys::ibv_sge { addr: hold.address() as u64, length, lkey })
    }

    fn post(
        &mut self,
        segment: Option<sys::ibv_sge>,
        request: sys::ibv_send_wr,
        lent: Option<Lent>,
        token: T,
    ) -> Result<(), VerbsError> {
        self.post_with(segment, request, lent, None, token)
    }

    fn post_with(
        &mut self,
        segment: Option<sys::ibv_sge>,
        request: sys::ibv_send_wr,
        lent: Option<Lent>,
        window: Option<Window>,
        token: T,
    ) -> Result<(), VerbsError> {
        if self.room() == 0 {
            return Err(VerbsError::new("ibv_post_send", libc::EAGAIN));
        }
        let places = self.silent + 1;
        let number = self.outstanding.put(Outstanding { token, lent, places, window });
        let mut request = request;
        request.wr_id = number;
        request.send_flags |= sys::IBV_SEND_SIGNALED;
        let result = self.queue.post_send(&mut request, segment);
        match result {
            Ok(()) => {
                self.sends += 1;
                self.silent = 0;
            }
            Err(_) => drop(self.outstanding.take(number)),
        }
        result
    }

    fn complete(&mut self, work: &sys::ibv_wc) {
        // A number that is not there is that of a silent request that failed (0): the ones after it say so too.
        let Some(outstanding) = self.outstanding.take(work.wr_id) else { return };
        self.sends -= outstanding.places;
        let result = match work.status {
            sys::IBV_WC_SUCCESS if work.opcode & sys::IBV_WC_RECV != 0 => Ok(Done::Received(work.byte_len as usize)),
            sys::IBV_WC_SUCCESS => Ok(Done::Posted),
            status => Err(WorkError(status)),
        };
        let block = if let Some(Lent::Block(block)) = outstanding.lent { Some(block) } else { None };
        // A window that could not be made invalid is as good as one that was, once it is gone.
        if result.is_ok() {
            self.windows.extend(outstanding.window);
        }
        self.completed.push(Completion { result, token: outstanding.token, block });
    }
}

impl<T> Drop for Endpoint<T> {
    fn drop(&mut self) {
        self.close();
    }
}

fn send_request() -> sys::ibv_send_wr {
    // SAFETY: all-zero is a value of this plain structure.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.opcode = sys::IBV_WR_SEND;
    request
}

fn remote_request(opcode: sys::ibv_wr_opcode, remote: Remote) -> sys::ibv_send_wr {
    // SAFETY: all-zero is a value of this plain structure.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.opcode = opcode;
    request.wr.rdma = sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr: remote.address, rkey: remote.key };
    request
}

/// A memory window of type 2: a key that is good for one range, through one QP, until it is made invalid.
struct Window {
    pointer: NonNull<sys::ibv_mw>,
    _domain: ProtectionDomain,
}

// SAFETY: libibverbs allows its calls from any thread; one endpoint at a time has the window.
unsafe impl Send for Window {}

impl Window {
    fn new(domain: &ProtectionDomain) -> Result<Window, VerbsError> {
        // SAFETY: the domain is alive.
        let window = unsafe { sys::ibv_alloc_mw(domain.pointer(), sys::IBV_MW_TYPE_2) };
        Ok(Window { pointer: check_pointer("ibv_alloc_mw", window)?, _domain: domain.clone() })
    }

    /// The key of the next binding: the lower byte is the owner's to choose, so that an old key is good for nothing.
    fn next_key(&self) -> u32 {
        // SAFETY: the window is alive and this endpoint's alone.
        let key = unsafe { self.pointer.as_ref().rkey };
        (key & 0xffff_ff00) | (key.wrapping_add(1) & 0xff)
    }

    /// The binding with this key was posted: the provider names the window by its last key.
    fn set_key(&mut self, key: u32) {
        // SAFETY: as above.
        unsafe { self.pointer.as_mut().rkey = key };
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: its owner drops it once; a window that is still bound is good for nothing from here on.
        unsafe { sys::ibv_dealloc_mw(self.pointer.as_ptr()) };
    }
}

/// The QP and its CQ.
struct Queue {
    pair: Option<NonNull<sys::ibv_qp>>,
    completions: NonNull<sys::ibv_cq>,
    channel: NonNull<sys::ibv_comp_channel>,
    id: ConnectionId,
    _domain: ProtectionDomain,
}

// SAFETY: libibverbs allows its calls from any thread; the endpoint's owner makes them one at a time.
unsafe impl Send for Queue {}

impl Queue {
    fn new(id: ConnectionId, domain: &ProtectionDomain, depths: Depths) -> Result<(Queue, u32), VerbsError> {
        let context = domain.device().context();
        if id.context().map(NonNull::as_ptr) != Some(context) {
            return Err(VerbsError::new("rdma_create_qp", libc::EXDEV));
        }
        // SAFETY: the device is open.
        let channel = check_pointer("ibv_create_comp_channel", unsafe { sys::ibv_create_comp_channel(context) })?;
        let entries = i32::try_from(depths.sends + depths.receives).unwrap_or(i32::MAX);
        // SAFETY: the device is open and the channel alive.
        let completions = unsafe { sys::ibv_create_cq(context, entries, std::ptr::null_mut(), channel.as_ptr(), 0) };
        let completions = match check_pointer("ibv_create_cq", completions) {
            Ok(completions) => completions,
            Err(error) => {
                // SAFETY: made above, and nothing uses it.
                unsafe { sys::ibv_destroy_comp_channel(channel.as_ptr()) };
                return Err(error);
            }
        };
        // From here on its drop takes apart what there is.
        let mut queue = Queue { pair: None, completions, channel, id, _domain: domain.clone() };
        // SAFETY: the descriptor is the channel's.
        set_non_blocking(unsafe { BorrowedFd::borrow_raw(channel.as_ref().fd) })?;
        let granted = queue.create_pair(domain, depths)?;
        Ok((queue, granted))
    }

    fn create_pair(&mut self, domain: &ProtectionDomain, depths: Depths) -> Result<u32, VerbsError> {
        // SAFETY: all-zero is a value of this plain structure.
        let mut wanted: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        wanted.qp_type = sys::IBV_QPT_RC;
        wanted.send_cq = self.completions.as_ptr();
        wanted.recv_cq = self.completions.as_ptr();
        wanted.cap = sys::ibv_qp_cap {
            max_send_wr: depths.sends,
            max_recv_wr: depths.receives,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: depths.inline,
        };
        // SAFETY: identifier, domain and CQ are alive and of one device.
        let result = unsafe { sys::rdma_create_qp(self.id.pointer(), domain.pointer(), &mut wanted) };
        check("rdma_create_qp", result)?;
        // SAFETY: the identifier is alive, and has its QP now.
        self.pair = NonNull::new(unsafe { (*self.id.pointer()).qp });
        Ok(wanted.cap.max_inline_data)
    }

    fn is_alive(&self) -> bool {
        self.pair.is_some()
    }

    fn pair(&self) -> Option<NonNull<sys::ibv_qp>> {
        self.pair
    }

    fn post_send(&mut self, request: &mut sys::ibv_send_wr, segment: Option<sys::ibv_sge>) -> Result<(), VerbsError> {
        let Some(pair) = self.pair else {
            return Err(VerbsError::new("ibv_post_send", libc::ENOTCONN));
        };
        let mut segment = segment;
        if let Some(segment) = &mut segment {
            request.sg_list = &raw mut *segment;
            request.num_sge = 1;
        }
        let mut bad = std::ptr::null_mut();
        // SAFETY: the QP is alive; the memory that the request names is registered in its domain and the endpoint keeps it
        // until the request completes or the QP is destroyed (inline bytes are copied by the call, as are request and
        // segment).
        check("ibv_post_send", unsafe { sys::ibv_post_send(pair.as_ptr(), request, &mut bad) })
    }

    fn poll(&mut self, batch: &mut [sys::ibv_wc]) -> Result<usize, VerbsError> {
        let room = i32::try_from(batch.len()).unwrap_or(i32::MAX);
        // SAFETY: the CQ is alive, and there is that much room.
        let count = unsafe { sys::ibv_poll_cq(self.completions.as_ptr(), room, batch.as_mut_ptr()) };
        usize::try_from(count).map_err(|_| VerbsError::new("ibv_poll_cq", -count))
    }

    fn arm(&mut self) -> Result<(), VerbsError> {
        let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel and its CQ are alive; each event that is taken is acknowledged, which destroying the CQ waits
        // for.
        unsafe {
            while sys::ibv_get_cq_event(self.channel.as_ptr(), &mut queue, &mut context) == 0 {
                sys::ibv_ack_cq_events(queue, 1);
            }
            check("ibv_req_notify_cq", sys::ibv_req_notify_cq(self.completions.as_ptr()))
        }
    }

    fn completion_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the channel's, which lives as long as this.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }

    /// From here on nothing goes through the QP, in either direction.
    fn disconnect(&self) {
        if self.is_alive() {
            self.id.disconnect();
        }
    }

    fn destroy(&mut self) {
        if self.pair.take().is_some() {
            // SAFETY: it was made and not destroyed; nobody posts to it any more, since it is taken from here.
            unsafe { sys::rdma_destroy_qp(self.id.pointer()) };
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.disconnect();
        self.destroy();
        // SAFETY: both were made and nothing uses them: the QP is gone, and every event was acknowledged.
        unsafe {
            sys::ibv_destroy_cq(self.completions.as_ptr());
            sys::ibv_destroy_comp_channel(self.channel.as_ptr());
        }
    }
}
