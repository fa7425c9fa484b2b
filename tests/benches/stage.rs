//! `make bench-stage`: stage-in and drain with four nodes, beside `cp -a`, `rsync -a` and a parallel `cp`, of the same trees
//! between the same disks.
//!
//! All are run in turn, so that the machine's mood falls on all; a figure is the median over the runs of the quotients. Every copy
//! goes to names that are new, and is removed before the next. What a stage-in is compared with is a copy as it is when the
//! command has ended, since neither is made durable; what a drain is compared with is made durable by `sync -f`, since a drained file
//! is, and has been read again and compared besides. Sources are in the page cache for all.
//!
//! Staging is what a job with it takes longer than one without: from its allocation to the script's first line, and from the last
//! until nothing of the instance is left on any node.
//!
//! `BURSTFS_BENCH_RUNS` (5) says how often; `BURSTFS_BENCH_SCALE` (1) divides the trees, and the rows say what they had. Trees that the
//! command line names are run alone.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use burstfs_tests::bench::{Aim, Row, median, report};
use burstfs_tests::meter::{Meter, Reading, reading_at};
use burstfs_tests::{Cluster, NODES, wait_until};

const USER: &str = "alice";
const DIR: &str = "/pfs/alice/bench-stage";
const NODE: &str = "node1";
const LOCAL: &str = "/local/bench-stage";
const PATIENCE: Duration = Duration::from_secs(1800);

/// A tree, and the shell commands that make it in an empty directory.
struct Tree {
    name: &'static str,
    make: fn(usize) -> String,
}

const TREES: [Tree; 4] = [
    Tree { name: "large", make: |scale| format!("head -c $(({} << 20)) /dev/urandom > file", 4096 / scale) },
    Tree {
        name: "medium",
        make: |scale| {
            let files = 1000 / scale;
            format!("for n in $(seq {files}); do head -c 4194304 /dev/urandom > file-$n; done")
        },
    },
    Tree {
        name: "small",
        make: |scale| {
            // 1,000 files in a directory, as programs that know what they do make them.
            let files = 200_000 / scale;
            format!(
                "head -c {} /dev/urandom | split -a 6 -b 4096 -d - f && \
                     for n in $(seq 0 $((({files} - 1) / 1000))); do mkdir d$n && mv f$(printf %03d $n)??? d$n/; done",
                files * 4096
            )
        },
    },
    Tree { name: "source", make: |_| "cp -rL /usr/include/. .".to_owned() },
];

/// What the others are: source and target are `$from` and `$to`, neither with a slash behind it.
const OTHERS: [(&str, &str); 3] = [
    ("cp -a", "cp -a $from $to"),
    ("rsync -a", "rsync -a $from/ $to/"),
    (
        "xargs -P 4 cp",
        "mkdir $to && cd $from && find . -mindepth 1 -type d -print0 | (cd $to && xargs -0 -r mkdir -p) && \
         find . ! -type d -print0 | xargs -0 -P 4 -n 100 cp -pP --parents -t $to",
    ),
];

/// What one copy took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    ms: f64,
    cpu_ms: f64,
    /// Until it is as durable as a drain.
    sync_ms: f64,
}

/// One run: burstfs's in and out, and those of the others in their order.
struct Run {
    stage_in: Cost,
    drain: Cost,
    sent_bytes: f64,
    others_in: Vec<Cost>,
    others_out: Vec<Cost>,
}

fn main() -> Result<()> {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (runs, scale) = (number("BURSTFS_BENCH_RUNS", 5).max(1), number("BURSTFS_BENCH_SCALE", 1).max(1));
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let cluster = Cluster::get()?;
    let mut rows = Vec::new();
    for tree in TREES.iter().filter(|tree| wanted.is_empty() || wanted.iter().any(|name| name == tree.name)) {
        if let Err(error) = measure(cluster, tree, scale, runs, &mut rows) {
            let reason = format!("{error:#}").replace('\n', " | ");
            rows.extend(asked(tree.name).map(|(name, aim)| Row::failed(name, "x", aim, &reason)));
        }
    }
    report("stage", &rows)
}

/// The figures of a tree that were asked for.
fn asked(tree: &str) -> impl Iterator<Item = (String, Aim)> {
    [
        ("stage-in, of the fastest other", Aim::AtLeast(1.0)),
        ("stage-in, processor time of rsync's", Aim::AtMost(1.0)),
        ("drain, of the fastest other made durable", Aim::AtLeast(1.0)),
        ("drain, processor time of rsync's", Aim::AtMost(1.0)),
        ("drain, bytes between nodes of those drained", Aim::AtMost(0.01)),
    ]
    .into_iter()
    .map(move |(what, aim)| (format!("{tree}: {what}"), aim))
}

