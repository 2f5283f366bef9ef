#!/usr/bin/env bash
#SBATCH --job-name=sweep_alpha --output=slurm/logs/%x-%A_%a.out --open-mode=append
#SBATCH --requeue --signal=USR1@300 --time=12:00:00
#SBATCH --nodes=1 --cpus-per-task=4 --array=0-6
# One run for every alpha, on one node each (GPU nodes: sbatch --gpus-per-node=1 ...; EXPERIMENT is a name in configs/):
#
#   [EXPERIMENT=demo] [ALPHAS="0 0.05"] sbatch [--array=0-1] slurm/sweep_alpha.sh [--key value ...]
#
# or, with a W&B sweep (wandb sweep configs/sweeps/demo_alpha.yaml), one of its runs a task:
#
#   SWEEP_ID=entity/project/id sbatch slurm/sweep_alpha.sh
source slurm/job.sh
if [[ ${SWEEP_ID:-} ]]; then
  agent "$SWEEP_ID"
fi
read -ra alphas <<<"${ALPHAS:-0 0.01 0.02 0.05 0.07 0.09 0.1}"
if (( SLURM_ARRAY_TASK_ID >= ${#alphas[@]} )); then
  echo "slurm: task $SLURM_ARRAY_TASK_ID has no alpha, ALPHAS has ${#alphas[@]}: sbatch --array=0-$((${#alphas[@]} - 1))"
  exit 2
fi
alpha=${alphas[SLURM_ARRAY_TASK_ID]}
name=${EXPERIMENT:-demo}
train "configs/$name.yaml" --run.group "$name-alpha" --run.name "$name-alpha-$alpha" --guidance.alpha "$alpha" "$@"
