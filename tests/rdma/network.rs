//! The machine's RDMA devices, and its cable.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Runs a line of shell with the functions of `tests/rdma/network.sh`.
pub(crate) fn network(line: &str) -> Result<()> {
    let functions =
        std::env::var("BURSTFS_RDMA_NETWORK").context("BURSTFS_RDMA_NETWORK is not set; use `make rdma-test`")?;
    let status = Command::new("bash").args(["-c", &format!(". '{functions}'; {line}")]).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// What the kernel counts of all devices: protection domains, queues, registrations and the like.
pub(crate) fn resources() -> Result<String> {
    rdma(&["resource", "show"])
}

/// How many connected queue pairs each process has on each device, by process number and device. The kernel names the thread that
/// made one.
pub(crate) fn queue_pairs() -> Result<BTreeMap<(u32, String), usize>> {
    let text = rdma(&["-j", "resource", "show", "qp"])?;
    let entries: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let mut counts = BTreeMap::new();
    for entry in entries.as_array().into_iter().flatten() {
        let (kind, state) = (entry["type"].as_str(), entry["state"].as_str());
        let (Some(pid), Some(device)) = (entry["pid"].as_u64(), entry["ifname"].as_str()) else { continue };
        let process = process_of(pid);
        if let (Some("RC"), Some("RTS"), Some(process)) = (kind, state, process) {
            *counts.entry((process, device.to_owned())).or_default() += 1;
        }
    }
    Ok(counts)
}

/// The process of a thread, where it is still there.
fn process_of(thread: u64) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

fn rdma(arguments: &[&str]) -> Result<String> {
    let output = Command::new("rdma").args(arguments).output()?;
    ensure!(output.status.success(), "rdma {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
