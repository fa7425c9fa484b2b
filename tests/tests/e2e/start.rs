//! Nodes that cannot start their part: the job fails with the reason in its own output, and the nodes stay in service.

use std::fs;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, fill_file, scenario};

const DAEMON: &str = "/opt/burstfs/libexec/burstfs/burstfsd";

#[test]
fn nvme_directory_is_missing() -> Result<()> {
    scenario("nvme-missing", |s| {
        s.allow_failed_start("E201");
        s.change("node3", "mv /local/burstfs /local/away", "mv /local/away /local/burstfs")?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        job.wait_failure(SOON, &["E201", "node3"])?;
        ensure!(!job.output()?.contains("ran"), "the script ran:\n{}", job.output()?);
        Ok(())
    })
}

#[test]
fn nvme_is_full() -> Result<()> {
    scenario("nvme-full", |s| {
        s.allow_failed_start("E202");
        s.change("node2", "fallocate -l 1500M /local/filler", "rm /local/filler")?;
        let job = s.job("alice")?.burstfs("per_node=1GiB").script("echo ran").submit()?;
        job.wait_failure(SOON, &["E202", "node2"])
    })
}

#[test]
fn daemon_cannot_start() -> Result<()> {
    scenario("daemon-false", |s| {
        s.allow_failed_start("E203");
        s.change("node4", &format!("mount --bind /bin/false {DAEMON}"), &format!("umount {DAEMON}"))?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        job.wait_failure(SOON, &["E203", "node4"])
    })
}

#[test]
fn daemon_cannot_be_executed() -> Result<()> {
    scenario("daemon-noexec", |s| {
        s.allow_failed_start("E203");
        s.change("node1", &format!("mount --bind /etc/hostname {DAEMON}"), &format!("umount {DAEMON}"))?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        job.wait_failure(SOON, &["E203", "node1"])
    })
}

#[test]
fn input_that_is_gone() -> Result<()> {
    scenario("input-gone", |s| {
        s.allow_failed_start("E207");
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        fs::write(here.join("input"), "here")?;
        let job = s
            .job("alice")?
            .burstfs("capacity=100MiB")
            .burstfs(format!("stage_in source={dir}/input destination=/input"));
        let job = job.option("--hold").script("echo ran").submit()?;
        fs::remove_file(here.join("input"))?;
        s.cluster.control(&["x", "ctl", "scontrol", "release", &job.id.to_string()])?;
        job.wait_failure(SOON, &["E207", "input"])
    })
}

#[test]
fn input_that_does_not_fit() -> Result<()> {
    scenario("input-large", |s| {
        s.allow_failed_start("E210");
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        fill_file(&here.join("input"), 80 << 20, 1)?;
        let job = s.job("alice")?.nodes(2).burstfs("capacity=40MiB");
        let job = job.burstfs(format!("stage_in source={dir}/input destination=/input")).script("echo ran").submit()?;
        job.wait_failure(SOON, &["E210"])
    })
}
