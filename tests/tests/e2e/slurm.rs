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
        s.allow("node2");
        s.allow("Unable to");
        s.allow("error");
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
        s.allow("error");
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
