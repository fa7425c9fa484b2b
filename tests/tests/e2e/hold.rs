//! Output that cannot be drained: it is held, the next job is told what that leaves it, and it is drained later, or removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use burstfs_tests::{Job, NODES, SOON, Scenario, scenario, wait_until};

const NODE: &str = "/opt/burstfs/sbin/burstfs-node";

/// A small file system that all nodes and this process share, below the scenario's directory of alice. The same device is
/// mounted everywhere, and the kernel is the same: so it is one file system.
struct SmallPfs {
    here: PathBuf,
    there: String,
}

impl SmallPfs {
    fn mount(s: &mut Scenario<'_>, mib: u32) -> Result<SmallPfs> {
        let (here, there) = (s.path("alice")?.join("small"), format!("{}/small", s.dir("alice")?));
        let image = s.path("alice")?.join("small.img");
        fs::create_dir(&here)?;
        run("truncate", &["-s", &format!("{mib}M"), &text(&image)?])?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "root_owner=7001:7001", &text(&image)?])?;
        let device = run("losetup", &["-f", "--show", &text(&image)?])?;
        let device = device.trim();
        let small = SmallPfs { here, there };
        run("mount", &[device, &text(&small.here)?])?;
        for node in NODES.iter().chain(&["ctl"]) {
            s.change(node, &format!("mount {device} {}", small.there), &format!("umount {}", small.there))?;
        }
        // It goes with the last mount.
        run("losetup", &["-d", device])?;
        fs::remove_dir(small.here.join("lost+found"))?;
        Ok(small)
    }
}

impl Drop for SmallPfs {
    fn drop(&mut self) {
        // It may have been left frozen.
        let _ = run("fsfreeze", &["-u", &self.here.to_string_lossy()]);
        if let Err(error) = run("umount", &[&self.here.to_string_lossy()]) {
            eprintln!("{error:#}");
        }
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is no text")?.to_owned())
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Each file below `dir` with what changes when it is written anew.
fn versions(dir: &Path) -> Result<BTreeMap<PathBuf, (u64, i64, i64)>> {
    let mut versions = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            versions.extend(self::versions(&path)?);
        } else {
            versions.insert(path, (metadata.ino(), metadata.mtime(), metadata.ctime_nsec()));
        }
    }
    Ok(versions)
}

/// What every node says of the instance; `None` on those that know nothing of it.
fn listed(s: &Scenario<'_>, instance: &str) -> Result<Vec<Option<String>>> {
    let line = |node: &&str| {
        let said = s.cluster.sh(node, &format!("{NODE} list"))?;
        Ok(said.lines().find(|line| line.starts_with(instance)).map(str::to_owned))
    };
    NODES.iter().map(line).collect()
}

fn wait_held(s: &Scenario<'_>, instance: &str) -> Result<()> {
    wait_held_on(s, instance, NODES.len())
}

/// Waits until an instance is held on each of its nodes, which are the first `count`.
pub(crate) fn wait_held_on(s: &Scenario<'_>, instance: &str, count: usize) -> Result<()> {
    wait_until(&format!("{instance} to be held on {count} nodes"), SOON, || {
        let is_held = |line: &&Option<String>| line.as_ref().is_some_and(|line| line.contains(" HELD "));
        Ok(listed(s, instance)?.iter().filter(is_held).count() == count)
    })
}

pub(crate) fn wait_gone(s: &Scenario<'_>, instance: &str) -> Result<()> {
    wait_until(&format!("{instance} to be gone from all nodes"), SOON, || {
        Ok(listed(s, instance)?.iter().all(Option::is_none))
    })
}

pub(crate) fn burstfs(s: &Scenario<'_>, node: &str, user: &str, words: &str) -> Result<Output> {
    s.cluster.try_sh_as(node, user, &format!("burstfs {words}"))
}

pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the logs say when something is held.
pub(crate) fn allow_held(s: &mut Scenario<'_>, code: &str) {
    s.allow(&format!("{code}: stage_out: "));
}

