# Sourced by the templates in this folder; holds everything they share. What a job can do:
#
#   experiment NAME [guided|baseline] [--key value ...]   trains configs/NAME.yaml, as <RUNS>/NAME-guided or NAME-baseline
#   edits_experiment NAME [guided|alia|baseline|real] ...  the same with the arms of an experiment on edited images
#   train CONFIG [--key value ...]                        trains any config
#   agent SWEEP                                           one run of a W&B sweep, on the job's one node
#
# Each waits for the training to end. If it was stopped (USR1 before the time limit, preemption) or died, SLURM starts the
# job again and it resumes from its newest checkpoint. Arrays a template may set first: BASELINE, the options of the
# baseline arm beside guidance.alpha 0; ENGINE, a launch config by name (ddp, zero2, ... ; launch/ or launch/cpu/); and
# WORKERS, data.workers where the config's do not fit the job's CPUs.
set -u
if ! [[ -f slurm/site.env ]]; then
  echo "slurm: no slurm/site.env in $PWD; submit from the project's folder: sbatch slurm/NAME.sh" >&2
  exit 2
fi
source slurm/site.env
[[ -f slurm/site.local.env ]] && source slurm/site.local.env
[[ ${SLURM_JOB_ID:-} ]] || exec sbatch "$0" "$@"

(( ${#MODULES[@]} )) && module load "${MODULES[@]}"
if [[ $VENV ]]; then
  source "$VENV/bin/activate" || { echo "slurm: VENV=$VENV in slurm/site.env is no Python environment" >&2; exit 2; }
fi
nodes=${SLURM_JOB_NUM_NODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((gpus > 0 ? gpus : ${PROCESSES_PER_NODE:-1}))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-1} > processes ? SLURM_CPUS_PER_TASK / processes : 1))}
if [[ ${SLURM_ARRAY_JOB_ID:-} ]]; then
  # An array's last task has the array's own number: requeueing that would start all tasks again.
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
else
  job=$SLURM_JOB_ID
fi
# The training says here how it ended; exit codes reach this script only as 0 or 1.
export PROVSCALE_OUTCOME=$PWD/slurm/logs/$job.outcome
crashes=slurm/logs/$job.crashes

rendezvous() {  # sets address and port: where the processes find each other, on the first node
  address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  if ! getent hosts "$address" >/dev/null; then  # a node's name need not be a host's name
    address=$(scontrol show node "$address" -o | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  fi
  # Below the range from which systems draw ports for outgoing connections; another one after every restart.
  port=$((15000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0}) % 16000))
  while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
    echo "slurm: port $port is in use on $address, trying $((port + 1))"
    port=$((port + 1))
  done
}

experiment() {
  local name=$1 arm=guided options=()
  shift
  case ${1:-} in
    guided | baseline) arm=$1; shift ;;
  esac
  [[ $arm == baseline ]] && options=(--guidance.alpha 0 ${BASELINE[@]+"${BASELINE[@]}"})
  train "configs/$name.yaml" --run.name "$name-$arm" ${options[@]+"${options[@]}"} "$@"
}

edits_experiment() {  # alia: edits without guidance; baseline: real images only; real: extra real ones instead of edits
  local name=$1 arm=guided
  shift
  case ${1:-} in
    guided | alia | baseline | real) arm=$1; shift ;;
  esac
  BASELINE=()
  [[ $arm == baseline || $arm == real ]] && BASELINE+=(--synthesis.name none --synthesis.added null)
  [[ $arm == real ]] && BASELINE+=(--data.options.extra true)
  [[ $arm == guided ]] || set -- baseline --run.name "$name-$arm" "$@"
  experiment "$name" "$@"
}

