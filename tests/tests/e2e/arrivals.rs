//! Input that comes while the job runs (`stage_in when=async`).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, scenario, wait_for};

/// So many directories with a file of a MiB each; at the rate that the jobs allow that takes twenty seconds.
const DIRS: usize = 40;

/// Makes the input, `in` in alice's directory.
fn make_input(s: &Scenario<'_>) -> Result<()> {
    let script = format!(
        "set -e; mkdir in; cd in; for n in $(seq -w {DIRS}); do mkdir d$n; head -c 1M /dev/urandom > d$n/f; done\n\
         ln -s d01/f link; ln d01/f d02/same; mkdir empty; chmod 750 empty; touch -d 2001-02-03 d03/f d03"
    );
    let made = s.cluster.try_sh_as("node1", "alice", &format!("cd {} && {script}", s.dir("alice")?))?;
    ensure!(made.status.success(), "the input: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// A job on two nodes with that input under `/in`, and all of it drained to `out`.
fn submit<'a>(s: &Scenario<'a>, script: &str) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    s.job("alice")?
        .nodes(2)
        .burstfs("per_node=200MiB")
        .burstfs(format!("stage_in source={dir}/in/ destination=/in when=async bwlimit=2MB/s"))
        .burstfs(format!("stage_out source=/in/ destination={dir}/out"))
        .script(format!("early() {{ burstfs wait --staged-in --timeout 0 2>&1; }}\ncd $BURSTFS\n{script}"))
        .submit()
}

fn ensure_says(job: &Job<'_>, lines: &[&str]) -> Result<()> {
    let output = job.output()?;
    for line in lines {
        ensure!(output.lines().any(|said| said == *line), "no \"{line}\" in\n{output}");
    }
    Ok(())
}

#[test]
fn the_script_starts_at_once_and_finds_what_it_opens() -> Result<()> {
    scenario("async", |s| {
        make_input(s)?;
        let script = format!(
            "echo \"is $BURSTFS_STAGE_IN\"; early; echo \"early $?\"\n\
             cmp in/d{DIRS}/f $SLURM_SUBMIT_DIR/in/d{DIRS}/f && echo \"the last is there\"; early; echo \"still $?\"\n\
             cat in/none in/d09/none 2>/dev/null; echo \"none $?\"; early; echo \"still $?\"\n\
             until burstfs status -h -o eta -j $SLURM_JOB_ID | grep -q :; do sleep 0.1; done; echo \"eta\"\n\
             burstfs df -h -j $SLURM_JOB_ID | awk '{{ print $2 }}' | xargs; burstfs top -n 1 | grep -c \"$SLURM_JOB_ID.*READY.*/s\"\n\
             echo own > in/own; rm in/d07/f; mv in/d08/f in/d08/g; echo mine >> in/d09/f\n\
             rm in/d10/f; echo new > in/d10/f; mkdir in/d07/sub\n\
             srun -N1 -n1 -w node2 sh -c 'cd in; ls | wc -l; stat -c %h d02/same; readlink link; stat -c %a empty; stat -c %y d03/f'\n\
             burstfs wait --staged-in; echo \"in $?\"; diff -rq $SLURM_SUBMIT_DIR/in in | sort"
        );
        let job = submit(s, &script)?;
        job.wait_success(SOON)?;
        let entries = (DIRS + 3).to_string();
        let said = [
            "is async",
            "early 5",
            "the last is there",
            "still 5",
            "none 1",
            "eta",
            "node1 node2 all",
            "1",
            &entries,
            "2",
            "d01/f",
            "750",
            "2001-02-03 00:00:00.000000000 +0000",
            "in 0",
        ];
        ensure_says(&job, &said)?;
        let input = format!("{}/in", job.dir);
        let differences = [
            format!("Only in {input}/d07: f"),
            "Only in in/d07: sub".to_owned(),
            format!("Only in {input}/d08: f"),
            "Only in in/d08: g".to_owned(),
            format!("Files {input}/d09/f and in/d09/f differ"),
            format!("Files {input}/d10/f and in/d10/f differ"),
            "Only in in: own".to_owned(),
        ];
        let output = job.output()?;
        let differs = |line: &&str| line.starts_with("Only in ") || line.ends_with(" differ");
        let found: Vec<&str> = output.lines().filter(differs).collect();
        ensure!(found.len() == differences.len(), "{output}");
        ensure_says(&job, &differences.each_ref().map(String::as_str))?;
        job.receipt()?.ensure_complete()?;
        ensure!(fs::read_to_string(job.file("out/own"))? == "own\n" && !job.file("out/d07/f").exists(), "{output}");
        Ok(())
    })
}