#[test]
fn a_full_destination_holds_the_data_until_there_is_room() -> Result<()> {
    scenario("hold-full", |s| {
        allow_held(s, "E403");
        s.allow_failed_start("E212");
        let small = SmallPfs::mount(s, 1000)?;
        let filler = small.here.join("filler");
        run("fallocate", &["-l", "600M", &text(&filler)?])?;
        let job = s
            .job("alice")?
            .burstfs("per_node=400MiB")
            .burstfs(format!("stage_out source=/out/ destination={}/out", small.there))
            .script(
                "mkdir $BURSTFS/out && srun sh -c 'for i in $(seq 20); do head -c 10M /dev/urandom > \
                 $BURSTFS/out/$(hostname)-$i || exit 1; done'",
            )
            .submit()?;
        let state = job.wait_end(SOON * 2)?;
        ensure!(state == "COMPLETED", "the job itself is as it was: {state}");
        let instance = job.instance(0)?;
        let receipt = job.receipt()?;
        receipt.ensure_incomplete()?;
        for words in [
            &format!("E403: stage_out: no space left on {}/out after ", small.there),
            "of 800.0MiB; data kept on node[1-4] until 20",
            &format!("; free space, then: burstfs resume {}", job.id),
        ] {
            ensure!(receipt.text().contains(words), "no \"{words}\" in {}", receipt.text());
        }
        wait_held(s, &instance)?;
        let waited = burstfs(s, "ctl", "alice", &format!("wait --drained -j {} --timeout 120", job.id))?;
        ensure!(waited.status.code() == Some(4) && said(&waited).contains("E403"), "{}", said(&waited));
        let status = said(&burstfs(s, "ctl", "alice", &format!("status -j {}", job.id))?);
        ensure!(status.contains(" HELD ") && status.contains("E403: stage_out: no space left"), "{status}");
        s.allow("uid 7002 is neither the job's user nor root");
        // Somebody else's is not to be had, and not to be resumed.
        let refused = burstfs(s, "node2", "bob", &format!("resume {}", job.id))?;
        ensure!(refused.status.code() == Some(7), "{}: {}", refused.status, said(&refused));

        let free = s.cluster.sh("node1", "df --output=avail -BM /local/burstfs | tail -1 | tr -d ' M'")?;
        let free: u64 = free.trim().parse().with_context(|| free.clone())?;
        let next = s.job("bob")?.burstfs(format!("per_node={}MiB", free + 100)).script("echo ran").submit()?;
        let told = format!("by job {} of alice until 20", job.id);
        next.wait_failure(SOON, &["E212", &told, "ask for at most"])?;
        let fits = s.job("bob")?.burstfs(format!("per_node={}MiB", free - 100)).script("echo ran").submit()?;
        fits.wait_success(SOON)?;

        let before = versions(&small.here.join("out"))?;
        ensure!(before.len() > 20 && before.len() < 80, "{} of 80 files fit", before.len());
        fs::remove_file(&filler)?;
        let resumed = burstfs(s, "node3", "alice", &format!("resume {}", job.id))?;
        ensure!(resumed.status.success() && said(&resumed).contains("COMPLETE"), "{}", said(&resumed));
        let receipt = job.receipt()?;
        receipt.ensure_complete()?;
        let after = versions(&small.here.join("out"))?;
        ensure!(after.len() == 80, "{} files", after.len());
        let again: Vec<_> = before.iter().filter(|(path, version)| after.get(*path) != Some(version)).collect();
        ensure!(again.is_empty(), "copied again: {again:?}");
        wait_gone(s, &instance)?;
        let late = burstfs(s, "ctl", "alice", &format!("status -j {}", job.id))?;
        ensure!(late.status.code() == Some(3), "{}", said(&late));
        // The receipt has the last word.
        let waited = burstfs(s, "ctl", "alice", &format!("wait --drained -j {}", job.id))?;
        ensure!(waited.status.success(), "{}", said(&waited));
        Ok(())
    })
}

/// A job whose destination becomes one that its user cannot write, while it runs.
fn unwritable<'a>(s: &Scenario<'a>, retain: &str) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    s.job("alice")?
        .burstfs("capacity=400MiB")
        .burstfs(format!("stage_out source=/out/ destination={dir}/closed/out retain={retain}"))
        .script(
            "mkdir $BURSTFS/out && srun sh -c 'echo from $(hostname) > $BURSTFS/out/$(hostname)' || exit 1\n\
             chmod 500 closed",
        )
        .submit()
}

fn make_closed(s: &Scenario<'_>) -> Result<PathBuf> {
    let made = s.cluster.try_sh_as("node1", "alice", &format!("mkdir {}/closed", s.dir("alice")?))?;
    ensure!(made.status.success(), "{}", said(&made));
    Ok(s.path("alice")?.join("closed"))
}

#[test]
fn held_data_goes_when_its_time_is_over() -> Result<()> {
    scenario("hold-expired", |s| {
        allow_held(s, "E401");
        s.allow("E504");
        make_closed(s)?;
        let job = unwritable(s, "20s")?;
        job.wait_end(SOON)?;
        let receipt = job.receipt()?;
        receipt.ensure_incomplete()?;
        ensure!(receipt.text().contains("make the destination writable, then: burstfs resume"), "{}", receipt.text());
        wait_gone(s, &job.instance(0)?)?;
        let report = fs::read_to_string(job.file(&format!("burstfs-{}.report.txt", job.id)))?;
        ensure!(report.contains("\nremoved at 20") && report.contains("E504"), "{report}");
        ensure!(burstfs(s, "ctl", "alice", &format!("resume {} --no-wait", job.id))?.status.code() == Some(3));
        Ok(())
    })
}

#[test]
fn held_data_is_drained_by_itself_when_the_reason_is_gone() -> Result<()> {
    scenario("hold-retried", |s| {
        allow_held(s, "E401");
        let closed = make_closed(s)?;
        let job = unwritable(s, "1h")?;
        job.wait_end(SOON)?;
        job.receipt()?.ensure_incomplete()?;
        // A supervisor and a daemon that are killed are no reason to forget it.
        s.allow("the supervisor is gone; this daemon goes on serving");
        let instance = job.instance(0)?;
        wait_held(s, &instance)?;
        s.cluster.sh("node2", "pkill -KILL -x burstfs-node; pkill -KILL -x burstfsd")?;
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
        s.cluster.sh("node2", &format!("{NODE} recover"))?;
        wait_gone(s, &instance)?;
        job.receipt()?.ensure_complete()?;
        for node in NODES {
            ensure!(fs::read_to_string(closed.join("out").join(node))? == format!("from {node}\n"), "{node}");
        }
        Ok(())
    })
}

