//! `make bench-data`: what reading and writing costs, against the directory of the same NVMe without burstfs.
//!
//! Both are run in turn, load by load, so that the machine's mood falls on both; a figure is the median over the runs of the
//! quotients. Buffered loads stay in the page cache, and find it warm; what is dirty is written back between two runs.

use std::fs;

use anyhow::{Result, ensure};
use burstfs_tests::bench::{Aim, Row, median, report};
use burstfs_tests::fio::{Load, Outcome, Place, Slice};
use burstfs_tests::{Cluster, SOON, wait_until};

/// At least five are asked for.
const RUNS: usize = 7;
const USER: &str = "alice";
const DIR: &str = "/pfs/alice/bench-data";
const NODE: &str = "node1";
/// On the same device as burstfs's own directory.
const RAW: &str = "/local/raw";
const SLICE: Slice = Slice { file: 64 << 20, runtime_ms: 500 };
const BLOCKS: [u64; 2] = [1 << 20, 4 << 10];
const KINDS: [&str; 4] = ["read", "write", "randread", "randwrite"];

fn main() -> Result<()> {
    let cluster = Cluster::get()?;
    let mut rows = Vec::new();
    let job = Job::start(cluster)?;
    let measured = loads().try_for_each(|load| local(cluster, &job, load, &mut rows));
    job.end()?;
    if let Err(error) = measured {
        let error = format!("{error:#}");
        let reason = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        for load in loads() {
            for (name, aim) in [(rate_name(load), RATE), (cpu_name(load), CPU)] {
                if !rows.iter().any(|row| row.name() == name) {
                    rows.push(Row::failed(name, "x", aim, reason));
                }
            }
        }
    }
    report("data", &rows)
}

fn loads() -> impl Iterator<Item = Load> {
    let each = |is_direct| BLOCKS.into_iter().flat_map(move |block| KINDS.map(|kind| Load { kind, block, is_direct }));
    [false, true].into_iter().flat_map(each)
}

const RATE: Aim = Aim::AtLeast(0.9);
const CPU: Aim = Aim::AtMost(1.1);

fn rate_name(load: Load) -> String {
    format!("local: {}", load.name())
}

fn cpu_name(load: Load) -> String {
    format!("local: {}: CPU per byte", load.name())
}

/// A file of the node that uses it, and the same on the bare file system.
fn local(cluster: &Cluster, job: &Job<'_>, load: Load, rows: &mut Vec<Row>) -> Result<()> {
    let dir = format!("{}/local", job.mount);
    let ours = Place { node: NODE, user: USER, dir: &dir, servers: &["burstfsd", "burstfs-backing"] };
    let raw = Place { dir: RAW, servers: &[], ..ours };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first of each warms up what there is to be warm.
    for run in 0..=RUNS {
        let pair = (load.run(cluster, &raw, SLICE)?, load.run(cluster, &ours, SLICE)?);
        if run > 0 {
            without.push(pair.0);
            with.push(pair.1);
        }
    }
    let quotients = |pick: fn(&Outcome) -> f64| with.iter().zip(&without).map(|(a, b)| pick(a) / pick(b)).collect();
    let middle = |of: &[Outcome], pick: fn(&Outcome) -> f64| {
        median(&of.iter().map(pick).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let (rate, cpu) = ((|outcome| outcome.rate) as fn(&Outcome) -> f64, (|outcome| outcome.cpu) as fn(&Outcome) -> f64);
    let against = format!("raw {:.0} MiB/s, burstfs {:.0} MiB/s", middle(&without, rate), middle(&with, rate));
    rows.push(Row::new(rate_name(load), "x", quotients(rate), against, RATE));
    let against = format!("raw {:.2} s/GiB, burstfs {:.2} s/GiB", middle(&without, cpu), middle(&with, cpu));
    rows.push(Row::new(cpu_name(load), "x", quotients(cpu), against, CPU));
    Ok(())
}

/// A job that does nothing but hold its instance.
struct Job<'a> {
    cluster: &'a Cluster,
    mount: String,
}

impl<'a> Job<'a> {
    fn start(cluster: &'a Cluster) -> Result<Job<'a>> {
        let here = cluster.shared(DIR);
        if here.exists() {
            fs::remove_dir_all(&here)?;
        }
        fs::create_dir_all(&here)?;
        cluster.sh("ctl", &format!("chown {USER}: {DIR}"))?;
        let wait = "mkdir $BURSTFS/local; touch up; until [ -e go ]; do sleep 0.05; done";
        let args =
            ["sbatch", "--parsable", "-N1", "-w", NODE, "-o", "job.out", "--burstfs=per_node=800MiB", "--wrap", wait];
        let output = cluster.login(USER, DIR, "", &args)?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "sbatch: {}", String::from_utf8_lossy(&output.stderr));
        wait_until("the job to run", SOON, || Ok(here.join("up").exists()))?;
        cluster.sh(NODE, &format!("install -d -o {USER} {RAW}"))?;
        Ok(Job { cluster, mount: format!("/burstfs/{said}") })
    }

    fn end(self) -> Result<()> {
        fs::write(self.cluster.shared(DIR).join("go"), "")?;
        self.cluster.sh(NODE, &format!("rm -r {RAW}"))?;
        wait_until("an empty queue", SOON, || Ok(self.cluster.sh("ctl", "squeue -h")?.is_empty()))
    }
}
