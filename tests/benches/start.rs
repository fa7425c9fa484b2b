//! `make bench-start`: what burstfs adds to a job's start and end, how fast it stages, what it needs when idle.
//!
//! With and without are run in turn, so that the machine's mood falls on both; a figure is the median over the runs.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use burstfs_tests::bench::{Aim, Row, differences, median, report};
use burstfs_tests::{Cluster, NODES, fill_file};

#[path = "start/plugin.rs"]
mod plugin;

/// At least five are asked for.
const RUNS: usize = 7;
const USER: &str = "alice";
const DIR: &str = "/pfs/alice/bench";
/// Bytes of the tree that is staged: large files, and many small ones.
const LARGE: (usize, usize) = (96, 8 << 20);
const SMALL: (usize, usize) = (1000, 16 << 10);
/// What the copies of one step fill, and some more.
const TOUCHED_BYTES: usize = 4 << 30;

/// One job, timed from outside: all in ms.
struct Times {
    /// Its number in Slurm, and when its script began, since the epoch.
    job: String,
    first: f64,
    /// From sbatch to the script's first line.
    start: f64,
    /// From the script's end until the job has left the queue.
    end: f64,
}

/// What measures some of the figures.
struct Part {
    name: &'static str,
    measure: fn(&Cluster, &mut Vec<Row>) -> Result<()>,
    /// The figures that were asked for, with their aims: they are in the table even if they cannot be measured.
    asked: &'static [(&'static str, &'static str, Aim)],
}

const START: &str = "sbatch to the script's first line";
const END: &str = "script's end to leaving the queue";
const PARTS: [Part; 4] = [
    Part {
        name: "start",
        measure: start_and_end,
        asked: &[
            ("sbatch to the script's first line, 4 nodes: added", "ms", Aim::AtMost(300.0)),
            ("script's end to leaving the queue, 4 nodes: added", "ms", Aim::AtMost(200.0)),
        ],
    },
    Part {
        name: "staging",
        measure: staging,
        asked: &[
            ("stage-in, 4 nodes, of cp -a", "x", Aim::AtLeast(1.0)),
            ("drain, 4 nodes, of cp -a", "x", Aim::AtLeast(1.0)),
        ],
    },
    Part {
        name: "memory",
        measure: memory,
        asked: &[
            ("resident memory of burstfsd, idle", "MiB", Aim::AtMost(64.0)),
            ("resident memory of burstfs-node, idle", "MiB", Aim::AtMost(8.0)),
        ],
    },
    Part {
        name: "plugin",
        measure: plugin::measure,
        asked: &[
            (plugin::VERSION, "ms", Aim::AtMost(5.0)),
            (plugin::START_BESIDE, "ms", Aim::AtMost(5.0)),
            (plugin::END_BESIDE, "ms", Aim::AtMost(5.0)),
            (plugin::START_ALONE, "ms", Aim::AtMost(5.0)),
            (plugin::END_ALONE, "ms", Aim::AtMost(5.0)),
        ],
    },
];

/// The aim of the figure, if there is one.
fn aim_of(name: &str) -> Aim {
    let asked = PARTS.iter().flat_map(|part| part.asked).find(|asked| asked.0 == name);
    asked.map_or(Aim::None, |asked| asked.2)
}

fn figure(name: impl Into<String>, unit: &'static str, samples: Vec<f64>, against: String) -> Row {
    let name = name.into();
    let aim = aim_of(&name);
    Row::new(name, unit, samples, against, aim)
}

fn main() -> Result<()> {
    let cluster = Cluster::get()?;
    prepare(cluster)?;
    let mut rows = Vec::new();
    // All parts, or those that the command line names.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for part in PARTS.iter().filter(|part| wanted.is_empty() || wanted.iter().any(|name| name == part.name)) {
        if let Err(error) = (part.measure)(cluster, &mut rows) {
            let reason = format!("{error:#}").replace('\n', " | ");
            let is_there = |name: &str, rows: &[Row]| rows.iter().any(|row| row.name() == name);
            let missing = part.asked.iter().filter(|asked| !is_there(asked.0, &rows)).collect::<Vec<_>>();
            rows.extend(missing.into_iter().map(|(name, unit, aim)| Row::failed(*name, unit, *aim, &reason)));
        }
    }
    report("start", &rows)
}

