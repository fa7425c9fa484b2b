//! One instance's status, asked at its MGS.

use std::sync::Arc;
use std::time::Duration;

use burstfs_config::SiteConfig;
use burstfs_mgs::ports;
use burstfs_net::{ChannelLimits, Client, Deadline, Identity, Munge, RpcError, Tcp, TcpConfig, XidSource, rendezvous};
use burstfs_proto::hello::{Refusal, Role};
use burstfs_proto::mgs::{InstanceStatus, Status};
use burstfs_types::{ClientId, InstanceId, NodeIndex};
use thiserror::Error;

use crate::Exit;

/// For one connection, and for the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why an instance's status is not known.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// The host's name has no address.
    #[error("{host} has no address: {source}")]
    Resolve {
        /// The job's first node.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// It answers, but not to this user.
    #[error("the instance is another user's")]
    NotYours,
    /// It does not answer.
    #[error("{host} does not answer: {source}")]
    Call {
        /// The job's first node.
        host: String,
        /// Why.
        source: RpcError,
    },
}

impl AskError {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            AskError::Resolve { .. } => Exit::Failure,
            AskError::NotYours => Exit::Permission,
            AskError::Call { source, .. } => match source {
                RpcError::Timeout(_) => Exit::TimeOut,
                RpcError::Errno(_)
                | RpcError::Refused(_)
                | RpcError::Unauthenticated(_)
                | RpcError::Protocol(_)
                | RpcError::Unreachable(_)
                | RpcError::Closed => Exit::Failure,
            },
        }
    }
}

/// The status of an instance whose first node is `host`; `None` when there is none. `uid` is the job's user.
pub(crate) async fn status(
    instance: &InstanceId,
    host: &str,
    uid: u32,
    config: &SiteConfig,
) -> Result<Option<InstanceStatus>, AskError> {
    let failed = |source| AskError::Call { host: host.to_owned(), source };
    let unknown = |source| AskError::Resolve { host: host.to_owned(), source };
    let ip = rendezvous::resolve(host).await.map_err(unknown)?;
    let client = client(instance, uid);
    let ports = ports::sequence(instance, config.network.mgs_port_base, config.network.mgs_port_count);
    match rendezvous::look(&client, ip, ports, TIMEOUT, rendezvous::is_somebody_else).await {
        Ok(Some(channel)) => channel.call(&Status, Deadline::after(TIMEOUT)).await.map(Some).map_err(failed),
        Ok(None) => Ok(None),
        Err((_, RpcError::Refused(Refusal::Uid(_)))) => Err(AskError::NotYours),
        Err((_, error)) => Err(failed(error)),
    }
}

fn client(instance: &InstanceId, uid: u32) -> Client {
    let identity = Identity { instance: instance.clone(), uid, role: Role::Command, auth: Arc::new(Munge::new()) };
    // The server gives a command an id of its own; this one only numbers.
    let id = ClientId { node: NodeIndex::new(u16::MAX), incarnation: 0 };
    Client::new(Arc::new(Tcp::new(TcpConfig::default())), identity, XidSource::new(id), ChannelLimits::default())
}
