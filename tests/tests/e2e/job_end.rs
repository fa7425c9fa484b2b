//! What is drained after certain ends of a job only: on=success and on=failure, for each way in which a job can end.

use anyhow::{Result, ensure};
use burstfs_tests::{Job, JobBuilder, SOON, Scenario, scenario};
use serde_json::Value;

use crate::hold::{allow_held, burstfs, said, wait_gone, wait_held_on};

const JOB_STATE: &str = "/opt/burstfs/libexec/burstfs/burstfs-job-state";
/// Ends well when it is told to end: its exit code says nothing of why.
const ENDS_WELL: &str = "trap 'exit 0' TERM; echo ready; sleep 600 & wait";

/// A job on two nodes with output for success, for failure, and for both, which then runs `script`.
fn builder<'a>(s: &Scenario<'a>, script: &str) -> Result<JobBuilder<'a>> {
    let dir = s.dir("alice")?;
    let make = "mkdir $BURSTFS/out $BURSTFS/log; srun sh -c 'for d in out log; do echo from $(hostname) > \
                $BURSTFS/$d/$(hostname); done'";
    Ok(s.job("alice")?
        .nodes(2)
        .burstfs("per_node=100MiB")
        .burstfs(format!("stage_out source=/out/ destination={dir}/good on=success"))
        .burstfs(format!("stage_out source=/out/ destination={dir}/bad on=failure atomic=dir"))
        .burstfs(format!("stage_out source=/log/ destination={dir}/log"))
        .script(format!("{make}\n{script}")))
}

fn receipt(job: &Job<'_>) -> Result<Value> {
    Ok(serde_json::from_str(&job.receipt()?.text())?)
}

/// That the job's output is where it belongs after this end, all of it and nothing else, and that the receipt says so.
fn ensure_drained_after(job: &Job<'_>, end: &str) -> Result<()> {
    job.receipt()?.ensure_complete()?;
    let document = receipt(job)?;
    ensure!(document["job_end"] == end, "not after {end}: {document:#}");
    let (wanted, other) = if end == "success" { ("good", "bad") } else { ("bad", "good") };
    for name in [wanted, "log"] {
        for node in ["node1", "node2"] {
            let text = std::fs::read_to_string(job.file(&format!("{name}/{node}")))?;
            ensure!(text == format!("from {node}\n"), "{name}/{node}: {text}");
        }
    }
    ensure!(!job.file(other).exists(), "{other} was drained after {end}");
    let states: Vec<&str> =
        document["stage_out"].as_array().into_iter().flatten().filter_map(|line| line["state"].as_str()).collect();
    let expected = if end == "success" { ["done", "not_asked", "done"] } else { ["not_asked", "done", "done"] };
    ensure!(states == expected, "{document:#}");
    let entries = document["entries"].as_array().into_iter().flatten();
    let left: Vec<&Value> = entries.filter(|entry| entry["state"] == "not_asked").map(|entry| &entry["path"]).collect();
    ensure!(left == ["/out"], "{document:#}");
    let report = std::fs::read_to_string(job.file(&format!("burstfs-{}.report.txt", job.id)))?;
    ensure!(report.contains(": not_asked: it is drained only after "), "{report}");
    Ok(())
}

#[test]
fn after_a_success() -> Result<()> {
    scenario("end-success", |s| {
        let job = builder(s, "exit 0")?.submit()?;
        job.wait_success(SOON)?;
        ensure_drained_after(&job, "success")
    })
}

#[test]
fn after_a_failure() -> Result<()> {
    scenario("end-failure", |s| {
        let job = builder(s, "exit 3")?.submit()?;
        ensure!(job.wait_end(SOON)? == "FAILED");
        ensure_drained_after(&job, "failure")
    })
}

#[test]
fn after_a_cancel_that_the_script_takes_well() -> Result<()> {
    scenario("end-cancel", |s| {
        s.allow(" ON node1 CANCELLED AT ");
        let job = builder(s, ENDS_WELL)?.submit()?;
        job.wait_line("ready")?;
        job.cancel()?;
        let state = job.wait_end(SOON)?;
        ensure!(state == "CANCELLED" && job.exit_code()? == "0:0", "{state}, {}", job.exit_code()?);
        ensure_drained_after(&job, "failure")
    })
}

