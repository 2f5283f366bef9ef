#!/usr/bin/env bash
#SBATCH --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=8 --gpus-per-node=1
# One run of an experiment or a sweep; `python -m tools.reproduce ... --slurm` submits a job of it for each:
#
#   sbatch --job-name=NAME slurm/reproduce.sh CONFIG [--key value ...]
source slurm/job.sh
train "$@"
