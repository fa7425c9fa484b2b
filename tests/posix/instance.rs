//! A job that holds a four-node instance while something else uses it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burstfs_tests::{Job, SOON, Scenario};

/// An instance that lives until it is ended. In its root is the directory `open`, where every user may make files.
pub(crate) struct Instance<'a> {
    job: Job<'a>,
    /// Where it is mounted, on every node.
    pub(crate) mount: String,
}

impl<'a> Instance<'a> {
    /// Submits the job of alice and waits until it runs.
    pub(crate) fn start(scenario: &Scenario<'a>) -> Result<Instance<'a>> {
        let job = scenario
            .job("alice")?
            // Enough on each node that its own files are the kernel's.
            .burstfs("capacity=1600MiB")
            .script("mkdir -m 1777 $BURSTFS/open && echo ready; until [ -e go ]; do sleep 0.05; done")
            .submit()?;
        job.wait_line("ready")?;
        let mount = format!("/burstfs/{}", job.id);
        Ok(Instance { job, mount })
    }

    /// Lets the job end.
    pub(crate) fn end(self) -> Result<()> {
        self.job.touch("go")?;
        self.job.wait_success(SOON)
    }
}

/// Copies a suite's program to the scenario's directory; its path on the nodes.
pub(crate) fn suite(scenario: &Scenario<'_>, program: &str) -> Result<String> {
    let suites =
        std::env::var_os("BURSTFS_POSIX_SUITES").context("BURSTFS_POSIX_SUITES is not set; use `make posix`")?;
    let source = Path::new(&suites).join(program);
    fs::copy(&source, scenario.path("alice")?.join(program)).with_context(|| source.display().to_string())?;
    Ok(format!("{}/{program}", scenario.dir("alice")?))
}
