//! One scenario on the cluster: its directories, its cleaning up, and the checks after it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::clean;
use crate::cluster::Cluster;
use crate::job::JobBuilder;
use crate::logs::Mark;
use crate::wait::{SOON, wait_until};

/// There is one cluster, and every scenario looks at all of it afterwards.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The cluster's users.
const USERS: [&str; 2] = ["alice", "bob"];

/// A scenario that runs.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// Where it runs.
    pub cluster: &'a Cluster,
    name: String,
    allowed: Vec<String>,
    undo: Vec<(String, String)>,
}

impl<'a> Scenario<'a> {
    /// The scenario's own directory of `user` on the parallel file system, as the nodes see it.
    pub fn dir(&self, user: &str) -> Result<String> {
        let dir = format!("/pfs/{user}/{}", self.name);
        let here = self.cluster.shared(&dir);
        if !here.exists() {
            fs::create_dir(&here)?;
            let owner = uid_of(user)?;
            chown(&here, Some(owner), Some(owner))?;
            fs::set_permissions(&here, fs::Permissions::from_mode(0o700))?;
        }
        Ok(dir)
    }

    /// The same, as this process sees it.
    pub fn path(&self, user: &str) -> Result<PathBuf> {
        Ok(self.cluster.shared(&self.dir(user)?))
    }

    /// A job of `user`, on four nodes, submitted from the scenario's directory.
    pub fn job(&self, user: &str) -> Result<JobBuilder<'a>> {
        Ok(JobBuilder::new(self.cluster, user, &self.dir(user)?))
    }

    /// Lines with these words may be in the logs at ERROR or WARN.
    pub fn allow(&mut self, words: &str) {
        self.allowed.push(words.to_owned());
    }

    /// A job whose file system cannot be had, for a reason with this code: burstfs says the code, and slurmstepd that it does
    /// not run the tasks.
    pub fn allow_failed_start(&mut self, code: &str) {
        for words in [code, "task_init_privileged", "write to unblock task"] {
            self.allow(words);
        }
    }

    /// A `burstfsd` is killed: its supervisor says so, and so does its broker, if it had answers for it.
    pub fn allow_killed_daemon(&mut self) {
        self.allow("E301: burstfsd ended: killed by signal 9");
        self.allow("E301: burstfsd ended while it drained: killed by signal 9");
        self.allow("burstfsd ended without having heard of all files that it had registered");
    }

    /// A supervisor is killed: its `burstfsd` says so, and that the broker went with it.
    pub fn allow_killed_supervisor(&mut self) {
        self.allow("burstfs-node's broker is gone");
        self.allow("the supervisor is gone; this daemon goes on serving");
    }

    /// Runs `script` as root on `node`, and `undo` at the scenario's end, however it ends.
    pub fn change(&mut self, node: &str, script: &str, undo: &str) -> Result<()> {
        self.undo.push((node.to_owned(), undo.to_owned()));
        self.cluster.sh(node, script).map(drop)
    }

    /// Undoes what [`Scenario::change`] did, the last first.
    pub fn undo(&mut self) -> Result<()> {
        while let Some((node, script)) = self.undo.pop() {
            self.cluster.sh(&node, &script)?;
        }
        Ok(())
    }
}

/// The user's number, in the cluster's own list of users.
fn uid_of(user: &str) -> Result<u32> {
    let users = fs::read_to_string(Cluster::get()?.shared("/etc/passwd"))?;
    let line = users.lines().find(|line| line.split(':').next() == Some(user));
    let uid = line.and_then(|line| line.split(':').nth(2)).with_context(|| format!("no user {user}"))?;
    Ok(uid.parse()?)
}

/// Runs `body` alone on the cluster; afterwards nothing of burstfs is left on any node, all nodes are idle, and no log
/// has an ERROR or WARN that the scenario does not allow.
///
/// # Panics
/// If `body` does.
pub fn scenario(name: &str, body: impl FnOnce(&mut Scenario<'_>) -> Result<()>) -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::get()?;
    let mut scenario = Scenario { cluster, name: name.to_owned(), allowed: Vec::new(), undo: Vec::new() };
    for user in USERS {
        let old = cluster.shared(&format!("/pfs/{user}/{name}"));
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    let mark = Mark::now(cluster)?;
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut scenario)));
    let verdict = match outcome {
        Ok(verdict) => verdict.and_then(|()| judge(&mut scenario, &mark)),
        Err(panic) => {
            recover(&mut scenario);
            resume_unwind(panic);
        }
    };
    if verdict.is_err() {
        recover(&mut scenario);
    }
    verdict.with_context(|| format!("scenario {name}; logs are in {}", kept_logs(name).display()))
}

fn judge(scenario: &mut Scenario<'_>, mark: &Mark) -> Result<()> {
    scenario.undo()?;
    clean::ensure_clean(scenario.cluster)?;
    let lines = mark.unexpected(scenario.cluster, &scenario.allowed)?;
    if !lines.is_empty() {
        bail!("unexpected lines in the logs:\n{}", lines.join("\n"));
    }
    Ok(())
}

fn kept_logs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e").join(name)
}

/// After a failure: keeps the logs, ends what runs, and makes the cluster fit for the next scenario. Failures in here are
/// only told, since the scenario's own is the one that matters.
fn recover(scenario: &mut Scenario<'_>) {
    let cluster = scenario.cluster;
    if let Err(error) = keep_logs(scenario) {
        eprintln!("the logs could not be kept: {error:#}");
    }
    let calmed = scenario.undo().and_then(|()| calm(cluster)).and_then(|()| clean::ensure_clean(cluster));
    if let Err(error) = calmed {
        eprintln!("the cluster is brought up anew: {error:#}");
        if let Err(error) = cluster.renew() {
            eprintln!("no cluster any more: {error:#}");
        }
    }
}

fn keep_logs(scenario: &Scenario<'_>) -> Result<()> {
    let kept = kept_logs(&scenario.name);
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(&kept)?;
    for node in ["ctl", "node1", "node2", "node3", "node4"] {
        let copied = Command::new("cp").arg("-r").arg(scenario.cluster.logs(node)).arg(kept.join(node)).status()?;
        if !copied.success() {
            bail!("cp of the logs of {node}: {copied}");
        }
    }
    Ok(())
}

fn calm(cluster: &Cluster) -> Result<()> {
    cluster.control(&["x", "ctl", "sh", "-c", "squeue -h -o %i | xargs -r scancel"])?;
    wait_until("an empty queue", SOON, || Ok(cluster.control(&["x", "ctl", "squeue", "-h"])?.is_empty()))
}
