//! Both sides of the hello, over any stream of bytes (see `burstfs_proto::hello`).
//!
//! Each message is a little-endian `u32` length and its body.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;

use burstfs_proto::PROTOCOL_VERSION;
use burstfs_proto::hello::{Challenge, MAGIC, Nonce, Opening, Proof, Refusal, Role, Side, Verdict, signed};
use burstfs_types::{ClientId, NodeIndex, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::auth::{AuthError, Identity, Peer, Terms, check_uid};
use crate::error::RpcError;

/// What a server may read of a refused client while it waits for it to take notice.
const LINGER_BYTES: usize = limits::HELLO_MAX_BYTES;

/// The client's side. On success requests may follow.
pub(crate) async fn open<S>(stream: &mut S, identity: &Identity, server: SocketAddr) -> Result<(), RpcError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let nonce = nonce()?;
    let opening = Opening {
        magic: MAGIC,
        version: PROTOCOL_VERSION,
        instance: identity.instance.clone(),
        role: identity.role,
        nonce,
    };
    send(stream, &opening).await.map_err(lost)?;
    let mut budget = limits::HELLO_MAX_BYTES;
    let (server_nonce, credential) = match receive::<Challenge, S>(stream, &mut budget).await? {
        Challenge::Accepted { nonce, credential } => (nonce, credential),
        Challenge::Refused(refusal) => return Err(RpcError::Refused(refusal)),
    };
    let payload = |side| signed(side, &identity.instance, &nonce, &server_nonce, server);
    let uid = identity.auth.verify(&credential, &payload(Side::Server)).await;
    uid.and_then(|uid| check_uid(identity.uid, uid)).map_err(RpcError::Unauthenticated)?;
    let credential = identity.auth.sign(&payload(Side::Client)).await.map_err(RpcError::Unauthenticated)?;
    send(stream, &Proof { credential }).await.map_err(lost)?;
    match receive::<Verdict, S>(stream, &mut budget).await? {
        Verdict::Welcome => Ok(()),
        Verdict::Refused(refusal) => Err(RpcError::Refused(refusal)),
    }
}

/// The server's side; `local` is the address that the client connected to. A refused client has been told why.
pub(crate) async fn accept<S>(stream: &mut S, terms: &Terms, local: SocketAddr) -> Result<Peer, RpcError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut budget = limits::HELLO_MAX_BYTES;
    let checked = match receive_bytes(stream, &mut budget).await {
        Ok(bytes) => check_opening(&bytes, terms),
        Err(error) => Err(error),
    };
    let opening = match checked {
        Ok(opening) => opening,
        Err(error) => return Err(turn_away(stream, error, Challenge::Refused).await),
    };
    let server_nonce = nonce()?;
    let payload = |side| signed(side, &terms.instance, &opening.nonce, &server_nonce, local);
    let credential = match terms.auth.sign(&payload(Side::Server)).await {
        Ok(credential) => credential,
        Err(error) => return Err(turn_away(stream, RpcError::Unauthenticated(error), Challenge::Refused).await),
    };
    send(stream, &Challenge::Accepted { nonce: server_nonce, credential }).await.map_err(lost)?;
    let uid = match receive::<Proof, S>(stream, &mut budget).await {
        Ok(proof) => prove(terms, &proof, &payload(Side::Client)).await,
        Err(error) => Err(error),
    };
    let uid = match uid {
        Ok(uid) => uid,
        Err(error) => return Err(turn_away(stream, error, Verdict::Refused).await),
    };
    send(stream, &Verdict::Welcome).await.map_err(lost)?;
    let client = match opening.role {
        Role::Node(client) => client,
        Role::Command => ClientId {
            node: NodeIndex::new(u16::MAX),
            incarnation: u64::from_le_bytes(std::array::from_fn(|at| server_nonce[at])),
        },
    };
    Ok(Peer { uid, role: opening.role, client })
}

/// Tells a stranger that he is refused before he has said anything.
pub(crate) async fn refuse<S>(stream: &mut S, refusal: Refusal)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    turn_away(stream, RpcError::Refused(refusal), Challenge::Refused).await;
}

