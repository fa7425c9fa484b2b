//! The main job: input staged in, one file system on all nodes, output drained and verified.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, Tree, scenario};

#[test]
fn the_main_job() -> Result<()> {
    scenario("main", |s| {
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        let input = Tree::make(&here.join("in"))?;
        let job = s
            .job("alice")?
            .burstfs("capacity=800MiB name=scratch")
            .burstfs(format!("stage_in source={dir}/in/ destination=/in"))
            .burstfs(format!("stage_out source=/out/ destination={dir}/out"))
            .script(
                r#"set -e
                echo "$BURSTFS $BURSTFS_SCRATCH $BURSTFS_CAPACITY_BYTES $BURSTFS_STAGE_IN $(hostname)"
                [ "$BURSTFS" = /burstfs/$SLURM_JOB_ID ]
                mkdir $BURSTFS/out
                srun -N1 -n1 -w node1 sh -c 'echo "from $(hostname)" > $BURSTFS/out/one'
                srun -N1 -n1 -w node4 cat $BURSTFS/out/one
                srun sh -c 'head -c 1000000 /dev/zero | tr "\0" "$SLURM_PROCID" > $BURSTFS/out/rank-$SLURM_PROCID'
                srun sh -c 'cat $BURSTFS/out/rank-* | md5sum' | sort -u | wc -l
                srun sh -c 'find $BURSTFS/in | wc -l; (cd $BURSTFS/in && find . -type f -print0 | sort -z | xargs -0 md5sum | md5sum)' | sort -u | wc -l
                cp -a $BURSTFS/in $BURSTFS/out/copy
                stat -c "root %a %U" $BURSTFS"#,
            )
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        for line in ["from node1", "root 700 alice", "1", "2"] {
            ensure!(output.lines().any(|said| said == line), "no line \"{line}\" in:\n{output}");
        }
        ensure!(output.contains(" 838860800 complete node1"), "{output}");
        let receipt = job.receipt()?;
        receipt.ensure_complete()?;
        input.ensure_same(&Tree::read(&here.join("out/copy"))?, "the input and what came back of it")?;
        for rank in 0..4 {
            let drained = fs::read(here.join(format!("out/rank-{rank}")))?;
            ensure!(drained == format!("{rank}").repeat(1_000_000).into_bytes(), "rank {rank} is not what was written");
        }
        Ok(())
    })
}

#[test]
fn a_job_without_burstfs_is_untouched() -> Result<()> {
    scenario("without", |s| {
        let job = s
            .job("alice")?
            .script("srun sh -c 'env | grep -c ^BURSTFS; grep -c fuse[.b] /proc/mounts; ls /burstfs | wc -l' | sort -u")
            .submit()?;
        job.wait_success(SOON)?;
        ensure!(job.output()?.trim() == "0", "{}", job.output()?);
        ensure!(!job.file(&format!("burstfs-{}.receipt.json", job.id)).exists());
        Ok(())
    })
}

