//! The connection manager: identifiers of connections and listeners, and what happens to them.
//!
//! Every identifier has an event channel of its own, a descriptor that never blocks: whoever waits, waits for it to be
//! readable and then takes what there is.

use std::ffi::CStr;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use crate::error::{VerbsError, check, check_pointer};
use crate::sys;

/// The most private data of a request to connect, bytes.
pub const PRIVATE_DATA_MAX_BYTES: usize = 56;

/// What happened to an identifier.
#[derive(Debug)]
pub enum Event {
    /// The address is resolved.
    AddressResolved,
    /// The route is resolved.
    RouteResolved,
    /// Somebody wants to connect: his identifier, his private data (with padding behind), and the reads that he allows.
    Request(ConnectionId, Vec<u8>, u8),
    /// The connection is there; the private data of the one who accepted.
    Established(Vec<u8>),
    /// The other side refused.
    Rejected,
    /// There is nobody there, or no way.
    Unreachable,
    /// The connection is over.
    Disconnected,
    /// The device is going away.
    DeviceRemoved,
    /// Anything else, by its name.
    Other(String),
}

/// How a connection is asked for or accepted.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// For the other side; at most [`PRIVATE_DATA_MAX_BYTES`].
    pub private_data: &'a [u8],
    /// Reads that the other side may have under way here.
    pub reads_served: u8,
    /// Reads that this side will have under way there.
    pub reads_made: u8,
}

/// One end of a connection, or a listener, before and while there is a QP for it.
pub struct ConnectionId {
    id: NonNull<sys::rdma_cm_id>,
    channel: Channel,
}

// SAFETY: librdmacm's calls may come from any thread, one at a time for one identifier: it is not `Sync`.
unsafe impl Send for ConnectionId {}

impl ConnectionId {
    /// An identifier for a reliable connection.
    pub fn new() -> Result<ConnectionId, VerbsError> {
        let channel = Channel::new()?;
        let mut id = std::ptr::null_mut();
        // SAFETY: the channel is alive, and `id` is where the new identifier goes.
        let result =
            unsafe { sys::rdma_create_id(channel.0.as_ptr(), &mut id, std::ptr::null_mut(), sys::RDMA_PS_TCP) };
        check("rdma_create_id", result)?;
        Ok(ConnectionId { id: check_pointer("rdma_create_id", id)?, channel })
    }

    /// Binds to a local address; port 0 takes any.
    pub fn bind(&self, address: SocketAddr) -> Result<(), VerbsError> {
        let mut address = Address::new(address);
        // SAFETY: the identifier is alive, the address is one.
        check("rdma_bind_addr", unsafe { sys::rdma_bind_addr(self.pointer(), address.pointer()) })
    }

    /// Listens.
    pub fn listen(&self, backlog: i32) -> Result<(), VerbsError> {
        // SAFETY: the identifier is alive.
        check("rdma_listen", unsafe { sys::rdma_listen(self.pointer(), backlog) })
    }

    /// Starts to resolve an address, from a local address where one is given.
    pub fn resolve_address(&self, from: Option<SocketAddr>, to: SocketAddr, time: Duration) -> Result<(), VerbsError> {
        let mut from = from.map(Address::new);
        let from = from.as_mut().map_or(std::ptr::null_mut(), Address::pointer);
        let mut to = Address::new(to);
        // SAFETY: the identifier is alive, the addresses live through the call, which copies them.
        check("rdma_resolve_addr", unsafe { sys::rdma_resolve_addr(self.pointer(), from, to.pointer(), millis(time)) })
    }

    /// Starts to resolve the route.
    pub fn resolve_route(&self, time: Duration) -> Result<(), VerbsError> {
        // SAFETY: the identifier is alive.
        check("rdma_resolve_route", unsafe { sys::rdma_resolve_route(self.pointer(), millis(time)) })
    }

    /// How long the device waits for an acknowledgement: 4.096 us times two to the power of `exponent`. Before connecting.
    pub fn set_ack_timeout(&self, exponent: u8) -> Result<(), VerbsError> {
        let mut exponent = exponent;
        let (level, option) = (sys::RDMA_OPTION_ID, sys::RDMA_OPTION_ID_ACK_TIMEOUT);
        // SAFETY: the identifier is alive; this option is one byte.
        check("rdma_set_option", unsafe {
            sys::rdma_set_option(self.pointer(), level, option, (&raw mut exponent).cast(), 1)
        })
    }

