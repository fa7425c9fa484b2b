//! `make bench-metadata`: operations on names and inodes, beside GlusterFS and MooseFS on four nodes of their own, ext4 and tmpfs.
//!
//! Every system does the same loads in turn, several times, so that the machine's mood falls on all; a figure is the median. Processor
//! time is that of all processes of the system and of the load.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burstfs_tests::bench::{Aim, Row, median, report};
use burstfs_tests::{Cluster, NODES, SOON, wait_until};

/// At least five are asked for.
const RUNS: usize = 5;
/// Files of each process.
const FILES: usize = 400;
/// Files of the instance whose memory and disk are looked at.
const MANY_FILES: usize = 100_000;
const USER: &str = "alice";
const DIR: &str = "/pfs/alice/bench-metadata";
const PHASES: [&str; 8] =
    ["create", "stat", "stat again", "open+close", "open+close again", "readdir+stat", "rename", "remove"];
/// Those whose processor time is that of a file.
const LIFE: [&str; 4] = ["create", "stat", "open+close", "remove"];
const PEERS: [&str; 4] = ["gluster", "moosefs", "ext4", "tmpfs"];
/// The distributed ones, which burstfs is to be faster than.
const RIVALS: [&str; 2] = ["gluster", "moosefs"];

/// Where the processes are, and what they do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    /// Two on the first node, or one on each of four.
    is_spread: bool,
    is_shared: bool,
    bytes: usize,
}

impl Load {
    fn all() -> impl Iterator<Item = Load> {
        let each =
            |is_spread| [false, true].map(|is_shared| [0, 4096].map(|bytes| Load { is_spread, is_shared, bytes }));
        [false, true].into_iter().flat_map(each).flatten()
    }

    fn name(self) -> String {
        let place = if self.is_spread { "4 nodes" } else { "1 node" };
        let directory = if self.is_shared { "shared" } else { "unique" };
        format!("{place}, {directory}, {}", if self.bytes == 0 { "empty" } else { "4 KiB" })
    }

    fn nodes(self) -> &'static [usize] {
        if self.is_spread { &[0, 1, 2, 3] } else { &[0, 0] }
    }
}

/// What is measured: burstfs in a job, or a peer by its script.
enum System<'a> {
    Burstfs { cluster: &'a Cluster, mount: String },
    Peer { script: PathBuf, name: &'static str },
}

impl System<'_> {
    fn name(&self) -> &'static str {
        match self {
            System::Burstfs { .. } => "burstfs",
            System::Peer { name, .. } => name,
        }
    }

    /// The shell that a process of the load starts from, on node `node`.
    fn shell(&self, node: usize, script: &str) -> Command {
        match self {
            System::Burstfs { cluster, .. } => cluster.command_as(NODES[node], USER, script),
            System::Peer { .. } => {
                let mut command = Command::new("sh");
                command.args(["-c", script]);
                command
            }
        }
    }

    fn path(&self, node: usize) -> Result<String> {
        match self {
            System::Burstfs { mount, .. } => Ok(mount.clone()),
            System::Peer { script, name } => said(Command::new(script).args(["path", name, &(node + 1).to_string()])),
        }
    }

    /// Processor time of its processes until now, ns; with `burstfs` that of the load, too, as it runs on the nodes.
    fn processor_time(&self) -> Result<u64> {
        match self {
            System::Burstfs { cluster, .. } => NODES.iter().map(|node| node_time(cluster, node)).sum(),
            System::Peer { script, name } => Ok(said(Command::new(script).args(["cpu", name]))?.parse()?),
        }
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What all processes of a node have had, ns.
fn node_time(cluster: &Cluster, node: &str) -> Result<u64> {
    let pid = cluster.control(&["pid", node])?;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim()))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        // The node's process 1 may be in a group `init` of its own.
        let path = path.trim_end_matches("/init");
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|name| name == "cpuacct") {
            continue;
        }
        let is_mount = |line: &&str| {
            let kind = if is_v2 { " - cgroup2 " } else { " - cgroup " };
            line.contains(kind)
                && (is_v2 || line.rsplit(' ').next().is_some_and(|o| o.split(',').any(|o| o == "cpuacct")))
        };
        let Some(mount) = mounts.lines().find(is_mount).and_then(|line| line.split(' ').nth(4)) else { continue };
        let group = format!("{mount}{path}");
        if let Ok(usage) = fs::read_to_string(format!("{group}/cpuacct.usage")) {
            return Ok(usage.trim().parse()?);
        }
        if let Ok(stat) = fs::read_to_string(format!("{group}/cpu.stat")) {
            let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
            return Ok(usage.trim().parse::<u64>()? * 1_000);
        }
    }
    anyhow::bail!("no cgroup of {node} counts processor time")
}

