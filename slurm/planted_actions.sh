#!/usr/bin/env bash
#SBATCH --job-name=planted_actions --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=02:00:00
#SBATCH --nodes=1 --cpus-per-task=4
# The embedded skeletons: actions located from video labels, on one CPU node, either arm:
#
#   sbatch slurm/planted_actions.sh [guided|baseline] [--key value ...]
source slurm/job.sh
experiment planted_actions "$@"