    /// Starts to connect. Receives must have been posted.
    pub fn connect(&self, terms: Terms<'_>) -> Result<(), VerbsError> {
        let mut parameters = parameters(terms);
        // SAFETY: the identifier is alive, the parameters and the private data live through the call, which copies them.
        check("rdma_connect", unsafe { sys::rdma_connect(self.pointer(), &mut parameters) })
    }

    /// Accepts. Receives must have been posted.
    pub fn accept(&self, terms: Terms<'_>) -> Result<(), VerbsError> {
        let mut parameters = parameters(terms);
        // SAFETY: as for connecting.
        check("rdma_accept", unsafe { sys::rdma_accept(self.pointer(), &mut parameters) })
    }

    /// Refuses. A peer that is gone already is none to refuse.
    pub fn reject(&self) {
        // SAFETY: the identifier is alive; without private data.
        unsafe { sys::rdma_reject(self.pointer(), std::ptr::null(), 0) };
    }

    /// Ends the connection: nothing goes through the QP any more, in either direction, when this returns.
    pub fn disconnect(&self) {
        // SAFETY: the identifier is alive. An error means that there was no connection.
        unsafe { sys::rdma_disconnect(self.pointer()) };
    }

    /// The next event, where there is one.
    pub fn event(&mut self) -> Result<Option<Event>, VerbsError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel is alive, and `event` is where the event goes.
        if unsafe { sys::rdma_get_cm_event(self.channel.0.as_ptr(), &mut event) } != 0 {
            let error = VerbsError::last("rdma_get_cm_event");
            return match error.error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        let event = check_pointer("rdma_get_cm_event", event)?;
        // SAFETY: an event is alive until it is acknowledged, which is below, after all of it was copied.
        let (kind, id, parameters) = unsafe {
            let event = event.as_ref();
            (event.event, event.id, event.param.conn)
        };
        let private_data = match kind {
            sys::RDMA_CM_EVENT_CONNECT_REQUEST | sys::RDMA_CM_EVENT_ESTABLISHED => copy_private_data(&parameters),
            _ => Vec::new(),
        };
        // SAFETY: acknowledged once, and not used any more.
        unsafe { sys::rdma_ack_cm_event(event.as_ptr()) };
        Ok(Some(match kind {
            sys::RDMA_CM_EVENT_ADDR_RESOLVED => Event::AddressResolved,
            sys::RDMA_CM_EVENT_ROUTE_RESOLVED => Event::RouteResolved,
            sys::RDMA_CM_EVENT_CONNECT_REQUEST => {
                Event::Request(ConnectionId::received(id)?, private_data, parameters.initiator_depth)
            }
            sys::RDMA_CM_EVENT_ESTABLISHED => Event::Established(private_data),
            sys::RDMA_CM_EVENT_REJECTED => Event::Rejected,
            sys::RDMA_CM_EVENT_UNREACHABLE | sys::RDMA_CM_EVENT_ADDR_ERROR | sys::RDMA_CM_EVENT_ROUTE_ERROR => {
                Event::Unreachable
            }
            sys::RDMA_CM_EVENT_DISCONNECTED => Event::Disconnected,
            sys::RDMA_CM_EVENT_DEVICE_REMOVAL => Event::DeviceRemoved,
            other => Event::Other(event_name(other)),
        }))
    }

    /// The local address; its port is known once it is bound or connected.
    pub fn local_address(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is alive, and keeps its addresses in itself.
        unsafe { read_address(&self.id.as_ref().route.addr.__bindgen_anon_1.src_storage) }
    }

    /// The other side's address.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        unsafe { read_address(&self.id.as_ref().route.addr.__bindgen_anon_2.dst_storage) }
    }

    pub(crate) fn pointer(&self) -> *mut sys::rdma_cm_id {
        self.id.as_ptr()
    }

    pub(crate) fn context(&self) -> Option<NonNull<sys::ibv_context>> {
        // SAFETY: the identifier is alive.
        NonNull::new(unsafe { self.id.as_ref().verbs })
    }

    pub(crate) fn port(&self) -> u8 {
        // SAFETY: the identifier is alive.
        unsafe { self.id.as_ref().port_num }
    }

    /// An identifier that a listener's event brought, on an event channel of its own.
    fn received(id: *mut sys::rdma_cm_id) -> Result<ConnectionId, VerbsError> {
        let id = check_pointer("rdma_get_cm_event", id)?;
        let moved = Channel::new().and_then(|channel| {
            // SAFETY: both are alive. The identifier's only event so far was acknowledged, so that this does not wait.
            check("rdma_migrate_id", unsafe { sys::rdma_migrate_id(id.as_ptr(), channel.0.as_ptr()) })?;
            Ok(channel)
        });
        match moved {
            Ok(channel) => Ok(ConnectionId { id, channel }),
            Err(error) => {
                // SAFETY: nobody else has it, and it has no QP.
                unsafe { sys::rdma_destroy_id(id.as_ptr()) };
                Err(error)
            }
        }
    }
}

