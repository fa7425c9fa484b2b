//! A job that does nothing but hold its instance.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use burstfs_tests::fio::Place;
use burstfs_tests::{Cluster, SOON, wait_until};

pub(crate) const NODES: [&str; 4] = ["node1", "node2", "node3", "node4"];
pub(crate) const USER: &str = "alice";
/// On the same device as burstfs's own directory.
pub(crate) const RAW: &str = "/local/raw";
const DIR: &str = "/pfs/alice/bench-data";
const SERVERS: &[&str] = &["burstfsd", "burstfs-backing"];

pub(crate) struct Instance<'a> {
    pub(crate) cluster: &'a Cluster,
    /// Directories: `own<n>` with files of node n, `striped`, `auto`.
    pub(crate) mount: String,
}

impl<'a> Instance<'a> {
    pub(crate) fn start(cluster: &'a Cluster) -> Result<Instance<'a>> {
        let here = cluster.shared(DIR);
        if here.exists() {
            fs::remove_dir_all(&here)?;
        }
        fs::create_dir_all(&here)?;
        fs::copy(std::env::current_exe()?, here.join("driver"))?;
        cluster.sh("ctl", &format!("chown -R {USER}: {DIR}"))?;
        let script = "cd $BURSTFS && mkdir own striped auto && burstfs layout set local own && \
                      burstfs layout set striped:count=all,size=1MiB striped && cd - && \
                      srun sh -c 'mkdir $BURSTFS/own/$(hostname); touch $BURSTFS/own/$(hostname)/load' && touch up; \
                      until [ -e go ]; do sleep 0.05; done";
        let nodes = NODES.join(",");
        let args = [
            "sbatch",
            "--parsable",
            "-N4",
            "-w",
            &nodes,
            "-o",
            "job.out",
            "--burstfs=per_node=800MiB",
            "--wrap",
            script,
        ];
        let output = cluster.login(USER, DIR, "", &args)?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "sbatch: {}", String::from_utf8_lossy(&output.stderr));
        wait_until("the job to run", SOON, || Ok(here.join("up").exists()))?;
        for node in NODES {
            cluster.sh(node, &format!("install -d -o {USER} {RAW}"))?;
        }
        Ok(Instance { cluster, mount: format!("/burstfs/{said}") })
    }

    /// The directory whose files `node` holds.
    pub(crate) fn own(&self, node: &str) -> String {
        format!("{}/own/{node}", self.mount)
    }

    /// `dir` of burstfs, for a process on `node`.
    pub(crate) fn place<'p>(&self, node: &'p str, dir: &'p str) -> Place<'p> {
        Place { node, user: USER, dir, servers: SERVERS, served_by: &NODES }
    }

    /// This program, as users of the nodes see it.
    pub(crate) fn driver(&self) -> String {
        format!("{DIR}/driver")
    }

    /// The same, as this process sees it.
    pub(crate) fn driver_here(&self) -> PathBuf {
        self.cluster.shared(DIR).join("driver")
    }

    pub(crate) fn end(self) -> Result<()> {
        fs::write(self.cluster.shared(DIR).join("go"), "")?;
        for node in NODES {
            self.cluster.sh(node, &format!("rm -r {RAW}"))?;
        }
        wait_until("an empty queue", SOON, || Ok(self.cluster.sh("ctl", "squeue -h")?.is_empty()))
    }
}

/// The directory without burstfs, for a process on `node`.
pub(crate) fn raw(node: &str) -> Place<'_> {
    Place { node, user: USER, dir: RAW, servers: &[], served_by: &[] }
}
