//! Nodes that lose their power: what is left goes on, drains, and says what is missing.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burstfs_tests::{Job, NODES, SOON, Scenario, scenario, wait_until};

/// Every node makes a few directories (whose homes are then all over the nodes), and in every directory a file of its own.
/// Then the script says on which MDT each directory is, and `written`.
const WRITE: &str = r#"
cat > make <<'END'
for i in 1 2 3 4 5 6; do mkdir $BURSTFS/$(hostname)-$i; done
END
cat > fill <<'END'
for dir in $BURSTFS/*; do echo "from $(hostname)" > $dir/$(hostname); done
END
srun sh make && srun sh fill || exit 1
for dir in $BURSTFS/*; do echo "home $(($(stat -c %i $dir) >> 48)) $(basename $dir)"; done
echo written
"#;

/// The whole file system.
fn all() -> Vec<String> {
    vec![String::new()]
}

/// What the logs may say when `node` is gone: burstfs names it and what it took along, and Slurm cannot reach it.
fn allow_loss(s: &mut Scenario<'_>, node: &str) {
    for line in [
        format!("{node} is given up: nothing was heard of it for too long"),
        format!("E303: {node} is lost: what it holds answers EIO from now on"),
        format!("stage_out: {node} was lost, with what it held"),
        "E402: the node was restarted before its data had been drained".to_owned(),
        format!("stage_out: {node} was lost before all that the job wrote was on its disk"),
        "E504: an administrator has removed what could not be drained".to_owned(),
        format!("error: Nodes {node} not responding"),
        // Of the other nodes' slurmds, which say it again until they are heard.
        "error: Unable to send epilog complete message: Unable to contact slurm controller (connect failure)"
            .to_owned(),
        format!("error: Node {node} now responding"),
        format!("agent/is_node_resp: node:{node} RPC:"),
        format!("Node {node} unexpectedly rebooted"),
    ] {
        s.allow(&line);
    }
}

/// A job that drains these directories, each to one of its name below `out`; the root directory to `out` itself.
fn submit<'a>(s: &Scenario<'a>, sources: &[String], rest: &str) -> Result<Job<'a>> {
    let out = s.path("alice")?.join("out");
    let dir = format!("{}/out", s.dir("alice")?);
    s.cluster.login("alice", "/", "", &["mkdir", &dir])?;
    ensure!(out.is_dir(), "{} could not be made", out.display());
    let mut job = s.job("alice")?.burstfs("capacity=400MiB");
    for source in sources {
        job = job.burstfs(format!("stage_out source=/{source}/ destination={dir}/{source}"));
    }
    job.option("--no-requeue").script(format!("{WRITE}{rest}")).submit()
}

/// The directories and the MDTs on which they are, as the script has said.
fn homes(job: &Job<'_>) -> Result<Vec<(usize, String)>> {
    let output = job.output()?;
    let homes = output.lines().filter_map(|line| line.strip_prefix("home ")?.split_once(' '));
    homes.map(|(mdt, dir)| Ok((mdt.parse()?, dir.to_owned()))).collect()
}

fn receipt_file(job: &Job<'_>) -> PathBuf {
    job.file(&format!("burstfs-{}.receipt.json", job.id))
}

/// What the nodes but `lost` hold is at the destination, and the receipt says INCOMPLETE and names the lost one.
fn ensure_rest_is_drained(s: &Scenario<'_>, job: &Job<'_>, sources: &[String], lost: usize) -> Result<()> {
    let receipt = job.receipt()?;
    receipt.ensure_incomplete()?;
    ensure!(receipt.text().contains(&format!("{} was lost", NODES[lost])), "{}", receipt.text());
    let out = s.path("alice")?.join("out");
    let mut homes = homes(job)?;
    homes.retain(|(_, dir)| sources.iter().any(|source| source.is_empty() || source == dir));
    let living: Vec<_> = homes.iter().filter(|(mdt, _)| *mdt != lost).collect();
    ensure!(!living.is_empty() && living.len() < homes.len(), "no directory, or none on the lost node: {homes:?}");
    for (_, dir) in living {
        for node in NODES.iter().filter(|node| **node != NODES[lost]) {
            let path = out.join(dir).join(node);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(text == format!("from {node}\n"), "{}: {text}", path.display());
        }
    }
    Ok(())
}

/// Boots `lost` again; the job then leaves Slurm, and every node has kept its part until it is removed.
fn ensure_nodes_recover(s: &Scenario<'_>, job: &Job<'_>, lost: usize) -> Result<()> {
    s.cluster.control(&["node", "on", NODES[lost]])?;
    job.wait_end(SOON)?;
    let instance = job.instance(0)?;
    for node in NODES {
        wait_until(&format!("{node} to hold its part"), SOON, || {
            let said = s.cluster.sh(node, "/opt/burstfs/sbin/burstfs-node list")?;
            Ok(said.lines().any(|line| line.starts_with(&instance) && line.contains(" HELD ")))
        })?;
    }
    // Nobody knows what was not on the lost node's disk yet: whatever is found there now, it is not called complete.
    wait_until("the drain with the node that is back", SOON, || {
        let receipt = job.receipt()?;
        Ok(receipt.text().contains(&format!("{} was lost before all", NODES[lost])))
    })?;
    job.receipt()?.ensure_incomplete()?;
    for node in NODES {
        s.cluster.sh(node, &format!("/opt/burstfs/sbin/burstfs-node gc {instance}"))?;
    }
    s.cluster.control(&["wait-idle"]).map(drop)
}

#[test]
fn a_node_loses_its_power_while_the_job_runs() -> Result<()> {
    scenario("power", |s| {
        allow_loss(s, "node3");
        let job = submit(
            s,
            &all(),
            r#"
            until [ -e off ]; do sleep 0.05; done
            lost=$(awk '/^home 2 / { print $3; exit }' slurm-$SLURM_JOB_ID.out)
            for i in $(seq 200); do ls $BURSTFS/$lost 2>&1 | grep -q 'Input/output error' || exit 1; done
            echo failed at once
            for dir in $(awk '/^home [013] / { print $3 }' slurm-$SLURM_JOB_ID.out); do echo more > $BURSTFS/$dir/more || exit 1; done
            echo went on"#,
        )?;
        job.wait_line("written")?;
        s.cluster.control(&["node", "off", "node3"])?;
        job.touch("off")?;
        job.wait_line("failed at once")?;
        job.wait_line("went on")?;
        wait_until("the receipt", SOON, || Ok(receipt_file(&job).exists()))?;
        ensure_rest_is_drained(s, &job, &all(), 2)?;
        ensure_nodes_recover(s, &job, 2)?;
        let out = s.path("alice")?.join("out");
        for (_, dir) in homes(&job)?.iter().filter(|(mdt, _)| *mdt != 2) {
            ensure!(fs::read_to_string(out.join(dir).join("more"))? == "more\n", "{dir}");
        }
        Ok(())
    })
}

#[test]
fn a_node_loses_its_power_while_draining() -> Result<()> {
    scenario("power-drain", |s| {
        allow_loss(s, "node3");
        let job = submit(s, &all(), "until [ -e go ]; do sleep 0.05; done")?;
        job.wait_line("written")?;
        let log = format!("/var/log/burstfs/{}.log", job.instance(0)?);
        // While node2's epilog stands still no node drains; so node3 does not either, when the others begin.
        let helper = s.cluster.only_pid("node2", "burstfs-node")?;
        s.cluster.sh("node2", &format!("kill -STOP {helper}"))?;
        job.touch("go")?;
        wait_until("node3 to be at the end", SOON, || {
            Ok(s.cluster.try_sh("node3", &format!("grep -q 'burstfsd: Draining' {log}"))?.status.success())
        })?;
        s.cluster.sh("node3", "pkill -STOP -x burstfsd")?;
        s.cluster.sh("node2", &format!("kill -CONT {helper}"))?;
        let out = s.path("alice")?.join("out");
        wait_until("the first drained files", SOON, || {
            Ok(fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()))
        })?;
        s.cluster.control(&["node", "off", "node3"])?;
        wait_until("the receipt", SOON, || Ok(receipt_file(&job).exists()))?;
        ensure_rest_is_drained(s, &job, &all(), 2)?;
        ensure_nodes_recover(s, &job, 2)
    })
}

#[test]
fn the_first_node_loses_its_power() -> Result<()> {
    scenario("power-first", |s| {
        allow_loss(s, "node1");
        for line in [
            "E303: nothing was heard of the MGS on node1; it is node2's now",
            "the MGS has moved; the drain begins anew",
            "is looked for where it was before the node of its directory was lost",
        ] {
            s.allow(line);
        }
        // The root directory is lost with its node; these can still be found.
        let sources: Vec<String> = NODES.iter().flat_map(|node| [format!("{node}-1"), format!("{node}-2")]).collect();
        let job = submit(s, &sources, "sleep 1000")?;
        job.wait_line("written")?;
        let log = format!("burstfs/{}.log", job.instance(0)?);
        wait_until("the nodes to know where the directories are", SOON, || {
            let knows = |node: &&str| {
                fs::read_to_string(s.cluster.logs(node).join(&log))
                    .is_ok_and(|log| sources.iter().all(|source| log.contains(&format!("/{source}/ is "))))
            };
            Ok(NODES[1..].iter().all(knows))
        })?;
        s.cluster.control(&["node", "off", "node1"])?;
        wait_until("burstfs status to find the MGS on node2", SOON, || {
            let asked = s.cluster.login("alice", "/", "", &["burstfs", "status", "-h", "-o", "name,state,nodes"])?;
            Ok(asked.status.success() && String::from_utf8_lossy(&asked.stdout).contains("READY"))
        })?;
        job.cancel()?;
        wait_until("the receipt", SOON, || Ok(receipt_file(&job).exists()))?;
        ensure_rest_is_drained(s, &job, &sources, 0)?;
        ensure_nodes_recover(s, &job, 0)
    })
}
