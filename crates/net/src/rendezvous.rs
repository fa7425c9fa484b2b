//! Finding a server that listens on one of several ports of a host.
//!
//! Owns the way through the ports and what a stranger's answer looks like. Which ports they are, and whether to look
//! again, is the caller's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use burstfs_proto::hello::Refusal;

use crate::channel::{Channel, Client, Deadline};
use crate::error::RpcError;

/// The first address of a host.
pub async fn resolve(host: &str) -> io::Result<IpAddr> {
    let mut addresses = tokio::net::lookup_host((host, 0)).await?;
    let first = addresses.next().ok_or(io::ErrorKind::NotFound)?;
    Ok(first.ip())
}

/// The channel to the first of the `ports` at `ip` where this client is let in, with `attempt` for each; `None` when each
/// error is one that `passes_by` accepts. Another error ends the search, with the port that it came from.
pub async fn look(
    client: &Client,
    ip: IpAddr,
    ports: impl IntoIterator<Item = u16>,
    attempt: Duration,
    passes_by: impl Fn(&RpcError) -> bool,
) -> Result<Option<Channel>, (u16, RpcError)> {
    for port in ports {
        match client.connect_once(SocketAddr::new(ip, port), Deadline::after(attempt)).await {
            Ok(channel) => return Ok(Some(channel)),
            Err(error) if passes_by(&error) => {}
            Err(error) => return Err((port, error)),
        }
    }
    Ok(None)
}

/// Whether a port's answer says that nobody listens there, or somebody who does not serve this instance.
pub fn is_somebody_else(error: &RpcError) -> bool {
    match error {
        RpcError::Refused(refusal) => match refusal {
            Refusal::Magic | Refusal::Instance => true,
            Refusal::Version { .. } | Refusal::Uid(_) | Refusal::Credential(_) | Refusal::Busy => false,
        },
        RpcError::Unreachable(_) | RpcError::Closed | RpcError::Protocol(_) => true,
        RpcError::Timeout(_) | RpcError::Unauthenticated(_) | RpcError::Errno(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_passed_by_and_impostors_are_not() {
        assert!(is_somebody_else(&RpcError::Refused(Refusal::Instance)));
        assert!(is_somebody_else(&RpcError::Unreachable(io::ErrorKind::ConnectionRefused)));
        assert!(!is_somebody_else(&RpcError::Refused(Refusal::Uid(7))));
    }
}