/// One process of the load.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    processor_time: u64,
}

/// What a phase's processes have done.
struct Did {
    operations: usize,
    seconds: f64,
    /// Processor time of the load's processes, ns.
    processor_time: u64,
}

fn phase(processes: &mut [Process], phase: &str) -> Result<Did> {
    let begin = Instant::now();
    for process in processes.iter_mut() {
        writeln!(process.input, "{phase}")?;
    }
    let (mut operations, mut processor_time) = (0, 0);
    for process in processes.iter_mut() {
        let mut line = String::new();
        process.output.read_line(&mut line)?;
        let mut fields = line.split_whitespace();
        let mut next = || fields.next().with_context(|| format!("{phase}: a process of the load has ended"));
        operations += next()?.parse::<usize>()?;
        next()?;
        let until_now: u64 = next()?.parse()?;
        processor_time += until_now - std::mem::replace(&mut process.processor_time, until_now);
    }
    Ok(Did { operations, seconds: begin.elapsed().as_secs_f64(), processor_time })
}

/// Figures of one system: operations per second, and microseconds of processor time for each.
type Figures = BTreeMap<(Load, &'static str), (Vec<f64>, Vec<f64>)>;

/// Where the load's program is, as the nodes see it.
fn program(system: &System<'_>) -> Result<String> {
    let own = std::env::current_exe()?.with_file_name("mdload");
    match system {
        System::Burstfs { cluster, .. } => {
            let there = format!("{DIR}/mdload");
            let here = cluster.shared(&there);
            if !here.exists() {
                fs::copy(&own, &here)?;
            }
            Ok(there)
        }
        System::Peer { .. } => Ok(own.display().to_string()),
    }
}

fn start(system: &System<'_>, load: Load, files: usize, run: usize) -> Result<Vec<Process>> {
    let program = program(system)?;
    let base = format!("run{run}-{}", load.name().replace([' ', ','], ""));
    said(&mut system.shell(0, &format!("mkdir -p {}/{base}", system.path(0)?)))?;
    let mut processes = Vec::new();
    for (index, node) in load.nodes().iter().enumerate() {
        let own = if load.is_shared { String::new() } else { format!("/{index}") };
        let directory = format!("{}/{base}{own}", system.path(*node)?);
        let script = format!("mkdir -p {directory} && exec {program} {directory} {files} {} {index}", load.bytes);
        let mut child = system.shell(*node, &script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        processes.push(Process { child, input, output: BufReader::new(output), processor_time: 0 });
    }
    Ok(processes)
}

fn end(processes: Vec<Process>) -> Result<()> {
    for Process { mut child, input, .. } in processes {
        drop(input);
        ensure!(child.wait()?.success(), "a process of the load has failed");
    }
    Ok(())
}

fn measure(system: &System<'_>, load: Load, run: usize, figures: &mut Figures) -> Result<()> {
    let mut processes = start(system, load, FILES, run)?;
    for name in PHASES {
        let before = system.processor_time()?;
        let did = phase(&mut processes, name)?;
        let servers = system.processor_time()?.saturating_sub(before);
        let own = if matches!(system, System::Burstfs { .. }) { 0 } else { did.processor_time };
        let (rates, costs) = figures.entry((load, name)).or_default();
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let (operations, cost) = (did.operations as f64, (servers + own) as f64 / 1_000.0);
        rates.push(operations / did.seconds);
        costs.push(cost / operations);
    }
    end(processes)
}

fn middle(figures: &BTreeMap<&'static str, Figures>, system: &str, key: (Load, &'static str)) -> Option<(f64, f64)> {
    let (rates, costs) = figures.get(system)?.get(&key)?;
    Some((median(rates)?, median(costs)?))
}

/// The rows of one load.
fn rows(load: Load, figures: &BTreeMap<&'static str, Figures>, failures: &BTreeMap<&'static str, String>) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in PHASES {
        let of = |system: &str| middle(figures, system, (load, name));
        let mut against: Vec<String> = std::iter::once("burstfs")
            .chain(PEERS)
            .filter_map(|system| of(system).map(|(rate, cost)| format!("{system} {rate:.0}/s {cost:.0} us")))
            .collect();
        against.extend(failures.iter().map(|(system, why)| format!("{system}: {why}")));
        let against = against.join(", ");
        let best = RIVALS.iter().filter_map(|rival| Some(of(rival)?.0)).reduce(f64::max);
        let own = figures.get("burstfs").and_then(|figures| figures.get(&(load, name)));
        let title = format!("{}: {name}, against the best peer", load.name());
        rows.push(match (own, best) {
            (Some((rates, _)), Some(best)) => {
                Row::new(title, "x", rates.iter().map(|rate| rate / best).collect(), against, Aim::AtLeast(5.0))
            }
            _ => Row::failed(title, "x", Aim::AtLeast(5.0), against),
        });
        let (Some((rates, _)), Some((ext4, _))) = (own, of("ext4")) else { continue };
        if name == "stat again" || name == "open+close again" {
            let title = format!("{}: {name}, against ext4", load.name());
            let quotients = rates.iter().map(|rate| rate / ext4).collect();
            rows.push(Row::new(title, "x", quotients, format!("ext4 {ext4:.0}/s"), Aim::AtLeast(0.5)));
        }
    }
    let life =
        |system: &str| LIFE.iter().map(|name| Some(middle(figures, system, (load, name))?.1)).sum::<Option<f64>>();
    let against =
        PEERS.iter().filter_map(|peer| Some(format!("{peer} {:.0}", life(peer)?))).collect::<Vec<_>>().join(", ");
    let title = format!("{}: CPU of a file (create, stat, open, remove)", load.name());
    rows.push(match life("burstfs") {
        Some(cost) => Row::new(title, "us", vec![cost], against, Aim::AtMost(200.0)),
        None => Row::failed(title, "us", Aim::AtMost(200.0), "not measured"),
    });
    rows
}

