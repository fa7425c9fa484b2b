//! `burstfs selftest --rdma`: whether RDMA works here.

use std::net::IpAddr;
use std::sync::Arc;

use burstfs_net::{Munge, rendezvous, selftest};
use clap::Args;
use nix::unistd::Uid;

use crate::{Ending, Exit};

/// What is checked.
#[derive(Args)]
pub(crate) struct SelftestArgs {
    /// RDMA: the device, its memory, a connection of this machine with itself, and every way that data moves.
    #[arg(long, required = true)]
    rdma: bool,
    /// The address of this machine on the network that the nodes use; else that of its host name.
    #[arg(long, value_name = "IP", requires = "rdma")]
    address: Option<IpAddr>,
}

/// Checks, and prints what was seen.
pub(crate) fn run(args: &SelftestArgs) -> Result<(), Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| failure(&error))?;
    runtime.block_on(async {
        let address = match args.address {
            Some(address) => address,
            None => own_address().await?,
        };
        println!("address      {address}");
        let report = selftest::rdma(address, Uid::current().as_raw(), Arc::new(Munge::new())).await;
        let report = report.map_err(|error| failure(&format!("RDMA does not work here: {error}")))?;
        println!("device       {}", report.device);
        println!("round trip   {:.1} us", report.round_trip.as_secs_f64() * 1e6);
        println!("RDMA read    {:.0} MB/s", report.read_per_second / 1e6);
        println!("RDMA write   {:.0} MB/s", report.written_per_second / 1e6);
        println!("RDMA works here");
        Ok(())
    })
}

async fn own_address() -> Result<IpAddr, Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let name = nix::unistd::gethostname().map_err(|error| failure(&error))?;
    let name = name.to_string_lossy().into_owned();
    rendezvous::resolve(&name)
        .await
        .map_err(|error| failure(&format!("{name}: {error}; name an address with --address")))
}
