//! Staging: what goes in and comes out again is what it was.

use anyhow::{Context, Result, ensure};
use burstfs_tests::meter::Meter;
use burstfs_tests::{SOON, Scenario, scenario, wait_until};

/// A tree with every kind of entry, name, mode, time and hole that can be copied; run in an empty directory.
const TORTURE: &str = r#"set -e
umask 022
mkdir -p dir/empty links/sub many deep odd
for size in 0 1 4095 4096 4097 262143 262144 262145 1048577 40000000; do head -c $size /dev/urandom > dir/len-$size; done
setfattr -n user.colour -v blue dir/len-1; setfattr -n user.colour -v red dir; setfattr -n user.empty dir/len-0
mode=0; for f in dir/len-*; do chmod $(printf %o $((0400 + mode))) $f; mode=$((mode + 7)); done
printf 'new\nline' > "$(printf 'odd/new\nline')"; printf x > "$(printf 'odd/\377\376 not utf-8')"
touch 'odd/ ' 'odd/-rf' 'odd/"quote" \back' "odd/$(printf 'n%.0s' $(seq 255))"
ln -s /nowhere/at/all odd/dangling; ln -s ../dir odd/to-dir
head -c 1000 /dev/urandom > links/a; for n in 1 2 3; do ln links/a links/sub/b$n; done; ln links/a dir/far
: > links/empty; ln links/empty links/sub/empty
truncate -s 100M odd/sparse; for at in 1 40 99; do head -c 5000 /dev/urandom | dd of=odd/sparse bs=1M seek=$at conv=notrunc status=none; done
truncate -s 5M odd/hole
for n in $(seq 1500); do echo $n > many/file-$n; done
d=deep; for n in $(seq 30); do d=$d/directory-of-a-long-name-$n; done; mkdir -p $d; echo bottom > $d/file
setfacl -m u:1234:rw,g:77:r dir/len-4097; setfacl -m u:1234:rx,d:u:1234:rwx,d:o::- dir; setfacl -m u:1234:x links/sub
chmod 6755 links/a; chmod 1555 dir/empty; chmod 2750 many
touch -h -d '1969-12-31 23:59:58.123456789 UTC' odd/dangling dir/len-4095
touch -d '2039-01-01 00:00:00.000000001 UTC' dir/len-4096 deep
touch -d '2001-02-03 04:05:06.7' dir/empty odd many
chmod 500 dir; touch -d '1999-01-01' dir
"#;

