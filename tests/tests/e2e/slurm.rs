//! Slurm's own daemons fail or are restarted, jobs are requeued, the configuration is wrong.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, scenario, wait_until};

/// A job that writes, says `written`, waits for `go`, writes once more, and ends.
fn waiting<'a>(s: &Scenario<'a>) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    let job =
        s.job("alice")?.burstfs("capacity=400MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
    job.option("--open-mode=append")
        .script(
            "mkdir $BURSTFS/out || exit 1; srun sh -c 'echo $SLURM_RESTART_COUNT $(hostname) > $BURSTFS/out/$(hostname)'\n\
             echo written; until [ -e go ]; do sleep 0.05; done; echo later > $BURSTFS/out/later",
        )
        .submit()
}

fn ensure_drained(s: &Scenario<'_>, job: &Job<'_>) -> Result<()> {
    job.receipt()?.ensure_complete()?;
    ensure!(fs::read_to_string(s.path("alice")?.join("out/later"))? == "later\n");
    for node in burstfs_tests::NODES {
        ensure!(fs::read_to_string(s.path("alice")?.join("out").join(node))?.trim().ends_with(node), "{node}");
    }
    Ok(())
}

#[test]
fn slurmd_is_killed_and_returns() -> Result<()> {
    scenario("slurmd", |s| {
        let job = waiting(s)?;
        job.wait_line("written")?;
        s.cluster.control(&["slurmd", "kill", "node2"])?;
        s.cluster.control(&["slurmd", "start", "node2"])?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_drained(s, &job)
    })
}

#[test]
fn slurmd_returns_after_the_end() -> Result<()> {
    scenario("slurmd-late", |s| {
        s.allow("error: Nodes node2 not responding");
        s.allow("error: Unable to register: Unable to contact slurm controller");
        let job = waiting(s)?;
        job.wait_line("written")?;
        s.cluster.control(&["slurmd", "kill", "node2"])?;
        job.touch("go")?;
        // The end reaches the other nodes; node2's epilog comes when its slurmd is back.
        wait_until("the job to be over", SOON, || Ok(job.state()? != "RUNNING"))?;
        s.cluster.control(&["slurmd", "start", "node2"])?;
        job.wait_end(SOON * 2)?;
        s.cluster.control(&["wait-idle"])?;
        ensure_drained(s, &job)
    })
}

#[test]
fn slurmctld_is_restarted() -> Result<()> {
    scenario("slurmctld", |s| {
        let job = waiting(s)?;
        job.wait_line("written")?;
        // A slurmctld that is killed has not yet saved that the job runs, and would start it a second time.
        s.cluster.control(&["ctld", "restart"])?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_drained(s, &job)
    })
}

#[test]
fn requeue() -> Result<()> {
    scenario("requeue", |s| {
        s.allow("DUE TO JOB REQUEUE");
        let job = waiting(s)?;
        job.wait_line("written")?;
        s.cluster.control(&["x", "ctl", "scontrol", "requeue", &job.id.to_string()])?;
        wait_until("the job to be pending again", SOON, || Ok(job.state()? == "PENDING"))?;
        let out = s.path("alice")?.join("out/node4");
        ensure!(fs::read_to_string(&out)?.trim().ends_with("node4"), "the first run was not drained");
        job.touch("go")?;
        // Slurm starts it again after two minutes. Not to be hurried: while slurmd still knows the credential of the first
        // run, it may skip the prolog of the second (22.05, also for jobs without burstfs).
        job.wait_success(Duration::from_secs(200))?;
        ensure!(fs::read_to_string(&out)? == "1 node4\n", "the second run had the first one's file system");
        ensure_drained(s, &job)
    })
}

/// The lines of slurm.conf that set the flags.
fn set_prolog_flags(s: &mut Scenario<'_>, flags: &str) -> Result<()> {
    let conf = "/etc/slurm/slurm.conf";
    s.cluster.sh("ctl", &format!("sed -i.good 's/^PrologFlags=.*/PrologFlags={flags}/' {conf}"))?;
    restart_slurm(s)
}

