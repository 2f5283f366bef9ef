#!/usr/bin/env bash
# A real SLURM cluster of two nodes on this one machine, for tests: munged, slurmctld and two slurmd, all of their own.
#
#   tests/helpers/slurm_cluster.sh start FOLDER     prints the line that points SLURM's commands at it: export SLURM_CONF=...
#   tests/helpers/slurm_cluster.sh stop FOLDER      ends those daemons and the jobs; logs stay in FOLDER
#
# FOLDER must be within reach of every user (so not below a private folder). Needs root and Debian's packages slurm-wlm and munge, which it installs when they are missing. Everything it writes is
# below FOLDER, and it uses ports of its own, so that a cluster this machine may belong to is not touched. Both calls may
# be repeated. PROCTRACK chooses which processes a signal reaches: linuxproc (default; every process of a step, as the
# usual cgroup plugin does) or pgid (only the launcher and what shares its process group).
set -euo pipefail
action=${1:?start or stop}
folder=$(mkdir -p "${2:?folder}" && cd "$2" && pwd)
proctrack=${PROCTRACK:-linuxproc}

alive() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }

stop() {
  export SLURM_CONF=$folder/slurm.conf
  if alive "$folder/slurmctld.pid"; then
    # Without mercy, and then waiting for it: each job has processes of its own beside the daemons.
    timeout 10 scancel --full --signal=KILL --user=root 2>/dev/null || true
    timeout 10 scancel --user=root 2>/dev/null || true
    for _ in $(seq 80); do [[ $(timeout 10 squeue --noheader) ]] || break; sleep 0.5; done
  fi
  for daemon in slurmd.n0 slurmd.n1 slurmctld munged; do
    file=$folder/$daemon.pid
    if alive "$file"; then
      pid=$(<"$file")
      kill "$pid"
      for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
      kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$file"
  done
}

configure() {  # writes slurm.conf: four processors a node, whatever the machine has
  local host base port taken
  host=$(hostname -s)
  while :; do
    base=$((10000 + RANDOM % 4000))
    taken=''
    for port in $base $((base + 1)) $((base + 2)); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && taken=1; done
    [[ $taken ]] || break
  done
  cat >"$folder/slurm.conf" <<CONF
ClusterName=provscale
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
# Numbers that the logs in a checkout hardly have yet.
FirstJobId=$((100000 + RANDOM * 20))
AuthType=auth/munge
# A requeued job waits for cred_expire seconds; the default of 120 would only prolong the tests.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/$proctrack
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdSpoolDir=$folder/spool.%n
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=30
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=n0 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >&2
  fi
  mkdir -p "$folder"/{state,spool.n0,spool.n1,munge}
  # munged runs as a user of its own, and wants its socket within everyone's reach.
  chown -R munge: "$folder/munge"
  chmod 755 "$folder/munge"
  chmod a+x "$folder"
  if [[ ! -s $folder/munge/key ]]; then
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
    chown munge: "$folder/munge/key"
    chmod 400 "$folder/munge/key"
  fi
  [[ -s $folder/slurm.conf ]] || configure
  export SLURM_CONF=$folder/slurm.conf
  alive "$folder/munged.pid" || {
    install -o munge -m 644 /dev/null "$folder/munge/pid"
    runuser -u munge -- /usr/sbin/munged --socket="$folder/munge/socket" --key-file="$folder/munge/key" \
      --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >&2
    cp "$folder/munge/pid" "$folder/munged.pid"
  }
  alive "$folder/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  for node in n0 n1; do
    alive "$folder/slurmd.$node.pid" || slurmd -f "$SLURM_CONF" -N "$node"
  done
  for _ in $(seq 60); do
    if [[ $(sinfo -h -t idle -o %D 2>/dev/null) == 2 ]]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return 0
    fi
    sleep 0.5
  done
  echo "the nodes did not come up; see $folder/*.log" >&2
  return 1
}

case $action in
  start) start ;;
  stop) stop ;;
  *) echo "usage: $0 start|stop FOLDER" >&2; exit 2 ;;
esac