/// Differences of two trees of `/pfs`, as rsync finds them, contents compared; all extended attributes, and the holes.
fn differences(s: &Scenario<'_>, a: &str, b: &str) -> Result<String> {
    let script = format!(
        "rsync -aAHXSni --checksum --delete {a}/ {b}/\n\
         for d in {a} {b}; do (cd $d && getfattr -Rhd --absolute-names . 2>/dev/null | md5sum); done | uniq -u\n\
         [ $(stat -c %b {b}/odd/sparse) -lt 1000 ] && [ $(stat -c %b {b}/odd/hole) -lt 100 ] || echo no holes"
    );
    let output = s.cluster.try_sh_as("node1", "alice", &script)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_tree_of_everything_comes_back_as_it_was() -> Result<()> {
    scenario("torture", |s| {
        let dir = s.dir("alice")?;
        let made = s.cluster.try_sh_as("node1", "alice", &format!("mkdir {dir}/in && cd {dir}/in && {TORTURE}"))?;
        ensure!(made.status.success(), "the tree: {}", String::from_utf8_lossy(&made.stderr));
        let job = |script: &str| -> Result<_> {
            let job = s
                .job("alice")?
                .burstfs("per_node=400MiB")
                .burstfs(format!("stage_in source={dir}/in/ destination=/tree"))
                .burstfs(format!("stage_out source=/tree/ destination={dir}/out"))
                .script(script)
                .submit()?;
            job.wait_success(SOON)?;
            let receipt = job.receipt()?;
            receipt.ensure_complete()?;
            Ok((job, receipt))
        };
        // On a node that holds a part of the tree only.
        let (first, _) = job("srun -N1 -n1 -w node3 stat -c 'links %h' $BURSTFS/tree/links/a")?;
        ensure!(first.output()?.contains("links 5"), "{}", first.output()?);
        let log = s.cluster.logs("node1").join(format!("burstfs/{}.log", first.instance(0)?));
        let said = |what: &str| std::fs::read_to_string(&log).is_ok_and(|log| log.contains(what));
        wait_until("the first node to end", SOON, || Ok(said("the end")))?;
        ensure!(!said("not every answer is out"), "the first node has waited for askers who had stopped listening");
        let found = differences(s, &format!("{dir}/in"), &format!("{dir}/out"))?;
        ensure!(found.is_empty(), "the tree differs from what came back of it:\n{found}");
        let (second, _) = job("true")?;
        let receipt = std::fs::read_to_string(second.file(&format!("burstfs-{}.receipt.json", second.id)))?;
        let receipt: serde_json::Value = serde_json::from_str(&receipt).context("the receipt")?;
        let entries = receipt["entries"].as_array().context("the receipt has no entries")?;
        let moved: Vec<_> = entries.iter().filter(|entry| entry["state"] != "unchanged").collect();
        ensure!(!entries.is_empty() && moved.is_empty(), "staged again, these moved: {moved:?}");
        let found = differences(s, &format!("{dir}/in"), &format!("{dir}/out"))?;
        ensure!(found.is_empty(), "after the second time:\n{found}");
        Ok(())
    })
}

#[test]
fn only_what_is_asked_for_goes_in_and_out() -> Result<()> {
    scenario("select", |s| {
        let dir = s.dir("alice")?;
        let made = format!(
            "cd {dir} && mkdir -p in/case-1/raw in/case-2 in/other && for c in case-1 case-2 other; do \
             echo mesh > in/$c/mesh.dat; echo log > in/$c/run.log; done; echo raw > in/case-1/raw/x.dat; \
             head -c 600000 /dev/urandom > in/other/large; printf 'other/large\n# no\ncase-2\n' > names; \
             printf 'keep/b\\0keep/c d\\0' > drain"
        );
        let made = s.cluster.try_sh_as("node1", "alice", &made)?;
        ensure!(made.status.success(), "the tree: {}", String::from_utf8_lossy(&made.stderr));
        let began = std::time::Instant::now();
        let job = s
            .job("alice")?
            .burstfs("per_node=100MiB")
            .burstfs(format!("stage_in source={dir}/in/case-* destination=/cases exclude=*.log exclude=/case-1/raw/"))
            .burstfs(format!("stage_in source={dir}/in destination=/listed list={dir}/names bwlimit=600KB/s"))
            .burstfs(format!("stage_out source=/out/ destination={dir}/kept include=*/ include=*.h5 exclude=*"))
            .burstfs(format!("stage_out source=/out type=list list={dir}/drain destination={dir}/named"))
            .script(
                "cd $BURSTFS && find cases listed | sort\nmkdir -p out/deep out/keep\n\
                 touch out/a.h5 out/a.txt out/deep/b.h5 out/keep/a out/keep/b 'out/keep/c d'",
            )
            .submit()?;
        job.wait_success(SOON)?;
        // 600 kB, at 150 kB/s of the node that they come to.
        ensure!(began.elapsed() > std::time::Duration::from_secs(2), "bwlimit: {:?}", began.elapsed());
        let staged = "cases\ncases/case-1\ncases/case-1/mesh.dat\ncases/case-2\ncases/case-2/mesh.dat\n\
                      listed\nlisted/case-2\nlisted/case-2/mesh.dat\nlisted/case-2/run.log\nlisted/other\n\
                      listed/other/large\n";
        ensure!(job.output()? == staged, "staged in:\n{}", job.output()?);
        job.receipt()?.ensure_complete()?;
        let found = s.cluster.try_sh_as("node1", "alice", &format!("cd {dir} && find kept named -type f | sort"))?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure!(found == "kept/a.h5\nkept/deep/b.h5\nnamed/keep/b\nnamed/keep/c d\n", "drained:\n{found}");
        Ok(())
    })
}

#[test]
fn a_plan_says_what_would_move_and_moves_nothing() -> Result<()> {
    scenario("plan", |s| {
        let dir = s.dir("alice")?;
        let made = format!(
            "cd {dir} && mkdir in && head -c 3000000 /dev/zero > in/a && echo log > in/a.log && ln -s a in/link && \
             printf '#!/bin/bash\\n#SBATCH --nodes=2\\n#SBATCH --burstfs=\"per_node=%s\"\\n\
             #SBATCH --burstfs=\"stage_in source={dir}/in/ destination=/in exclude=*.log bwlimit=1MB\"\\n\
             #SBATCH --burstfs=\"stage_out source=/out destination={dir}/run-%%j/x\"\\n' 100MiB > plan.sh && \
             sed s/100MiB/1MiB/ plan.sh > small.sh"
        );
        let made = s.cluster.try_sh_as("ctl", "alice", &made)?;
        ensure!(made.status.success(), "the tree: {}", String::from_utf8_lossy(&made.stderr));
        let plan = |words: &str| s.cluster.try_sh_as("ctl", "alice", &format!("cd {dir} && burstfs plan {words}"));
        let output = plan("--json plan.sh")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let planned: serde_json::Value = serde_json::from_slice(&output.stdout).context("the plan")?;
        let source = &planned["directives"][0]["source_figures"];
        ensure!(planned["nodes"] == 2 && planned["capacity_bytes"] == 200 << 20, "{planned:#}");
        ensure!(source["files"] == 1 && source["symlinks"] == 1 && source["bytes_to_copy"] == 3_000_000, "{planned:#}");
        ensure!(planned["directives"][0]["seconds"].as_f64().unwrap_or(0.0) > 2.9, "bwlimit: {planned:#}");
        let place = &planned["directives"][1]["destination_figures"];
        ensure!(place["directory"] == dir.as_str() && place["writable"] == true, "{planned:#}");

        let output = plan("small.sh")?;
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.code() == Some(6) && error.contains("E210"), "{text}{error}");
        ensure!(text.contains("to copy") && text.contains("run-%j/x"), "{text}");
        let output = plan(&format!("100MiB 'stage_out source=/o destination={}/x'", s.dir("bob")?))?;
        ensure!(output.status.code() == Some(7), "{}", String::from_utf8_lossy(&output.stderr));
        let output = plan("'stage_in source=/pfs destination=/in exclude=[a'")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && error.contains("E103") && error.contains('^'), "{error}");

        // In the job the instance is there, and what was drained before need not move again.
        let job = s.job("alice")?.nodes(1).burstfs("per_node=100MiB");
        let job = job.script(format!(
            "mkdir $BURSTFS/out; echo x > $BURSTFS/out/f; mkdir drained; cp -a $BURSTFS/out/f drained; \
             echo y > $BURSTFS/out/g; burstfs plan --json 'stage_out source=/out/ destination={dir}/drained'"
        ));
        let job = job.submit()?;
        job.wait_success(SOON)?;
        let planned: serde_json::Value = serde_json::from_str(&job.output()?).context("the plan in the job")?;
        let source = &planned["directives"][0]["source_figures"];
        ensure!(source["files"] == 2 && source["unchanged_files"] == 1 && source["files_to_copy"] == 1, "{planned:#}");
        Ok(())
    })
}