fn prepare(cluster: &Cluster) -> Result<()> {
    let dir = cluster.shared(DIR);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(dir.join("in"))?;
    for index in 0..LARGE.0 {
        fill_file(&dir.join(format!("in/large-{index}")), LARGE.1, index as u64)?;
    }
    for index in 0..SMALL.0 {
        fill_file(&dir.join(format!("in/small-{index}")), SMALL.1, index as u64)?;
    }
    // The script measures itself: nothing of this program is in the figures.
    fs::write(
        dir.join("run.sh"),
        "t0=$(date +%s%N); id=$(sbatch --parsable -o /dev/null \"$@\") || exit 1\n\
         while squeue -h -j \"$id\" 2>/dev/null | grep -q .; do sleep 0.005; done; t3=$(date +%s%N)\n\
         read -r t1 < first && read -r t2 < last || exit 1; rm first last; echo \"$id $t0 $t1 $t2 $t3\"\n",
    )?;
    let script =
        "#!/bin/bash\ndate +%s%N > first\n[ -z \"$1\" ] || cp -r $BURSTFS/in $BURSTFS/out\ndate +%s%N > last\n";
    fs::write(dir.join("job.sh"), script)?;
    cluster.sh("ctl", &format!("chown -R {USER}: {DIR}")).map(drop)
}

/// Runs the job with `options` on `nodes` nodes.
fn run(cluster: &Cluster, nodes: usize, options: &[&str]) -> Result<Times> {
    run_in(cluster, "", nodes, options)
}

/// The same with `environment` (`NAME=value`, or nothing) where it is submitted.
fn run_in(cluster: &Cluster, environment: &str, nodes: usize, options: &[&str]) -> Result<Times> {
    let mut args = vec!["bash".to_owned(), "run.sh".to_owned(), format!("-N{nodes}")];
    args.extend(options.iter().chain(&["job.sh"]).map(|word| (*word).to_owned()));
    let output = cluster.login(USER, DIR, environment, &args)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let (job, times) = said.trim().split_once(' ').unwrap_or_default();
    let times: Vec<f64> = times.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 4, "the job did not run: {said}{}", String::from_utf8_lossy(&output.stderr));
    let (start, end) = ((times[1] - times[0]) / 1e6, (times[3] - times[2]) / 1e6);
    Ok(Times { job: job.to_owned(), first: times[1] / 1e6, start, end })
}

fn median_of(samples: &[f64]) -> f64 {
    median(samples).unwrap_or(f64::NAN)
}

fn start_and_end(cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    // The first job after slurmctld's start waits for its first scheduling round.
    run(cluster, 1, &[])?;
    for nodes in [1, 2, 4] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            without.push(run(cluster, nodes, &[])?);
            with.push(run(cluster, nodes, &["--burstfs=per_node=100MiB"])?);
        }
        let column = |times: &[Times], pick: fn(&Times) -> f64| times.iter().map(pick).collect::<Vec<_>>();
        for (what, pick) in [(START, (|times| times.start) as fn(&Times) -> f64), (END, |times| times.end)] {
            let (with, without) = (column(&with, pick), column(&without, pick));
            let against = format!("with {:.0} ms, without {:.0} ms", median_of(&with), median_of(&without));
            rows.push(figure(format!("{what}, {nodes} nodes: added"), "ms", differences(&with, &without), against));
        }
    }
    Ok(())
}

