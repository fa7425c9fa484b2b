# Settings of the virtual cluster and the helpers that every part uses. Sourced, never run.
#
# A cluster is its name: state directory, cgroups, users' homes and "parallel file system" are all below names made from it, and
# its network lives in its own namespaces. So clusters of different names stand side by side. Nothing outside the state directory
# is written: nodes have a root of their own, with the machine's /usr in it (read-only).

NAME=${BURSTFS_CLUSTER:-vc}
STATE=${BURSTFS_CLUSTER_STATE:-/var/tmp/burstfs-cluster/$NAME}
NODES=${BURSTFS_CLUSTER_NODES:-4}
NET=${BURSTFS_CLUSTER_NET:-10.77.0}             # first three octets; ctl is .1, node1 is .11
NVME_MB=${BURSTFS_CLUSTER_NVME_MB:-2048}        # size of each node's "NVMe"; a sparse file
LOGIN=ctl                                       # slurmctld, and where users log in
PREFIX=/opt/burstfs                             # where burstfs is installed, as the nodes see it
CGROUP=burstfs-$NAME                            # a node's cgroup is $CGROUP-<node>, below the root of every hierarchy
USERS="alice:7001 bob:7002"
WAIT_SECONDS=60                                 # how long any condition may take; generous, since machines are loaded
NODE_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# What `up` was given holds for the commands that follow it.
[ -f "$STATE/settings" ] && . "$STATE/settings"

say() { printf '%s\n' "$*" >&2; }
die() { say "cluster: $*"; exit 1; }

node_dir() { echo "$STATE/$1"; }
node_names() { local i; for i in $(seq "$NODES"); do echo "node$i"; done; }
all_names() { echo "$LOGIN"; node_names; }
is_node() { local name; for name in $(all_names); do [ "$name" = "$1" ] && return 0; done; return 1; }

# wait_until WHAT SECONDS COMMAND...: runs COMMAND until it succeeds; fails after SECONDS and says what did not come.
wait_until() {
  local what=$1 seconds=$2 start; shift 2
  start=$(date +%s)
  until "$@" >/dev/null 2>&1; do
    if [ $(($(date +%s) - start)) -ge "$seconds" ]; then say "cluster: waited ${seconds}s in vain for: $what"; return 1; fi
    sleep 0.05
  done
}
