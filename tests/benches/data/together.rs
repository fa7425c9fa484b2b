//! Four nodes at once. All four "NVMe" are images on one device here, and all nodes share its processors. So a file per process is compared
//! with the four bare directories under the same load at once, not with four times one; and one striped file in which each node has a
//! part with the same at the peers, whose four mounts are used at once, too.

use std::thread;

use anyhow::{Result, anyhow};
use burstfs_tests::bench::{Aim, Row, median};
use burstfs_tests::fio::{Load, Outcome, Place, Slice};

use crate::instance::{Instance, NODES, raw};
use crate::peers::{NAMES, Peer};
use crate::{RUNS, SLICE};

const OWN: [Load; 2] =
    [Load { kind: "write", block: 1 << 20, is_direct: false }, Load { kind: "read", block: 1 << 20, is_direct: false }];
const SHARED: [Load; 2] =
    [Load { kind: "write", block: 1 << 20, is_direct: true }, Load { kind: "read", block: 1 << 20, is_direct: true }];
const OF_RAW: Aim = Aim::AtLeast(0.9);
const OF_PEER: Aim = Aim::AtLeast(2.0);

fn own_name(load: Load) -> String {
    format!("four nodes, a file each: {}", load.name())
}

fn shared_name(load: Load) -> String {
    format!("four nodes, one file: {}, of the best peer", load.name())
}

pub(crate) fn names() -> Vec<(String, &'static str, Aim)> {
    let own = OWN.map(|load| (own_name(load), "x", OF_RAW));
    own.into_iter().chain(SHARED.map(|load| (shared_name(load), "x", OF_PEER))).collect()
}

pub(crate) fn measure(instance: &Instance<'_>, rows: &mut Vec<Row>) -> Result<()> {
    for load in OWN {
        own(instance, load, rows)?;
    }
    let peers = NAMES.iter().map(|name| Peer::up(name)).collect::<Result<Vec<_>>>()?;
    for load in SHARED {
        shared(instance, &peers, load, rows)?;
    }
    Ok(())
}

fn own(instance: &Instance<'_>, load: Load, rows: &mut Vec<Row>) -> Result<()> {
    let dirs = NODES.map(|node| instance.own(node));
    let on = |place: Place<'_>| load.run(instance.cluster, &Place { served_by: &[], ..place }, SLICE);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let pair = (all(|node| on(raw(NODES[node])))?, all(|node| on(instance.place(NODES[node], &dirs[node])))?);
        if run > 0 {
            bare.push(pair.0);
            ours.push(pair.1);
        }
    }
    let (raw, with) = (median(&bare).unwrap_or(f64::NAN), median(&ours).unwrap_or(f64::NAN));
    let against = format!("raw {raw:.0} MiB/s, burstfs {with:.0} MiB/s");
    let quotients = ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect();
    rows.push(Row::new(own_name(load), "x", quotients, against, OF_RAW));
    Ok(())
}

fn shared(instance: &Instance<'_>, peers: &[Peer], load: Load, rows: &mut Vec<Row>) -> Result<()> {
    let dir = format!("{}/striped", instance.mount);
    let part = |node: usize| Slice { offset: node as u64 * SLICE.file, ..SLICE };
    let (mut theirs, mut ours) = (vec![Vec::new(); peers.len()], Vec::new());
    for run in 0..=RUNS {
        for (peer, side) in peers.iter().zip(&mut theirs) {
            let of_peer = |node: usize| Outcome::parse(&peer.sh(&load.command(&peer.dir_of(node)?, part(node)))?, 0.0);
            side.push(all(of_peer)?);
        }
        let place = |node: usize| Place { served_by: &[], ..instance.place(NODES[node], &dir) };
        ours.push(all(|node| load.run(instance.cluster, &place(node), part(node)))?);
        if run == 0 {
            // It has warmed up what there is to be warm.
            theirs.iter_mut().chain([&mut ours]).for_each(Vec::clear);
        }
    }
    let middle = |side: &[f64]| median(side).unwrap_or(f64::NAN);
    let best = NAMES.iter().zip(&theirs).max_by(|a, b| middle(a.1).total_cmp(&middle(b.1)));
    if let Some((best, side)) = best {
        let against = format!("{best} {:.0} MiB/s, burstfs {:.0} MiB/s", middle(side), middle(&ours));
        let quotients = ours.iter().zip(side).map(|(ours, theirs)| ours / theirs).collect();
        rows.push(Row::new(shared_name(load), "x", quotients, against, OF_PEER));
    }
    Ok(())
}

/// MiB per second of all nodes at once.
fn all(run: impl Fn(usize) -> Result<Outcome> + Sync) -> Result<f64> {
    let run = &run;
    thread::scope(|scope| {
        let runs: Vec<_> = (0..NODES.len()).map(|node| scope.spawn(move || run(node))).collect();
        let rates = runs.into_iter().map(|run| Ok(run.join().map_err(|_| anyhow!("a run panicked"))??.rate));
        rates.sum::<Result<f64>>()
    })
}