/// Staging is what a job with it takes longer than one without, all of it: walking, copying, verifying, syncing, waiting for
/// all nodes. Not in it is what only Slurm does: a job's start counts from its allocation, and its end until nothing of the
/// instance is left on any node. All copies of a run are of the same tree between the same disks, one after the other, to
/// names that are new (ext4 takes its time for names in the place of those just removed).
fn staging(cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    let mut runs = Vec::new();
    for run in 0..RUNS {
        runs.push(staging_run(cluster, run)?);
        cluster.sh("ctl", &format!("rm -rf {DIR}/out-* {DIR}/copy-*"))?;
        cluster.sh("node1", "rm -rf /local/bench-*")?;
    }
    let mib = (LARGE.0 * LARGE.1 + SMALL.0 * SMALL.1) as f64 / f64::from(1 << 20);
    let tree = format!("{mib:.0} MiB, {} files", LARGE.0 + SMALL.0);
    let column = |pick: fn(&StagingRun) -> f64| runs.iter().map(pick).collect::<Vec<_>>();
    let rate = |ms: &[f64]| ms.iter().map(|ms| mib / (ms.max(1.0) / 1000.0)).collect::<Vec<_>>();
    let (copy_in, copy_out) = (column(|run| run.copy_in_ms), column(|run| run.copy_out_ms));
    let synced = column(|run| run.copy_out_ms + run.copy_sync_ms);
    for (what, ms, cp_ms) in
        [("stage-in", column(|run| run.in_ms), copy_in), ("drain", column(|run| run.out_ms), copy_out)]
    {
        let against = format!("cp -a {:.0} MiB/s; {tree}", median_of(&rate(&cp_ms)));
        rows.push(figure(format!("{what}, 4 nodes"), "MiB/s", rate(&ms), against.clone()));
        rows.push(figure(format!("{what}, 4 nodes, of cp -a"), "x", ratios(&cp_ms, &ms), against));
        if what == "drain" {
            let against = format!("cp -a; sync -f: {:.0} MiB/s; {tree}", median_of(&rate(&synced)));
            rows.push(figure("drain, 4 nodes, of cp -a made durable", "x", ratios(&synced, &ms), against));
        }
    }
    Ok(())
}

struct StagingRun {
    in_ms: f64,
    out_ms: f64,
    copy_in_ms: f64,
    copy_out_ms: f64,
    /// Until the copy out is as durable as what was drained.
    copy_sync_ms: f64,
}

fn staging_run(cluster: &Cluster, run: usize) -> Result<StagingRun> {
    let capacity = "--burstfs=per_node=2GiB".to_owned();
    let input = format!("--burstfs=stage_in source={DIR}/in/ destination=/in");
    let output = format!("--burstfs=stage_out source=/out/ destination={DIR}/out-{run}");
    let plain = run_staging(cluster, &[&capacity], &["job.sh"])?;
    let staged = run_staging(cluster, &[&capacity, &input, &output], &["job.sh", "copy"])?;
    let local = format!("/local/bench-{run}");
    let copied = format!("{DIR}/copy-{run}");
    settle(cluster)?;
    let copy_in_ms = timed(cluster, &format!("cp -a {DIR}/in {local}"))?;
    let copy_out_ms = timed(cluster, &format!("cp -a {local} {copied}"))?;
    let copy_sync_ms = timed(cluster, &format!("sync -f {copied}"))?;
    Ok(StagingRun {
        in_ms: staged.start - plain.start,
        out_ms: staged.end - plain.end,
        copy_in_ms,
        copy_out_ms,
        copy_sync_ms,
    })
}

