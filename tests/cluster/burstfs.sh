# burstfs on the virtual cluster, installed as README tells an administrator to. Sourced by `cluster`.

slurm_conf_of_burstfs() { echo "PrologFlags=Alloc,DeferBatch,Contain"; echo "BatchStartTimeout=300"; }
gres_of_node() { :; }

install_burstfs() { mkdir -p "$STATE/install$PREFIX"; }
