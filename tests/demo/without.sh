#!/bin/bash
#SBATCH --job-name=reference --nodes=4 --ntasks-per-node=1 --output=reference.out
set -e
mkdir reference
srun ./rank.sh "$PWD/in" "$PWD/reference"
