//! Files of another node, and striped ones: against the best peer in the same load, and against what the same bytes cost over a bare
//! TCP socket with a `pwrite` (or `pread`) at its end.

use std::hint::black_box;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burstfs_tests::bench::{Aim, Row, median};
use burstfs_tests::fio::{Load, Outcome};

use crate::instance::{Instance, NODES, RAW, USER};
use crate::peers::{NAMES, Peer};
use crate::{RUNS, SLICE};

/// `O_DIRECT`, since a peer's buffered reads are of its own node's page cache.
const LOADS: [Load; 4] = [
    Load { kind: "write", block: 1 << 20, is_direct: true },
    Load { kind: "read", block: 1 << 20, is_direct: true },
    Load { kind: "randwrite", block: 4 << 10, is_direct: true },
    Load { kind: "randread", block: 4 << 10, is_direct: true },
];
const LAYOUTS: [&str; 2] = ["remote", "striped"];
const PORT: u16 = 7878;

const AGAINST_PEER: Aim = Aim::AtLeast(2.0);
const AGAINST_PEER_CPU: Aim = Aim::AtMost(0.5);
const AGAINST_TCP: Aim = Aim::AtLeast(0.7);

const CHECKSUMS: &str = "checksums of a 1 MiB transfer, both ends: CPU per byte";

/// What the checksums of a transfer cost: one at each end, of bytes that were just copied.
fn checksums(rows: &mut Vec<Row>) {
    let bytes: Vec<u8> = (0..1 << 20_u32).map(|at| at as u8).collect();
    let once = || {
        let start = Instant::now();
        (0..64).for_each(|_| assert_eq!(crc32c::crc32c(black_box(&bytes)), crc32c::crc32c(black_box(&bytes))));
        start.elapsed().as_secs_f64() * 16.0
    };
    let samples = (0..RUNS).map(|_| once()).collect();
    rows.push(Row::new(CHECKSUMS, "s/GiB", samples, "the rows of remote files have all of their CPU", Aim::None));
}

fn rows_of(layout: &str, load: Load) -> [(String, &'static str, Aim); 3] {
    let name = format!("{layout}: {}", load.name());
    [
        (format!("{name}, of the best peer"), "x", AGAINST_PEER),
        (format!("{name}: CPU per byte, of the best peer"), "x", AGAINST_PEER_CPU),
        (format!("{name}, of bare TCP"), "x", AGAINST_TCP),
    ]
}

pub(crate) fn names() -> Vec<(String, &'static str, Aim)> {
    let layouts = LAYOUTS.into_iter().flat_map(|layout| LOADS.map(|load| rows_of(layout, load)));
    layouts.flatten().chain([(CHECKSUMS.to_owned(), "s/GiB", Aim::None)]).collect()
}

/// What the sides of one load did, run by run.
#[derive(Default)]
struct Sides {
    peers: Vec<Vec<Outcome>>,
    tcp: Vec<Outcome>,
    ours: [Vec<Outcome>; 2],
}

pub(crate) fn measure(instance: &Instance<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let peers = NAMES.iter().map(|name| Peer::up(name)).collect::<Result<Vec<_>>>()?;
    let dirs = [instance.own(NODES[1]), format!("{}/striped", instance.mount)];
    for load in LOADS {
        let mut sides = Sides { peers: peers.iter().map(|_| Vec::new()).collect(), ..Sides::default() };
        for run in 0..=RUNS {
            let keep = |side: &mut Vec<Outcome>, outcome: Outcome| {
                if run > 0 {
                    side.push(outcome);
                }
            };
            for (peer, side) in peers.iter().zip(&mut sides.peers) {
                keep(side, of_peer(peer, load)?);
            }
            keep(&mut sides.tcp, over_tcp(instance, load)?);
            for (dir, side) in dirs.iter().zip(&mut sides.ours) {
                keep(side, load.run(instance.cluster, &instance.place(NODES[0], dir), SLICE)?);
            }
        }
        for (layout, ours) in LAYOUTS.into_iter().zip(&sides.ours) {
            add_rows(rows_of(layout, load), ours, &sides, rows);
        }
    }
    checksums(rows);
    Ok(())
}

fn of_peer(peer: &Peer, load: Load) -> Result<Outcome> {
    let before = peer.cpu_ns()?;
    let said = peer.sh(&format!("sync; {}", load.command(&peer.dir, SLICE)))?;
    Outcome::parse(&said, peer.cpu_ns()? - before)
}

/// The same bytes from node 1 to a file of node 2.
fn over_tcp(instance: &Instance<'_>, load: Load) -> Result<Outcome> {
    let driver = instance.driver();
    let mut serve = instance.cluster.command_as(NODES[1], USER, &format!("exec {driver} tcp-serve {PORT} {RAW}/load"));
    let mut server = serve.stdout(Stdio::null()).spawn()?;
    let address = instance.cluster.sh(NODES[1], "hostname -I")?;
    let address = address.split_whitespace().next().context("no address of node2")?;
    let Load { kind, block, .. } = load;
    let script = format!("{driver} tcp-load {address}:{PORT} {kind} {block} {} {}", SLICE.file, SLICE.runtime_ms);
    let said = instance.cluster.sh(NODES[0], &script);
    if said.is_err() {
        server.kill()?;
    }
    let status = server.wait()?;
    ensure!(status.success(), "the bare server: {status}");
    crate::driver::parse(&said?)
}

fn add_rows(names: [(String, &'static str, Aim); 3], ours: &[Outcome], sides: &Sides, rows: &mut Vec<Row>) {
    let rate = |outcome: &Outcome| outcome.rate;
    let cpu = |outcome: &Outcome| outcome.cpu;
    let of = |outcomes: &[Outcome], pick: fn(&Outcome) -> f64| outcomes.iter().map(pick).collect::<Vec<_>>();
    let middle = |outcomes: &[Outcome], pick| median(&of(outcomes, pick)).unwrap_or(f64::NAN);
    let quotients = |theirs: &[Outcome], pick: fn(&Outcome) -> f64| {
        ours.iter().zip(theirs).map(|(ours, theirs)| pick(ours) / pick(theirs)).collect::<Vec<_>>()
    };
    let best = |better: fn(f64, f64) -> bool, pick: fn(&Outcome) -> f64| {
        let sides = NAMES.iter().zip(&sides.peers);
        sides.reduce(|best, side| if better(middle(side.1, pick), middle(best.1, pick)) { side } else { best })
    };
    let [by_rate, by_cpu, tcp] = names;
    if let Some((name, side)) = best(|a, b| a > b, rate) {
        let against = format!("{name} {:.0} MiB/s, burstfs {:.0} MiB/s", middle(side, rate), middle(ours, rate));
        rows.push(Row::new(by_rate.0, by_rate.1, quotients(side, rate), against, by_rate.2));
    }
    if let Some((name, side)) = best(|a, b| a < b, cpu) {
        let against = format!("{name} {:.2} s/GiB, burstfs {:.2} s/GiB", middle(side, cpu), middle(ours, cpu));
        rows.push(Row::new(by_cpu.0, by_cpu.1, quotients(side, cpu), against, by_cpu.2));
    }
    let against = format!("TCP {:.0} MiB/s, burstfs {:.0} MiB/s", middle(&sides.tcp, rate), middle(ours, rate));
    rows.push(Row::new(tcp.0, tcp.1, quotients(&sides.tcp, rate), against, tcp.2));
}
