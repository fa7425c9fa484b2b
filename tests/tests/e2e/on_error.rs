//! What becomes of a job, and of its data, when something cannot be copied: the values of on_error.

use anyhow::{Result, ensure};
use burstfs_tests::{Job, JobBuilder, SOON, Scenario, scenario, wait_until};
use serde_json::Value;

use crate::hold::{burstfs, said, wait_gone};

/// Input of which one file cannot be read.
fn make_input(s: &Scenario<'_>) -> Result<()> {
    let dir = s.dir("alice")?;
    let made = format!(
        "cd {dir} && mkdir -p in/sub && echo one > in/a && echo two > in/sub/b && echo no > in/locked && chmod 0 in/locked"
    );
    let made = s.cluster.try_sh_as("node1", "alice", &made)?;
    ensure!(made.status.success(), "{}", said(&made));
    Ok(())
}

#[test]
fn a_job_that_can_do_without_starts_and_is_told() -> Result<()> {
    scenario("in-warn", |s| {
        s.allow("E207: stage_in: ");
        make_input(s)?;
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("per_node=100MiB")
            .burstfs(format!("stage_in source={dir}/in/ destination=/in on_error=warn"))
            .script(
                "echo first; srun sh -c 'echo $(hostname) $BURSTFS_STAGE_IN'; cat $BURSTFS/in/a $BURSTFS/in/sub/b\n\
                 ls $BURSTFS/in; burstfs wait --staged-in; echo \"in $?\"",
            )
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        let lines: Vec<&str> = output.lines().collect();
        let warnings = lines.iter().filter(|line| line.contains("burstfs: warning: E207: stage_in: ")).count();
        ensure!(warnings == 1 && lines[0].contains("in/locked") && lines[1] == "first", "{output}");
        for line in ["node1 partial", "node2 partial", "one", "two", "in 4"] {
            ensure!(lines.contains(&line), "no \"{line}\" in {output}");
        }
        ensure!(!lines.contains(&"locked"), "half a file: {output}");
        let report = std::fs::read_to_string(job.file(&format!("burstfs-{}.stage-in.txt", job.id)))?;
        ensure!(report.contains("/in/locked: cannot open the source: Permission denied"), "{report}");
        ensure!(
            report.starts_with("burstfs: stage-in of job ") && report.trim_end().ends_with("INCOMPLETE"),
            "{report}"
        );
        // The strictest counts.
        s.allow_failed_start("E207");
        let strict = s
            .job("alice")?
            .nodes(2)
            .burstfs("per_node=100MiB")
            .burstfs(format!("stage_in source={dir}/in/ destination=/in on_error=warn"))
            .burstfs(format!("stage_in source={dir}/gone destination=/gone"));
        let strict = submit_and_remove(s, strict, "gone")?;
        strict.wait_failure(SOON, &["E207", "/gone: the source does not exist"])
    })
}

/// Submits a job whose input `name`, in the scenario's directory, is there then, and is not when it starts.
fn submit_and_remove<'a>(s: &Scenario<'a>, job: JobBuilder<'a>, name: &str) -> Result<Job<'a>> {
    let input = s.path("alice")?.join(name);
    std::fs::write(&input, "")?;
    let job = job.option("--hold").submit()?;
    std::fs::remove_file(&input)?;
    s.cluster.control(&["x", "ctl", "scontrol", "release", &job.id.to_string()])?;
    Ok(job)
}

