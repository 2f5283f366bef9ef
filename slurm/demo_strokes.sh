#!/usr/bin/env bash
#SBATCH --job-name=demo_strokes --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=01:00:00
#SBATCH --nodes=2 --cpus-per-task=1
# Digits without signs on two CPU nodes, one process each (DDP over gloo):
#
#   sbatch slurm/demo_strokes.sh [guided|baseline] [--key value ...]
source slurm/job.sh
experiment demo_strokes "$@"
