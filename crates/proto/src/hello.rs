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
//! and one direction. Both sides accept only the job's uid and root.

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

/// The bytes that a credential encodes: direction, instance, and both nonces, so that none can be used elsewhere.
pub fn signed(side: Side, instance: &InstanceId, client: &Nonce, server: &Nonce) -> Vec<u8> {
    let direction: &[u8] = match side {
        Side::Client => b"burstfs client\0",
        Side::Server => b"burstfs server\0",
    };
    [direction, instance.to_string().as_bytes(), b"\0", client, server].concat()
}
