//! Daemons that are killed while the job runs.

use std::fs;

use anyhow::{Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, scenario, wait_for, wait_until};

/// A job that writes a file on every node, says `written`, waits for `go`, reads all of them on every node that `readers`
/// names, writes one more each, and ends.
fn two_phases<'a>(s: &Scenario<'a>, readers: &str) -> Result<Job<'a>> {
    let dir = s.dir("alice")?;
    let job =
        s.job("alice")?.burstfs("capacity=400MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
    job.script(format!(
        r#"set -e
        cat > first <<'END'
h=$(hostname); for i in $(seq 20); do head -c 100000 /dev/urandom > $BURSTFS/out/$h-$i; done; cd $BURSTFS/out; md5sum $h-* > $SLURM_SUBMIT_DIR/sums-$h
END
        cat > second <<'END'
cd $BURSTFS/out && md5sum --quiet -c $SLURM_SUBMIT_DIR/sums-* && echo later > $BURSTFS/out/later-$(hostname)
END
        mkdir $BURSTFS/out
        srun sh first
        echo written
        until [ -e go ]; do sleep 0.05; done
        srun {readers} sh second
        echo read"#
    ))
    .submit()
}

/// Everything that was closed is at the destination: what the sums name and what was written later.
fn ensure_all_drained(s: &Scenario<'_>, job: &Job<'_>, later: &[&str]) -> Result<()> {
    ensure!(job.output()?.lines().any(|line| line == "read"), "{}", job.output()?);
    job.receipt()?.ensure_complete()?;
    let dir = s.dir("alice")?;
    s.cluster.sh(
        "ctl",
        &format!("cd {dir}/out && md5sum --quiet -c ../sums-node1 ../sums-node2 ../sums-node3 ../sums-node4"),
    )?;
    for node in later {
        ensure!(fs::read_to_string(s.path("alice")?.join(format!("out/later-{node}")))? == "later\n", "{node}");
    }
    Ok(())
}

#[test]
fn burstfsd_is_killed_on_one_node() -> Result<()> {
    scenario("kill-daemon", |s| {
        s.allow_killed_daemon();
        let job = two_phases(s, "-N3 -n3 -w node1,node3,node4")?;
        job.wait_line("written")?;
        let old = s.cluster.only_pid("node2", "burstfsd")?;
        s.cluster.sh("node2", &format!("kill -9 {old}"))?;
        wait_for("another burstfsd on node2", SOON, || {
            Ok(s.cluster.pids("node2", "burstfsd")?.into_iter().find(|pid| *pid != old))
        })?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_all_drained(s, &job, &["node1", "node3", "node4"])
    })
}

#[test]
fn burstfsd_is_killed_where_the_mgs_is() -> Result<()> {
    scenario("kill-mgs", |s| {
        s.allow_killed_daemon();
        let job = two_phases(s, "-N3 -n3 -w node2,node3,node4")?;
        job.wait_line("written")?;
        let old = s.cluster.only_pid("node1", "burstfsd")?;
        s.cluster.sh("node1", &format!("kill -9 {old}"))?;
        wait_for("another burstfsd on node1", SOON, || {
            Ok(s.cluster.pids("node1", "burstfsd")?.into_iter().find(|pid| *pid != old))
        })?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_all_drained(s, &job, &["node2", "node3", "node4"])
    })
}

#[test]
fn burstfsd_is_killed_while_draining() -> Result<()> {
    scenario("kill-drain", |s| {
        s.allow_killed_daemon();
        let dir = s.dir("alice")?;
        let job =
            s.job("alice")?.burstfs("per_node=300MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
        let job = job
            .script("mkdir $BURSTFS/out; srun sh -c 'for i in 1 2; do head -c 100M /dev/urandom > $BURSTFS/out/$(hostname)-$i; done'; cd $BURSTFS/out; sha1sum * > $SLURM_SUBMIT_DIR/sums")
            .submit()?;
        let out = s.path("alice")?.join("out");
        wait_until("the first drained bytes", SOON, || {
            Ok(fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()))
        })?;
        s.cluster.sh("node3", "pkill -9 -x burstfsd || true")?;
        job.wait_end(SOON)?;
        job.receipt()?.ensure_complete()?;
        s.cluster.sh("ctl", &format!("cd {dir}/out && sha1sum -c --quiet ../sums")).map(drop)
    })
}

#[test]
fn burstfs_node_is_killed() -> Result<()> {
    scenario("kill-node-helper", |s| {
        s.allow_killed_supervisor();
        let job = two_phases(s, "")?;
        job.wait_line("written")?;
        let pid = s.cluster.only_pid("node3", "burstfs-node")?;
        s.cluster.sh("node3", &format!("kill -9 {pid}"))?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_all_drained(s, &job, &burstfs_tests::NODES)
    })
}

#[test]
fn both_are_killed_on_one_node() -> Result<()> {
    scenario("kill-both", |s| {
        s.allow_killed_daemon();
        s.allow_killed_supervisor();
        let job = two_phases(s, "-N3 -n3 -w node1,node2,node3")?;
        job.wait_line("written")?;
        s.cluster.sh("node4", "pkill -9 -x 'burstfs-node|burstfsd'")?;
        // Nobody starts the daemon again but an administrator, or the epilog.
        s.cluster.sh("node4", "/opt/burstfs/sbin/burstfs-node recover")?;
        wait_until("burstfsd on node4", SOON, || Ok(s.cluster.pids("node4", "burstfsd")?.len() == 1))?;
        job.touch("go")?;
        job.wait_success(SOON)?;
        ensure_all_drained(s, &job, &["node1", "node2", "node3"])
    })
}
