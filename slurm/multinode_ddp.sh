#!/usr/bin/env bash
#SBATCH --job-name=ddp --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=24:00:00
#SBATCH --nodes=2 --cpus-per-task=16 --gpus-per-node=8 --exclusive
# Any experiment on several nodes with DDP. On CPU nodes: sbatch --gpus-per-node=0 --cpus-per-task=1 ...
#
#   sbatch [--nodes=N] slurm/multinode_ddp.sh NAME [guided|baseline] [--key value ...]      NAME as in configs/NAME.yaml
source slurm/job.sh
ENGINE=ddp
# Two CPUs per GPU: one for the training process, one that loads its data meanwhile; none is left over, none shared.
WORKERS=$((${SLURM_CPUS_PER_TASK:-1} > processes ? SLURM_CPUS_PER_TASK / processes - 1 : 0))
experiment "${@:?experiment}"
