//! Questions to one instance, asked at its MGS: on the first node of the job, or, when that is lost, on one of the next.

use std::sync::Arc;
use std::time::Duration;

use burstfs_config::SiteConfig;
use burstfs_mgs::{Note, ports};
use burstfs_net::{
    Channel, ChannelLimits, Client, Deadline, Identity, Munge, RpcError, Tcp, TcpConfig, XidSource, rendezvous,
};
use burstfs_proto::Rpc;
use burstfs_proto::hello::{Refusal, Role};
use burstfs_types::{ClientId, InstanceId, NodeIndex};
use nix::unistd::User;
use thiserror::Error;

use crate::slurm::{self, Filter, Job};
use crate::{Ending, Exit};

/// For one connection, and for an answer that needs nobody else's.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// On so many nodes, in the order of the job's list, the MGS is looked for: one after the other takes it over, and a job that
/// has lost more of them is hardly one that anybody waits for.
const SEATS_MAX: usize = 4;

/// Why an instance gave no answer.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// The host's name has no address.
    #[error("{host} has no address: {source}")]
    Resolve {
        /// The node that was to be asked.
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
        /// The node that was asked.
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

/// Where an instance is to be asked, and whose it is.
pub(crate) struct Place {
    instance: InstanceId,
    /// Where its MGS may be, in this order.
    hosts: Vec<String>,
    uid: u32,
}

impl Place {
    /// That of a job that has nodes now.
    pub(crate) fn of_job(id: u32) -> Result<Place, Ending> {
        let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
        let filter = Filter { jobs: vec![id], ..Filter::default() };
        let jobs = slurm::jobs(&filter).map_err(|error| failure(&error))?;
        let missing = || Ending::new(Exit::NoInstance, format!("job {id} has no instance now"));
        let job = jobs.first().ok_or_else(missing)?;
        Place::of(job, &slurm::cluster_name().map_err(|error| failure(&error))?)?.ok_or_else(missing)
    }

    /// That of the job's instance; `None` for a job without nodes.
    pub(crate) fn of(job: &Job, cluster: &str) -> Result<Option<Place>, Ending> {
        let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
        let instance = InstanceId::new(cluster, job.id, job.restart_count).map_err(|error| failure(&error))?;
        if job.hosts.is_empty() {
            return Ok(None);
        }
        let user = User::from_name(&job.user).ok().flatten();
        let uid = user.ok_or_else(|| failure(&format!("user {} is not known here", job.user)))?.uid;
        let hosts = job.hosts.iter().take(SEATS_MAX).cloned().collect();
        Ok(Some(Place { instance, hosts, uid: uid.as_raw() }))
    }

    /// That of an instance that outlives its job.
    pub(crate) fn noted(instance: InstanceId, note: &Note) -> Result<Place, Ending> {
        let failure = |message: String| Ending::new(Exit::Failure, message);
        if note.hosts.is_empty() {
            return Err(failure(format!("{instance} has no hosts")));
        }
        let user = User::from_name(&note.user).ok().flatten();
        let uid = user.ok_or_else(|| failure(format!("user {} is not known here", note.user)))?.uid;
        let hosts = note.hosts.iter().take(SEATS_MAX).cloned().collect();
        Ok(Place { instance, hosts, uid: uid.as_raw() })
    }

    /// The instance.
    pub(crate) fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// The host where the MGS is looked for first.
    pub(crate) fn host(&self) -> &str {
        self.hosts.first().map_or("?", String::as_str)
    }
}

/// What the instance at `place` answers within `timeout`; `None` when there is none.
pub(crate) async fn ask<R: Rpc>(
    place: &Place,
    request: &R,
    timeout: Duration,
    config: &SiteConfig,
) -> Result<Option<R::Reply>, AskError> {
    let mut first = None;
    for host in &place.hosts {
        let answered = ask_on(host, place, request, timeout, config).await;
        if is_final(&answered) {
            return answered;
        }
        // If nobody answers, what the first node says is what matters.
        first.get_or_insert(answered);
    }
    first.unwrap_or(Ok(None))
}

/// Whether the MGS has spoken, or somebody for whom it is no use to ask elsewhere.
fn is_final<T>(answered: &Result<Option<T>, AskError>) -> bool {
    match answered {
        Ok(Some(_)) | Err(AskError::NotYours | AskError::Call { source: RpcError::Errno(_), .. }) => true,
        Ok(None) | Err(AskError::Resolve { .. } | AskError::Call { .. }) => false,
    }
}

async fn ask_on<R: Rpc>(
    host: &str,
    place: &Place,
    request: &R,
    timeout: Duration,
    config: &SiteConfig,
) -> Result<Option<R::Reply>, AskError> {
    let Some(channel) = connect_to(host, place, config).await? else { return Ok(None) };
    let failed = |source| AskError::Call { host: host.to_owned(), source };
    channel.call(request, Deadline::after(timeout)).await.map(Some).map_err(failed)
}

/// A channel to the MGS of the instance at `place`, on the first of its hosts where it is; `None` when there is none.
pub(crate) async fn connect(place: &Place, config: &SiteConfig) -> Result<Option<Channel>, AskError> {
    let mut first = None;
    for host in &place.hosts {
        let answered = connect_to(host, place, config).await;
        if is_final(&answered) {
            return answered;
        }
        first.get_or_insert(answered);
    }
    first.unwrap_or(Ok(None))
}

async fn connect_to(host: &str, place: &Place, config: &SiteConfig) -> Result<Option<Channel>, AskError> {
    let failed = |source| AskError::Call { host: host.to_owned(), source };
    let unknown = |source| AskError::Resolve { host: host.to_owned(), source };
    let ip = rendezvous::resolve(host).await.map_err(unknown)?;
    let client = client(&place.instance, place.uid);
    let ports = ports::sequence(&place.instance, config.network.mgs_port_base, config.network.mgs_port_count);
    match rendezvous::look(&client, ip, ports, TIMEOUT, rendezvous::is_somebody_else).await {
        Ok(channel) => Ok(channel),
        Err((_, RpcError::Refused(Refusal::Uid(_)))) => Err(AskError::NotYours),
        Err((_, error)) => Err(failed(error)),
    }
}

/// For the questions of one command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Ending> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Ending::new(Exit::Failure, error))
}

fn client(instance: &InstanceId, uid: u32) -> Client {
    let identity = Identity { instance: instance.clone(), uid, role: Role::Command, auth: Arc::new(Munge::new()) };
    // The server gives a command an id of its own; this one only numbers.
    let id = ClientId { node: NodeIndex::new(u16::MAX), incarnation: 0 };
    Client::new(Arc::new(Tcp::new(TcpConfig::default())), identity, XidSource::new(id), ChannelLimits::default())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use burstfs_types::Errno;

    use super::*;

    #[test]
    fn the_next_node_is_asked_only_where_the_mgs_may_have_gone_there() {
        let call = |source| Err::<Option<()>, _>(AskError::Call { host: "n1".to_owned(), source });
        for elsewhere in [Ok(None), call(RpcError::Closed), call(RpcError::Unreachable(ErrorKind::HostUnreachable))] {
            assert!(!is_final(&elsewhere), "{elsewhere:?}");
        }
        for answer in [Ok(Some(())), Err(AskError::NotYours), call(RpcError::Errno(Errno::EIO))] {
            assert!(is_final(&answer), "{answer:?}");
        }
    }
}
