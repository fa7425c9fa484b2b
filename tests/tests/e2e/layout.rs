//! Layouts in a job: asked for, shown, set, and what staging does with striped files.

use std::fs;
use std::os::unix::fs::chown;

use anyhow::{Result, ensure};
use burstfs_tests::{SOON, Tree, scenario};

#[test]
fn a_striped_job() -> Result<()> {
    scenario("striped", |s| {
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        Tree::make(&here.join("in"))?;
        let big: Vec<u8> = (0..10_000_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        fs::write(here.join("in/big"), &big)?;
        chown(here.join("in/big"), Some(7001), Some(7001))?;
        let input = Tree::read(&here.join("in"))?;
        let job = s
            .job("alice")?
            .burstfs("capacity=800MiB layout=striped:size=64K")
            .burstfs(format!("stage_in source={dir}/in/ destination=/in"))
            .burstfs(format!("stage_out source=/ destination={dir}/out"))
            .script(
                r#"set -e
                [ "$(getfattr --only-values -n burstfs.layout $BURSTFS)" = striped:count=all,size=64KiB ]
                [ "$(getfattr --only-values -n burstfs.layout $BURSTFS/in/big)" = striped:count=4,size=64KiB ]
                echo "staged $(cmp $BURSTFS/in/big in/big && echo same)"
                srun sh -c 'cmp $BURSTFS/in/big in/big'
                # One file, written by all nodes in parts, then appended to by all.
                srun sh -c 'head -c 1500000 /dev/zero | tr "\0" "$SLURM_PROCID" |
                    dd of=$BURSTFS/shared bs=100000 seek=$((15 * SLURM_PROCID)) conv=notrunc iflag=fullblock status=none'
                srun sh -c 'for n in $(seq 100); do printf "%0999d\n" $SLURM_PROCID >> $BURSTFS/log; done'
                # Who wants another layout says so, for a directory, a file, or by a path.
                mkdir $BURSTFS/mine; burstfs layout set local $BURSTFS/mine; echo mine > $BURSTFS/mine/f
                burstfs layout set striped:count=2,size=1MiB $BURSTFS/two; echo two >> $BURSTFS/two
                echo local > $BURSTFS/.layout/local/f
                burstfs layout get $BURSTFS/mine/f $BURSTFS/two $BURSTFS/shared
                burstfs layout set local $BURSTFS/two || echo "refused: $?"
                burstfs layout get /tmp || echo "elsewhere: $?""#,
            )
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        for words in [
            "staged same",
            "/mine/f: local",
            "why: its directory had it when it was made",
            "on: node1\n",
            "/two: striped:count=2,size=1MiB",
            "why: it was set on this file",
            "/shared: striped:count=4,size=64KiB",
            "why: the job asks for it",
            "refused: 1",
            "elsewhere: 3",
        ] {
            ensure!(output.contains(words), "no \"{words}\" in:\n{output}");
        }
        job.receipt()?.ensure_complete()?;
        let out = here.join("out");
        input.ensure_same(&Tree::read(&out.join("in"))?, "the input and what came back of it")?;
        let shared: Vec<u8> = (0..4).flat_map(|rank| format!("{rank}").repeat(1_500_000).into_bytes()).collect();
        ensure!(fs::read(out.join("shared"))? == shared, "the shared file is not what was written");
        let log = fs::read_to_string(out.join("log"))?;
        for rank in 0..4 {
            let line = format!("{rank:0>999}");
            let count = log.lines().filter(|said| *said == line).count();
            ensure!(count == 100, "{count} lines of rank {rank} of {}", log.lines().count());
        }
        for (name, text) in [("mine/f", "mine\n"), ("two", "two\n"), (".layout/local/f", "local\n")] {
            ensure!(fs::read_to_string(out.join(name))? == text, "{name} is not what was written");
        }
        // What nobody has used of the ready-made directories is not drained.
        let layouts: Vec<_> = fs::read_dir(out.join(".layout"))?.collect();
        ensure!(layouts.len() == 1, "{layouts:?}");
        Ok(())
    })
}

#[test]
fn unused_ready_made_directories_are_not_drained() -> Result<()> {
    scenario("unused", |s| {
        let (here, dir) = (s.path("alice")?, s.dir("alice")?);
        let job = s
            .job("alice")?
            .nodes(2)
            .burstfs("capacity=64MiB")
            .burstfs(format!("stage_out source=/ destination={dir}/out"))
            .script("ls -A $BURSTFS $BURSTFS/.layout; echo x > $BURSTFS/x")
            .submit()?;
        job.wait_success(SOON)?;
        let output = job.output()?;
        ensure!(output.contains(".layout\n") && output.contains("auto\nlocal\nstriped"), "{output}");
        job.receipt()?.ensure_complete()?;
        let drained: Vec<_> = fs::read_dir(here.join("out"))?.collect::<Result<Vec<_>, _>>()?;
        ensure!(drained.len() == 1 && drained[0].file_name() == "x", "{drained:?}");
        Ok(())
    })
}
