#!/usr/bin/env bash
#SBATCH --job-name=cub_vgg16_cutmix_baseline --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=8 --gpus-per-node=1
# CUB localisation, VGG16 with CutMix at a learning rate of its own, which has no guided arm:
#
#   sbatch slurm/cub_vgg16_cutmix_baseline.sh --data.root CUB_200_2011 [--key value ...]
source slurm/job.sh
experiment cub_vgg16_cutmix_baseline baseline "$@"