fn restart_slurm(s: &Scenario<'_>) -> Result<()> {
    s.cluster.control(&["ctld", "restart"])?;
    for node in burstfs_tests::NODES {
        s.cluster.control(&["slurmd", "restart", node])?;
    }
    s.cluster.control(&["wait-idle"]).map(drop)
}

#[test]
fn wrong_prolog_flags_are_said_loudly() -> Result<()> {
    scenario("prolog-flags", |s| {
        s.allow_failed_start("E121");
        // slurmctld's own word where it is restarted while a job's epilogs are under way.
        s.allow("is non-running slurmctld and slurmd out of sync");
        let outcome = set_prolog_flags(s, "Alloc").and_then(|()| {
            match s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit() {
                Ok(job) => job.wait_failure(SOON, &["E121", "DeferBatch"]),
                Err(refused) => {
                    let said = format!("{refused:#}");
                    ensure!(said.contains("E121") && said.contains("DeferBatch"), "{said}");
                    Ok(())
                }
            }
        });
        let log = s.cluster.sh("node1", "grep -c E121 /var/log/slurm/slurmd.log");
        s.cluster.sh("ctl", "mv /etc/slurm/slurm.conf.good /etc/slurm/slurm.conf")?;
        restart_slurm(s)?;
        outcome?;
        ensure!(log.is_ok(), "slurmd's log does not say it: {log:?}");
        Ok(())
    })
}

#[test]
fn prolog_and_epilog_by_the_plugin_or_not_at_all() -> Result<()> {
    scenario("prolog-plugin", |s| {
        s.allow_failed_start("E203");
        // All nodes share one /etc.
        let conf = "/etc/slurm/slurm.conf";
        let stack = "/etc/slurm/plugstack.conf.d/burstfs.conf";
        let undo = format!("mv {conf}.good {conf}; mv {stack}.good {stack}");
        let remove =
            format!("cp {conf} {conf}.good; cp {stack} {stack}.good; sed -i '/^Prolog=/d; /^Epilog=/d' {conf}");
        s.change("ctl", &remove, &undo)?;
        restart_slurm(s)?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        job.wait_failure(SOON, &["E203", "neither Prolog= in slurm.conf nor plugstack.conf"])?;

        s.cluster.sh("ctl", &format!("sed -i 's/^# required/required/' {stack}; grep -q prolog.so {stack}"))?;
        restart_slurm(s)?;
        let job = waiting(s)?;
        job.wait_line("written")?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_drained(s, &job)?;

        s.undo()?;
        restart_slurm(s)
    })
}

const DAEMON: &str = "/opt/burstfs/libexec/burstfs/burstfsd";

/// From now on `burstfsd` of a node waits before it does anything, until [`let_go`].
fn hold_daemon(s: &mut Scenario<'_>, node: &str) -> Result<()> {
    let wait = "until [ -e /run/go ]; do sleep 0.05; done; exec /run/burstfsd \"$@\"";
    let hold = format!(
        "cp {DAEMON} /run/burstfsd; printf '#!/bin/sh\\n%s\\n' '{wait}' > /run/held; chmod 755 /run/held /run/burstfsd\n\
         mount --bind /run/held {DAEMON}"
    );
    s.change(node, &hold, &format!("umount {DAEMON}; rm -f /run/go /run/held /run/burstfsd"))
}

fn let_go(s: &Scenario<'_>, node: &str) -> Result<()> {
    s.cluster.sh(node, "touch /run/go").map(drop)
}