fn measure(cluster: &Cluster, tree: &Tree, scale: usize, runs: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (files, bytes) = prepare(cluster, &(tree.make)(scale))?;
    let mut done = Vec::new();
    for run in 0..runs {
        done.push(one_run(cluster, run, bytes)?);
    }
    let of = format!("{files} files, {:.0} MiB", bytes / f64::from(1 << 20));
    let column = |pick: &dyn Fn(&Run) -> f64| done.iter().map(pick).collect::<Vec<f64>>();
    let ms = |pick: &dyn Fn(&Run) -> f64| median(&column(pick)).unwrap_or(f64::NAN);
    let others = |pick: &dyn Fn(&Run, usize) -> f64| -> String {
        let each = OTHERS.iter().enumerate().map(|(at, (name, _))| format!("{name} {:.0}", ms(&|run| pick(run, at))));
        each.collect::<Vec<_>>().join(", ")
    };
    let fastest = |costs: &[Cost], pick: fn(&Cost) -> f64| costs.iter().map(pick).fold(f64::INFINITY, f64::min);
    let figures = [
        (
            column(&|run| fastest(&run.others_in, |cost| cost.ms) / run.stage_in.ms.max(1.0)),
            format!("ms: burstfs {:.0}, {}; {of}", ms(&|run| run.stage_in.ms), others(&|run, at| run.others_in[at].ms)),
        ),
        (
            column(&|run| run.stage_in.cpu_ms / run.others_in[1].cpu_ms.max(1.0)),
            format!(
                "ms of processors: burstfs {:.0}, {}",
                ms(&|run| run.stage_in.cpu_ms),
                others(&|run, at| run.others_in[at].cpu_ms)
            ),
        ),
        (
            column(&|run| fastest(&run.others_out, |cost| cost.ms + cost.sync_ms) / run.drain.ms.max(1.0)),
            format!(
                "ms: burstfs {:.0}, {}; without sync -f: {}",
                ms(&|run| run.drain.ms),
                others(&|run, at| run.others_out[at].ms + run.others_out[at].sync_ms),
                others(&|run, at| run.others_out[at].ms)
            ),
        ),
        (
            column(&|run| run.drain.cpu_ms / run.others_out[1].cpu_ms.max(1.0)),
            format!(
                "ms of processors: burstfs {:.0}, {}",
                ms(&|run| run.drain.cpu_ms),
                others(&|run, at| run.others_out[at].cpu_ms)
            ),
        ),
        (column(&|run| run.sent_bytes / bytes), format!("{:.0} bytes sent by all nodes", ms(&|run| run.sent_bytes))),
    ];
    for ((name, aim), (samples, against)) in asked(tree.name).zip(figures) {
        rows.push(Row::new(name, "x", samples, against, aim));
    }
    Ok(())
}

/// Makes the tree; its files and bytes.
fn prepare(cluster: &Cluster, make: &str) -> Result<(u64, f64)> {
    cluster.sh(NODE, &format!("rm -rf {DIR} {LOCAL}; install -d -o {USER} -g {USER} {DIR} {LOCAL}"))?;
    let script = format!(
        "mkdir {DIR}/in && cd {DIR}/in && {make} && cd .. && find in -type f | wc -l && find in -type f -printf '%s\\n' | \
         awk '{{ sum += $1 }} END {{ printf \"%.0f\\n\", sum }}'"
    );
    let said = as_user(cluster, &script)?;
    let mut figures = said.lines();
    let mut next = || figures.next().context("no figures of the tree");
    let (files, bytes) = (next()?.trim().parse()?, next()?.trim().parse()?);
    fs::write(cluster.shared(DIR).join("job.sh"), "#!/bin/bash\ndate +%s%N > first\nsleep 0.3\ndate +%s%N > last\n")?;
    Ok((files, bytes))
}

