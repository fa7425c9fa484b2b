//! The time limit: what was closed before the deadline is at the target when the limit comes, and nothing is lost after it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use burstfs_tests::{Job, Scenario, scenario};

/// From the submission to the end of the drain: Slurm looks at limits every half minute.
const PATIENCE: Duration = Duration::from_secs(400);
/// How long before the limit the deadline is.
const RESERVE_SECS: u64 = 25;

/// On every node: makes files faster than they are drained, and notes when each was closed, outside of burstfs. `$1` is the
/// pause after each ten files, in seconds.
const WRITER: &str = r#"use Time::HiRes qw(time sleep); my $node = $ENV{SLURMD_NODENAME}; my $n = 0;
open(my $log, ">>", "$ENV{SLURM_SUBMIT_DIR}/log-$node") or die; select((select($log), $| = 1)[0]);
while (1) {
  my $dir = "$node-" . int($n / 1000);
  mkdir $dir if $n % 1000 == 0;
  open(my $f, ">", "$dir/f$n") or die "open: $!"; print $f "$node $n\n" x 100 or die; close($f) or die "close: $!";
  printf $log "%s/f%d %.3f\n", $dir, $n, time;
  sleep $ARGV[0] if ++$n % 10 == 0;
}"#;

/// How often the job runs: once, or `BURSTFS_WALLTIME_RUNS` times (`make walltime`).
fn runs() -> usize {
    std::env::var("BURSTFS_WALLTIME_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(1)
}

fn submit<'a>(s: &Scenario<'a>) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    std::fs::write(s.path("alice")?.join("writer.pl"), WRITER)?;
    let script = format!(
        "mkdir $BURSTFS/out; cd $BURSTFS/out; echo deadline $BURSTFS_DRAIN_DEADLINE\n\
         (while [ $(date +%s) -lt $((BURSTFS_DRAIN_DEADLINE + {RESERVE_SECS} - 1)) ]; do sleep 0.2; done\n\
          cd $SLURM_SUBMIT_DIR; find out -type f ! -name '.*' > at-limit.next; mv at-limit.next at-limit; echo limit) &\n\
         srun perl $SLURM_SUBMIT_DIR/writer.pl 0.02"
    );
    let out = format!("stage_out source=/out/ destination={dir}/out deadline={RESERVE_SECS}s");
    s.job("alice")?.nodes(2).option("-t1").burstfs("per_node=600MiB").burstfs(out).script(script).submit()
}

/// All files that were closed, with the time.
fn closed(job: &Job<'_>) -> Result<HashMap<String, f64>> {
    let mut files = HashMap::new();
    for node in ["node1", "node2"] {
        let log = std::fs::read_to_string(job.file(&format!("log-{node}")))?;
        // The job is killed at any moment: the last line may be a part of one.
        for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let (name, time) = line.trim().split_once(' ').with_context(|| format!("the log says {line:?}"))?;
            files.insert(name.to_owned(), time.parse()?);
        }
    }
    Ok(files)
}

fn check(job: &Job<'_>) -> Result<String> {
    let output = job.output()?;
    let deadline = output.lines().find_map(|line| line.strip_prefix("deadline ")?.parse::<u64>().ok());
    let deadline = deadline.with_context(|| format!("the job was told no deadline:\n{output}"))?;
    let files = closed(job)?;
    job.receipt()?.ensure_complete()?;
    for name in files.keys() {
        let text = std::fs::read_to_string(job.file("out").join(name)).with_context(|| format!("{name} is lost"))?;
        let (dir, number) = name.split_once("/f").context("a strange name")?;
        let node = dir.split_once('-').context("a strange name")?.0;
        ensure!(text == format!("{node} {number}\n").repeat(100), "{name} has other bytes");
    }
    let at_limit = std::fs::read_to_string(job.file("at-limit")).context("the script did not see the limit")?;
    let at_limit: std::collections::HashSet<&str> =
        at_limit.lines().filter_map(|line| line.strip_prefix("out/")).collect();
    let before: Vec<&String> =
        files.iter().filter(|(_, time)| **time < deadline as f64).map(|(name, _)| name).collect();
    let missing: Vec<&&String> = before.iter().filter(|name| !at_limit.contains(name.as_str())).collect();
    let is_warned = output.contains("burstfs: warning: E406");
    ensure!(!before.is_empty() && !at_limit.is_empty(), "nothing was drained before the limit:\n{output}");
    ensure!(
        missing.is_empty() || is_warned,
        "{} of {} files closed before the deadline were not at the target at the limit, and nobody was warned: {:?}\n{output}",
        missing.len(),
        before.len(),
        &missing[..missing.len().min(5)]
    );
    Ok(format!(
        "{} files closed, {} before the deadline, {} of these at the target at the limit, {} in all; warned: {is_warned}",
        files.len(),
        before.len(),
        before.len() - missing.len(),
        at_limit.len()
    ))
}

#[test]
fn what_is_closed_before_the_deadline_is_drained_at_the_limit() -> Result<()> {
    for run in 1..=runs() {
        scenario("walltime", |s| {
            s.allow("DUE TO TIME LIMIT ***");
            s.allow("burstfs: warning: E406");
            // Of steps that are killed with the job.
            s.allow("Failed to send MESSAGE_TASK_EXIT");
            s.allow("Unexpected missing socket error");
            let job = submit(s)?;
            let state = job.wait_end(PATIENCE)?;
            ensure!(state == "TIMEOUT", "job {} is {state}:\n{}", job.id, job.output()?);
            println!("run {run}: {}", check(&job)?);
            Ok(())
        })?;
    }
    Ok(())
}
