# Nodes: namespaces, cgroups, network, power. Sourced by `cluster`.

# node_pid NODE: the number of the node's process 1, if it is alive and still that process.
node_pid() {
  local pid start stat
  read -r pid start 2>/dev/null <"$(node_dir "$1")/init.pid" || return 1
  read -r -a stat 2>/dev/null <"/proc/$pid/stat" || return 1
  [ "${stat[21]}" = "$start" ] && [ "${stat[2]}" != Z ] || return 1
  echo "$pid"
}
is_on() { node_pid "$1" >/dev/null; }
is_off() { ! is_on "$1"; }
is_ready() { local pid; pid=$(node_pid "$1") && [ -e "/proc/$pid/root/run/ready" ]; }

# The mount points of the machine's cgroup hierarchies.
cgroup_mounts() { awk '{ for (i = 7; $i != "-"; i++); if ($(i+1) ~ /^cgroup2?$/) print $5 }' /proc/self/mountinfo; }

cgroup_make() {
  local mount dir file
  for mount in $(cgroup_mounts); do
    dir=$mount/$CGROUP-$1; mkdir -p "$dir"
    for file in cpuset.cpus cpuset.mems; do
      # A cpuset of cgroup v1 takes no process before it has processors and memory.
      if [ -f "$mount/$file" ] && [ -z "$(cat "$dir/$file")" ]; then cat "$mount/$file" >"$dir/$file"; fi
    done
  done
}

# Moves this shell into the node's cgroups: entering the cgroup namespace alone does not.
cgroup_join() {
  local mount dir
  for mount in $(cgroup_mounts); do
    dir=$mount/$CGROUP-$1
    if [ -d "$dir/init" ]; then dir=$dir/init; fi
    echo "$BASHPID" >"$dir/cgroup.procs" || return 1
  done 2>/dev/null
}

# Kills what is still in the node's cgroups (commands that were entering it, an `up` that was cut off) and removes them.
cgroup_remove_once() {
  local mount pids
  for mount in $(cgroup_mounts); do
    [ -d "$mount/$CGROUP-$1" ] || continue
    pids=$(find "$mount/$CGROUP-$1" -name cgroup.procs -exec cat {} + | sort -u)
    if [ -n "$pids" ]; then kill -KILL $pids; return 1; fi
    find "$mount/$CGROUP-$1" -depth -type d -exec rmdir {} + || return 1
  done
}

# enter NODE COMMAND...: as root, in all of the node's namespaces, in $CLUSTER_WD or /.
enter() {
  local node=$1 pid; shift
  pid=$(node_pid "$node") || die "$node is off"
  ( cgroup_join "$node"
    exec nsenter -t "$pid" -m -u -n -i -p -C --wdns="${CLUSTER_WD:-/}" -- \
      env -i PATH="$NODE_PATH" HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@" )
}

# enter_as USER COMMAND...: as a user with his groups, on the login node.
enter_as() {
  local user=$1; shift
  CLUSTER_WD=${CLUSTER_WD:-/home/$user} enter "$LOGIN" setpriv --reuid "$user" --regid "$user" --init-groups --reset-env -- \
    env PATH="$PREFIX/bin:$NODE_PATH" LANG=C.UTF-8 ${CLUSTER_ENV:-} "$@"
}

node_on() {
  local node=$1 dir; dir=$(node_dir "$node")
  if is_on "$node"; then return 0; fi
  mkdir -p "$dir/var"
  echo "$node" >"$dir/hostname"
  rm -f "$dir"/init.pid*
  if [ "$node" != "$LOGIN" ] && [ ! -f "$dir/nvme.img" ]; then
    truncate -s "${NVME_MB}M" "$dir/nvme.img" && mkfs.ext4 -q -F -m 0 "$dir/nvme.img"
  fi
  cgroup_make "$node"
  ( cgroup_join "$node" || die "cannot enter the cgroups of $node"
    cd /
    exec setsid unshare -n -u -m -p -i -C --fork --kill-child -- "$HERE/node-init" "$STATE" "$node" "$PREFIX"
  ) </dev/null >>"$dir/init.log" 2>&1 &
  wait_until "process 1 of $node" "$WAIT_SECONDS" is_on "$node" || return 1
  wait_until "$node (see $dir/init.log)" "$WAIT_SECONDS" is_ready "$node" || { cat "$dir/init.log" >&2; return 1; }
  network_join "$node"
}

# The bridge is in the login node's network namespace: the machine's own network does not see any of it.
network_join() {
  local node=$1 login pid; login=$(node_pid "$LOGIN"); pid=$(node_pid "$node")
  if [ "$node" = "$LOGIN" ]; then
    nsenter -t "$pid" -n sh -ec "ip link add br0 type bridge; ip addr add $NET.1/24 dev br0; ip link set br0 up"
    return
  fi
  nsenter -t "$login" -n sh -ec "ip link add v-$node type veth peer name eth0 netns $pid
    ip link set v-$node master br0; ip link set v-$node up"
  nsenter -t "$pid" -n sh -ec "ip addr add $NET.$((10 + ${node#node}))/24 dev eth0; ip link set eth0 up"
}

# Cuts the node's power: its cable first, so that no dying process says goodbye; then every process of its pid namespace is killed
# at once, and its mounts and its network go with the last of them.
node_off() {
  local node=$1 pid login
  if pid=$(node_pid "$node"); then
    if login=$(node_pid "$LOGIN") && [ "$node" != "$LOGIN" ]; then
      nsenter -t "$login" -n ip link del "v-$node" 2>/dev/null
    fi
    kill -KILL "$pid" 2>/dev/null
    wait_until "$node to go down" "$WAIT_SECONDS" is_off "$node" || return 1
  fi
  rm -f "$(node_dir "$node")"/init.pid*
  wait_until "the cgroups of $node to be empty" "$WAIT_SECONDS" cgroup_remove_once "$node" || return 1
  wait_until "the loop device of $node to be free" "$WAIT_SECONDS" loop_is_free "$node"
}
loop_is_free() { [ -z "$(losetup -j "$(node_dir "$1")/nvme.img")" ]; }
