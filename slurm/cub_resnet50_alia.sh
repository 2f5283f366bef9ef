#!/usr/bin/env bash
#SBATCH --job-name=cub_resnet50_alia --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=8 --gpus-per-node=1
# CUB with ALIA's edits (Table 8, column "CUB ALIA"), any arm: guided (default), alia = edits without guidance,
# baseline = real images only, real = extra real images instead of edits.
#
#   sbatch slurm/cub_resnet50_alia.sh [guided|alia|baseline|real] --data.root DIR [--key value ...]
source slurm/job.sh
edits_experiment cub_resnet50_alia "$@"
