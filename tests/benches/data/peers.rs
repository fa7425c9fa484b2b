//! Other file systems on nodes of this machine (`tests/benches/peers`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) const NAMES: [&str; 2] = ["gluster", "moosefs"];

/// One that is up; taken down when dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Where its first node has it.
    pub(crate) dir: String,
}

impl Peer {
    pub(crate) fn up(name: &'static str) -> Result<Peer> {
        script(&["install"])?;
        script(&["down", name])?;
        script(&["up", name])?;
        let dir = script(&["path", name])?.trim().to_owned();
        Ok(Peer { name, dir })
    }

    /// Where a node, counted from 0, has it.
    pub(crate) fn dir_of(&self, node: usize) -> Result<String> {
        Ok(script(&["path", self.name, &(node + 1).to_string()])?.trim().to_owned())
    }

    /// What a command on its first node says.
    pub(crate) fn sh(&self, command: &str) -> Result<String> {
        script(&["run", self.name, "sh", "-c", command])
    }

    /// Processor time of its daemons and mounts, ns.
    pub(crate) fn cpu_ns(&self) -> Result<f64> {
        script(&["cpu", self.name])?.trim().parse().context("processor time of a peer")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = script(&["down", self.name]) {
            eprintln!("{error:#}");
        }
    }
}

fn script(args: &[&str]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let output = Command::new(path).args(args).output()?;
    ensure!(output.status.success(), "peers {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
