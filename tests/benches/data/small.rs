//! Small files: made (create, write, close) and read (open, read, close), one after the other by one process.

use anyhow::{Context, Result};
use burstfs_tests::bench::{Aim, Row, median};

use crate::instance::{Instance, NODES, USER};
use crate::peers::{NAMES, Peer};

const RUNS: usize = 5;
const SIZES: [usize; 2] = [4 << 10, 64 << 10];
const RUNTIME_MS: u64 = 400;
const AIM: Aim = Aim::AtLeast(5.0);
/// Where the directory's metadata is.
const HOMES: [&str; 2] = ["own", "another"];
const WHAT: [&str; 2] = ["create+write+close", "open+read+close"];

fn name(what: &str, size: usize, home: &str) -> String {
    format!("{} KiB files, {home} node's directory: {what}, of the best peer", size >> 10)
}

pub(crate) fn names() -> Vec<(String, &'static str, Aim)> {
    let each = |size| HOMES.into_iter().flat_map(move |home| WHAT.map(|what| (name(what, size, home), "x", AIM)));
    SIZES.into_iter().flat_map(each).collect()
}

pub(crate) fn measure(instance: &Instance<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let peers = NAMES.iter().map(|name| Peer::up(name)).collect::<Result<Vec<_>>>()?;
    let dirs = directories(instance)?;
    let driver_here = instance.driver_here().display().to_string();
    for size in SIZES {
        let (mut theirs, mut ours) = (vec![Vec::new(); NAMES.len()], vec![Vec::new(); HOMES.len()]);
        for run in 0..=RUNS {
            for (peer, side) in peers.iter().zip(&mut theirs) {
                let said = peer.sh(&format!("{driver_here} small {} {size} {RUNTIME_MS}", peer.dir))?;
                side.push(rates(&said)?);
            }
            for (dir, side) in dirs.iter().zip(&mut ours) {
                let script = format!(
                    "setpriv --reuid {USER} --regid {USER} --init-groups --reset-env {} small {dir} {size} {RUNTIME_MS}",
                    instance.driver()
                );
                side.push(rates(&instance.cluster.sh(NODES[0], &script)?)?);
            }
            if run == 0 {
                // It has warmed up what there is to be warm.
                theirs.iter_mut().chain(&mut ours).for_each(Vec::clear);
            }
        }
        for (home, ours) in HOMES.into_iter().zip(&ours) {
            for (at, what) in WHAT.into_iter().enumerate() {
                let middle = |side: &Vec<[f64; 2]>| {
                    median(&side.iter().map(|rates| rates[at]).collect::<Vec<_>>()).unwrap_or(f64::NAN)
                };
                let best = NAMES.iter().zip(&theirs).max_by(|a, b| middle(a.1).total_cmp(&middle(b.1)));
                let (best, side) = best.context("no peer")?;
                let quotients = ours.iter().zip(side).map(|(ours, theirs)| ours[at] / theirs[at]).collect();
                let against = format!("{best} {:.0}/s, burstfs {:.0}/s", middle(side), middle(ours));
                rows.push(Row::new(name(what, size, home), "x", quotients, against, AIM));
            }
        }
    }
    Ok(())
}

/// Per second: made, read.
fn rates(said: &str) -> Result<[f64; 2]> {
    let mut figures = said.split_whitespace().map(str::parse::<f64>);
    let mut next = || figures.next().with_context(|| format!("small: {said}"))?.context("small");
    Ok([next()?, next()?])
}

/// A directory whose inode is on node 1's MDT, and one of another: the number of the MDT is in the inode's.
fn directories(instance: &Instance<'_>) -> Result<[String; 2]> {
    let script = format!(
        "cd {}/auto; for n in $(seq 200); do mkdir -p $n; mdt=$(($(stat -c %i $n) >> 48)); \
         if [ $mdt = 0 ]; then own=$n; else other=$n; fi; [ -n \"$own\" ] && [ -n \"$other\" ] && break; done; echo $own $other",
        instance.mount
    );
    let said = instance.cluster.try_sh_as(NODES[0], USER, &script)?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (own, other) = said.trim().split_once(' ').with_context(|| format!("directories: {said}"))?;
    Ok([own, other].map(|name| format!("{}/auto/{name}", instance.mount)))
}
