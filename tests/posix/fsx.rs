//! fsx: random operations on one file, each read compared with what was written; by a node that holds the file's object,
//! and by one that does not.

use std::fs;

use anyhow::{Context, Result, ensure};
use burstfs_tests::{Scenario, scenario};

use crate::instance::{Instance, suite};

const OPERATIONS: u32 = 20_000;

/// What happens follows from the seed: fsx 0.3.2 now and then asks posix_fallocate(3) for no bytes, which is EINVAL everywhere and ends
/// its run. With these seeds it does not. `BURSTFS_FSX_SEED` is another one, for both files.
const SEEDS: [u64; 2] = [1, 2];

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
        let seeds = match std::env::var("BURSTFS_FSX_SEED") {
            Ok(seed) => [seed.parse().with_context(|| format!("BURSTFS_FSX_SEED={seed}"))?; 2],
            Err(_) => SEEDS,
        };
        for (file, node, mapped, seed) in [("near", "node1", NEAR, seeds[0]), ("far", "node2", FAR, seeds[1])] {
            fs::write(s.path("alice")?.join("fsx.toml"), format!("{WEIGHTS}{mapped}"))?;
            let file = format!("{}/{file}", instance.mount);
            as_alice(s, "node1", &format!("touch {file}"))?;
            let dir = s.dir("alice")?;
            as_alice(s, node, &format!("cd {dir} && {program} -f fsx.toml -P {dir} -S {seed} -N {OPERATIONS} {file}"))?;
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
