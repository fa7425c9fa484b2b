//! Three nodes that talk over one device, with RDMA required: what jobs do, and daemons that are killed meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, Tree, bytes_of, fill_file, wait_until};

use crate::instance::Instance;
use crate::machine::{self, UID, WORK};
use crate::{network, posix, step};

const NETWORK: &str = "transport = \"rdma\"";
const MIB: usize = 1 << 20;
const FSX_OPERATIONS: u32 = 300;

#[test]
#[ignore = "needs an RDMA device (make rdma-test)"]
fn a_job_on_three_nodes_over_rdma() -> Result<()> {
    machine::set_up()?;
    let input = Path::new(WORK).join("in");
    let input_tree = Tree::make(&input)?;
    chown(&input, Some(UID), Some(UID))?;
    let directives = [
        "capacity=900MiB",
        &format!("stage_in source={WORK}/in/ destination=/in"),
        &format!("stage_out source=/out/ destination={WORK}/out"),
    ];
    let instance = step("start and stage-in", || Instance::start(&directives, &[NETWORK; 3]))?;
    ensure!(instance.transport()? == "rdma", "it talks over {}", instance.transport()?);
    ensure!(!network::queue_pairs()?.is_empty(), "no queue pair is connected");
    step("everybody sees the input", || everybody_sees(&instance, &input_tree))?;
    step("fsx", || posix::fsx(&instance, ("node1", "node2"), FSX_OPERATIONS))?;
    step("pjdfstest", || posix::pjdfstest(&instance, "node1"))?;
    machine::sh_as("alice", &format!("mkdir {}", instance.path("node1", "out").display()))?;
    step("everybody writes and reads", || everybody_writes_and_reads(&instance))?;
    step("appends", || appends_are_whole(&instance))?;
    step("kills", || daemons_are_killed(&instance))?;
    let copy = format!("cp -a {WORK}/in {}", instance.path("node3", "out/copy").display());
    step("a copy", || machine::sh_as("alice", &copy))?;
    step("end and drain", || instance.end())?;
    input_tree.ensure_same(&Tree::read(&Path::new(WORK).join("out/copy"))?, "the input and what was drained of it")
}

fn everybody_sees(instance: &Instance, input: &Tree) -> Result<()> {
    for node in instance.nodes() {
        input.ensure_same(&Tree::read(&instance.path(&node, "in"))?, &format!("the input and what {node} sees"))?;
    }
    Ok(())
}