#[test]
fn a_job_inside_a_job_does_not_inherit() -> Result<()> {
    scenario("nested", |s| {
        let job = s
            .job("alice")?
            .nodes(1)
            .burstfs("capacity=100MiB")
            .script(r#"sbatch --wait -N1 -o inner.out --wrap 'echo "inner has [$BURSTFS]"'"#)
            .submit()?;
        job.wait_success(SOON)?;
        let inner = fs::read_to_string(job.file("inner.out"))?;
        ensure!(inner.contains("inner has []"), "{inner}");
        Ok(())
    })
}

#[test]
fn tmpdir_and_datawarps_variables_lead_to_the_mount() -> Result<()> {
    scenario("tmpdir", |s| {
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=100MiB tmpdir=yes compat=dw")
            .environment("TMPDIR=/var/tmp")
            .script(
                r#"set -e
                echo "$TMPDIR $DW_JOB_STRIPED"
                for node in node1 node2; do srun -N1 -n1 -w $node sh -c 'echo "$TMPDIR $DW_JOB_STRIPED"; mktemp'; done
                sbatch --wait -N1 -o inner.out --wrap 'echo "inner has [$TMPDIR][$DW_JOB_STRIPED]"'"#,
            )
            .submit()?;
        job.wait_success(SOON)?;
        let (output, mount) = (job.output()?, format!("/burstfs/{}", job.id));
        let both = format!("{mount} {mount}/");
        ensure!(output.lines().filter(|line| *line == both).count() == 3, "{output}");
        ensure!(output.lines().filter(|line| line.starts_with(&format!("{mount}/tmp."))).count() == 2, "{output}");
        // A job within the job has a $TMPDIR as every job, but not that one.
        let inner = fs::read_to_string(job.file("inner.out"))?;
        ensure!(!inner.contains("burstfs") && inner.contains("[]"), "{inner}");
        Ok(())
    })
}

#[test]
fn a_full_instance_says_so() -> Result<()> {
    scenario("enospc", |s| {
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=64MiB")
            .burstfs(format!("stage_out source=/out/ destination={dir}/out"))
            .script(
                r#"mkdir $BURSTFS/out; echo small > $BURSTFS/out/small
                dd if=/dev/zero of=$BURSTFS/big bs=1M count=200; echo "dd: $?"; df --output=size -B1 $BURSTFS | tail -1"#,
            )
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        ensure!(output.contains("No space left on device") && output.contains("dd: 1"), "{output}");
        job.receipt()?.ensure_complete()?;
        ensure!(fs::read_to_string(s.path("alice")?.join("out/small"))? == "small\n");
        Ok(())
    })
}

#[test]
fn what_cannot_be_drained_is_kept_and_named() -> Result<()> {
    scenario("held", |s| {
        s.allow("E401");
        s.allow("E503");
        s.allow("E504: an administrator has removed what could not be drained");
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        let parent = here.join("later");
        fs::create_dir(&parent)?;
        std::os::unix::fs::chown(&parent, Some(7001), Some(7001))?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=64MiB")
            .burstfs(format!("stage_out source=/out/ destination={dir}/later/out"))
            .script(
                "mkdir $BURSTFS/out; echo data > $BURSTFS/out/file; echo written; until [ -e go ]; do sleep 0.05; done",
            )
            .submit()?;
        job.wait_line("written")?;
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o500))?;
        job.touch("go")?;
        job.wait_end(SOON)?;
        let receipt = job.receipt()?;
        receipt.ensure_incomplete()?;
        ensure!(receipt.text().contains("file"), "the file is not named:\n{}", receipt.text());
        let instance = job.instance(0)?;
        for node in ["node1", "node2"] {
            let listed = s.cluster.sh(node, "/opt/burstfs/sbin/burstfs-node list")?;
            ensure!(listed.contains(&instance), "{node} does not list {instance}:\n{listed}");
            s.cluster.sh(node, &format!("/opt/burstfs/sbin/burstfs-node gc {instance}"))?;
        }
        Ok(())
    })
}

#[test]
fn status_from_everywhere() -> Result<()> {
    scenario("status", |s| {
        // The stranger of this scenario is refused, and named in the log.
        s.allow("refused a connection");
        let job = s
            .job("alice")?
            .burstfs("capacity=100MiB")
            .script("burstfs status --json > status.json || exit 1; echo started; until [ -e go ]; do sleep 0.05; done")
            .submit()?;
        job.wait_line("started")?;
        let seen: serde_json::Value = serde_json::from_slice(&fs::read(job.file("status.json"))?)?;
        ensure!(seen["instances"][0]["instance"] == job.instance(0)?.as_str(), "{seen:#}");
        for node in ["ctl", "node3"] {
            let output = s.cluster.try_sh_as(node, "alice", &format!("burstfs status -j {}", job.id))?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success() && said.contains("READY") && said.contains("alice"), "{node}: {output:?}");
        }
        let other = s.cluster.try_sh_as("node3", "bob", &format!("burstfs status -j {}", job.id))?;
        ensure!(!other.status.success() && !String::from_utf8_lossy(&other.stdout).contains("READY"), "{other:?}");
        job.touch("go")?;
        job.wait_success(SOON)?;
        let gone = s.cluster.try_sh_as("ctl", "alice", &format!("burstfs status -j {}", job.id))?;
        ensure!(gone.status.code() == Some(3), "{gone:?}");
        Ok(())
    })
}
