//! What a cluster with burstfs costs who does not use it: `sbatch --version`, and jobs without burstfs.
//!
//! slurmd reads its configuration when it starts, so each node has one of its own, and jobs on the nodes are measured in turn.
//! What counts as added is against a node that has the same without burstfs.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use burstfs_tests::Cluster;
use burstfs_tests::bench::{Row, differences};

use super::{DIR, Times, allocated_ms, figure, median_of, run_in};

pub(super) const VERSION: &str = "sbatch --version: added by the plugin";
pub(super) const START_BESIDE: &str = "start of a job without burstfs: added to a cluster with a prolog";
pub(super) const END_BESIDE: &str = "end of a job without burstfs: added to a cluster with an epilog";
pub(super) const START_ALONE: &str = "start of a job without burstfs: added to a cluster without a prolog";
pub(super) const END_ALONE: &str = "end of a job without burstfs: added to a cluster without an epilog";

/// Rounds of jobs, one on each node.
const ROUNDS: usize = 21;

/// How a node's slurmd is set up: plugins, and the programs of `Prolog=` and `Epilog=`.
struct Stack {
    node: &'static str,
    plugins: &'static [&'static str],
    scripts: Option<[&'static str; 2]>,
}

const PLUGIN: &str = "required /opt/burstfs/lib/burstfs/spank_burstfs.so config=/etc/burstfs/burstfs.toml";
const PROLOG_PLUGIN: &str =
    "required /opt/burstfs/lib/burstfs/spank_burstfs_prolog.so config=/etc/burstfs/burstfs.toml";
const EMPTY_PLUGIN: &str = "required /pfs/alice/bench/empty.so";
const OURS: [&str; 2] = ["/opt/burstfs/libexec/burstfs/prolog", "/opt/burstfs/libexec/burstfs/epilog"];
const SITES: [&str; 2] = ["/pfs/alice/bench/site", "/pfs/alice/bench/site"];
const SITES_WITH_OURS: [&str; 2] = ["/pfs/alice/bench/site-prolog", "/pfs/alice/bench/site-epilog"];

const NOTHING: Stack = Stack { node: "node1", plugins: &[], scripts: None };
/// As README has it for a site without scripts of its own, with scripts of its own, and without scripts.
const ALONE: Stack = Stack { node: "node2", plugins: &[PLUGIN], scripts: Some(OURS) };
const BESIDE: Stack = Stack { node: "node3", plugins: &[PLUGIN], scripts: Some(SITES_WITH_OURS) };
const BY_PLUGIN: Stack = Stack { node: "node3", plugins: &[PLUGIN, PROLOG_PLUGIN], scripts: None };
/// What Slurm itself takes for a script that ends at once, and for a plugin whose callbacks return at once.
const SITE: Stack = Stack { node: "node4", plugins: &[], scripts: Some(SITES) };
const EMPTY: Stack = Stack { node: "node4", plugins: &[EMPTY_PLUGIN], scripts: None };

const EMPTY_SOURCE: &str = "#include <slurm/spank.h>
SPANK_PLUGIN(empty, 1)
#define EMPTY(callback) int slurm_spank_##callback(spank_t spank, int argc, char **argv) { return 0; }
EMPTY(job_prolog) EMPTY(job_epilog)
";

pub(super) fn measure(cluster: &Cluster, rows: &mut Vec<Row>) -> Result<()> {
    let (with, without) = versions(cluster)?;
    let against = format!("with {:.1} ms, without {:.1} ms", median_of(&with), median_of(&without));
    rows.push(figure(VERSION, "ms", differences(&with, &without), against));
    prepare(cluster)?;
    let scripts = measure_stacks(cluster, &[NOTHING, ALONE, BESIDE, SITE])?;
    let plugins = measure_stacks(cluster, &[NOTHING, ALONE, BY_PLUGIN, EMPTY])?;
    for (what, pick) in [("start", (|times| times.start) as fn(&Times) -> f64), ("end", |times| times.end)] {
        let column = |times: &[Times]| times.iter().map(pick).collect::<Vec<_>>();
        let mut added = |name: &str, with: &[Times], without: &[Times]| {
            let (with, without) = (column(with), column(without));
            let against = format!("with {:.1} ms, without {:.1} ms", median_of(&with), median_of(&without));
            rows.push(figure(name, "ms", differences(&with, &without), against));
        };
        let [nothing, alone, beside, site] = &scripts;
        let (of_beside, of_alone) = if what == "start" { (START_BESIDE, START_ALONE) } else { (END_BESIDE, END_ALONE) };
        added(of_beside, beside, site);
        added(of_alone, alone, nothing);
        added(
            &format!("{what} of a job without burstfs: of that by Slurm, for a script that ends at once"),
            site,
            nothing,
        );
        let [nothing, _, by_plugin, empty] = &plugins;
        added(&format!("{what} of a job without burstfs: added with spank_burstfs_prolog.so"), by_plugin, nothing);
        added(
            &format!("{what} of a job without burstfs: of that by Slurm, for a plugin that returns at once"),
            empty,
            nothing,
        );
    }
    Ok(())
}