#[test]
fn a_destination_that_hangs_holds_up_no_epilog() -> Result<()> {
    scenario("hold-hang", |s| {
        for line in ["E402: ", "stage_out: ", "E303: ", "is given up: nothing was heard of it for too long"] {
            s.allow(line);
        }
        for line in ["a process of the instance does not end", "the MGS has moved; the drain begins anew", "E301: "] {
            s.allow(line);
        }
        let site = "/etc/burstfs/burstfs.toml";
        let change =
            |from: &str, to: &str| format!("sed -i 's/^no_progress = \"{from}\"/no_progress = \"{to}\"/' {site}");
        s.change("ctl", &change("10min", "10s"), &change("10s", "10min"))?;
        let small = SmallPfs::mount(s, 100)?;
        run("fsfreeze", &["-f", &text(&small.here)?])?;
        let job = s
            .job("alice")?
            .burstfs("capacity=400MiB")
            .burstfs(format!("stage_out source=/out/ destination={}/out", small.there))
            .script("mkdir $BURSTFS/out && srun sh -c 'echo from $(hostname) > $BURSTFS/out/$(hostname)'")
            .submit()?;
        job.wait_end(SOON * 3)?;
        s.cluster.control(&["wait-idle"])?;
        let instance = job.instance(0)?;
        ensure!(listed(s, &instance)?.iter().all(Option::is_some), "every node keeps its part");
        run("fsfreeze", &["-u", &text(&small.here)?])?;
        // The daemons may be resting just now; what counts is the end.
        burstfs(s, "ctl", "alice", &format!("resume {}", job.id))?;
        wait_gone(s, &instance)?;
        job.receipt()?.ensure_complete()?;
        for node in NODES {
            let file = small.here.join("out").join(node);
            ensure!(fs::read_to_string(file)? == format!("from {node}\n"), "{node}");
        }
        Ok(())
    })
}

#[test]
fn a_node_that_was_off_while_draining_finishes_it() -> Result<()> {
    scenario("hold-power", |s| {
        for line in [
            "node3 is given up: nothing was heard of it for too long",
            "E303: node3 is lost: what it holds answers EIO from now on",
            "stage_out: ",
            "E402: the node was restarted before its data had been drained",
            "error: Nodes node3 not responding",
            "error: Unable to send epilog complete message: Unable to contact slurm controller (connect failure)",
            "error: Node node3 now responding",
            "agent/is_node_resp: node:node3 RPC:",
            "Node node3 unexpectedly rebooted",
        ] {
            s.allow(line);
        }
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .burstfs("capacity=400MiB")
            // Slow enough that node3 has not drained its share when it has said that all of it is on its disk.
            .burstfs(format!("stage_out source=/out/ destination={dir}/out bwlimit=4MiB"))
            .option("--no-requeue")
            .script(
                "mkdir $BURSTFS/out && srun sh -c 'd=$BURSTFS/out/$(hostname); mkdir $d; for i in $(seq 160); do \
                 head -c 64K /dev/urandom > $d/$i || exit 1; done' && echo written; until [ -e go ]; do sleep 0.05; done",
            )
            .submit()?;
        job.wait_line("written")?;
        let instance = job.instance(0)?;
        let journal = s.cluster.on_node("node3", &format!("/local/burstfs/{instance}/journal"))?;
        job.touch("go")?;
        wait_until("what node3 holds to be on its disk", SOON, || {
            Ok(fs::read_to_string(&journal).unwrap_or_default().contains("durable"))
        })?;
        s.cluster.sh("node3", "pkill -STOP -x burstfsd")?;
        s.cluster.control(&["node", "off", "node3"])?;
        let receipt = job.file(&format!("burstfs-{}.receipt.json", job.id));
        wait_until("the receipt", SOON, || Ok(receipt.exists()))?;
        job.receipt()?.ensure_incomplete()?;
        let out = s.path("alice")?.join("out");
        let before = versions(&out)?;
        s.cluster.control(&["node", "on", "node3"])?;
        wait_gone(s, &instance)?;
        job.receipt()?.ensure_complete()?;
        let after = versions(&out)?;
        ensure!(after.len() == 640, "{} files", after.len());
        let is_final = |path: &PathBuf| !path.to_string_lossy().contains("/.");
        let again = before.iter().filter(|(path, version)| is_final(path) && after.get(*path) != Some(version)).count();
        ensure!(again == 0, "{again} of {} files were copied again", before.len());
        // slurmctld asks a node that it could not reach for the job's end once a minute.
        job.wait_end(SOON * 4)?;
        s.cluster.control(&["wait-idle"]).map(drop)
    })
}
