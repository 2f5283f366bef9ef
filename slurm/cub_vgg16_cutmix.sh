#!/usr/bin/env bash
#SBATCH --job-name=cub_vgg16_cutmix --output=slurm/logs/%x-%A_%a.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=8 --gpus-per-node=1 --array=0-5
# CUB localisation (Table 8, column "CUB VGG16"): seeds 0, 1 and 2 of both arms; even tasks are guided, odd ones the
# baseline with its own epochs. Other seeds: --array=6-7 is seed 3, and so on.
#
#   sbatch slurm/cub_vgg16_cutmix.sh --data.root CUB_200_2011 [--key value ...]
source slurm/job.sh
BASELINE=(--train.epochs 50)
arms=(guided baseline)
arm=${arms[SLURM_ARRAY_TASK_ID % 2]}
seed=$((SLURM_ARRAY_TASK_ID / 2))
experiment cub_vgg16_cutmix "$arm" --run.name "cub_vgg16_cutmix-$arm-$seed" --seed "$seed" "$@"