#[test]
fn a_striped_file_is_drained_without_a_byte_between_nodes() -> Result<()> {
    scenario("spread", |s| {
        const BYTES: u64 = 48 << 20;
        let dir = s.dir("alice")?;
        let job = s
            .job("alice")?
            .burstfs("per_node=100MiB layout='striped:count=all,size=256KiB'")
            .burstfs(format!("stage_out source=/out/ destination={dir}/out"))
            .script(format!(
                "mkdir $BURSTFS/out && head -c {BYTES} /dev/urandom > $BURSTFS/out/shared && sha256sum < $BURSTFS/out/shared\n\
                 touch written; until [ -e go ]; do sleep 0.05; done"
            ))
            .submit()?;
        wait_until("the file to be written", SOON, || Ok(job.file("written").exists()))?;
        let meter = Meter::start(s.cluster)?;
        job.touch("go")?;
        let ended = job.wait_success(SOON);
        let readings = meter.stop();
        ended?;
        job.receipt()?.ensure_complete()?;
        let sums = s.cluster.try_sh_as("node1", "alice", &format!("sha256sum < {dir}/out/shared"))?;
        ensure!(job.output()?.as_bytes() == sums.stdout, "{} {}", job.output()?, String::from_utf8_lossy(&sums.stdout));
        let (first, last) = (readings.first().context("no reading")?, readings.last().context("no reading")?);
        let sent = last.sent_bytes - first.sent_bytes;
        ensure!(sent < BYTES as f64 / 50.0, "{sent} bytes were sent between nodes for {BYTES} of the file");
        Ok(())
    })
}