/// Waits until every node has begun with the instance.
fn wait_begun(s: &Scenario<'_>, job: &Job<'_>) -> Result<()> {
    let instance = job.instance(0)?;
    for node in burstfs_tests::NODES {
        let dir = s.cluster.on_node(node, &format!("/run/burstfs/{instance}"))?;
        wait_until(&format!("{instance} on {node}"), SOON, || Ok(dir.exists()))?;
    }
    Ok(())
}

/// Has slurmctld save what it knows of the job, which it otherwise does when it likes: one that is killed before that has never given
/// the job any nodes.
fn save_state(s: &Scenario<'_>, job: &Job<'_>) -> Result<()> {
    let saved = || s.cluster.sh("ctl", "stat -c %Y.%i /var/spool/slurmctld/job_state");
    let before = saved()?;
    s.cluster.control(&["x", "ctl", "scontrol", "update", &format!("JobId={}", job.id), "Comment=saved"])?;
    wait_until("slurmctld to have saved its state", SOON, || Ok(saved()? != before))
}

#[test]
fn slurmctld_is_killed_during_a_start() -> Result<()> {
    scenario("ctld-kill", |s| {
        hold_daemon(s, "node4")?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("sleep 1000").submit()?;
        wait_begun(s, &job)?;
        let instance = job.instance(0)?;
        save_state(s, &job)?;
        s.cluster.control(&["ctld", "kill"])?;
        let_go(s, "node4")?;
        // Its absence says nothing about the job.
        for node in burstfs_tests::NODES {
            let log = s.cluster.logs(node).join(format!("burstfs/{instance}.log"));
            wait_until(&format!("the file system on {node}"), SOON, || {
                Ok(fs::read_to_string(&log).is_ok_and(|log| log.contains("STARTING -> READY")))
            })?;
        }
        s.cluster.control(&["ctld", "start"])?;
        job.cancel()?;
        let is_over = || Ok(!["RUNNING", "COMPLETING"].contains(&job.state()?.as_str()));
        wait_until("the job to be over", SOON, is_over)?;
        for node in burstfs_tests::NODES {
            let dir = s.cluster.on_node(node, &format!("/run/burstfs/{instance}"))?;
            wait_until(&format!("the end of {instance} on {node}"), SOON, || Ok(!dir.exists()))?;
        }
        // A slurmd that registers is told to end what it still has of the job, unless slurmctld has only just started.
        s.allow(&format!("error: Registered JobId={} StepId={}.extern in state CANCELLED", job.id, job.id));
        s.allow(&format!(
            "error: job_epilog_complete: JobId={} is non-running slurmctld and slurmd out of sync",
            job.id
        ));
        for node in burstfs_tests::NODES {
            wait_until(&format!("Slurm to have left the job on {node}"), SOON, || {
                let has_left = s.cluster.pids(node, "slurmstepd")?.is_empty();
                if !has_left {
                    s.cluster.control(&["slurmd", "restart", node])?;
                }
                Ok(has_left)
            })?;
        }
        s.cluster.control(&["wait-idle"]).map(drop)
    })
}

#[test]
fn munged_is_down_on_a_node() -> Result<()> {
    scenario("munge", |s| {
        s.allow_failed_start("E208");
        hold_daemon(s, "node2")?;
        let job = s.job("alice")?.burstfs("capacity=100MiB").script("echo ran").submit()?;
        wait_begun(s, &job)?;
        s.cluster.sh("node2", "pkill -x munged; while pgrep -x munged; do sleep 0.05; done")?;
        let log = format!("burstfs/{}.log", job.instance(0)?);
        let_go(s, "node2")?;
        let said = wait_until("node2 to say why", SOON, || {
            Ok(fs::read_to_string(s.cluster.logs("node2").join(&log)).is_ok_and(|log| log.contains("E208")))
        });
        s.cluster.sh("node2", "setpriv --reuid munge --regid munge --clear-groups munged --force")?;
        said?;
        job.wait_failure(SOON, &["E208", "node2"])?;
        ensure!(!job.output()?.contains("ran"));
        Ok(())
    })
}
