//! An instance on this machine's nodes, started and stopped by what Slurm's prologs and epilogs run.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use burstfs_spec::{Accumulator, NoProfiles};
use burstfs_tests::{Receipt, SOON, wait_for, wait_until};
use serde_json::Value;

use crate::machine::{self, CLUSTER, NODES, UID, WORK};
use crate::network;

/// The job.
pub(crate) const JOB: u32 = 7;

/// A running instance. Dropped without an end, by a test that fails, it is stopped, so that the next one finds none.
pub(crate) struct Instance {
    has_ended: bool,
    nodes: usize,
    /// What node2's helper is run by.
    wrapper: Vec<String>,
    spec: String,
    /// What the devices had before it.
    resources: String,
}

impl Instance {
    /// Starts one on as many nodes as there are lines: each is what the node's configuration says below `[network]`.
    pub(crate) fn start(directives: &[&str], networks: &[&str]) -> Result<Instance> {
        Instance::start_wrapped(directives, networks, &[])
    }

    /// The same; what Slurm runs on node2 is run by `wrapper`, a command that takes another one behind its arguments.
    pub(crate) fn start_wrapped(directives: &[&str], networks: &[&str], wrapper: &[&str]) -> Result<Instance> {
        machine::set_up()?;
        let mut accumulator = Accumulator::default();
        for directive in directives {
            accumulator.add(directive, &NoProfiles).map_err(|error| anyhow::anyhow!("{directive}: {error}"))?;
        }
        let spec = accumulator.finish()?.context("no directive")?.to_json()?;
        let wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let mut instance =
            Instance { has_ended: false, nodes: networks.len(), wrapper, spec, resources: network::resources()? };
        for (node, network) in instance.nodes().zip(networks) {
            configure(&node, network)?;
        }
        fs::write(machine::COMMENT, "")?;
        instance.on_all_nodes("start")?;
        let outcomes = instance.nodes().map(|node| Ok((instance.outcome(&node)?, instance.log(&node), node)));
        let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
        if outcomes.iter().all(|(outcome, ..)| outcome["state"] == "ready") {
            return Ok(instance);
        }
        instance.has_ended = true;
        instance.on_all_nodes("stop")?;
        let said: Vec<_> = outcomes.iter().map(|(outcome, log, node)| format!("{node}: {outcome}\n{log}")).collect();
        bail!("{}", said.join("\n"))
    }

