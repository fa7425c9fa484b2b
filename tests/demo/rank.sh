#!/bin/bash
# One node's part: rank.sh INPUT OUTPUT. Computes in its own directory, and writes its record into the result that all share.
set -eu
input=$1 output=$2 rank=$SLURM_PROCID
mkdir "$output/rank-$rank"
cd "$output/rank-$rank"
# Each is a computation of its own: LAMMPS's MPI must not take Slurm's step for an MPI job.
for name in ${!SLURM_*} ${!PMI*}; do unset "$name"; done
lmp -in "$input/melt.lmp" -log log.lammps -screen none -var input "$input" -var rank "$rank" -var seed $((4928459 + rank)) \
  -var steps "${DEMO_STEPS:-1500}" -var every 250
# Records of 64 bytes, at 64 bytes each: four writers in one file at once.
printf '%-63s\n' "$(cat result.part)" | dd of="$output/result.txt" bs=64 seek="$rank" conv=notrunc status=none
