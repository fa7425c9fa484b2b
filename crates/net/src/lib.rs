//! How burstfs's processes reach one another: transports (in-process, TCP, RDMA), the RPC client and server, and the proof of identity.
//!
//! ```text
//!   caller -> Channel -> Link  ~~~ Transport ~~~  ServerLink -> serve() -> Handler
//!             (xid, deadline,      in-process,      (bounded     (the service)
//!              resend, back-off)   TCP, RDMA         concurrency)
//! ```
//!
//! Owns: connections and their hello, the framing on a wire, request numbers, deadlines, resends, back-pressure, the
//! memory that bulk data travels in. Does not own: what a request means, and the reply cache that makes a replayable
//! request run once (the services have it, under the (client, xid) that every request carries).
//!
//! Invariants:
//! 1. A request keeps its xid for as long as its caller waits, over any number of connections.
//! 2. A [`Region`] lent to a request is touched by nobody else until the reply is there or the connection is gone, also
//!    when the caller has stopped waiting.
//! 3. Nothing is allocated for a length before it was checked against `burstfs_types::limits`.
//! 4. Before a peer has proved who it is, at most `HELLO_MAX_BYTES` of it are read, for at most the hello's time.
//! 5. On one server a resend never runs beside its original, and never after the client gave it up.
//!
//! Failure: whatever is wrong with a connection ends that connection only; its requests are sent again on the next one
//! until their deadlines.

mod auth;
mod channel;
mod connect;
mod error;
mod hello;
mod inproc;
pub mod interfaces;
mod munge;
mod network;
mod pool_wait;
#[cfg(feature = "rdma")]
mod rdma;
mod region;
pub mod rendezvous;
mod reply_once;
mod resends;
#[cfg(feature = "rdma")]
pub mod selftest;
mod server;
mod server_memory;
mod sync;
mod tcp;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;
mod xid;

pub use auth::{AuthError, Authenticator, Identity, Peer, Terms};
pub use channel::{Channel, ChannelLimits, Client, Deadline};
pub use error::{ProtocolError, Remedy, RpcError, Waiting};
pub use inproc::InProcess;
pub use munge::Munge;
pub use network::{Choice, Network, NetworkConfig};
#[cfg(feature = "rdma")]
pub use rdma::{Rdma, RdmaConfig};
pub use region::{Region, RegionPool, RegionTooLarge, Source};
pub use server::{Handler, ServerConfig, ServerHandle, ServerLimits, serve};
pub use tcp::{Tcp, TcpConfig};
pub use transport::{
    Admission, ClientBulk, Ending, Exchange, Inbound, Incoming, Link, Listener, Lost, LostCause, Outcome, Reply,
    Request, ServerLink, Ticket, Transport,
};
pub use xid::{Numbered, XidSource};