impl AsFd for ConnectionId {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the channel's, which lives as long as this.
        unsafe { BorrowedFd::borrow_raw(self.channel.0.as_ref().fd) }
    }
}

impl Drop for ConnectionId {
    fn drop(&mut self) {
        // SAFETY: the QP, where there was one, is destroyed (`Endpoint` has the identifier and does it before); each event
        // was acknowledged when it was taken, so that this does not wait. The channel goes after.
        unsafe { sys::rdma_destroy_id(self.id.as_ptr()) };
    }
}

impl std::fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnectionId({:?} to {:?})", self.local_address(), self.peer_address())
    }
}

/// Where events come from.
struct Channel(NonNull<sys::rdma_event_channel>);

impl Channel {
    fn new() -> Result<Channel, VerbsError> {
        // SAFETY: takes nothing.
        let channel = check_pointer("rdma_create_event_channel", unsafe { sys::rdma_create_event_channel() })?;
        let channel = Channel(channel);
        // SAFETY: the descriptor is the new channel's.
        set_non_blocking(unsafe { BorrowedFd::borrow_raw(channel.0.as_ref().fd) })?;
        Ok(channel)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the identifier that had it is gone.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

pub(crate) fn set_non_blocking(fd: BorrowedFd<'_>) -> Result<(), VerbsError> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and these commands take numbers.
    let result = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    check("fcntl", result)
}

fn parameters(terms: Terms<'_>) -> sys::rdma_conn_param {
    debug_assert!(terms.private_data.len() <= PRIVATE_DATA_MAX_BYTES);
    sys::rdma_conn_param {
        private_data: terms.private_data.as_ptr().cast(),
        private_data_len: u8::try_from(terms.private_data.len()).unwrap_or(u8::MAX),
        responder_resources: terms.reads_served,
        initiator_depth: terms.reads_made,
        flow_control: 1,
        // Soft-RoCE takes 7 for ever.
        retry_count: 6,
        // A receiver that is not ready is a fault, not something to wait for.
        rnr_retry_count: 0,
        srq: 0,
        qp_num: 0,
    }
}

fn copy_private_data(parameters: &sys::rdma_conn_param) -> Vec<u8> {
    if parameters.private_data.is_null() {
        return Vec::new();
    }
    let len = usize::from(parameters.private_data_len);
    // SAFETY: librdmacm says so many bytes at that place, until the event is acknowledged.
    unsafe { std::slice::from_raw_parts(parameters.private_data.cast::<u8>(), len) }.to_vec()
}

fn event_name(kind: sys::rdma_cm_event_type) -> String {
    // SAFETY: takes any number, and returns a string that lives as long as the library.
    unsafe { CStr::from_ptr(sys::rdma_event_str(kind)).to_string_lossy().into_owned() }
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// A socket address as C has it.
enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Address {
    fn new(address: SocketAddr) -> Address {
        match address {
            SocketAddr::V4(v4) => Address::V4(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Address::V6(libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }

    fn pointer(&mut self) -> *mut sys::sockaddr {
        match self {
            Address::V4(v4) => (&raw mut *v4).cast(),
            Address::V6(v6) => (&raw mut *v6).cast(),
        }
    }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

/// Reads what librdmacm keeps of an address.
fn read_address(storage: &sys::sockaddr_storage) -> Option<SocketAddr> {
    let pointer = &raw const *storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: storage is large enough and aligned for each kind of address, and the family says which it is.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::from((v6.sin6_addr.s6_addr, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_their_way_through_c() {
        for text in ["10.99.0.1:27400", "[fd00::1:2]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            // SAFETY: all-zero is a value of this plain structure; the copy is of at most its size.
            let storage = unsafe {
                let mut storage: sys::sockaddr_storage = std::mem::zeroed();
                let mut c = Address::new(address);
                let len =
                    if address.is_ipv4() { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() };
                std::ptr::copy_nonoverlapping(c.pointer().cast::<u8>(), (&raw mut storage).cast::<u8>(), len);
                storage
            };
            assert_eq!(read_address(&storage), Some(address));
        }
    }
}