fn as_user(cluster: &Cluster, script: &str) -> Result<String> {
    let output = cluster.try_sh_as(NODE, USER, script)?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn one_run(cluster: &Cluster, run: usize, bytes: f64) -> Result<Run> {
    // Any one node may get all of it, if it is one file.
    let capacity = format!("--burstfs=per_node={}MiB", (bytes / f64::from(1 << 20)) as u64 + 512);
    let plain = job(cluster, &[&capacity])?;
    let input = format!("--burstfs=stage_in source={DIR}/in/ destination=/in");
    let output = format!("--burstfs=stage_out source=/in/ destination={DIR}/out-{run}");
    let staged = job(cluster, &[&capacity, &input, &output])?;
    as_user(cluster, &format!("rm -r {DIR}/out-{run}"))?;
    let (mut others_in, mut others_out) = (Vec::new(), Vec::new());
    for (at, (_, command)) in OTHERS.iter().enumerate() {
        let (local, back) = (format!("{LOCAL}/in-{run}-{at}"), format!("{DIR}/back-{run}-{at}"));
        others_in.push(timed(cluster, command, &format!("{DIR}/in"), &local)?);
        others_out.push(timed(cluster, command, &local, &back)?);
        as_user(cluster, &format!("rm -r {local} {back}"))?;
    }
    let added = |with: Cost, without: Cost| Cost {
        ms: with.ms - without.ms,
        cpu_ms: (with.cpu_ms - without.cpu_ms).max(0.0),
        sync_ms: 0.0,
    };
    Ok(Run {
        stage_in: added(staged.start, plain.start),
        drain: added(staged.end, plain.end),
        sent_bytes: (staged.sent_bytes - plain.sent_bytes).max(0.0),
        others_in,
        others_out,
    })
}

/// Runs one of the others on a node, then makes what it wrote durable.
fn timed(cluster: &Cluster, command: &str, from: &str, to: &str) -> Result<Cost> {
    settle(cluster)?;
    let script = format!(
        "bash -c 'from={from} to={to} TIMEFORMAT=\"%R %U %S\"; time {{ {command}; }} && time sync -f '{to} 2>&1 | tail -n 2"
    );
    let said = as_user(cluster, &script)?;
    let figures: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>().context(said.clone())?;
    ensure!(figures.len() == 6, "{command}: {said}");
    Ok(Cost { ms: figures[0] * 1000.0, cpu_ms: (figures[1] + figures[2]) * 1000.0, sync_ms: figures[3] * 1000.0 })
}

/// What was written before is not written while the next step is timed.
fn settle(cluster: &Cluster) -> Result<()> {
    cluster.sh("ctl", "sync").map(drop)
}

/// A job's start and end.
struct Staged {
    start: Cost,
    end: Cost,
    /// From the script's last line on.
    sent_bytes: f64,
}

/// Runs a job on all nodes.
fn job(cluster: &Cluster, options: &[&str]) -> Result<Staged> {
    settle(cluster)?;
    let meter = Meter::start(cluster)?;
    let ended = job_times(cluster, options);
    let readings = meter.stop();
    let (allocated, first, last, gone) = ended?;
    let at = |ms: f64| -> Reading { reading_at(&readings, ms) };
    let cost = |from: f64, to: f64| Cost { ms: to - from, cpu_ms: at(to).cpu_ms - at(from).cpu_ms, sync_ms: 0.0 };
    let sent_bytes = at(gone).sent_bytes - at(last).sent_bytes;
    Ok(Staged { start: cost(allocated, first), end: cost(last, gone), sent_bytes })
}

/// When the nodes were allocated, when the script began and ended, and when nothing of the instance was left; ms since the epoch.
fn job_times(cluster: &Cluster, options: &[&str]) -> Result<(f64, f64, f64, f64)> {
    let mut args = vec!["sbatch", "--parsable", "-o", "slurm.out", "-N4"];
    args.extend(options);
    args.push("job.sh");
    let submitted = cluster.login(USER, DIR, "", &args)?;
    let id = String::from_utf8_lossy(&submitted.stdout).trim().to_owned();
    ensure!(submitted.status.success(), "sbatch: {}", String::from_utf8_lossy(&submitted.stderr));
    let here = cluster.shared(DIR);
    let is_said = |name: &str| fs::read_to_string(here.join(name)).is_ok_and(|time| time.ends_with('\n'));
    let in_queue = || Ok::<_, anyhow::Error>(!cluster.sh("ctl", "squeue -h")?.is_empty());
    let mut looked = Instant::now();
    wait_until("the job's last line", PATIENCE, || {
        if looked.elapsed() > Duration::from_secs(5) {
            looked = Instant::now();
            ensure!(in_queue()? || is_said("last"), "the job failed: {:?}", fs::read_to_string(here.join("slurm.out")));
        }
        Ok(is_said("last"))
    })?;
    let dirs: Vec<PathBuf> =
        NODES.into_iter().map(|node| cluster.on_node(node, "/run/burstfs")).collect::<Result<_>>()?;
    let suffix = format!(".{id}.0");
    let is_there = |dir: &PathBuf| {
        let mut names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().ends_with(&suffix))
    };
    wait_until("the instance's end", PATIENCE, || Ok(!dirs.iter().any(is_there)))?;
    let gone = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1000.0;
    wait_until("an empty queue", PATIENCE, || Ok(!in_queue()?))?;
    let read = |name: &str| -> Result<f64> { Ok(fs::read_to_string(here.join(name))?.trim().parse::<f64>()? / 1e6) };
    let times = (allocated_ms(cluster, &id)?, read("first")?, read("last")?, gone);
    fs::remove_file(here.join("first"))?;
    fs::remove_file(here.join("last"))?;
    let receipt = here.join(format!("burstfs-{id}.receipt.json"));
    if let Ok(text) = fs::read_to_string(&receipt) {
        ensure!(text.contains("\"result\": \"COMPLETE\""), "job {id}: the drain was not complete");
    }
    Ok(times)
}

/// When slurmctld gave the job its nodes.
fn allocated_ms(cluster: &Cluster, job: &str) -> Result<f64> {
    let line = cluster.sh("ctl", &format!("grep -E '(Started|Allocate) JobId={job} ' /var/log/slurm/slurmctld.log"))?;
    let stamp = line.trim_start_matches('[').split(']').next().context("slurmctld's log")?;
    Ok(cluster.sh("ctl", &format!("date -d '{stamp}' +%s%N"))?.trim().parse::<f64>()? / 1e6)
}