fn prepare(cluster: &Cluster) -> Result<()> {
    let dir = cluster.shared(DIR);
    fs::write(dir.join("empty.c"), EMPTY_SOURCE)?;
    let mut compiler = Command::new("cc");
    let built = compiler.args(["-shared", "-fPIC", "-O2", "-o", "empty.so", "empty.c"]).current_dir(&dir);
    ensure!(built.status()?.success(), "the empty plugin could not be compiled");
    // The line that README gives to a site with scripts of its own.
    let line = |ours: &str| format!("#!/bin/sh\n[ -z \"${{SPANK_BURSTFS_SPEC+x}}\" ] || {ours}\n");
    fs::write(dir.join("site"), "#!/bin/sh\n")?;
    fs::write(dir.join("site-prolog"), line(OURS[0]))?;
    fs::write(dir.join("site-epilog"), line(OURS[1]))?;
    // For sbatch, which loads plugins as well.
    cluster.sh(
        "ctl",
        &format!(
            "cd {DIR} && chmod 755 site* && sed '/^PlugStackConfig/d' /etc/slurm/slurm.conf > slurm.conf \
             && echo PlugStackConfig=/dev/null >> slurm.conf && cp /etc/slurm/cgroup.conf ."
        ),
    )?;
    Ok(())
}

fn measure_stacks<const N: usize>(cluster: &Cluster, stacks: &[Stack; N]) -> Result<[Vec<Times>; N]> {
    let set = stacks.iter().try_for_each(|stack| set(cluster, stack));
    let measured = set.and_then(|()| cluster.control(&["wait-idle"])).and_then(|_| jobs_of(cluster, stacks));
    for stack in stacks {
        cluster.sh(stack.node, "umount /etc/slurm/slurm.conf; rm -rf /run/stack")?;
        cluster.control(&["slurmd", "restart", stack.node])?;
    }
    cluster.control(&["wait-idle"])?;
    measured
}

fn set(cluster: &Cluster, stack: &Stack) -> Result<()> {
    let scripts =
        stack.scripts.map_or_else(String::new, |[prolog, epilog]| format!("Prolog={prolog}\nEpilog={epilog}"));
    let script = format!(
        "mkdir /run/stack && cd /run/stack && echo '{}' > plugstack.conf\n\
         {{ grep -vE '^(PlugStackConfig|Prolog|Epilog)=' /etc/slurm/slurm.conf\n\
         echo 'PlugStackConfig=/run/stack/plugstack.conf\n{scripts}'; }} > slurm.conf && mount --bind slurm.conf /etc/slurm/slurm.conf",
        stack.plugins.join("\n")
    );
    cluster.sh(stack.node, &script)?;
    cluster.control(&["slurmd", "restart", stack.node]).map(drop)
}

fn jobs_of<const N: usize>(cluster: &Cluster, stacks: &[Stack; N]) -> Result<[Vec<Times>; N]> {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=ROUNDS {
        for turn in 0..N {
            // Each comes as often behind each other one: slurmctld is still busy with the job before.
            let at = (round + turn) % N;
            let stack = &stacks[at];
            let has_plugin = stack.plugins.contains(&PLUGIN);
            let environment = if has_plugin { String::new() } else { format!("SLURM_CONF={DIR}/slurm.conf") };
            let mut measured = run_in(cluster, &environment, 1, &[&format!("-w{}", stack.node)])?;
            // What only Slurm does, and at its own pace, is not in it: the job's start counts from its allocation.
            measured.start = measured.first - allocated_ms(cluster, &measured.job)?;
            // The first round reads programs from the disk.
            if round > 0 {
                times[at].push(measured);
            }
        }
    }
    Ok(times)
}

/// Times of `sbatch --version`, in turn, with the cluster's configuration and with one that has no plugins.
fn versions(cluster: &Cluster) -> Result<(Vec<f64>, Vec<f64>)> {
    let script = "sed '/^PlugStackConfig/d' /etc/slurm/slurm.conf > /tmp/slurm.conf; echo PlugStackConfig=/dev/null >> /tmp/slurm.conf\n\
         cp /etc/slurm/cgroup.conf /tmp/\n\
         once() { t0=$(date +%s%N); sbatch --version > /dev/null || exit 1; echo $(($(date +%s%N) - t0)); }\n\
         for i in $(seq 21); do echo \"$(SLURM_CONF=/tmp/slurm.conf once) $(once)\"; done; rm /tmp/slurm.conf /tmp/cgroup.conf";
    let said = cluster.sh("ctl", script)?;
    let figures: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // The first pair reads the programs from the disk.
    let pairs = figures.chunks_exact(2).skip(1);
    Ok(pairs.map(|pair| (pair[1] / 1e6, pair[0] / 1e6)).unzip())
}