/// A job that does nothing but hold its instance.
struct Job<'a> {
    cluster: &'a Cluster,
    id: String,
}

impl<'a> Job<'a> {
    fn start(cluster: &'a Cluster, nodes: usize) -> Result<Job<'a>> {
        let here = cluster.shared(DIR);
        if here.exists() {
            fs::remove_dir_all(&here)?;
        }
        fs::create_dir_all(&here)?;
        cluster.sh("ctl", &format!("chown {USER}: {DIR}"))?;
        let (nodes, wait) = (format!("-N{nodes}"), "touch up; until [ -e go ]; do sleep 0.05; done");
        let args = ["sbatch", "--parsable", &nodes, "-o", "job.out", "--burstfs=per_node=800MiB", "--wrap", wait];
        let output = cluster.login(USER, DIR, "", &args)?;
        ensure!(output.status.success(), "sbatch: {}", String::from_utf8_lossy(&output.stderr));
        wait_until("the job to run", SOON, || Ok(here.join("up").exists()))?;
        Ok(Job { cluster, id: String::from_utf8_lossy(&output.stdout).trim().to_owned() })
    }

    fn system(&self) -> System<'a> {
        System::Burstfs { cluster: self.cluster, mount: format!("/burstfs/{}", self.id) }
    }

    fn end(self) -> Result<()> {
        fs::write(self.cluster.shared(DIR).join("go"), "")?;
        wait_until("an empty queue", SOON, || Ok(self.cluster.sh("ctl", "squeue -h")?.is_empty()))
    }
}

