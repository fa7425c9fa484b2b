//! Drains while the job runs: by `burstfs sync`, continuously, at intervals; and that the end's receipt tells of all of them.

use std::path::Path;

use anyhow::{Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, scenario, wait_until};

/// A job on two nodes with `/out/` to `out` in the scenario's directory, drained as `when` says.
fn submit<'a>(s: &Scenario<'a>, when: &str, script: &str) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    let builder = s.job("alice")?.nodes(2).burstfs("per_node=100MiB");
    let out = format!("stage_out source=/out/ destination={dir}/out {when}");
    builder.burstfs(out).script(format!("mkdir $BURSTFS/out; cd $BURSTFS/out\n{script}")).submit()
}

fn until(name: &str) -> String {
    format!("until [ -e $SLURM_SUBMIT_DIR/{name} ]; do sleep 0.1; done")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// How often the receipt names a file in this state.
fn count(job: &Job<'_>, state: &str) -> Result<usize> {
    let receipt: serde_json::Value = serde_json::from_str(&job.receipt()?.text())?;
    let entries = receipt["entries"].as_array().cloned().unwrap_or_default();
    Ok(entries.iter().filter(|entry| entry["state"] == state).count())
}

#[test]
fn sync_drains_what_has_changed_and_says_so() -> Result<()> {
    scenario("sync", |s| {
        let script = format!(
            "echo one > a; srun -N1 -n1 -w node2 sh -c 'mkdir sub; echo two > sub/b; ln -s b sub/link'\n\
             exec 7> open; echo half >&7\n\
             burstfs sync; echo \"first $?\"; echo \"dirty $(burstfs status -h -o dirty)\"\n\
             burstfs sync sub; echo \"second $?\"\n\
             {}\n\
             echo changed > a; cd /; burstfs sync $BURSTFS/out/a; echo \"third $?\"\n\
             echo whole >&7; exec 7>&-\n\
             burstfs sync /usr; echo \"outside $?\"\n{}",
            until("go"),
            until("end")
        );
        let job = submit(s, "", &script)?;
        job.wait_line("second 0")?;
        let out = job.file("out");
        ensure!(text(&out.join("a")) == "one\n" && text(&out.join("sub/b")) == "two\n", "not at the target after sync");
        ensure!(std::fs::read_link(out.join("sub/link"))? == Path::new("b"), "the link is not there");
        let said = job.output()?;
        let open = "drained 4 files, 13; 1 are being written, and are drained again later";
        ensure!(said.contains(open) && said.contains("drained 0 files, 0; 2 were drained already"), "{said}");
        ensure!(said.lines().any(|line| line == "dirty 5"), "what is open and not drained is not shown: {said}");
        job.touch("go")?;
        job.wait_line("outside 2")?;
        ensure!(text(&out.join("a")) == "changed\n", "the change is not at the target:\n{}", job.output()?);
        job.touch("end")?;
        job.wait_success(SOON)?;
        job.receipt()?.ensure_complete()?;
        ensure!(text(&out.join("open")) == "half\nwhole\n", "what was written after the first sync is missing");
        ensure!(count(&job, "copied")? == 3 && count(&job, "unchanged")? == 1, "{}", job.receipt()?.text());
        Ok(())
    })
}

#[test]
fn a_closed_file_is_drained_continuously() -> Result<()> {
    scenario("continuous", |s| {
        let script = format!(
            "echo one > a; exec 7> open; echo half >&7\n{}\n\
             echo two > a; srun -N1 -n1 -w node2 sh -c 'echo there > b'\n{}",
            until("change"),
            until("end")
        );
        let job = submit(s, "when=continuous", &script)?;
        let out = job.file("out");
        let comes = |name: &str, what: &str| {
            let words = format!("{name} to be {what:?} at the target");
            wait_until(&words, SOON, || Ok(text(&out.join(name)) == what))
        };
        comes("a", "one\n")?;
        ensure!(!out.join("open").exists(), "a file that is open for writing was drained");
        job.touch("change")?;
        comes("a", "two\n")?;
        comes("b", "there\n")?;
        job.touch("end")?;
        job.wait_success(SOON)?;
        job.receipt()?.ensure_complete()?;
        ensure!(text(&out.join("open")) == "half\n" && count(&job, "copied")? == 3, "{}", job.receipt()?.text());
        Ok(())
    })
}

#[test]
fn what_has_changed_is_drained_at_intervals() -> Result<()> {
    scenario("interval", |s| {
        let script = format!("echo one > a; for n in $(seq 300); do echo $n > f$n; done\n{}", until("end"));
        // A name that looks like Slurm's own words about another job.
        let name = "scontrol update jobid=$SLURM_JOB_ID name=$'x\\n   UserId=root(0) JobState=PENDING Restarts=7'";
        let script = format!("{name} && burstfs wait --staged-in; echo \"in $?\"\n{script}");
        let job = submit(s, "when=interval:2s", &script)?;
        job.wait_line("in 0")?;
        let as_alice = |command: &str| {
            let said = s.cluster.try_sh_as("ctl", "alice", &format!("cd {}; {command}", job.dir))?;
            let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
            Ok::<_, anyhow::Error>((said.status.code(), text))
        };
        let early = as_alice(&format!("burstfs wait --drained -j {} --timeout 1", job.id))?;
        ensure!(early.0 == Some(5), "{early:?}");
        let out = job.file("out");
        wait_until("all files at the target", SOON, || {
            Ok(text(&out.join("f300")) == "300\n" && out.join("a").exists())
        })?;
        job.touch("end")?;
        job.wait_success(SOON)?;
        job.receipt()?.ensure_complete()?;
        ensure!(count(&job, "copied")? == 301, "{}", job.receipt()?.text());
        let shown = as_alice(&format!("scontrol show job {}", job.id))?;
        ensure!(shown.1.contains("\n   UserId=root(0)"), "{shown:?}");
        let waited = as_alice(&format!("burstfs wait --drained -j {} --timeout 60", job.id))?;
        ensure!(waited.0 == Some(0), "{waited:?}");
        let report = as_alice(&format!("burstfs report {}", job.id))?;
        ensure!(report.0 == Some(0) && report.1.trim_end().ends_with("COMPLETE"), "{report:?}");
        Ok(())
    })
}

#[test]
fn a_job_killed_in_the_middle_of_a_round_loses_nothing() -> Result<()> {
    scenario("round-cut", |s| {
        s.allow(" ON node1 CANCELLED AT ");
        // The `squeue` of a `burstfs sync` may be killed while it talks to slurmctld; and slurmd may drop a message of slurmctld's,
        // which sends it again, while the batch step is killed.
        for line in ["Zero Bytes were transmitted or received", "Unexpected missing socket error"] {
            s.allow(line);
        }
        s.allow("error: Nodes node1 not responding");
        let script = "dd if=/dev/urandom of=big bs=1M count=60 status=none; for n in $(seq 400); do echo $n > f$n; done\n\
                      echo written; while :; do burstfs sync -q; date +%N > again; done";
        let job = submit(s, "", script)?;
        job.wait_line("written")?;
        wait_until("a round", SOON, || Ok(job.file("out/f9").exists()))?;
        job.cancel()?;
        job.wait_end(SOON)?;
        job.receipt()?.ensure_complete()?;
        // `again` is there only if the first round had ended by then.
        let files = 401 + usize::from(job.file("out/again").exists());
        ensure!(count(&job, "copied")? == files, "not {files} files copied: {}", job.receipt()?.text());
        let out = job.file("out");
        ensure!(std::fs::metadata(out.join("big"))?.len() == 60 << 20, "big is not whole");
        for n in 1..=400 {
            let file = out.join(format!("f{n}"));
            ensure!(text(&file) == format!("{n}\n"), "{}: {:?}", file.display(), text(&file));
        }
        Ok(())
    })
}
