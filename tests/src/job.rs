//! Jobs: how they are submitted and what can be seen of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, checked};
use crate::receipt::Receipt;
use crate::wait::{SOON, wait_for, wait_until};

/// A batch job that is being written.
#[derive(Clone, Debug)]
pub struct JobBuilder<'a> {
    cluster: &'a Cluster,
    user: String,
    dir: String,
    nodes: usize,
    directives: Vec<String>,
    script: String,
    options: Vec<String>,
    environment: String,
}

/// What `sbatch` said when it refused a job.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub message: String,
}

/// A job that was submitted.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    cluster: &'a Cluster,
    /// Its number.
    pub id: u32,
    /// The directory it was submitted from, as the nodes see it.
    pub dir: String,
}

impl<'a> JobBuilder<'a> {
    pub(crate) fn new(cluster: &'a Cluster, user: &str, dir: &str) -> Self {
        JobBuilder {
            cluster,
            user: user.to_owned(),
            dir: dir.to_owned(),
            nodes: 4,
            directives: Vec::new(),
            script: "true".to_owned(),
            options: Vec::new(),
            environment: String::new(),
        }
    }

    /// On how many nodes; 4 if not said.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// One `#SBATCH --burstfs=` line more.
    pub fn burstfs(mut self, directive: impl Into<String>) -> Self {
        self.directives.push(directive.into());
        self
    }

    /// What the job runs, by bash.
    pub fn script(mut self, script: impl Into<String>) -> Self {
        self.script = script.into();
        self
    }

    /// An option of sbatch's command line.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// `NAME=value` of sbatch's environment, without white space.
    pub fn environment(mut self, variable: &str) -> Self {
        self.environment = variable.to_owned();
        self
    }

    fn text(&self) -> String {
        let mut text = format!("#!/bin/bash\n#SBATCH --nodes={}\n#SBATCH --ntasks-per-node=1\n", self.nodes);
        for directive in &self.directives {
            text.push_str(&format!("#SBATCH --burstfs=\"{directive}\"\n"));
        }
        text + &self.script + "\n"
    }

    fn sbatch(&self) -> Result<std::process::Output> {
        let script = self.cluster.shared(&self.dir).join("job.sh");
        fs::write(&script, self.text())?;
        let mut args = vec!["sbatch".to_owned(), "--parsable".to_owned()];
        args.extend(self.options.iter().cloned());
        args.push("job.sh".to_owned());
        self.cluster.login(&self.user, &self.dir, &self.environment, &args)
    }

    /// Submits it.
    pub fn submit(self) -> Result<Job<'a>> {
        let said = checked(self.sbatch()?, "sbatch")?;
        let id =
            said.trim().split(';').next().unwrap_or_default().parse().with_context(|| format!("sbatch: {said}"))?;
        Ok(Job { cluster: self.cluster, id, dir: self.dir })
    }

    /// Submits it and expects that it is refused.
    pub fn refused(self) -> Result<Refusal> {
        let output = self.sbatch()?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "accepted, though it should be refused:\n{}\n{message}", self.text());
        Ok(Refusal { status: output.status.code().unwrap_or(-1), message })
    }
}

impl Job<'_> {
    /// What Slurm knows of it. Words without `=` belong to the value before them and are dropped.
    pub fn facts(&self) -> Result<BTreeMap<String, String>> {
        let text =
            self.cluster.control(&["x", "ctl", "scontrol", "--oneliner", "show", "job", &self.id.to_string()])?;
        let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn fact(&self, key: &str) -> Result<String> {
        self.facts()?.remove(key).with_context(|| format!("job {}: Slurm says no {key}", self.id))
    }

    /// `JobState`.
    pub fn state(&self) -> Result<String> {
        self.fact("JobState")
    }

    /// `exit:signal` of the script.
    pub fn exit_code(&self) -> Result<String> {
        self.fact("ExitCode")
    }

    /// Waits until the job has left all its nodes; its state then.
    pub fn wait_end(&self, patience: Duration) -> Result<String> {
        let what = format!("the end of job {}", self.id);
        let ended = wait_for(&what, patience, || {
            let state = self.state()?;
            let goes_on = ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"].contains(&state.as_str());
            Ok((!goes_on).then_some(state))
        });
        ended.with_context(|| self.description())
    }

    /// Waits for the end, and that it is COMPLETED with 0.
    pub fn wait_success(&self, patience: Duration) -> Result<()> {
        let state = self.wait_end(patience)?;
        ensure!(
            state == "COMPLETED" && self.exit_code()? == "0:0",
            "job {} is {state}\n{}",
            self.id,
            self.description()
        );
        Ok(())
    }

    /// Waits for the end, and that it is FAILED with `words` in its output.
    pub fn wait_failure(&self, patience: Duration, words: &[&str]) -> Result<()> {
        let state = self.wait_end(patience)?;
        ensure!(state == "FAILED", "job {} is {state}, not FAILED\n{}", self.id, self.description());
        let output = self.output()?;
        for word in words {
            ensure!(output.contains(word), "job {}: no \"{word}\" in its output:\n{output}", self.id);
        }
        Ok(())
    }

    /// Waits until the script has said `line`.
    pub fn wait_line(&self, line: &str) -> Result<()> {
        let what = format!("job {} to say \"{line}\"", self.id);
        let said = wait_until(&what, SOON, || {
            let has_said = || self.output().unwrap_or_default().lines().any(|said| said == line);
            let has = has_said();
            // What it says last may come between the look at its output and the look at its state.
            if !has && !["PENDING", "RUNNING", "CONFIGURING"].contains(&self.state()?.as_str()) && !has_said() {
                bail!("job {} ended before it said \"{line}\"", self.id);
            }
            Ok(has)
        });
        said.with_context(|| self.description())
    }

    /// A file of the directory that the job was submitted from, as this process sees it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.cluster.shared(&self.dir).join(name)
    }

    /// Lets a script that waits for `name` go on.
    pub fn touch(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.file(name), "")?)
    }

    /// What the script and Slurm printed.
    pub fn output(&self) -> Result<String> {
        let path = self.file(&format!("slurm-{}.out", self.id));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// The receipt of its drain.
    pub fn receipt(&self) -> Result<Receipt> {
        Receipt::read(&self.file(&format!("burstfs-{}.receipt.json", self.id)), &self.cluster.shared("/"))
    }

    /// The id of its instance.
    pub fn instance(&self, restart: u32) -> Result<String> {
        let config = self.cluster.control(&["x", "ctl", "scontrol", "show", "config"])?;
        let line = config.lines().find(|line| line.starts_with("ClusterName"));
        let name = line.and_then(|line| line.split('=').nth(1)).context("no ClusterName")?;
        Ok(format!("{}.{}.{restart}", name.trim(), self.id))
    }

    /// Ends it.
    pub fn cancel(&self) -> Result<()> {
        self.cluster.control(&["x", "ctl", "scancel", &self.id.to_string()]).map(drop)
    }

    /// Everything about it that helps to understand a failure.
    fn description(&self) -> String {
        let facts = self.cluster.control(&["x", "ctl", "scontrol", "show", "job", &self.id.to_string()]);
        let output = self.output().unwrap_or_else(|error| format!("({error:#})"));
        format!("{}\n-- its output:\n{output}", facts.unwrap_or_else(|error| format!("{error:#}")))
    }
}