/// Each node writes a file that it holds and its parts of one that is striped over all; each reads all of it.
fn everybody_writes_and_reads(instance: &Instance) -> Result<()> {
    const UNIT: usize = 64 << 10;
    const UNITS: usize = 24;
    let make =
        "mkdir striped && setfattr -n burstfs.layout -v striped:count=all,size=64KiB striped && touch striped/shared";
    machine::sh_as("alice", &format!("cd {} && {make}", instance.path("node1", "out").display()))?;
    let expected = bytes_of(UNIT * UNITS, 99);
    let nodes: Vec<String> = instance.nodes().collect();
    thread::scope(|scope| {
        let writers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(rank, node)| {
                let expected = &expected;
                scope.spawn(move || -> Result<()> {
                    let own = instance.path(node, &format!("out/rank-{rank}"));
                    fill_file(&own, 3 * MIB + rank, rank as u64)?;
                    chown(&own, Some(UID), Some(UID))?;
                    let shared = OpenOptions::new().write(true).open(instance.path(node, "out/striped/shared"))?;
                    for unit in (rank..UNITS).step_by(3) {
                        shared.write_all_at(&expected[unit * UNIT..][..UNIT], (unit * UNIT) as u64)?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer panicked"))
    })?;
    for node in &nodes {
        ensure!(fs::read(instance.path(node, "out/striped/shared"))? == expected, "{node} reads another striped file");
        for rank in 0..nodes.len() {
            let read = fs::read(instance.path(node, &format!("out/rank-{rank}")))?;
            ensure!(read == bytes_of(3 * MIB + rank, rank as u64), "{node} reads another rank-{rank}");
        }
    }
    Ok(())
}

/// Lines that all nodes append to one file at once: each is there once, in one piece.
fn appends_are_whole(instance: &Instance) -> Result<()> {
    const LINES: usize = 40;
    let log = |node: &str| instance.path(node, "out/log");
    machine::sh_as("alice", &format!("touch {}", log("node2").display()))?;
    let nodes: Vec<String> = instance.nodes().collect();
    thread::scope(|scope| {
        let appenders: Vec<_> = nodes
            .iter()
            .map(|node| {
                scope.spawn(move || -> Result<()> {
                    let file = OpenOptions::new().append(true).open(log(node))?;
                    for line in 0..LINES {
                        io::Write::write_all(&mut &file, format!("{node} says {line}\n").as_bytes())?;
                    }
                    Ok(())
                })
            })
            .collect();
        appenders.into_iter().try_for_each(|appender| appender.join().expect("an appender panicked"))
    })?;
    let text = fs::read_to_string(log("node1"))?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let mut expected: Vec<String> =
        nodes.iter().flat_map(|node| (0..LINES).map(move |line| format!("{node} says {line}"))).collect();
    expected.sort_unstable();
    ensure!(lines == expected, "the log is\n{text}");
    Ok(())
}

/// A server is killed under a writer, and under a reader; then the client itself under one, and what it had written is there.
fn daemons_are_killed(instance: &Instance) -> Result<()> {
    let there = instance.path("node2", "out/kept");
    machine::sh_as("alice", &format!("touch {} && echo x > {}", there.display(), there.display()))?;
    let expected = bytes_of(8 * MIB, 5);
    let stop = AtomicBool::new(false);
    let rounds = thread::scope(|scope| -> Result<u32> {
        // On node1, whose requests go to node2, where the file is.
        let writer = scope.spawn(|| -> Result<u32> {
            let file = File::options().read(true).write(true).open(instance.path("node1", "out/kept"))?;
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) || rounds == 0 {
                for (at, part) in expected.chunks(MIB).enumerate() {
                    file.write_all_at(part, (at * MIB) as u64)?;
                }
                let mut read = vec![0; expected.len()];
                file.read_exact_at(&mut read, 0)?;
                ensure!(read == expected, "round {rounds} reads something else");
                rounds += 1;
            }
            Ok(rounds)
        });
        wait_until("the first bytes", SOON, || Ok(fs::metadata(&there)?.len() >= MIB as u64))?;
        let killed = instance.kill("node2");
        stop.store(true, Ordering::Relaxed);
        let rounds = writer.join().expect("the writer panicked");
        killed?;
        rounds
    })?;
    println!("rounds of 8 MiB around the kill of their server: {rounds}");
    a_client_is_killed(instance, &expected[..MIB])?;
    for node in instance.nodes() {
        ensure!(fs::read(instance.path(&node, "out/kept"))? == expected, "{node} reads something else after the kills");
    }
    Ok(())
}

/// node1 is killed under a writer, who writes the same again and again to a file on node2.
fn a_client_is_killed(instance: &Instance, expected: &[u8]) -> Result<()> {
    let (here, there) = (instance.path("node1", "out/again"), instance.path("node2", "out/again"));
    machine::sh_as("alice", &format!("touch {} && echo x > {}", there.display(), there.display()))?;
    let failure = thread::scope(|scope| -> Result<io::Error> {
        let writer = scope.spawn(|| -> Result<io::Error> {
            let file = File::options().write(true).open(&here)?;
            loop {
                if let Err(error) = file.write_all_at(expected, 0) {
                    return Ok(error);
                }
            }
        });
        wait_until("the first bytes", SOON, || Ok(fs::metadata(&there)?.len() == expected.len() as u64))?;
        instance.kill("node1")?;
        writer.join().expect("the writer panicked")
    })?;
    // What was under way when the daemon died, or what came after.
    let gone = [ErrorKind::ConnectionAborted, ErrorKind::NotConnected];
    ensure!(gone.contains(&failure.kind()), "a write through a killed daemon: {failure}");
    for node in instance.nodes() {
        ensure!(fs::read(instance.path(&node, "out/again"))? == expected, "{node} reads something else after the kill");
    }
    Ok(())
}
