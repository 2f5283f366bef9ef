#!/usr/bin/env bash
#SBATCH --job-name=demo_localisation --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=01:00:00
#SBATCH --nodes=2 --cpus-per-task=1
# The embedded data on two CPU nodes, one process each (DDP over gloo):
#
#   sbatch slurm/demo_localisation.sh [guided|baseline] [--key value ...]
source slurm/job.sh
experiment demo_localisation "$@"
