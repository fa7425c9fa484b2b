#!/bin/bash
#SBATCH --job-name=melt --nodes=4 --ntasks-per-node=1 --output=job-%j.out
#SBATCH --burstfs="capacity=1GiB name=scratch"
#SBATCH --burstfs="stage_in source=/pfs/alice/demo/in/ destination=/in"
#SBATCH --burstfs="stage_out source=/out/ destination=/pfs/alice/demo/out-%j"
set -e
echo "$BURSTFS on $BURSTFS_SERVERS, $BURSTFS_CAPACITY_BYTES bytes; input: $BURSTFS_STAGE_IN"
df -h "$BURSTFS"
mkdir "$BURSTFS/out"
srun ./rank.sh "$BURSTFS/in" "$BURSTFS/out"
echo "what this node sees of what all wrote:"
cat "$BURSTFS/out/result.txt"
