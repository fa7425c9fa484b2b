//! Two nodes with a device each, and a cable between them that is cut and disturbed; and nodes of which one has no RDMA.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, Tree, bytes_of, wait_until};

use crate::instance::Instance;
use crate::machine::{self, WORK};
use crate::network::{self, network};

const MIB: usize = 1 << 20;
/// What a connection says in the log when it is given up.
const LOST: &str = "RDMA connection lost";

fn rdma_over(interfaces: &str) -> String {
    format!("transport = \"rdma\"\ninterfaces = [{interfaces}]")
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn a_cable_is_cut_and_mended_and_loses_packets() -> Result<()> {
    machine::set_up()?;
    let dir = Path::new(WORK).join("cable");
    machine::sh_as("alice", "mkdir -p cable")?;
    let input_tree = Tree::make(&dir.join("in"))?;
    let stage_out = format!("stage_out source=/out/ destination={WORK}/cable/out");
    let instance = Instance::start(&["capacity=600MiB", &stage_out], &[&rdma_over("\"v1\""), &rdma_over("\"v2\"")])?;
    ensure!(instance.transport()? == "rdma", "it talks over {}", instance.transport()?);
    let out = |node: &str, name: &str| instance.path(node, &format!("out/{name}"));
    machine::sh_as("alice", &format!("mkdir {}", instance.path("node2", "out").display()))?;
    let expected = bytes_of(4 * MIB, 3);
    machine::sh_as("alice", &format!("head -c 1M /dev/zero > {}", out("node2", "held").display()))?;
    // On node1: its requests go over the cable, since node2 has the file. A process of its own, since whoever has the file open
    // waits for the daemon when he starts another program.
    fs::write("/tmp/expected", &expected)?;
    network("network_cut")?;
    let mut writer = machine::as_user("alice")
        .args([
            "dd",
            "if=/tmp/expected",
            &format!("of={}", out("node1", "held").display()),
            "bs=1M",
            "conv=notrunc,fsync",
        ])
        .spawn()?;
    let lost = || Ok(instance.nodes().any(|node| instance.log(&node).contains(LOST)));
    let noticed = wait_until("a lost connection", SOON, lost);
    let waits = writer.try_wait()?.is_none();
    network("network_mend")?;
    noticed?;
    ensure!(waits, "the write did not go over the cable");
    let written = writer.wait()?;
    ensure!(written.success(), "the write failed: {written}");
    ensure!(fs::read(out("node1", "held"))? == expected, "node1 reads something else than it has written");
    ensure!(fs::read(out("node2", "held"))? == expected, "node2 reads something else than node1 has written");
    network("tc qdisc add dev v1 root netem loss 1% delay 1ms")?;
    let copied = machine::sh_as("alice", &format!("cp -a cable/in {}", out("node1", "copy").display()));
    let seen = Tree::read(&out("node2", "copy"));
    network("tc qdisc del dev v1 root")?;
    copied?;
    input_tree.ensure_same(&seen?, "the input and what node2 sees of it")?;
    instance.end()?;
    input_tree.ensure_same(&Tree::read(&dir.join("out/copy"))?, "the input and what was drained of it")?;
    ensure!(fs::read(dir.join("out/held"))? == expected, "what was drained is something else");
    Ok(())
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn nodes_use_all_their_devices() -> Result<()> {
    let both = format!("{}\nrdma_connections = 2", rdma_over("\"v1\", \"v2\""));
    let instance = Instance::start(&["capacity=200MiB"], &[&both, &both])?;
    machine::sh_as("alice", &format!("head -c 8M /dev/urandom > {}", instance.path("node1", "file").display()))?;
    ensure!(fs::read(instance.path("node1", "file"))? == fs::read(instance.path("node2", "file"))?);
    let pairs = network::queue_pairs()?;
    for node in instance.nodes() {
        let daemon = instance.daemon(&node)?.unwrap_or_default();
        for device in ["rxe1", "rxe2"] {
            let count = pairs.get(&(daemon, device.to_owned())).copied().unwrap_or_default();
            ensure!(count >= 2, "{node} has {count} connections over {device}: {pairs:?}");
        }
    }
    instance.end()
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn a_node_without_rdma_is_reached_over_tcp_and_one_that_must_have_it_does_not_start() -> Result<()> {
    // The loopback is no RDMA device's, and an interface that is not there is none.
    let (with, without) = ("interfaces = [\"v1\"]", "interfaces = [\"no-such0\"]");
    let instance = Instance::start(&["capacity=200MiB"], &[with, without])?;
    ensure!(instance.transport()? == "rdma, tcp on node2", "it talks over {}", instance.transport()?);
    let said = instance.log("node2");
    ensure!(said.matches("RDMA is not used on this node").count() == 1 && said.contains("no-such0"), "{said}");
    machine::sh_as("alice", &format!("echo over tcp > {}", instance.path("node1", "file").display()))?;
    ensure!(fs::read_to_string(instance.path("node2", "file"))? == "over tcp\n");
    instance.end()?;
    let refused = Instance::start(&["capacity=200MiB transport=rdma"], &[with, without]);
    let error = format!("{:#}", refused.err().ok_or_else(|| anyhow::anyhow!("it starts without RDMA"))?);
    ensure!(error.contains("E211") && error.contains("no-such0"), "{error}");
    Ok(())
}

/// A limit of locked memory that is far too small, as slurmd may have it.
const SMALL_LIMIT: [&str; 2] = ["prlimit", "--memlock=65536:65536"];

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn slurmds_limit_of_locked_memory_is_raised_or_named() -> Result<()> {
    let networks = ["interfaces = [\"v1\"]", "interfaces = [\"v2\"]"];
    let instance = Instance::start_wrapped(&["capacity=200MiB"], &networks, &SMALL_LIMIT)?;
    ensure!(instance.transport()? == "rdma", "it talks over {}\n{}", instance.transport()?, instance.log("node2"));
    instance.end()?;
    // As root in a container that may not raise limits.
    let wrapper = [&SMALL_LIMIT[..], &["setpriv", "--bounding-set=-sys_resource"]].concat();
    let instance = Instance::start_wrapped(&["capacity=200MiB"], &networks, &wrapper)?;
    let said = instance.log("node2");
    ensure!(instance.transport()? == "rdma, tcp on node2", "it talks over {}\n{said}", instance.transport()?);
    ensure!(said.contains("the limit of locked memory"), "{said}");
    machine::sh_as("alice", &format!("echo over tcp > {}", instance.path("node1", "file").display()))?;
    ensure!(fs::read_to_string(instance.path("node2", "file"))? == "over tcp\n");
    instance.end()
}
