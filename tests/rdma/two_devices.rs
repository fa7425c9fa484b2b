//! Two nodes with a device each, and a cable between them that is cut and disturbed; and nodes of which one has no RDMA.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burstfs_tests::{SOON, Tree, bytes_of, wait_until};

use crate::instance::Instance;
use crate::machine::{self, NODES, WORK};
use crate::network::{self, network};
use crate::step;

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
    let instance = step("start", || {
        Instance::start(&["capacity=600MiB", &stage_out], &[&rdma_over("\"v1\""), &rdma_over("\"v2\"")])
    })?;
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
    let noticed = step("a lost connection is noticed", || wait_until("a lost connection", SOON, lost));
    let waits = writer.try_wait()?.is_none();
    network("network_mend")?;
    noticed?;
    ensure!(waits, "the write did not go over the cable");
    let written = step("the write goes on", || Ok(writer.wait()?))?;
    ensure!(written.success(), "the write failed: {written}");
    ensure!(fs::read(out("node1", "held"))? == expected, "node1 reads something else than it has written");
    ensure!(fs::read(out("node2", "held"))? == expected, "node2 reads something else than node1 has written");
    network("tc qdisc add dev v1 root netem loss 1% delay 1ms")?;
    let copied = step("a copy over a lossy cable", || {
        machine::sh_as("alice", &format!("cp -a cable/in {}", out("node1", "copy").display()))
    });
    let seen = Tree::read(&out("node2", "copy"));
    network("tc qdisc del dev v1 root")?;
    copied?;
    input_tree.ensure_same(&seen?, "the input and what node2 sees of it")?;
    step("end", || instance.end())?;
    input_tree.ensure_same(&Tree::read(&dir.join("out/copy"))?, "the input and what was drained of it")?;
    ensure!(fs::read(dir.join("out/held"))? == expected, "what was drained is something else");
    Ok(())
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn nodes_use_all_their_devices() -> Result<()> {
    let both = format!("{}\nrdma_connections = 2", rdma_over("\"v1\", \"v2\""));
    let instance = step("start", || Instance::start(&["capacity=200MiB"], &[&both, &both]))?;
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
    step("end", || instance.end())
}

/// node1's device, and that RDMA is used where both have one.
const WITH: &str = "interfaces = [\"v1\"]";
/// What one of slurmd's limits may be: far too small.
const SMALL_LIMIT: [&str; 2] = ["prlimit", "--memlock=65536:65536"];

/// An instance whose node2 has no device that it could use: it says why, in one line, and all goes over TCP.
fn is_reached_over_tcp(network: &str, wrapper: &[&str], reason: &str) -> Result<()> {
    let instance = step("start", || Instance::start_wrapped(&["capacity=200MiB"], &[WITH, network], wrapper))
        .context(reason.to_owned())?;
    let said = instance.log("node2");
    ensure!(instance.transport()? == "rdma, tcp on node2", "it talks over {}\n{said}", instance.transport()?);
    let lines: Vec<&str> =
        said.lines().filter(|line| line.contains("RDMA is not used on this node, TCP is: ")).collect();
    ensure!(lines.len() == 1 && lines[0].contains(reason), "{reason:?} is not said once:\n{said}");
    machine::sh_as("alice", &format!("echo over tcp > {}", instance.path("node1", "file").display()))?;
    ensure!(fs::read_to_string(instance.path("node2", "file"))? == "over tcp\n");
    step("end", || instance.end())
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn a_node_without_rdma_is_reached_over_tcp_and_one_that_must_have_it_does_not_start() -> Result<()> {
    machine::set_up()?;
    // No address that a device could serve.
    let without = "interfaces = [\"no-such0\"]";
    is_reached_over_tcp(without, &[], "no-such0")?;
    // A device whose port is down.
    machine::sh(
        "ip link add rd9 type dummy && ip address add 10.99.9.1/24 dev rd9 && rdma link add rxe9 type rxe netdev rd9",
    )?;
    is_reached_over_tcp("interfaces = [\"rd9\"]", &[], "port 1 of RDMA device rxe9 is not active")?;
    machine::sh("rdma link delete rxe9 && ip link delete rd9")?;
    let refused = step("a start without a device", || {
        Ok(Instance::start(&["capacity=200MiB transport=rdma"], &[WITH, without]).map(drop))
    })?;
    let error = format!("{:#}", refused.err().ok_or_else(|| anyhow::anyhow!("it starts without RDMA"))?);
    ensure!(error.contains("E211") && error.contains("no-such0"), "{error}");
    Ok(())
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn a_node_without_a_provider_for_its_device_says_so() -> Result<()> {
    machine::set_up()?;
    // As on a machine without the package. What node2 mounts at its own place is seen from outside all the same.
    machine::sh(&format!("mount --make-shared {NODES}"))?;
    let script = "mount -t tmpfs none /etc/libibverbs.d && exec \"$@\"";
    let without = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh"];
    is_reached_over_tcp("interfaces = [\"v2\"]", &without, "libibverbs has no provider")
}

#[test]
#[ignore = "needs two RDMA devices (make rdma-test)"]
fn slurmds_limit_of_locked_memory_is_raised_or_named() -> Result<()> {
    let networks = [WITH, "interfaces = [\"v2\"]"];
    let instance = step("start", || Instance::start_wrapped(&["capacity=200MiB"], &networks, &SMALL_LIMIT))?;
    ensure!(instance.transport()? == "rdma", "it talks over {}\n{}", instance.transport()?, instance.log("node2"));
    step("end", || instance.end())?;
    // As root in a container that may not raise limits.
    let wrapper = [&SMALL_LIMIT[..], &["setpriv", "--bounding-set=-sys_resource"]].concat();
    is_reached_over_tcp(networks[1], &wrapper, "the limit of locked memory")
}
