//! The virtual cluster, by its script.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The compute nodes.
pub const NODES: [&str; 4] = ["node1", "node2", "node3", "node4"];

/// Where burstfs is installed on the nodes.
const PREFIX: &str = "/opt/burstfs";

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    script: PathBuf,
    state: PathBuf,
}

impl Cluster {
    /// The cluster, brought up if it is not.
    pub fn get() -> Result<&'static Cluster> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let cluster = CLUSTER.get_or_init(|| Cluster::bring_up().map_err(|error| format!("{error:#}")));
        cluster.as_ref().map_err(|error| anyhow!("no cluster: {error}"))
    }

    fn bring_up() -> Result<Cluster> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/cluster");
        let path = checked(Command::new(&script).arg("path").output()?, "cluster path")?;
        let cluster = Cluster { script, state: PathBuf::from(path.trim()) };
        cluster.control(&["up"])?;
        Ok(cluster)
    }

    /// Takes it down and brings it up again: what is left when a scenario spoilt it.
    pub fn renew(&self) -> Result<()> {
        self.control(&["down"])?;
        self.control(&["up"])?;
        Ok(())
    }

    /// A command of the cluster's script (`slurmd kill node2`); its output.
    pub fn control(&self, args: &[&str]) -> Result<String> {
        checked(self.command(args).output()?, &format!("cluster {}", args.join(" ")))
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// What a shell as root on `node` says; an error if it fails.
    pub fn sh(&self, node: &str, script: &str) -> Result<String> {
        checked(self.try_sh(node, script)?, &format!("on {node}: {script}"))
    }

    /// As [`Cluster::sh`], whatever the exit status.
    pub fn try_sh(&self, node: &str, script: &str) -> Result<Output> {
        Ok(self.command(&["x", node, "sh", "-c", script]).output()?)
    }

    /// A shell of `user` on `node`, outside any job, with his groups.
    pub fn try_sh_as(&self, node: &str, user: &str, script: &str) -> Result<Output> {
        Ok(self.command_as(node, user, script).output()?)
    }

    /// The same, to be started.
    pub fn command_as(&self, node: &str, user: &str, script: &str) -> Command {
        let identity = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env"];
        let path = format!("PATH={PREFIX}/bin:/usr/local/bin:/usr/bin:/bin");
        let mut args = vec!["x", node];
        args.extend(identity);
        args.extend(["--", "env", &path, "sh", "-c", script]);
        self.command(&args)
    }

    /// A command of `user` on the login node, in `dir`, with `environment` (`NAME=value`, or nothing).
    pub fn login<S: AsRef<OsStr>>(&self, user: &str, dir: &str, environment: &str, args: &[S]) -> Result<Output> {
        let mut command = self.command(&["as", user]);
        command.args(args).env("CLUSTER_WD", dir).env("CLUSTER_ENV", environment);
        Ok(command.output()?)
    }

    /// `path` of the parallel file system or of homes, as this process sees it.
    pub fn shared(&self, path: &str) -> PathBuf {
        self.state.join(path.trim_start_matches('/'))
    }

    /// `path` of a node, as this process sees it: quick to look at, since no process has to be started on the node.
    pub fn on_node(&self, node: &str, path: &str) -> Result<PathBuf> {
        let pid = fs::read_to_string(self.state.join(node).join("init.pid")).context(node.to_owned())?;
        let pid = pid.split_whitespace().next().with_context(|| format!("{node}: no process 1"))?;
        Ok(Path::new("/proc").join(pid).join("root").join(path.trim_start_matches('/')))
    }

    /// Logs of a node (`ctl` has slurmctld's).
    pub fn logs(&self, node: &str) -> PathBuf {
        self.state.join(node).join("var/log")
    }

    /// Numbers of the processes with this program name on `node`, as the node numbers them.
    pub fn pids(&self, node: &str, name: &str) -> Result<Vec<u32>> {
        let output = self.try_sh(node, &format!("pgrep -x {name}"))?;
        String::from_utf8_lossy(&output.stdout).lines().map(|line| Ok(line.trim().parse()?)).collect()
    }

    /// The only process with this program name on `node`.
    pub fn only_pid(&self, node: &str, name: &str) -> Result<u32> {
        match self.pids(node, name)?[..] {
            [pid] => Ok(pid),
            ref pids => bail!("one process {name} expected on {node}, found {pids:?}"),
        }
    }
}

/// The output of a command that succeeded; else an error with what it said.
pub(crate) fn checked(output: Output, what: &str) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
