//! fsx: random operations on one file, each read compared with what was written; by a node that holds the file's object,
//! and by one that does not.

use std::fs;

use anyhow::{Result, ensure};
use burstfs_tests::{Scenario, scenario};

use crate::instance::{Instance, suite};

const OPERATIONS: u32 = 20_000;

/// On the node that holds the file, everything.
const NEAR: &str = "
mapread = 10
mapwrite = 10
";
/// Elsewhere not what uses MAP_SHARED, which is refused (docs/semantics.md).
const FAR: &str = "
mapread = 0
mapwrite = 0
";
const WEIGHTS: &str = "
[weights]
close_open = 1
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

#[test]
fn fsx() -> Result<()> {
    scenario("fsx", |s| {
        let program = suite(s, "fsx")?;
        let instance = Instance::start(s)?;
        // The file lives where it is made: on node1.
        for (file, maker, node, mapped) in [("near", "node1", "node1", NEAR), ("far", "node1", "node2", FAR)] {
            fs::write(s.path("alice")?.join("fsx.toml"), format!("{WEIGHTS}{mapped}"))?;
            let file = format!("{}/{file}", instance.mount);
            as_alice(s, maker, &format!("touch {file}"))?;
            let dir = s.dir("alice")?;
            as_alice(s, node, &format!("cd {dir} && {program} -f fsx.toml -P {dir} -N {OPERATIONS} {file}"))?;
        }
        instance.end()
    })
}

fn as_alice(scenario: &Scenario<'_>, node: &str, script: &str) -> Result<()> {
    let output = scenario.cluster.try_sh_as(node, "alice", script)?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{node}: {script}: {}\n{}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}