launcher() {  # sets command: Accelerate's launcher; @node@ stands for the node's number
  local config=launch/${ENGINE:-ddp}.yaml
  (( gpus > 0 )) || config=launch/cpu/${ENGINE:-ddp}.yaml
  command=(accelerate launch)
  if (( nodes * processes > 1 )); then
    command+=(--config_file "$config" --num_machines "$nodes" --num_processes "$((nodes * processes))"
      --machine_rank @node@ --same_network --main_process_ip "$address" --main_process_port "$port")
    [[ ${ENGINE:-} == zero* ]] && command+=(--deepspeed_multinode_launcher standard)
  else
    command+=(--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no)
  fi
  command+=(provscale/train.py)
}

train() {
  local config=$1
  shift
  rendezvous
  launcher
  on_nodes "${command[@]}" --cfg "$config" --run.dir "$RUNS" ${WORKERS:+--data.workers "$WORKERS"} "$@"
}

agent() {
  local word='' folder=''
  rendezvous
  [[ -s $PROVSCALE_OUTCOME ]] && read -r word folder <"$PROVSCALE_OUTCOME"
  if [[ $folder && -s $folder/wandb_id.txt ]]; then
    # The sweep would hand out another run: finish first the one that this job was stopped or died in.
    export WANDB_SWEEP_ID=${1##*/} WANDB_RUN_ID=$(<"$folder/wandb_id.txt")
    unfinished=$folder
    launcher
    on_nodes "${command[@]}" --cfg "$folder/config.yaml"
  else
    on_nodes wandb agent --count 1 "$1"
  fi
}

on_nodes() {  # runs a command on every node, then decides what becomes of the job
  local code word folder
  echo "slurm: job $job on $SLURM_JOB_NODELIST, $nodes x $processes processes, restart ${SLURM_RESTART_COUNT:-0}:" "$@"
  rm -f "$PROVSCALE_OUTCOME"
  [[ ${unfinished:-} ]] && echo "running $unfinished" >"$PROVSCALE_OUTCOME"
  trap : TERM USR1  # the processes are asked to stop; this script waits for them
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    --kill-on-bad-exit=1 ${SRUN_OPTIONS[@]+"${SRUN_OPTIONS[@]}"} \
    bash slurm/node.sh ${CONTAINER[@]+"${CONTAINER[@]}"} "$@"
  code=$?
  word='' folder=''
  [[ -s $PROVSCALE_OUTCOME ]] && read -r word folder <"$PROVSCALE_OUTCOME"
  case $word in
    finished)
      echo "slurm: finished, results in $folder"
      rm -f "$PROVSCALE_OUTCOME" "$crashes"
      exit 0
      ;;
    mistake)
      echo "slurm: not started again: see the line that begins with 'provscale:'"
      rm -f "$PROVSCALE_OUTCOME" "$crashes"
      exit 2
      ;;
    stopped)
      again "stopped with a checkpoint in $folder"
      ;;
    *)
      # An agent whose sweep has no run left ends well without any training.
      [[ $code == 0 && ! $word ]] && exit 0
      echo "exit code $code" >>"$crashes"
      if (( $(wc -l <"$crashes") > RETRIES )); then
        echo "slurm: died (exit code $code), as it did $RETRIES times before: giving up; sbatch it again to resume"
        rm -f "$PROVSCALE_OUTCOME" "$crashes"
        exit 1
      fi
      again "died (exit code $code)"
      ;;
  esac
}

again() {  # MESSAGE: has SLURM start this job again, unless SLURM is ending it itself (scancel, scontrol requeue)
  local state
  state=$(scontrol show job -o "$job" | grep -o 'JobState=[A-Z]*' | cut -d= -f2)
  if [[ $state != RUNNING ]]; then
    echo "slurm: $1; SLURM is ending the job ($state)"
    exit 1
  fi
  echo "slurm: $1, starting job $job again"
  if scontrol requeue "$job"; then
    sleep 60  # SLURM ends this script
  else
    echo "slurm: it cannot be requeued; sbatch it again to resume" >&2
  fi
  exit 1
}
