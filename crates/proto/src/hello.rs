//! What is said before anything else: magic, version, instance, role, and the proof of identity.
//!
//! ```text
//!     client                                   server
//!       | -- Opening {magic, version, instance, role, nonce} ->|  nothing but these few bytes is read from a stranger
//!       | <- Challenge {nonce, credential over the client's} --|  or Refusal, and the connection ends
//!       | -- Proof {credential over the server's nonce} ------>|
//!       | <- Welcome, or Refusal ------------------------------|
//! ```
//!
//! Both credentials are MUNGE's; each encodes what [`signed`] makes, so that it is good for one connection of one instance
//! with one server, and for one direction. Both sides accept only the job's uid and root.

use std::net::SocketAddr;

use burstfs_types::{ClientId, InstanceId};
use serde::{Deserialize, Serialize};

/// The first bytes of every connection.
pub const MAGIC: [u8; 8] = *b"burstfs\x01";

/// Random bytes that one side makes for one connection.
pub type Nonce = [u8; 16];

/// The client's first message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opening {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub version: u32,
    /// Which instance the client means: ports are shared between instances over time.
    pub instance: InstanceId,
    /// What the client is.
    pub role: Role,
    /// For the server to sign.
    pub nonce: Nonce,
}

/// What a client is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Role {
    /// A `burstfsd` of the instance.
    Node(ClientId),
    /// The `burstfs` command: may ask the MGS for the status, nothing else.
    Command,
}

/// The server's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Challenge {
    /// Go on.
    Accepted {
        /// For the client to sign.
        nonce: Nonce,
        /// MUNGE credential over [`signed`] of the client's nonce.
        credential: String,
    },
    /// The end.
    Refused(Refusal),
}

/// The client's second message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// MUNGE credential over [`signed`] of the server's nonce.
    pub credential: String,
}

/// The server's last word.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// Requests may follow.
    Welcome,
    /// The end.
    Refused(Refusal),
}

/// Why a connection is refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Not burstfs.
    #[error("the peer does not speak burstfs's protocol")]
    Magic,
    /// Another build.
    #[error("the peer speaks protocol version {theirs}, this side {ours}")]
    Version {
        /// The side that refuses.
        ours: u32,
        /// The other.
        theirs: u32,
    },
    /// Another job's.
    #[error("the port belongs to another instance")]
    Instance,
    /// Not the job's user and not root.
    #[error("uid {0} is neither the job's user nor root")]
    Uid(u32),
    /// MUNGE says no.
    #[error("the credential is not valid: {0}")]
    Credential(String),
    /// Too many connections that have not proved themselves.
    #[error("too many connections wait for their proof")]
    Busy,
}

/// Which side signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that listened.
    Server,
}

/// The bytes that a credential encodes: direction, instance, both nonces, and the server's address as each side sees it,
/// so that none can be used elsewhere. Without the address, a stranger who got hold of a port that clients try, and who
/// passes everything on to the real server, would have an authenticated connection in his hands.
pub fn signed(side: Side, instance: &InstanceId, client: &Nonce, server: &Nonce, address: SocketAddr) -> Vec<u8> {
    // A listener on both families sees an IPv4 client's address in its IPv6 form.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let direction: &[u8] = match side {
        Side::Client => b"burstfs client\0",
        Side::Server => b"burstfs server\0",
    };
    let (instance, address) = (instance.to_string(), address.to_string());
    [direction, instance.as_bytes(), b"\0", client, server, b"\0", address.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_names_the_server() {
        let instance = InstanceId::new("vc", 1, 0).unwrap();
        let of = |address: &str| signed(Side::Client, &instance, &[0; 16], &[1; 16], address.parse().unwrap());
        assert_ne!(of("10.0.0.1:27400"), of("10.0.0.1:27401"));
        assert_ne!(of("10.0.0.1:27400"), of("10.0.0.2:27400"));
        assert_eq!(of("10.0.0.1:27400"), of("[::ffff:10.0.0.1]:27400"));
    }
}
