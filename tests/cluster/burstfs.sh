# burstfs on the virtual cluster, installed as README tells an administrator to. Sourced by `cluster`.

TOP=$(cd "$HERE/../.." && pwd)
NVME_DIR=/local/burstfs

with_burstfs() { [ "${WITH_BURSTFS:-yes}" = yes ]; }

install_burstfs() {
  local conf=$STATE/etc/slurm/plugstack.conf.d/burstfs.conf site=$STATE/etc/burstfs
  mkdir -p "$STATE/install$PREFIX"
  with_burstfs || return 0
  # An administrator's own configuration would be kept; here it is made anew.
  rm -f "$STATE"/install/etc/burstfs/*
  make --no-print-directory -s -C "$TOP" install DESTDIR="$STATE/install" PREFIX="$PREFIX" SYSCONFDIR=/etc || return 1
  mkdir -p "$site"
  cp "$STATE"/install/etc/burstfs/* "$site/"
  set_key "$site/burstfs.toml" nvme "\"$NVME_DIR\""
  set_key "$site/burstfs.toml" default_capacity '"200MiB"'
  set_key "$site/burstfs.toml" silence '"15s"'
  # Directories are split early, so that every scenario has spread ones.
  set_key "$site/burstfs.toml" split_names 64
  set_key "$site/burstfs.toml" split_contended_names 16
  set_key "$site/burstfs.toml" retry '"2s"'
  set_key "$site/burstfs.toml" max_per_node "\"$((NVME_MB * 9 / 10))MiB\""
  cp "$site/plugstack.conf" "$conf"
  if [ -f "$site/job_submit.lua" ]; then cp "$site/job_submit.lua" "$STATE/etc/slurm/job_submit.lua"; fi
}

# set_key FILE KEY VALUE: a key of the file's first table, whether the file has it, has it commented out, or has not got it.
set_key() {
  if grep -qE "^#? *$2 *=" "$1"; then sed -i -E "0,/^#? *$2 *=.*/s|^#? *$2 *=.*|$2 = $3|" "$1"
  else sed -i "1i $2 = $3" "$1"; fi
}

# The example's lines that are not about nodes: those a site has of its own.
slurm_conf_of_burstfs() {
  if with_burstfs; then
    grep -vE '^ *(#|$|NodeName|PartitionName|ProctrackType)' "$STATE/etc/burstfs/slurm.conf"
  else
    echo "PrologFlags=Alloc,DeferBatch,Contain"
  fi
}
gres_of_node() { if with_burstfs && slurm_conf_of_burstfs | grep -q '^GresTypes=.*burstfs'; then echo "Gres=burstfs:${NVME_MB}M"; fi; }

# What a boot does between the mount of the NVMe and slurmd.
burstfs_boot() {
  with_burstfs || return 0
  enter "$1" install -d -o root -g root -m 711 "$NVME_DIR"
  enter "$1" "$PREFIX/sbin/burstfs-node" recover
}
