//! What must hold when no job with burstfs runs: nothing of any instance is left anywhere.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, NODES};

/// Prints one line for each thing that should not be there. Slurm's own ports are 6817 and 6818; users are those from 7001 on;
/// the lock that serialises `burstfs-node` on a node is the node's, not an instance's.
const LEFT: &str = r#"
awk '$3 ~ /^fuse/ && $3 != "fusectl" || $2 ~ "^/burstfs/" { print "mount: " $0 }' /proc/mounts
for dir in /burstfs /run/burstfs /local/burstfs; do
  [ -d $dir ] && find $dir -mindepth 1 -maxdepth 1 ! -name .lock -printf 'directory: %p\n'
done
ps -e -o pid=,uid=,comm=,args= | awk '$3 ~ /^burstfs/ || $2 >= 7000 && $2 < 7100 { print "process: " $0 }'
ss -Hltn | awk '$4 !~ /:681[78]$/ { print "port: " $0 }'
find /sys/fs/cgroup -type d -name '*burstfs*' -printf 'cgroup: %p\n'
find /tmp /dev/shm /var/tmp -mindepth 1 -uid +7000 -uid -7100 -printf 'file: %p\n'
true
"#;

/// Everything of an instance that is left on any node, one line each.
pub(crate) fn leftovers(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in NODES.iter().chain(&["ctl"]) {
        let said = cluster.sh(node, LEFT)?;
        found.extend(said.lines().map(|line| format!("{node}: {line}")));
    }
    Ok(found)
}

/// Nodes that are not idle, with Slurm's reason.
fn nodes_out_of_service(cluster: &Cluster) -> Result<Vec<String>> {
    let said = cluster.control(&["x", "ctl", "sinfo", "-h", "-N", "-o", "%N %t %E"])?;
    Ok(said.lines().filter(|line| line.split_whitespace().nth(1) != Some("idle")).map(str::to_owned).collect())
}

/// An error that names what is left, or which node is not idle.
pub(crate) fn ensure_clean(cluster: &Cluster) -> Result<()> {
    let nodes = nodes_out_of_service(cluster)?;
    ensure!(nodes.is_empty(), "nodes that are not idle:\n{}", nodes.join("\n"));
    let left = leftovers(cluster)?;
    ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    Ok(())
}