/// Runs the job on all nodes, from allocation to the first line, and from the last until the instance is gone.
fn run_staging(cluster: &Cluster, options: &[&str], script: &[&str]) -> Result<Times> {
    settle(cluster)?;
    let mut args = vec!["sbatch", "--parsable", "-o", "/dev/null", "-N4"];
    args.extend(options.iter().chain(script));
    let submitted = cluster.login(USER, DIR, "", &args)?;
    let said = String::from_utf8_lossy(&submitted.stdout);
    let job = said.trim().to_owned();
    ensure!(submitted.status.success(), "sbatch: {said}{}", String::from_utf8_lossy(&submitted.stderr));
    let last = cluster.shared(DIR).join("last");
    let read = |name: &str| -> Result<f64> {
        Ok(fs::read_to_string(cluster.shared(DIR).join(name))?.trim().parse::<f64>()? / 1e6)
    };
    burstfs_tests::wait_until("the job's last line", burstfs_tests::SOON, || {
        Ok(fs::read_to_string(&last).is_ok_and(|time| time.ends_with('\n')))
    })?;
    let runs: Vec<PathBuf> =
        NODES.into_iter().map(|node| cluster.on_node(node, "/run/burstfs")).collect::<Result<_>>()?;
    let instance = format!(".{job}.0");
    let is_there = |name: std::ffi::OsString| name.to_string_lossy().ends_with(&instance);
    let is_gone = |dir: &PathBuf| {
        fs::read_dir(dir).is_ok_and(|entries| !entries.flatten().any(|entry| is_there(entry.file_name())))
    };
    // A look at four directories costs next to nothing, so that nothing is taken from what is measured.
    let waiting = Instant::now();
    while !runs.iter().all(is_gone) {
        ensure!(waiting.elapsed() < burstfs_tests::SOON, "the instance of job {job} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    let gone = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1000.0;
    let first = read("first")?;
    let start = first - allocated_ms(cluster, &job)?;
    let times = Times { job, first, start, end: gone - read("last")? };
    fs::remove_file(&last)?;
    fs::remove_file(cluster.shared(DIR).join("first"))?;
    burstfs_tests::wait_until("an empty queue", burstfs_tests::SOON, || {
        Ok(cluster.sh("ctl", "squeue -h")?.is_empty())
    })?;
    Ok(times)
}

/// When slurmctld gave the job its nodes, ms since the epoch.
fn allocated_ms(cluster: &Cluster, job: &str) -> Result<f64> {
    let script = format!(
        "line=$(grep -E '(Started|Allocate) JobId={job} ' /var/log/slurm/slurmctld.log) || exit 1\n\
         date -d \"$(echo \"$line\" | sed 's/^\\[\\([^]]*\\)\\].*/\\1/')\" +%s%N"
    );
    Ok(cluster.sh("ctl", &script)?.trim().parse::<f64>()? / 1e6)
}

/// Before a step is timed: what was written before is not written during it, and memory that it takes costs the same in each. In a
/// virtual machine the host gives memory that was not used for a while page by page, at several times the price of a copy,
/// to whoever is the first to need it; of two copies the second would get what the first has let go of.
fn settle(cluster: &Cluster) -> Result<()> {
    cluster.sh("ctl", "sync")?;
    let mut pages = vec![0_u8; TOUCHED_BYTES];
    pages.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&pages);
    Ok(())
}

fn ratios(of: &[f64], by: &[f64]) -> Vec<f64> {
    of.iter().zip(by).map(|(of, by)| of / by.max(1.0)).collect()
}

/// How long a command takes on node1, in ms.
fn timed(cluster: &Cluster, command: &str) -> Result<f64> {
    let said = cluster.sh("node1", &format!("t0=$(date +%s%N); {command} || exit 1; echo $(($(date +%s%N) - t0))"))?;
    Ok(said.trim().parse::<f64>()? / 1e6)
}

fn memory(cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    let programs = ["burstfsd", "burstfs-node"];
    // Two jobs on four nodes: eight processes of each kind.
    for _ in 0..2 {
        let wait = "touch up; until [ -e go ]; do sleep 0.05; done; rm go up";
        let args = ["sbatch", "--parsable", "-N4", "-o", "/dev/null", "--burstfs=per_node=100MiB", "--wrap", wait];
        let output = cluster.login(USER, DIR, "", &args)?;
        ensure!(output.status.success(), "sbatch: {}", String::from_utf8_lossy(&output.stderr));
        let up = cluster.shared(DIR).join("up");
        burstfs_tests::wait_until("the job to run", burstfs_tests::SOON, || Ok(up.exists()))?;
        let measured = measure(cluster, &programs, &mut samples);
        fs::write(cluster.shared(DIR).join("go"), "")?;
        burstfs_tests::wait_until("an empty queue", burstfs_tests::SOON, || {
            Ok(cluster.sh("ctl", "squeue -h")?.is_empty())
        })?;
        measured?;
    }
    for (program, samples) in programs.into_iter().zip(samples) {
        let against = format!("{} processes, nothing to do", samples.len());
        rows.push(figure(format!("resident memory of {program}, idle"), "MiB", samples, against));
    }
    Ok(())
}

fn measure(cluster: &Cluster, programs: &[&str], samples: &mut [Vec<f64>]) -> Result<()> {
    for node in NODES {
        for (program, samples) in programs.iter().zip(samples.iter_mut()) {
            let pid = cluster.only_pid(node, program)?;
            let said = cluster.sh(node, &format!("awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"))?;
            samples.push(said.trim().parse::<f64>().context("VmRSS")? / 1024.0);
        }
    }
    Ok(())
}
