#!/usr/bin/env bash
# Started by srun once on every node: runs COMMAND (Accelerate's launcher, or a W&B agent) and passes stop signals on.
#
#   bash slurm/node.sh COMMAND [ARGUMENT ...]       @node@ in an argument becomes this node's number
#
# On USR1 (time limit near) and TERM (preemption, requeue, cancel) the training processes must save a checkpoint, and
# nothing else may die of the signal before they have: the launcher would end at USR1, and at TERM it kills the training
# after 30 s. So both are ignored in COMMAND (ignored signals stay ignored in children, until provscale/signals.py handles
# them in the training processes), and this script sends USR1 to those processes that handle it. It repeats that, as one
# that is still starting handles no signal yet.
set -u
export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT  # torchrun's --signals-to-handle, without TERM

below() {  # PID: its descendants that handle USR1 (bit 9 of SigCgt)
  awk -v root="$1" '
    FNR == 1 { pid = "" }
    /^Pid:/ { pid = $2 }
    /^PPid:/ { parent[pid] = $2 }
    /^SigCgt:/ { handles[pid] = substr($2, length($2) - 2, 1) ~ /[2367abef]/ }
    END {
      for (pid in parent) {
        above = pid
        while (above != root && above + 0 > 1) above = parent[above]
        if (above == root && pid != root && handles[pid]) print pid
      }
    }' /proc/[0-9]*/status 2>/dev/null
}

trap '' USR1 TERM
"${@//@node@/${SLURM_NODEID:-0}}" &
child=$!
asked=''
trap 'asked=1' USR1 TERM
wait "$child"
code=$?  # above 128 when a signal interrupted the waiting
while [[ $asked ]] && kill -0 "$child" 2>/dev/null; do
  for pid in $(below "$child"); do kill -USR1 "$pid" 2>/dev/null; done
  sleep 1
done
if [[ $asked ]]; then
  wait "$child"
  last=$?
  (( last == 127 )) || code=$last  # 127: it had ended, and code is its exit code
fi
if (( code )); then
  # A launcher that was killed leaves its training processes behind, and SLURM would wait for them.
  for file in /proc/[0-9]*/environ; do
    pid=${file//[!0-9]/}
    if (( pid != $$ )) && [[ $(tr '\0' '\n' 2>/dev/null <"$file" | grep -c -x -e "SLURM_JOB_ID=${SLURM_JOB_ID:-}" \
      -e "SLURM_STEP_ID=${SLURM_STEP_ID:-}" -e "SLURM_PROCID=${SLURM_PROCID:-}" -e 'LOCAL_RANK=[0-9]*') == 4 ]]; then
      kill -KILL "$pid" 2>/dev/null
    fi
  done
fi
exit "$code"