#[test]
fn after_the_time_limit_although_the_script_ends_well() -> Result<()> {
    scenario("end-limit", |s| {
        s.allow(" DUE TO TIME LIMIT");
        let job = builder(s, ENDS_WELL)?.option("--time=1").submit()?;
        let state = job.wait_end(SOON * 4)?;
        ensure!(state == "TIMEOUT" && job.exit_code()? == "0:0", "{state}, {}", job.exit_code()?);
        ensure_drained_after(&job, "failure")
    })
}

#[test]
fn after_a_node_failed() -> Result<()> {
    scenario("end-node-fail", |s| {
        for line in [" ON node1 CANCELLED AT ", "DUE TO NODE FAILURE", "state set to DOWN", "Killing JobId"] {
            s.allow(line);
        }
        let job = builder(s, ENDS_WELL)?.option("--no-requeue").submit()?;
        job.wait_line("ready")?;
        // As Slurm sees it; the node itself is well, and its part of the drain is done.
        let update = |what: &str| format!("scontrol update nodename=node2 {what}");
        // It may be back by itself by then.
        let up = format!("{} 2>/dev/null || true", update("state=resume"));
        s.change("ctl", &update("state=down reason=test"), &up)?;
        let state = job.wait_end(SOON)?;
        ensure!(state == "NODE_FAIL", "{state}");
        wait_gone(s, &job.instance(0)?)?;
        ensure_drained_after(&job, "failure")
    })
}

#[test]
fn a_run_that_is_requeued_was_no_success() -> Result<()> {
    scenario("end-requeued", |s| {
        s.allow(" ON node1 CANCELLED AT ");
        let job = builder(s, ENDS_WELL)?.submit()?;
        job.wait_line("ready")?;
        s.cluster.sh("ctl", &format!("scontrol requeue {}", job.id))?;
        wait_gone(s, &job.instance(0)?)?;
        job.cancel()?;
        job.wait_end(SOON)?;
        ensure_drained_after(&job, "failure")
    })
}

#[test]
fn what_slurm_does_not_say_is_kept_until_it_does() -> Result<()> {
    scenario("end-unknown", |s| {
        allow_held(s, "E407");
        s.change("node1", &format!("chmod a-x {JOB_STATE}"), &format!("chmod 755 {JOB_STATE}"))?;
        let job = builder(s, "exit 0")?.submit()?;
        job.wait_end(SOON * 2)?;
        let document = receipt(&job)?;
        job.receipt()?.ensure_incomplete()?;
        ensure!(document["job_end"].is_null(), "{document:#}");
        for words in
            ["E407: stage_out: Slurm does not say how the job ended, and /out/ is drained only after", "resume"]
        {
            ensure!(document.to_string().contains(words), "no \"{words}\" in {document:#}");
        }
        ensure!(job.file("log/node2").exists() && !job.file("good").exists() && !job.file("bad").exists());
        let instance = job.instance(0)?;
        wait_held_on(s, &instance, 2)?;
        s.undo()?;
        let resumed = burstfs(s, "node3", "alice", &format!("resume {}", job.id))?;
        ensure!(resumed.status.success() && said(&resumed).contains("COMPLETE"), "{}", said(&resumed));
        wait_gone(s, &instance)?;
        ensure_drained_after(&job, "success")
    })
}

#[test]
fn what_slurm_does_not_say_its_user_can() -> Result<()> {
    scenario("end-said", |s| {
        allow_held(s, "E407");
        s.change("node1", &format!("chmod a-x {JOB_STATE}"), &format!("chmod 755 {JOB_STATE}"))?;
        let job = builder(s, "exit 0")?.submit()?;
        job.wait_end(SOON * 2)?;
        let instance = job.instance(0)?;
        wait_held_on(s, &instance, 2)?;
        let refused = burstfs(s, "node3", "alice", &format!("resume {} --ended well", job.id))?;
        ensure!(refused.status.code() == Some(2), "{}", said(&refused));
        let resumed = burstfs(s, "node3", "alice", &format!("resume {} --ended failure", job.id))?;
        ensure!(resumed.status.success() && said(&resumed).contains("COMPLETE"), "{}", said(&resumed));
        wait_gone(s, &instance)?;
        ensure_drained_after(&job, "failure")
    })
}
