#!/usr/bin/env bash
# A SLURM on this machine alone: munge, a controller and one node of four CPUs, no accounting.
# usage: tests/cluster/slurm.sh start FOLDER      prints what to export: SLURM_CONF
#        tests/cluster/slurm.sh stop FOLDER
# Needs root, and Debian's slurm-wlm and munge. FOLDER holds all of it, and must be short: a
# socket lies there.
set -euo pipefail
command=$1 folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

stop() {
    scancel --user=root --signal=KILL || true
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        kill "$pid" || continue
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start() {
    mkdir -p "$folder"/{state,spool}
    chmod 755 "$folder"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/seed"
    host=$(hostname -s)
    # Two partitions of one node: a job of `urgent` takes the place of jobs of `main`, which get
    # SIGTERM at once, SIGKILL after the grace time, and are queued again. cred_expire: how long
    # a job that was queued again is held back at least.
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES PriorityTier=1 GraceTime=60 MaxTime=60
PartitionName=urgent Nodes=$host PriorityTier=2 PreemptMode=OFF MaxTime=60
CONF
    slurmctld
    slurmd
    for _ in {1..100}; do
        if [[ $(sinfo --noheader --partition=main --format=%T 2>/dev/null) == idle ]]; then
            echo "SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.1
    done
    tail -n 5 "$folder"/*.log >&2
    stop
    return 1
}

"$command"
