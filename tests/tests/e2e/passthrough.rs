//! Files that a node holds itself, whose bytes the job's processes there read and write without `burstfsd`.

use std::fs;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, scenario, wait_for};

#[test]
fn a_nodes_own_files_are_the_kernels_and_everybodys() -> Result<()> {
    scenario("passthrough", |s| {
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=1200MiB")
            .burstfs(format!("stage_out source=/out/ destination={dir}/out"))
            .script(
                r#"set -e
                cat > holder <<'END'
set -e
cd $BURSTFS/out
head -c 8M /dev/urandom > big
exec 3<>big
dd if=/dev/zero bs=1M seek=2 count=1 conv=notrunc of=/dev/fd/3 2>/dev/null
cp /bin/cat program
cp --sparse=never big copy && cmp big copy
./program big | cmp - copy
fallocate -p -o 0 -l 4096 copy
head -c 4096 copy | tr -d '\0' | wc -c > holes
for i in $(seq 300); do printf 'node1\n' >> log; done
truncate -s 5M big
touch ready
until [ -e there ]; do sleep 0.05; done
# What the other node wrote, through the descriptor that was open all the time.
dd bs=1M skip=4 count=1 <&3 2>/dev/null | head -c 5 > seen || true
END
                cat > other <<'END'
set -e
cd $BURSTFS/out
for i in $(seq 300); do printf 'node2\n' >> log; done
until [ -e ready ]; do sleep 0.05; done
[ $(stat -c %s big) = 5242880 ]
[ $(dd if=big bs=1M skip=2 count=1 2>/dev/null | tr -d '\0' | wc -c) = 0 ]
./program big > copy-there && cmp big copy-there
printf hello | dd of=big bs=1M seek=4 conv=notrunc 2>/dev/null
touch there
END
                mkdir $BURSTFS/out
                srun -N1 -n1 -w node1 sh holder &
                srun -N1 -n1 -w node2 sh other
                wait $!
                cat $BURSTFS/out/seen $BURSTFS/out/holes
                sort $BURSTFS/out/log | uniq -c
                cat $BURSTFS/out/big | sha1sum > sum"#,
            )
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        // Then how many bytes of a punched hole are not zero.
        ensure!(output.contains("hello0"), "what the other node wrote was not seen, or a hole has bytes:\n{output}");
        for line in ["300 node1", "300 node2"] {
            ensure!(output.lines().any(|said| said.trim() == line), "no line \"{line}\":\n{output}");
        }
        job.receipt()?.ensure_complete()?;
        s.cluster.sh("ctl", &format!("cd {dir} && sha1sum < out/big | cmp - sum")).map(drop)
    })
}

#[test]
fn files_are_the_kernels_again_when_the_broker_was_killed() -> Result<()> {
    scenario("passthrough-broker", |s| {
        s.allow("the broker of backing ids ended: killed by signal 9");
        let job = s
            .job("alice")?
            .nodes(1)
            .burstfs("capacity=1200MiB")
            .script(
                r#"set -e
                # Only what the kernel reads and writes by itself can be mapped for everybody to see.
                mapped() { fio --name=mapped --filename=$BURSTFS/$1 --ioengine=mmap --rw=write --bs=4k --size=1M --verify=crc32c; }
                mapped before
                echo mapped
                until [ -e killed ]; do sleep 0.05; done
                mapped before
                mapped after
                rm $BURSTFS/before $BURSTFS/after"#,
            )
            .submit()?;
        job.wait_line("mapped")?;
        let old = s.cluster.only_pid("node1", "burstfs-backing")?;
        s.cluster.sh("node1", &format!("kill -9 {old}"))?;
        wait_for("another broker on node1", SOON, || {
            Ok(s.cluster.pids("node1", "burstfs-backing")?.into_iter().find(|pid| *pid != old))
        })?;
        job.touch("killed")?;
        job.wait_success(SOON)
    })
}

#[test]
fn a_file_that_the_kernel_writes_outlives_burstfsd() -> Result<()> {
    scenario("passthrough-kill", |s| {
        s.allow_killed_daemon();
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=1200MiB")
            .burstfs(format!("stage_out source=/out/ destination={dir}/out"))
            .script(
                r#"cat > writer <<'END'
exec 3>$BURSTFS/out/file
echo before >&3
echo written
until [ -e $SLURM_SUBMIT_DIR/killed ]; do sleep 0.05; done
echo after >&3 && echo "write goes on"
sync -d /dev/fd/3 2>/dev/null || echo "fsync is told"
cat $BURSTFS/out/file
END
                mkdir $BURSTFS/out
                srun -N1 -n1 -w node2 sh writer
                cat $BURSTFS/out/file | wc -l"#,
            )
            .submit()?;
        job.wait_line("written")?;
        let old = s.cluster.only_pid("node2", "burstfsd")?;
        s.cluster.sh("node2", &format!("kill -9 {old}"))?;
        wait_for("another burstfsd on node2", SOON, || {
            Ok(s.cluster.pids("node2", "burstfsd")?.into_iter().find(|pid| *pid != old))
        })?;
        job.touch("killed")?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        for line in ["write goes on", "fsync is told", "before", "after", "2"] {
            ensure!(output.lines().any(|said| said == line), "no line \"{line}\":\n{output}");
        }
        job.receipt()?.ensure_complete()?;
        ensure!(fs::read_to_string(s.path("alice")?.join("out/file"))? == "before\nafter\n");
        Ok(())
    })
}
