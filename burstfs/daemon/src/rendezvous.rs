//! How the nodes of an instance find one another: node 0 listens on one of the instance's ports, the others look there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use burstfs_mgs::ports;
use burstfs_net::{Channel, Client, Listener, Network, RpcError, Tcp, TcpConfig, Transport, interfaces, rendezvous};
use burstfs_node::description::InstanceDescription;
use burstfs_proto::hello::Refusal;
use burstfs_types::{Code, Failure};

/// One attempt to connect: a host that is up answers or refuses within this.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Between two rounds over the ports: the first pause, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LAST: Duration = Duration::from_millis(200);
/// The longest for a node that holds data: the others may be off for hours.
const PAUSE_LAST_HELD: Duration = Duration::from_secs(5);
/// Where a daemon notes its port, so that its next life answers at the same address.
const PORT_FILE: &str = "port";

/// Opens the socket of this node's services: on node 0 at one of the instance's ports, elsewhere at any. A daemon that
/// was started again takes the port of the one before, since the map names it.
pub(crate) async fn listen(network: &Network, description: &InstanceDescription) -> anyhow::Result<Box<dyn Listener>> {
    let any = unspecified(resolve(&description.nodes[0]).await.ok());
    let port_file = description.data_dir.join(PORT_FILE);
    if let Some(port) = noted_port(&port_file).filter(|_| description.restarted) {
        let bound = network.bind(SocketAddr::new(any, port)).await;
        // No map names the port of a life that is to make a new one.
        if bound.is_ok() || description.held.is_none() {
            return bound.with_context(|| format!("port {port} of the life before"));
        }
    }
    let listener = match description.node_index {
        0 => bind_first_free(network, any, description).await?,
        _ => network.bind(SocketAddr::new(any, 0)).await.context("cannot listen")?,
    };
    let port = listener.address().port().to_string();
    std::fs::write(&port_file, port).with_context(|| format!("{}", port_file.display()))?;
    Ok(listener)
}

/// Opens a socket at one of the instance's ports on a node that has taken the MGS over: where commands look for it.
pub(crate) async fn listen_as_successor(description: &InstanceDescription) -> anyhow::Result<Box<dyn Listener>> {
    let any = unspecified(resolve(description.node_name()).await.ok());
    bind_first_free(&Tcp::new(TcpConfig::default()), any, description).await
}

async fn bind_first_free(
    network: &dyn Transport,
    any: IpAddr,
    description: &InstanceDescription,
) -> anyhow::Result<Box<dyn Listener>> {
    let settings = &description.network;
    let mut last = None;
    for port in ports::sequence(&description.instance, settings.mgs_port_base, settings.mgs_port_count) {
        match network.bind(SocketAddr::new(any, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some((port, error)),
        }
    }
    let (port, error) = last.context("the configuration names no port for the MGS")?;
    Err(error).with_context(|| format!("none of the instance's ports is free, the last was {port}"))
}

fn noted_port(file: &Path) -> Option<u16> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The channel to the MGS on node 0. Looks until it is found; the caller bounds the time. An error is final: somebody
/// is there who is not who he should be.
pub(crate) async fn find(client: &Client, description: &InstanceDescription) -> Result<Channel, Failure> {
    let host = &description.nodes[0];
    let mut pause = PAUSE_FIRST;
    let pause_last = if description.held.is_some() { PAUSE_LAST_HELD } else { PAUSE_LAST };
    loop {
        match resolve(host).await {
            Ok(address) => {
                if let Some(channel) = look(client, description, address).await? {
                    return Ok(channel);
                }
            }
            Err(error) => tracing::debug!("{host}: {error:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(pause_last);
    }
}

async fn look(client: &Client, description: &InstanceDescription, ip: IpAddr) -> Result<Option<Channel>, Failure> {
    let network = &description.network;
    let ports = ports::sequence(&description.instance, network.mgs_port_base, network.mgs_port_count);
    let found = rendezvous::look(client, ip, ports, ATTEMPT, may_be_another_port_or_later).await;
    found.map_err(|(port, error)| {
        Failure::new(Code::Identity, format!("{}, port {port}: {error}", description.nodes[0]))
    })
}

/// Whether the next port may be the right one, or this one a little later.
fn may_be_another_port_or_later(error: &RpcError) -> bool {
    rendezvous::is_somebody_else(error) || matches!(error, RpcError::Timeout(_) | RpcError::Refused(Refusal::Busy))
}

/// The first address of a host.
pub(crate) async fn resolve(host: &str) -> anyhow::Result<IpAddr> {
    rendezvous::resolve(host).await.with_context(|| format!("{host} has no address"))
}

/// The addresses of this node that the others reach it by: of the interfaces that the site names, else the one on the way between
/// this node and node 0.
pub(crate) async fn own_ips(description: &InstanceDescription) -> anyhow::Result<Vec<IpAddr>> {
    let first = resolve(&description.nodes[0]).await?;
    let names = &description.network.interfaces;
    if !names.is_empty() {
        return Ok(interfaces::addresses(names, first.is_ipv4())?);
    }
    match description.node_index {
        0 => Ok(vec![first]),
        _ => Ok(vec![own_ip_towards(SocketAddr::new(first, 9))?]),
    }
}

fn unspecified(like: Option<IpAddr>) -> IpAddr {
    match like {
        Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// The address of this node on the way to `peer`: what the others on that network can reach it by. Sends nothing.
pub(crate) fn own_ip_towards(peer: SocketAddr) -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(Some(peer.ip())), 0)).context("own address")?;
    socket.connect(peer).with_context(|| format!("no way to {peer}"))?;
    Ok(socket.local_addr().context("own address")?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_this_machine_is_this_machine() {
        let ip = own_ip_towards(SocketAddr::from(([127, 0, 0, 1], 9))).unwrap();
        assert!(ip.is_loopback());
    }

    #[test]
    fn a_busy_or_slow_server_is_asked_again_and_an_impostor_is_not() {
        assert!(may_be_another_port_or_later(&RpcError::Refused(Refusal::Busy)));
        assert!(may_be_another_port_or_later(&RpcError::Refused(Refusal::Instance)));
        assert!(!may_be_another_port_or_later(&RpcError::Refused(Refusal::Uid(7))));
    }
}