#[test]
fn what_does_not_come_is_an_error_for_who_opens_it() -> Result<()> {
    scenario("async-failed", |s| {
        s.allow("E207: stage_in: ");
        make_input(s)?;
        let secret = s.path("alice")?.join("in/d05/f");
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o000))?;
        let script = "cat in/d05/f; echo \"cat $?\"; cmp in/d06/f $SLURM_SUBMIT_DIR/in/d06/f && echo \"others come\"\n\
                      burstfs wait --staged-in; echo \"in $?\"; ls in/d05; echo \"ls $?\"; burstfs status -o in,reason";
        let job = submit(s, script)?;
        job.wait_success(SOON)?;
        ensure_says(&job, &["cat 1", "others come", "in 4", "ls 2"])?;
        let output = job.output()?;
        for words in [
            "in/d05/f: Input/output error",
            "burstfs: error: E207: stage_in: ",
            "d05/f: cannot open the source: Permission",
        ] {
            ensure!(output.contains(words), "no \"{words}\" in\n{output}");
        }
        // A source that is not there is known before the job starts.
        s.allow_failed_start("E207");
        let dir = s.dir("alice")?;
        let gone = s
            .job("alice")?
            .burstfs("per_node=200MiB")
            .burstfs("stage_in source=/local/gone destination=/in when=async")
            .script("echo ran")
            .submit()?;
        gone.wait_failure(SOON, &["E207", "/local/gone: the source does not exist"])?;
        ensure!(!gone.output()?.contains("ran\n"), "{dir}");
        Ok(())
    })
}

#[test]
fn daemons_are_killed_while_input_comes() -> Result<()> {
    scenario("async-killed", |s| {
        s.allow_killed_daemon();
        make_input(s)?;
        // Each node's processes begin anew: the mount of a killed daemon is another one.
        let script = "rm in/d01/f; echo mine > in/d02/f; echo changed; cd /\n\
                      until [ -e $SLURM_SUBMIT_DIR/go ]; do sleep 0.1; done; cd $BURSTFS; early; echo \"go $?\"\n\
                      burstfs wait --staged-in; echo \"in $?\"; find in -name '*.burstfs-*'; ls in | wc -l";
        let job = submit(s, script)?;
        job.wait_line("changed")?;
        for node in ["node2", "node1"] {
            let old = s.cluster.only_pid(node, "burstfsd")?;
            s.cluster.sh(node, &format!("kill -9 {old}"))?;
            wait_for(&format!("another burstfsd on {node}"), SOON, || {
                Ok(s.cluster.pids(node, "burstfsd")?.into_iter().find(|pid| *pid != old))
            })?;
        }
        job.touch("go")?;
        job.wait_success(SOON)?;
        let entries = (DIRS + 2).to_string();
        ensure_says(&job, &["in 0", &entries])?;
        job.receipt()?.ensure_complete()?;
        ensure!(fs::read_to_string(job.file("out/d02/f"))? == "mine\n", "the job's own file was replaced");
        let same = format!("cd {}; diff -rq in out; true", job.dir);
        let differences = s.cluster.try_sh_as("ctl", "alice", &same)?;
        let differences = String::from_utf8_lossy(&differences.stdout).into_owned();
        let expected = |line: &str| line.contains("d01") || line.contains("d02/f");
        ensure!(differences.lines().all(expected), "{differences}");
        Ok(())
    })
}

#[test]
fn a_job_that_ends_before_all_has_come_leaves_nothing_half() -> Result<()> {
    scenario("async-end", |s| {
        make_input(s)?;
        let job = submit(s, "cmp in/d20/f $SLURM_SUBMIT_DIR/in/d20/f; early; echo \"end $?\"")?;
        job.wait_success(SOON)?;
        ensure_says(&job, &["end 5"])?;
        job.receipt()?.ensure_complete()?;
        let compare = format!(
            "cd {}/out && find . -name '*.burstfs-*' && find . -type f -exec cmp {{}} ../in/{{}} ';' && find . -type f | wc -l",
            job.dir
        );
        let said = s.cluster.try_sh_as("ctl", "alice", &compare)?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let count: usize = said.trim().parse()?;
        ensure!((1..DIRS).contains(&count), "{said}");
        Ok(())
    })
}
