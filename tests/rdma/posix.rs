//! What others ask of a POSIX file system, in a short form: the suites of `make posix`, where every operation is emulated.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::instance::Instance;
use crate::machine;

/// The tests of pjdfstest that run here: those of the operations that go over two MDTs, and those of opening and of lengths.
const PJDFSTEST: [&str; 3] = ["rename::", "unlink::", "ftruncate::"];
const FSX: &str = "
[weights]
close_open = 1
read = 10
write = 10
mapread = 0
mapwrite = 0
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

/// fsx as the user, on `node`, in a file that `maker` has made and holds.
pub(crate) fn fsx(instance: &Instance, (maker, node): (&str, &str), operations: u32) -> Result<()> {
    let program = suite("fsx")?;
    fs::write("/tmp/fsx.toml", FSX)?;
    machine::sh_as("alice", &format!("touch {}", instance.path(maker, "fsx").display()))?;
    let file = instance.path(node, "fsx");
    machine::sh_as("alice", &format!("{program} -f /tmp/fsx.toml -P /tmp -N {operations} {}", file.display())).map(drop)
}

/// pjdfstest as root, who becomes alice and bob, on `node`, in a directory of the mount that is bound to a place outside.
pub(crate) fn pjdfstest(instance: &Instance, node: &str) -> Result<()> {
    let program = suite("pjdfstest")?;
    let config = include_str!("../posix/pjdfstest.toml").replace("ALLOW_REMOUNT", "false");
    fs::write("/tmp/pjdfstest.toml", config)?;
    machine::sh_as("alice", &format!("mkdir -m 1777 {}", instance.path(node, "open").display()))?;
    let open = instance.path(node, "open");
    for pattern in PJDFSTEST {
        let script = format!(
            "mkdir -p /tmp/posix && mount --bind {} /tmp/posix && cd /tmp &&
             exec {program} -c /tmp/pjdfstest.toml -p /tmp/posix -s /tmp {pattern}",
            open.display()
        );
        let said = machine::sh(&format!("exec unshare --mount --propagation private sh -c '{script}'"))?;
        let ended = |word: &str| said.lines().filter(|line| line.trim_end().ends_with(word)).count();
        let (passed, failed) = (ended("  ok"), ended("FAILED"));
        println!("pjdfstest {pattern} {passed} passed, {failed} failed");
        ensure!(passed > 0 && failed == 0 && said.contains("Summary"), "{pattern}\n{said}");
    }
    Ok(())
}

/// A suite's program, at a place where users may run it.
fn suite(program: &str) -> Result<String> {
    let suites =
        std::env::var_os("BURSTFS_POSIX_SUITES").context("BURSTFS_POSIX_SUITES is not set; use `make rdma-test`")?;
    let place = Path::new(machine::NODES).join("bin").join(program);
    fs::copy(Path::new(&suites).join(program), &place).with_context(|| program.to_owned())?;
    Ok(place.display().to_string())
}
