#!/usr/bin/env bash
#SBATCH --job-name=zero --output=slurm/logs/%x-%j.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=24:00:00
#SBATCH --nodes=2 --cpus-per-task=16 --gpus-per-node=8 --exclusive
# Any experiment on several nodes with DeepSpeed ZeRO, stage 3 unless STAGE says otherwise (1, 2, 3):
#
#   [STAGE=2] sbatch [--nodes=N] slurm/multinode_zero.sh NAME [guided|baseline] [--key value ...]
source slurm/job.sh
ENGINE=zero${STAGE:-3}
# Two CPUs per GPU: one for the training process, one that loads its data meanwhile; none is left over, none shared.
WORKERS=$((${SLURM_CPUS_PER_TASK:-1} > processes ? SLURM_CPUS_PER_TASK / processes - 1 : 0))
experiment "${@:?experiment}"