    /// The nodes' names.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.nodes).map(|number| format!("node{number}"))
    }

    /// How the start went on a node.
    fn outcome(&self, node: &str) -> Result<Value> {
        let path = Path::new(NODES).join(node).join("run").join(name()).join("outcome.json");
        let text = fs::read_to_string(&path).with_context(|| format!("{}\n{}", path.display(), self.log(node)))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A path of the file system, as mounted on a node.
    pub(crate) fn path(&self, node: &str, path: &str) -> PathBuf {
        Path::new(NODES).join(node).join("burstfs").join(JOB.to_string()).join(path)
    }

    /// A node's log; empty where there is none yet.
    pub(crate) fn log(&self, node: &str) -> String {
        let path = Path::new(NODES).join(node).join("log").join(format!("{}.log", name()));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// The process of a node's `burstfsd`.
    pub(crate) fn daemon(&self, node: &str) -> Result<Option<u32>> {
        let procs = format!("/sys/fs/cgroup/burstfs/{node}.{}/daemon/cgroup.procs", name());
        let members = fs::read_to_string(&procs).with_context(|| procs.clone())?;
        let is_daemon =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "burstfsd");
        members.lines().find(is_daemon).map(|pid| Ok(pid.parse()?)).transpose()
    }

    /// Kills a node's `burstfsd`, and waits until another one serves the node's mount.
    pub(crate) fn kill(&self, node: &str) -> Result<()> {
        let old = self.daemon(node)?.with_context(|| format!("no burstfsd on {node}"))?;
        machine::sh(&format!("kill -9 {old}"))?;
        wait_until(&format!("another burstfsd on {node}"), SOON, || {
            Ok(self.daemon(node)?.is_some_and(|pid| pid != old) && fs::read_dir(self.path(node, "")).is_ok())
        })
    }

    /// What the instance talks over, as its user is told. An emulated machine may take longer to answer than the command waits.
    pub(crate) fn transport(&self) -> Result<String> {
        let config = Path::new(NODES).join("node1/burstfs.toml");
        let command = format!("{} --config {} status --json", machine::program("burstfs")?.display(), config.display());
        let said = wait_for("an answer of burstfs status", SOON, || Ok(machine::sh_as("alice", &command).ok()))?;
        let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let transport = status.pointer("/instances/0/transport").and_then(Value::as_str);
        Ok(transport.with_context(|| said.clone())?.to_owned())
    }

    /// Ends it as the job's end does: everything is drained, and nothing of it is left on the machine.
    pub(crate) fn end(mut self) -> Result<()> {
        self.has_ended = true;
        self.on_all_nodes("stop")?;
        if Path::new(WORK).join(format!("burstfs-{JOB}.receipt.json")).exists() {
            let receipt = Receipt::read(&Path::new(WORK).join(format!("burstfs-{JOB}.receipt.json")), Path::new("/"))?;
            receipt.ensure_complete()?;
        }
        ensure!(!machine::sh("cat /proc/mounts")?.contains("fuse.burstfs"), "a mount is left");
        ensure!(machine::sh("pgrep -x burstfsd || true")?.is_empty(), "a daemon is left");
        for node in self.nodes() {
            let nvme = Path::new(NODES).join(&node).join("nvme");
            ensure!(fs::read_dir(&nvme)?.next().is_none(), "data is left on {node}");
        }
        wait_until("the kernel to have all RDMA resources back", SOON, || Ok(network::resources()? == self.resources))
    }

    fn on_all_nodes(&self, word: &str) -> Result<()> {
        let started = self.nodes().map(|node| Ok((node.clone(), self.job_command(&node, word)?.spawn()?)));
        let running = started.collect::<Result<Vec<(String, Child)>>>()?;
        for (node, child) in running {
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() || said.contains("E5") {
                bail!("{node}: {word}: {}\n{said}\n{}", output.status, self.log(&node));
            }
        }
        Ok(())
    }

    /// What slurmd has the plugin run.
    fn job_command(&self, node: &str, word: &str) -> Result<Command> {
        let wrapper = if node == "node2" { &self.wrapper[..] } else { &[] };
        let mut words: Vec<OsString> = wrapper.iter().map(OsString::from).collect();
        words.push(machine::program("burstfs-node")?.into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args([word, "--config", &format!("{NODES}/{node}/burstfs.toml")])
            .env_clear()
            .env("PATH", format!("{NODES}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
            .env("BURSTFS_SPEC", &self.spec)
            .env("SLURM_JOB_ID", JOB.to_string())
            .env("SLURM_JOB_UID", UID.to_string())
            .env("SLURM_JOB_GID", UID.to_string())
            .env("SLURM_JOB_USER", "alice")
            .env("SLURM_NODELIST", self.nodes().collect::<Vec<_>>().join(","))
            .env("SLURMD_NODENAME", node)
            .env("SLURM_CLUSTER_NAME", CLUSTER)
            .env("SLURM_JOB_RESTART_COUNT", "0")
            .env("SLURM_JOB_WORK_DIR", WORK)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.has_ended
            && let Err(error) = self.on_all_nodes("stop")
        {
            eprintln!("{error:#}");
        }
    }
}

fn name() -> String {
    format!("{CLUSTER}.{JOB}.0")
}

fn configure(node: &str, network: &str) -> Result<()> {
    let dir = Path::new(NODES).join(node);
    for name in ["nvme", "run", "log", "burstfs"] {
        fs::create_dir_all(dir.join(name))?;
    }
    // What an earlier instance of the same name said is not this one's.
    fs::write(dir.join("log").join(format!("{}.log", name())), "")?;
    let (here, daemon) = (dir.display(), machine::program("burstfsd")?);
    let daemon = daemon.display();
    let text = format!(
        "nvme = \"{here}/nvme\"\nrun_dir = \"{here}/run\"\nlog_dir = \"{here}/log\"\nmount_base = \"{here}/burstfs\"\n\
         default_capacity = \"64MiB\"\n[programs]\ndaemon = \"{daemon}\"\n\
         [network]\n{network}\n[timeouts]\nstart = \"120s\"\nsilence = \"90s\"\n"
    );
    Ok(fs::write(dir.join("burstfs.toml"), text)?)
}
