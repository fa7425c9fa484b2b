# Slurm on the virtual cluster: configuration and daemons. Sourced by `cluster`.

# The machine's /etc is the base, so that name services, time zone and the like are as they are here; users, hosts and keys are the cluster's own.
write_etc() {
  local etc=$STATE/etc user id i
  mkdir -p "$etc"
  cp -a /etc/. "$etc/"
  rm -rf "$etc/slurm" "$etc/burstfs" "$etc/munge" "$etc/mtab" "$etc/resolv.conf"
  mkdir -p "$etc/slurm/plugstack.conf.d" "$etc/munge"
  : >"$etc/resolv.conf"; ln -s /proc/self/mounts "$etc/mtab"
  for user in $USERS; do
    id=${user#*:} user=${user%:*}
    sed -i "/^$user:/d; /^[^:]*:[^:]*:$id:/d" "$etc/passwd" "$etc/group"
    echo "$user:x:$id:$id::/home/$user:/bin/bash" >>"$etc/passwd"
    echo "$user:x:$id:" >>"$etc/group"
    mkdir -p "$STATE/home/$user" "$STATE/pfs/$user"
    chown "$id:$id" "$STATE/home/$user" "$STATE/pfs/$user"
    chmod 0700 "$STATE/home/$user" "$STATE/pfs/$user"
  done
  # A group that only alice has beside her own, so that tests can see supplementary groups.
  sed -i '/^science:/d; /^[^:]*:[^:]*:7100:/d' "$etc/group"
  echo "science:x:7100:alice" >>"$etc/group"
  { echo "127.0.0.1 localhost"; echo "$NET.1 $LOGIN"
    for i in $(seq "$NODES"); do echo "$NET.$((10 + i)) node$i"; done; } >"$etc/hosts"
  echo "hosts: files" | cat <(grep -v '^hosts:' "$etc/nsswitch.conf") - >"$etc/nsswitch.conf.new"
  mv "$etc/nsswitch.conf.new" "$etc/nsswitch.conf"
  head -c 128 /dev/urandom >"$etc/munge/munge.key"
  chown -R munge: "$etc/munge"; chmod 0700 "$etc/munge"; chmod 0400 "$etc/munge/munge.key"
}

write_slurm_conf() {
  local conf=$STATE/etc/slurm i
  cat >"$conf/slurm.conf" <<EOT
ClusterName=$NAME
SlurmctldHost=$LOGIN($NET.1)
SlurmUser=slurm
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
LogTimeFormat=iso8601_ms
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
KillWait=3
MinJobAge=3600
SlurmdTimeout=${SLURMD_TIMEOUT:-60}
PlugStackConfig=/etc/slurm/plugstack.conf
$(slurm_conf_of_burstfs)
NodeName=DEFAULT CPUs=8 RealMemory=8000 TmpDisk=$NVME_MB State=UNKNOWN $(gres_of_node)
$(for i in $(seq "$NODES"); do echo "NodeName=node$i NodeAddr=$NET.$((10 + i))"; done)
PartitionName=main Nodes=node[1-$NODES] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOT
  printf 'CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n%s' \
    "$([ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] && echo IgnoreSystemd=yes)" >"$conf/cgroup.conf"
  echo "include /etc/slurm/plugstack.conf.d/*.conf" >"$conf/plugstack.conf"
}

slurmd_is_up() { enter "$1" sh -c 'kill -0 "$(cat /run/slurm/slurmd.pid)"'; }
slurmd_is_down() { ! enter "$1" pgrep -x slurmd; }
slurmd_start() {
  enter "$1" mkdir -p /var/log/slurm
  enter "$1" setsid slurmd -N "$1" </dev/null >>"$(node_dir "$1")/var/log/slurm/slurmd.out" 2>&1
  wait_until "slurmd of $1" "$WAIT_SECONDS" slurmd_is_up "$1"
}
# slurmd_stop NODE [SIGNAL]: slurmd itself only; jobs and their slurmstepd live on, as when the service is restarted.
slurmd_stop() {
  enter "$1" sh -c "kill -${2:-TERM} \$(cat /run/slurm/slurmd.pid)"
  wait_until "slurmd of $1 to end" "$WAIT_SECONDS" slurmd_is_down "$1"
}

ctld_is_up() { enter "$LOGIN" scontrol ping | grep -q 'is UP'; }
ctld_is_down() { ! enter "$LOGIN" pgrep -x slurmctld; }
ctld_start() {
  enter "$LOGIN" install -d -o slurm -g slurm /var/log/slurm
  enter "$LOGIN" setsid slurmctld </dev/null >>"$(node_dir "$LOGIN")/var/log/slurm/slurmctld.out" 2>&1
  wait_until "slurmctld" "$WAIT_SECONDS" ctld_is_up
}
ctld_stop() {
  enter "$LOGIN" sh -c "kill -${1:-TERM} \$(cat /run/slurm/slurmctld.pid)"
  wait_until "slurmctld to end" "$WAIT_SECONDS" ctld_is_down
}

idle_count() { enter "$LOGIN" sinfo -h -t idle -o %D; }
all_idle() { [ "$(idle_count)" = "$NODES" ]; }
wait_idle() { wait_until "$NODES idle nodes" "$WAIT_SECONDS" all_idle || { enter "$LOGIN" sinfo -N -o '%N %t %E' >&2; return 1; }; }