/// A single node's instance: how fast, and what many files take.
fn single(cluster: &Cluster) -> Result<Vec<Row>> {
    let load = Load { is_spread: false, is_shared: false, bytes: 0 };
    let job = Job::start(cluster, 1)?;
    let system = job.system();
    let node = cluster.control(&["x", "ctl", "squeue", "-h", "-o", "%N"])?;
    ensure!(node.trim() == NODES[0], "the job is on {node}, not on {}", NODES[0]);
    let mut figures = Figures::new();
    (0..RUNS).try_for_each(|run| measure(&system, load, run, &mut figures))?;
    let (rates, _) = figures.remove(&(load, "create")).context("no creates")?;
    let aim = Aim::AtLeast(10_000.0);
    let mut rows = vec![Row::new(
        "single node: creates per second",
        "1/s",
        rates,
        "a FUSE file system that does nothing: 30,000 to 50,000",
        aim,
    )];
    let before = footprint(cluster, &job)?;
    let mut processes = start(&system, load, MANY_FILES / 2, RUNS)?;
    phase(&mut processes, "create")?;
    let after = footprint(cluster, &job)?;
    end(processes)?;
    job.end()?;
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    let each = |bytes: (u64, u64)| vec![bytes.1.saturating_sub(bytes.0) as f64 / MANY_FILES as f64];
    let against = format!(
        "{MANY_FILES} files in one run: RocksDB's memtables and block cache are in it, so ten million take less each"
    );
    rows.push(Row::new("memory of burstfsd a file", "B", each((before.0, after.0)), against, Aim::AtMost(600.0)));
    let against = format!("{MANY_FILES} files: the write-ahead log is in it, which is bounded");
    rows.push(Row::new("disk of the MDT a file", "B", each((before.1, after.1)), against, Aim::AtMost(400.0)));
    Ok(rows)
}

/// Resident memory of the daemon, and disk of its MDT, bytes.
fn footprint(cluster: &Cluster, job: &Job<'_>) -> Result<(u64, u64)> {
    let script = format!(
        "awk '/^VmRSS/ {{ print $2 * 1024 }}' /proc/$(pgrep -x burstfsd)/status; du -s -B1 /local/burstfs/*.{}.0/data/mdt | cut -f1",
        job.id
    );
    let said = cluster.sh(NODES[0], &script)?;
    let mut numbers = said.split_whitespace().map(str::parse);
    let mut next = || numbers.next().context("no figure")?.map_err(anyhow::Error::from);
    Ok((next()?, next()?))
}

fn reason(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

fn main() -> Result<()> {
    let cluster = Cluster::get()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let mut failures = BTreeMap::new();
    let mut systems = Vec::new();
    let job = Job::start(cluster, NODES.len())?;
    systems.push(job.system());
    for name in PEERS {
        match said(Command::new(&script).args(["up", name])) {
            Ok(_) => systems.push(System::Peer { script: script.clone(), name }),
            Err(error) => drop(failures.insert(name, reason(&error))),
        }
    }
    let mut figures: BTreeMap<&'static str, Figures> = BTreeMap::new();
    for run in 0..RUNS {
        for load in Load::all() {
            for system in &systems {
                let of = figures.entry(system.name()).or_default();
                if failures.contains_key(system.name()) {
                    continue;
                }
                if let Err(error) = measure(system, load, run, of) {
                    failures.insert(system.name(), reason(&error));
                }
            }
        }
    }
    drop(systems);
    for name in PEERS {
        said(Command::new(&script).args(["down", name]))?;
    }
    job.end()?;
    let mut all: Vec<Row> = Load::all().flat_map(|load| rows(load, &figures, &failures)).collect();
    match single(cluster) {
        Ok(rows) => all.extend(rows),
        Err(error) => all.push(Row::failed("single node", "1/s", Aim::AtLeast(10_000.0), reason(&error))),
    }
    report("metadata", &all)
}