fn check_opening(bytes: &[u8], terms: &Terms) -> Result<Opening, RpcError> {
    // Magic and version first: what follows them may look different in another build.
    let rest = bytes.strip_prefix(&MAGIC).ok_or(RpcError::Refused(Refusal::Magic))?;
    let refused = |_| RpcError::Refused(Refusal::Magic);
    let (version, _) = postcard::take_from_bytes::<u32>(rest).map_err(refused)?;
    if version != PROTOCOL_VERSION {
        return Err(RpcError::Refused(Refusal::Version { ours: PROTOCOL_VERSION, theirs: version }));
    }
    let opening: Opening = postcard::from_bytes(bytes).map_err(refused)?;
    if opening.instance == terms.instance { Ok(opening) } else { Err(RpcError::Refused(Refusal::Instance)) }
}

async fn prove(terms: &Terms, proof: &Proof, expected: &[u8]) -> Result<u32, RpcError> {
    let uid = terms.auth.verify(&proof.credential, expected).await.map_err(RpcError::Unauthenticated)?;
    match check_uid(terms.uid, uid) {
        Ok(()) => Ok(uid),
        Err(_) => Err(RpcError::Refused(Refusal::Uid(uid))),
    }
}

/// Says why, and waits until the peer has had a chance to read it: closing with unread bytes would reset the connection
/// and throw the refusal away. The caller's time limit bounds the wait.
async fn turn_away<S, M: Serialize>(stream: &mut S, error: RpcError, message: fn(Refusal) -> M) -> RpcError
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let refusal = match &error {
        RpcError::Refused(refusal) => refusal.clone(),
        RpcError::Unauthenticated(why) => Refusal::Credential(short(why)),
        RpcError::Errno(_)
        | RpcError::Timeout(_)
        | RpcError::Protocol(_)
        | RpcError::Unreachable(_)
        | RpcError::Closed => return error,
    };
    if send(stream, &message(refusal)).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut sink = [0; 512];
        let mut read = 0;
        while read < LINGER_BYTES {
            match stream.read(&mut sink).await {
                Ok(0) | Err(_) => break,
                Ok(len) => read += len,
            }
        }
    }
    error
}

/// An error's text, short enough for any hello.
fn short(error: &AuthError) -> String {
    error.to_string().chars().take(200).collect()
}

fn nonce() -> Result<Nonce, RpcError> {
    let mut nonce = Nonce::default();
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut nonce));
    match read {
        Ok(()) => Ok(nonce),
        Err(error) => Err(RpcError::Unauthenticated(AuthError::Unavailable(format!("/dev/urandom: {error}")))),
    }
}

async fn send<S: AsyncWrite + Unpin + Send, M: Serialize>(stream: &mut S, message: &M) -> io::Result<()> {
    let body = burstfs_proto::encode(message);
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_le_bytes()[..], &body].concat()).await?;
    stream.flush().await
}

async fn receive<M: DeserializeOwned, S>(stream: &mut S, budget: &mut usize) -> Result<M, RpcError>
where
    S: AsyncRead + Unpin + Send,
{
    let bytes = receive_bytes(stream, budget).await?;
    postcard::from_bytes(&bytes).map_err(|_| RpcError::Refused(Refusal::Magic))
}

/// One message of at most `budget` bytes, which it uses up.
async fn receive_bytes<S: AsyncRead + Unpin + Send>(stream: &mut S, budget: &mut usize) -> Result<Vec<u8>, RpcError> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await.map_err(lost)?;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    *budget = budget.checked_sub(len.saturating_add(4)).ok_or(RpcError::Refused(Refusal::Magic))?;
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await.map_err(lost)?;
    Ok(bytes)
}

fn lost(_: io::Error) -> RpcError {
    RpcError::Closed
}

#[cfg(test)]
mod tests {
    use burstfs_types::InstanceId;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Realm;

    proptest! {
        #[test]
        fn any_opening_is_refused_or_right(bytes: Vec<u8>, keep_magic: bool) {
            let instance = InstanceId::new("vc", 1, 0).unwrap();
            let terms = Terms { instance, uid: 1, auth: Realm::new().member(1) };
            let bytes = if keep_magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            prop_assert!(check_opening(&bytes, &terms).is_err());
        }
    }
}
