#!/usr/bin/env bash
#SBATCH --job-name=ucf101_hrnet_nomix --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=8 --gpus-per-node=1
# UCF101-24 without mixing: the lower baseline, which has no guided arm:
#
#   sbatch slurm/ucf101_hrnet_nomix.sh [--key value ...]
source slurm/job.sh
experiment ucf101_hrnet_nomix baseline "$@"
