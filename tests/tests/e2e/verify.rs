//! Bytes that are checked by their own checksums, on every layout, while daemons are killed.

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, Scenario, scenario, wait_for};

/// Kills the `burstfsd` of a node and waits for the next. Five times a minute are too often for one node.
fn kill(s: &Scenario<'_>, node: &str) -> Result<()> {
    let old = s.cluster.only_pid(node, "burstfsd")?;
    s.cluster.sh(node, &format!("kill -9 {old}"))?;
    wait_for(&format!("another burstfsd on {node}"), SOON, || {
        Ok(s.cluster.pids(node, "burstfsd")?.into_iter().find(|pid| *pid != old))
    })
    .map(drop)
}

/// Each block that fio writes has its own checksum in it; what is read back must match it, and be of the right place.
#[test]
fn fio_finds_what_it_wrote_while_burstfsd_is_killed() -> Result<()> {
    scenario("verify", |s| {
        s.allow_killed_daemon();
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=1400MiB")
            .script(
                r#"set -e
                cd $BURSTFS
                mkdir striped small local auto
                burstfs layout set striped:count=2,size=1MiB striped
                burstfs layout set striped:count=2,size=64KiB small
                burstfs layout set local local
                srun -N1 -n1 -w node1 touch local/node1
                srun -N1 -n1 -w node2 touch local/node2
                cat > fio.job <<'END'
[global]
filesize=24M
ioengine=psync
verify=crc32c
verify_fatal=1
verify_backlog=64
randrepeat=0
thread
[over]
rw=randwrite
bsrange=4k-256k
END
                cp fio.job $SLURM_SUBMIT_DIR/fio.job
                echo ready
                until [ -e $SLURM_SUBMIT_DIR/go ]; do sleep 0.05; done"#,
            )
            .submit()?;
        job.wait_line("ready")?;
        let (mount, dir) = (format!("/burstfs/{}", job.id), s.dir("alice")?);
        let fio = |file: &str, options: &str| {
            format!("cd {dir} && fio fio.job --filename={mount}/{file} {options} --output=fio.out")
        };
        let said = || std::fs::read_to_string(job.file("fio.out")).unwrap_or_default();
        // On node1, while node2 dies: what needs it waits, and goes on.
        for file in ["local/node2", "striped/f", "small/f"] {
            let mut running = s.cluster.command_as("node1", "alice", &fio(file, "--loops=2")).spawn()?;
            kill(s, "node2")?;
            let status = running.wait()?;
            ensure!(status.success(), "{file}: {status}\n{}", said());
        }
        // All of it is written anew and closed; then both nodes' daemons die, and the other node checks.
        for (node, options) in [("node1", "--do_verify=0"), ("node2", "--verify_only")] {
            for file in ["local/node1", "local/node2", "striped/f", "small/f", "auto/f"] {
                let output = s.cluster.try_sh_as(node, "alice", &fio(file, &format!("--randseed=7 {options}")))?;
                ensure!(output.status.success(), "{file} on {node}: {output:?}\n{}", said());
            }
            if node == "node1" {
                kill(s, "node1")?;
                kill(s, "node2")?;
            }
        }
        job.touch("go")?;
        job.wait_success(SOON)
    })
}
