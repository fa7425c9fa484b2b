//! Loads of fio in a directory of a node: how fast, and at what cost of processor time.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;

/// What fio does, on one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// fio's word: `read`, `write`, `randread`, `randwrite`.
    pub kind: &'static str,
    /// Bytes of one system call.
    pub block: u64,
    /// `O_DIRECT`.
    pub is_direct: bool,
}

/// Where it does it, and who.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The node.
    pub node: &'a str,
    /// Who.
    pub user: &'a str,
    /// The directory.
    pub dir: &'a str,
    /// Programs whose processor time counts as well.
    pub servers: &'a [&'a str],
    /// On these nodes.
    pub served_by: &'a [&'a str],
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
    /// MiB per second.
    pub rate: f64,
    /// Seconds of processor time per GiB, of fio and of the servers.
    pub cpu: f64,
}

/// How large the file is, and how long a load runs over it.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Bytes.
    pub file: u64,
    /// Milliseconds.
    pub runtime_ms: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
}

/// What the threads of these programs have had of the processors on these nodes, in ns.
pub fn cpu_ns(cluster: &Cluster, nodes: &[&str], programs: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes.iter().filter(|_| !programs.is_empty()) {
        let script = format!(
            r#"for program in {}; do for pid in $(pgrep -x "$program"); do cat /proc/$pid/task/*/schedstat; done; done |
               awk '{{ sum += $1 }} END {{ printf "%.0f\n", sum }}'"#,
            programs.join(" ")
        );
        sum += cluster.sh(node, &script)?.trim().parse::<f64>().with_context(|| format!("{node}: schedstat"))?;
    }
    Ok(sum)
}

impl Load {
    /// `1 MiB sequential read, O_DIRECT`.
    pub fn name(&self) -> String {
        let block = if self.block < 1 << 20 {
            format!("{} KiB", self.block >> 10)
        } else {
            format!("{} MiB", self.block >> 20)
        };
        let order = if self.kind.starts_with("rand") { "random" } else { "sequential" };
        let how = if self.is_direct { "O_DIRECT" } else { "buffered" };
        format!("{block} {order} {}, {how}", self.kind.trim_start_matches("rand"))
    }

    /// fio's command line for a file in `dir`.
    pub fn command(&self, dir: &str, slice: Slice) -> String {
        let (Load { kind, block, is_direct }, Slice { file, runtime_ms, offset }) = (self, slice);
        format!(
            "cd {dir} && fio --name=load --filename=load --rw={kind} --bs={block} --direct={} --size={file} \
             --offset={offset} --runtime={runtime_ms}ms --time_based --invalidate=0 --fallocate=none --ioengine=psync --output-format=json",
            u8::from(*is_direct)
        )
    }

    /// Runs it once. What is dirty is written back before, so that nobody pays for the run before his.
    pub fn run(&self, cluster: &Cluster, place: &Place<'_>, slice: Slice) -> Result<Outcome> {
        let Place { node, user, dir, servers, served_by } = place;
        let before = cpu_ns(cluster, served_by, servers)?;
        let script = format!(
            "sync; setpriv --reuid {user} --regid {user} --init-groups --reset-env sh -c '{}'",
            self.command(dir, slice)
        );
        let said = cluster.sh(node, &script)?;
        Outcome::parse(&said, cpu_ns(cluster, served_by, servers)? - before)
    }
}

impl Outcome {
    /// From what fio says, and the servers' processor time.
    pub fn parse(said: &str, servers_ns: f64) -> Result<Outcome> {
        let (start, end) = said.find('{').zip(said.rfind('}')).with_context(|| format!("fio: {said}"))?;
        let job: Value = serde_json::from_str(&said[start..=end]).with_context(|| format!("fio: {said}"))?;
        outcome(&job["jobs"][0], servers_ns)
    }
}

fn outcome(job: &Value, servers_ns: f64) -> Result<Outcome> {
    let sum = |key: &str| ["read", "write"].iter().map(|side| job[side][key].as_f64().unwrap_or(0.0)).sum::<f64>();
    let (bytes, seconds) = (sum("io_bytes"), sum("runtime") / 1e3);
    let percent = job["usr_cpu"].as_f64().context("usr_cpu")? + job["sys_cpu"].as_f64().context("sys_cpu")?;
    ensure!(job["error"] == 0 && bytes > 0.0 && seconds > 0.0, "fio: {job:#}");
    let cpu_seconds = percent / 100.0 * seconds + servers_ns / 1e9;
    Ok(Outcome { rate: bytes / seconds / f64::from(1 << 20), cpu: cpu_seconds / (bytes / f64::from(1 << 30)) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loads_have_names() {
        let load = Load { kind: "randwrite", block: 4096, is_direct: true };
        assert_eq!(load.name(), "4 KiB random write, O_DIRECT");
        assert_eq!(Load { kind: "read", block: 1 << 20, is_direct: false }.name(), "1 MiB sequential read, buffered");
    }

    #[test]
    fn what_fio_says_is_understood() {
        let job = json!({
            "error": 0, "usr_cpu": 10.0, "sys_cpu": 40.0,
            "read": { "io_bytes": 1_u64 << 30, "runtime": 500 }, "write": { "io_bytes": 0, "runtime": 0 },
        });
        let outcome = outcome(&job, 0.25e9).unwrap();
        assert_eq!((outcome.rate, outcome.cpu), (2048.0, 0.5));
        assert!(super::outcome(&json!({ "error": 28 }), 0.0).is_err());
    }
}
