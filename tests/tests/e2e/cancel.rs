//! Jobs that end before their time: cancelled in each phase, or at the time limit. What was closed is drained.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, fill_file, scenario, wait_until};

/// Bytes of files below `dir`, as far as they can be seen now.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Waits until the instance's run directory is there on every node.
fn wait_starting(s: &Scenario<'_>, job: &Job<'_>) -> Result<()> {
    let instance = job.instance(0)?;
    for node in burstfs_tests::NODES {
        let dir = s.cluster.on_node(node, &format!("/run/burstfs/{instance}"))?;
        wait_until(&format!("{instance} on {node}"), SOON, || Ok(dir.exists()))?;
    }
    Ok(())
}

#[test]
fn cancelled_while_starting() -> Result<()> {
    scenario("cancel-starting", |s| {
        s.allow("E206");
        s.allow("E203");
        let daemon = "/opt/burstfs/libexec/burstfs/burstfsd";
        // A daemon that never says anything: the others wait for it at the MGS.
        let mute = format!(
            "printf '#!/bin/sh\\nexec sleep 3600\\n' > /run/mute; chmod 755 /run/mute; mount --bind /run/mute {daemon}"
        );
        s.change("node4", &mute, &format!("umount {daemon}"))?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        wait_starting(s, &job)?;
        let instance = job.instance(0)?;
        job.cancel()?;
        // The nodes that wait at the MGS hear of it well before the time-out of the start (60 s) would end them; node4, whose
        // daemon is deaf, at the latest by that.
        for node in ["node1", "node2", "node3"] {
            let dir = s.cluster.on_node(node, &format!("/run/burstfs/{instance}"))?;
            wait_until(&format!("{node} to give up {instance}"), Duration::from_secs(30), || Ok(!dir.exists()))?;
        }
        let state = job.wait_end(Duration::from_secs(100))?;
        ensure!(state == "CANCELLED", "{state}");
        ensure!(!job.output().unwrap_or_default().contains("ran"));
        Ok(())
    })
}

#[test]
fn cancelled_while_staging_in() -> Result<()> {
    scenario("cancel-stage-in", |s| {
        s.allow("E206");
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        fs::create_dir(here.join("in"))?;
        for index in 0..8 {
            fill_file(&here.join(format!("in/{index}")), 128 << 20, index)?;
        }
        let job =
            s.job("alice")?.burstfs("per_node=1GiB").burstfs(format!("stage_in source={dir}/in/ destination=/in"));
        let job = job.script("echo ran").submit()?;
        let instance = job.instance(0)?;
        // Whichever nodes the placement gives these files to.
        let objects = burstfs_tests::NODES
            .map(|node| s.cluster.on_node(node, &format!("/local/burstfs/{instance}/data/ost")))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        wait_until("the first bytes of the input", SOON, || Ok(objects.iter().any(|dir| bytes_below(dir) > 0)))?;
        job.cancel()?;
        ensure!(job.wait_end(SOON)? == "CANCELLED");
        ensure!(!job.output().unwrap_or_default().contains("ran"), "the input was there before it was cancelled");
        Ok(())
    })
}

/// A job that writes a file on every node, says so, and goes on until it is ended.
fn endless<'a>(s: &Scenario<'a>, options: &[&str]) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    let job =
        s.job("alice")?.burstfs("capacity=400MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
    let job = job.script(
        "mkdir $BURSTFS/out; srun sh -c 'hostname > $BURSTFS/out/$(hostname)'; echo written\n\
         exec srun sh -c 'exec 3> $BURSTFS/out/open-$(hostname); cd $BURSTFS/out; sleep 1000'",
    );
    options.iter().fold(job, |job, option| job.option(*option)).submit()
}

fn ensure_drained(s: &Scenario<'_>, job: &Job<'_>) -> Result<()> {
    job.receipt()?.ensure_complete()?;
    for node in burstfs_tests::NODES {
        ensure!(fs::read_to_string(s.path("alice")?.join("out").join(node))? == format!("{node}\n"), "{node}");
    }
    Ok(())
}

#[test]
fn cancelled_while_running() -> Result<()> {
    scenario("cancel-running", |s| {
        // slurmd's own word for it.
        s.allow(" ON node1 CANCELLED AT ");
        let job = endless(s, &[])?;
        job.wait_line("written")?;
        job.cancel()?;
        ensure!(job.wait_end(SOON)? == "CANCELLED");
        ensure_drained(s, &job)
    })
}

#[test]
fn time_limit() -> Result<()> {
    scenario("time-limit", |s| {
        // slurmd's own word for it.
        s.allow("DUE TO TIME LIMIT ***");
        let job = endless(s, &["--time=1"])?;
        job.wait_line("written")?;
        ensure!(job.wait_end(Duration::from_secs(180))? == "TIMEOUT");
        ensure_drained(s, &job)
    })
}

#[test]
fn cancelled_while_draining() -> Result<()> {
    scenario("cancel-draining", |s| {
        let dir = s.dir("alice")?;
        let job =
            s.job("alice")?.burstfs("per_node=300MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
        let job = job
            .script("mkdir $BURSTFS/out; srun sh -c 'for i in 1 2; do head -c 100M /dev/urandom > $BURSTFS/out/$(hostname)-$i; done'; sha1sum $BURSTFS/out/* > sums")
            .submit()?;
        let out = s.path("alice")?.join("out");
        wait_until("the first drained bytes", SOON, || Ok(bytes_below(&out) > 0))?;
        job.cancel()?;
        job.wait_end(SOON)?;
        job.receipt()?.ensure_complete()?;
        let sums =
            fs::read_to_string(job.file("sums"))?.replace(&format!("/burstfs/{}/out", job.id), &format!("{dir}/out"));
        fs::write(job.file("sums"), &sums)?;
        ensure!(sums.lines().count() == 8, "{sums}");
        s.cluster.sh("ctl", &format!("sha1sum -c --quiet {dir}/sums")).map(drop)
    })
}

#[test]
fn a_script_that_fails_is_drained_too() -> Result<()> {
    scenario("script-fails", |s| {
        let dir = s.dir("alice")?;
        let job = s.job("alice")?.nodes(2).burstfs("capacity=100MiB");
        let job = job.burstfs(format!("stage_out source=/out/ destination={dir}/out"));
        let job = job.script("mkdir $BURSTFS/out; echo partial > $BURSTFS/out/result; exit 7").submit()?;
        ensure!(job.wait_end(SOON)? == "FAILED" && job.exit_code()? == "7:0");
        job.receipt()?.ensure_complete()?;
        ensure!(fs::read_to_string(s.path("alice")?.join("out/result"))? == "partial\n");
        Ok(())
    })
}