#[test]
fn a_job_that_is_held_starts_when_it_is_released() -> Result<()> {
    scenario("in-hold", |s| {
        s.allow("E213: stage_in: ");
        // What the other node says if it asks Slurm about the job before it hears that.
        s.allow("E206: the job is COMPLETING while its file system starts");
        // Of the job that cannot be held.
        s.allow_failed_start("E207");
        let dir = s.dir("alice")?;
        let builder = || -> Result<_> {
            let builder = s.job("alice")?.nodes(2).burstfs("per_node=100MiB");
            Ok(builder
                .burstfs(format!("stage_in source={dir}/late destination=/late on_error=hold"))
                .script("cat $BURSTFS/late; echo \"$BURSTFS_STAGE_IN\""))
        };
        let job = submit_and_remove(s, builder()?, "late")?;
        wait_until("the job to be held", SOON, || {
            Ok(job.state()? == "PENDING" && fact(&job, "Restarts")? == "1" && fact(&job, "Priority")? == "0")
        })?;
        wait_gone(s, &job.instance(0)?)?;
        let facts = s.cluster.sh("ctl", &format!("scontrol show job {}", job.id))?;
        for words in
            ["AdminComment=burstfs: 0: E213: node1: stage_in: ", "/late: the source does not exist", "scontrol release"]
        {
            ensure!(facts.contains(words), "no \"{words}\" in {facts}");
        }
        ensure!(job.output().is_err(), "the script has run: {:?}", job.output());
        std::fs::write(job.file("late"), "input\n")?;
        // Slurm lets a job that was requeued wait for two minutes. A run that begins within the second in which the one before ended would get no
        // prolog: slurmd takes it for the same.
        s.cluster.sh("ctl", &format!("scontrol update jobid={} starttime=now+5", job.id))?;
        let released = s.cluster.try_sh_as("ctl", "alice", &format!("scontrol release {}", job.id))?;
        ensure!(released.status.success(), "{}", said(&released));
        job.wait_success(SOON)?;
        ensure!(job.output()? == "input\ncomplete\n", "{}", job.output()?);
        let never = submit_and_remove(s, builder()?.option("--no-requeue"), "late")?;
        never
            .wait_failure(SOON, &["E207", "/late: the source does not exist; the job fails, since it cannot be held: "])
    })
}

fn fact(job: &Job<'_>, key: &str) -> Result<String> {
    Ok(job.facts()?.remove(key).unwrap_or_default())
}

/// What the receipt says of entries whose destination is below `name` of the scenario's directory: so many in each state.
fn count(document: &Value, dir: &str, name: &str, state: &str) -> usize {
    let below = format!("{dir}/{name}");
    let entries = document["entries"].as_array().into_iter().flatten();
    let is_below = |entry: &&Value| entry["destination"].as_str().is_some_and(|path| path.starts_with(&below));
    entries.filter(is_below).filter(|entry| entry["state"] == state).count()
}

#[test]
fn what_cannot_be_copied_out_is_dropped_where_that_is_asked_for() -> Result<()> {
    scenario("out-dropped", |s| {
        s.allow("E401: stage_out: /many/pipe: ");
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("per_node=100MiB")
            .burstfs(format!("stage_out source=/out/ destination={dir}/kept"))
            .burstfs(format!("stage_out source=/many/ destination={dir}/warned on_error=warn"))
            .burstfs(format!("stage_out source=/many/ destination={dir}/failed on_error=fail"))
            .burstfs(format!("stage_out source=/many/ destination={dir}/whole on_error=warn atomic=dir"))
            .script("cd $BURSTFS; mkdir out many; echo x > out/x; mkfifo many/pipe; for n in $(seq 200); do echo $n > many/$n; done")
            .submit()?;
        let state = job.wait_end(SOON)?;
        ensure!(state == "COMPLETED", "{state}");
        // Nothing is held.
        wait_gone(s, &job.instance(0)?)?;
        job.receipt()?.ensure_incomplete()?;
        let document: Value = serde_json::from_str(&job.receipt()?.text())?;
        ensure!(
            document["kept"].as_str().is_some_and(|kept| kept.ends_with("; it is not kept, as on_error= says")),
            "{document:#}"
        );
        let counts =
            |name: &str| ["copied", "failed", "not_attempted"].map(|state| count(&document, &dir, name, state));
        ensure!(counts("kept") == [1, 0, 0], "{:?}", counts("kept"));
        ensure!(counts("warned") == [200, 1, 0], "{:?}", counts("warned"));
        ensure!(counts("failed") == [0, 1, 200], "{:?}", counts("failed"));
        ensure!(job.file("warned/200").exists() && !job.file("failed/200").exists() && !job.file("whole").exists());
        let waited = burstfs(s, "ctl", "alice", &format!("wait --drained -j {} --timeout 60", job.id))?;
        ensure!(waited.status.code() == Some(4), "{}", said(&waited));
        Ok(())
    })
}
