//! `make bench-data`: what reading and writing costs.
//!
//! - `local`: files of the node that uses them, against the directory of the same NVMe without burstfs;
//! - `elsewhere`: files of another node, and striped ones, against GlusterFS and MooseFS, and against a bare TCP socket with a
//!   `pwrite` at its end;
//! - `together`: a file per process from four nodes, against the four bare directories, and one file of all four, against the peers;
//! - `small`: making and reading small files, against the same peers;
//! - the memory of `burstfsd` behind all of it.
//!
//! What is compared is run in turn, load by load, so that the machine's mood falls on all; a figure is the median over the runs of the
//! quotients. Buffered loads stay in the page cache, and find it warm; what is dirty is written back between two runs.

mod driver;
mod elsewhere;
mod instance;
mod local;
mod peers;
mod small;
mod together;

use anyhow::Result;
use burstfs_tests::Cluster;
use burstfs_tests::bench::{Aim, Row, report};
use burstfs_tests::fio::Slice;

use crate::instance::{Instance, NODES};

/// At least five are asked for.
const RUNS: usize = 7;
const SLICE: Slice = Slice { file: 64 << 20, runtime_ms: 500, offset: 0 };

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.is_empty() {
        return driver::main(&args);
    }
    let cluster = Cluster::get()?;
    let instance = Instance::start(cluster)?;
    let mut rows = Vec::new();
    part(&mut rows, local::names(), |rows| local::measure(&instance, rows));
    part(&mut rows, together::names(), |rows| together::measure(&instance, rows));
    part(&mut rows, elsewhere::names(), |rows| elsewhere::measure(&instance, rows));
    part(&mut rows, small::names(), |rows| small::measure(&instance, rows));
    part(&mut rows, vec![(MEMORY.to_owned(), "MiB", MEMORY_AIM)], |rows| memory(&instance, rows));
    instance.end()?;
    report("data", &rows)
}

/// Measures a part; what it has not got to is there with the reason.
fn part(
    rows: &mut Vec<Row>,
    names: Vec<(String, &'static str, Aim)>,
    measure: impl FnOnce(&mut Vec<Row>) -> Result<()>,
) {
    let Err(error) = measure(rows) else { return };
    let error = format!("{error:#}");
    let reason = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    for (name, unit, aim) in names {
        if !rows.iter().any(|row| row.name() == name) {
            rows.push(Row::failed(name, unit, aim, reason));
        }
    }
}

const MEMORY: &str = "burstfsd: most memory of a node";
const MEMORY_AIM: Aim = Aim::AtMost(256.0);

fn memory(instance: &Instance<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let most = |node: &&str| {
        let script = "sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pgrep -x burstfsd)/status";
        Ok(instance.cluster.sh(node, script)?.trim().parse::<f64>()? / 1024.0)
    };
    let samples = NODES.iter().map(most).collect::<Result<Vec<_>>>()?;
    let most = samples.iter().copied().fold(0.0, f64::max);
    let against = format!("nodes: {}", samples.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(" "));
    rows.push(Row::new(MEMORY, "MiB", vec![most], against, MEMORY_AIM));
    Ok(())
}
