//! Who a process is, and how it proves it.

use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::hello::Role;
use burstfs_types::{ClientId, InstanceId};
use thiserror::Error;

/// Why there is no proof of identity.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum AuthError {
    /// The authentication service cannot be asked just now.
    #[error("the authentication service does not answer: {0}")]
    Unavailable(String),
    /// The service says that the credential is not good: forged, expired, used before.
    #[error("{0}")]
    Invalid(String),
    /// A good credential, made for something else.
    #[error("the credential was made for another connection")]
    Payload,
    /// A good credential of somebody else.
    #[error("the peer is uid {actual}, which is neither uid {expected} nor root")]
    Uid {
        /// The job's user.
        expected: u32,
        /// The peer.
        actual: u32,
    },
}

/// Makes and checks credentials: a payload that carries, beyond doubt, the uid of the process that made it.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// A credential over `payload` for this process.
    async fn sign(&self, payload: &[u8]) -> Result<String, AuthError>;

    /// The uid that made `credential`, which must carry `expected`. A credential is good once.
    async fn verify(&self, credential: &str, expected: &[u8]) -> Result<u32, AuthError>;
}

/// What a client says of itself and expects of servers.
#[derive(Clone)]
pub struct Identity {
    /// The instance that it belongs to.
    pub instance: InstanceId,
    /// The job's user: servers must be that or root.
    pub uid: u32,
    /// What it is.
    pub role: Role,
    /// How it proves it.
    pub auth: Arc<dyn Authenticator>,
}

/// Whom a server lets in.
#[derive(Clone)]
pub struct Terms {
    /// Clients of this instance.
    pub instance: InstanceId,
    /// Of this user, or root.
    pub uid: u32,
    /// How this is proved.
    pub auth: Arc<dyn Authenticator>,
}

/// A client that has proved who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The job's user or root.
    pub uid: u32,
    /// What it says that it is. A [`Role::Command`] may do what the handler lets it.
    pub role: Role,
    /// Under which id its requests are numbered. A command gets one of its own, of a node that no instance has.
    pub client: ClientId,
}

/// Whether `actual` may take part in an instance of `expected`.
pub(crate) fn check_uid(expected: u32, actual: u32) -> Result<(), AuthError> {
    if actual == expected || actual == 0 { Ok(()) } else { Err(AuthError::Uid { expected, actual }) }
}
