//! How a connection comes to be: the connection manager's part of it, and the hello over its first messages.
//!
//! The private data only says that both sides are of one build; who the peer is, the hello proves, as over any transport.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use burstfs_proto::PROTOCOL_VERSION;
use burstfs_types::limits;
use burstfs_verbs::{ConnectionId, Endpoint, Event, Terms, VerbsError};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::connection::{DEPTHS, Outgoing, RECEIVES, Token, Wire};
use super::wire::PIECE_BYTES;
use super::{Side, unreachable};
use crate::error::RpcError;

/// For the address and for the route, each; the caller bounds the whole.
const RESOLVE_TIME: Duration = Duration::from_secs(3);
/// 4.096 us * 2^16: how long the device waits for an acknowledgement before it sends again, seven times. The connection
/// manager's own choice is eight times as long, and a lost packet would cost two seconds.
const ACK_TIMEOUT_EXPONENT: u8 = 16;
const MAGIC: [u8; 4] = *b"bfsR";
const PRIVATE_LEN: usize = 12;

/// What both sides must agree on: build, receives, and their size.
fn private_data() -> [u8; PRIVATE_LEN] {
    let mut data = [0; PRIVATE_LEN];
    data[0..4].copy_from_slice(&MAGIC);
    data[4..8].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    data[8..10].copy_from_slice(&RECEIVES.to_le_bytes());
    // In pages, so that it fits.
    data[10..12].copy_from_slice(&u16::try_from(PIECE_BYTES / 4096).unwrap_or(u16::MAX).to_le_bytes());
    data
}

/// Waits for the events of one identifier.
pub(super) struct Events(AsyncFd<OwnedFd>);

impl Events {
    pub(super) fn of(id: &ConnectionId) -> io::Result<Events> {
        Ok(Events(super::readiness(id.as_fd())?))
    }

    pub(super) async fn next(&self, id: &mut ConnectionId) -> io::Result<Event> {
        loop {
            if let Some(event) = id.event().map_err(|error| error.error)? {
                return Ok(event);
            }
            self.0.readable().await?.clear_ready();
        }
    }
}

/// Connects: an endpoint on which the peer has agreed to the private data.
pub(super) async fn connect(side: &Side, from: IpAddr, to: SocketAddr) -> Result<Endpoint<Token>, RpcError> {
    let mut id = ConnectionId::new().map_err(failed)?;
    let events = Events::of(&id).map_err(unreachable)?;
    id.resolve_address(Some(SocketAddr::new(from, 0)), to, RESOLVE_TIME).map_err(failed)?;
    expect(events.next(&mut id).await, |event| matches!(event, Event::AddressResolved))?;
    id.resolve_route(RESOLVE_TIME).map_err(failed)?;
    expect(events.next(&mut id).await, |event| matches!(event, Event::RouteResolved))?;
    id.set_ack_timeout(ACK_TIMEOUT_EXPONENT).map_err(failed)?;
    let mut endpoint = Endpoint::new(id, &side.domain, DEPTHS).map_err(failed)?;
    Wire::post_receives(&mut endpoint, &side.buffers).map_err(failed)?;
    let reads_served = side.domain.device().limits().reads_max;
    let data = private_data();
    endpoint.id().connect(Terms { private_data: &data, reads_served, reads_made: 0 }).map_err(failed)?;
    match events.next(endpoint.id()).await.map_err(unreachable)? {
        Event::Established(said) if said.starts_with(&data) => Ok(endpoint),
        Event::Established(_) => Err(RpcError::Unreachable(io::ErrorKind::InvalidData)),
        event => Err(not_connected(&event)),
    }
}

/// Accepts one who asks.
pub(super) async fn accept(side: &Side, id: ConnectionId, said: &[u8], reads: u8) -> Result<Endpoint<Token>, RpcError> {
    let data = private_data();
    if !said.starts_with(&data) {
        id.reject();
        return Err(RpcError::Unreachable(io::ErrorKind::InvalidData));
    }
    let events = Events::of(&id).map_err(unreachable)?;
    id.set_ack_timeout(ACK_TIMEOUT_EXPONENT).map_err(failed)?;
    let mut endpoint = Endpoint::new(id, &side.domain, DEPTHS).map_err(failed)?;
    Wire::post_receives(&mut endpoint, &side.buffers).map_err(failed)?;
    let reads_made = reads.min(side.domain.device().limits().reads_max);
    endpoint.id().accept(Terms { private_data: &data, reads_served: 0, reads_made }).map_err(failed)?;
    match events.next(endpoint.id()).await.map_err(unreachable)? {
        Event::Established(_) => Ok(endpoint),
        event => Err(not_connected(&event)),
    }
}

/// Leads a hello over the connection. When it ends, all that it said is on its way.
pub(super) async fn over<T, F>(wire: &Arc<Wire>, hello: impl FnOnce(DuplexStream) -> F) -> T
where
    F: Future<Output = T>,
{
    let (ours, theirs) = tokio::io::duplex(limits::HELLO_MAX_BYTES);
    let (mut said, mut heard) = tokio::io::split(theirs);
    let mut speak = std::pin::pin!(async {
        let mut bytes = [0; 1024];
        while let Ok(len @ 1..) = said.read(&mut bytes).await {
            if wire.push(Outgoing::hello(&bytes[..len])).is_err() {
                break;
            }
        }
    });
    let listen = async {
        while let Some(bytes) = wire.next_hello().await {
            if heard.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The peer's end is the end of the stream, whatever comes of it.
        let _ = heard.shutdown().await;
    };
    let done = {
        let mut pumps = std::pin::pin!(async { tokio::join!(&mut speak, listen) });
        let mut hello = std::pin::pin!(hello(ours));
        let mut pumping = true;
        loop {
            tokio::select! {
                biased;
                done = &mut hello => break done,
                _ = &mut pumps, if pumping => pumping = false,
            }
        }
    };
    // The stream is dropped: what is still in it comes out, and then its end.
    speak.await;
    done
}

fn expect(event: io::Result<Event>, wanted: impl Fn(&Event) -> bool) -> Result<(), RpcError> {
    let event = event.map_err(unreachable)?;
    if wanted(&event) { Ok(()) } else { Err(not_connected(&event)) }
}

fn not_connected(event: &Event) -> RpcError {
    RpcError::Unreachable(match event {
        Event::Rejected => io::ErrorKind::ConnectionRefused,
        Event::Unreachable => io::ErrorKind::HostUnreachable,
        _ => io::ErrorKind::ConnectionAborted,
    })
}

fn failed(error: VerbsError) -> RpcError {
    unreachable(error.error)
}
