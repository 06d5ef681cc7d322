#!/bin/bash
# up.sh FOLDER [PORT]: a SLURM of two nodes on this machine, n1 and n2 of eight CPUs each, for whoever calls it, all in FOLDER.
# Needs slurmctld, slurmd, slurm-client and munge, and neither root nor systemd. Commands find it by SLURM_CONF=FOLDER/slurm.conf.
# Three ports from PORT on are used. `high` is a partition whose jobs preempt those of `main`, after ten seconds in which they may save.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
dir=$(realpath "$1"); port=${2:-17000}; me=$(id -un)
mkdir -p "$dir"/{state,n1,n2,munge}
chmod 700 "$dir/munge"

(umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
files=()
for file in key-file socket pid-file log-file seed-file; do files+=("--$file=$dir/munge/${file%-file}"); done
munged --force "${files[@]}" 2>/dev/null  # force: FOLDER may lie where others write

cat >"$dir/slurm.conf" <<CONF
ClusterName=zoo
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
FirstJobId=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=15
MinJobAge=3600
JobRequeue=1
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=8 RealMemory=8000
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=8 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n1,n2 Default=NO MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF
CONF
# FirstJobId: Lightning derives a job's port from its last four digits, and two SLURMs on one machine would give theirs the same
# cred_expire: a job that is queued again waits as long as a credential lives, two minutes if nothing is said

export SLURM_CONF=$dir/slurm.conf
slurmctld
for node in n1 n2; do slurmd -N "$node"; done
for _ in $(seq 60); do
    [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null | head -n1) == 2 ]] && exit 0
    sleep 0.5
done
echo "no two idle nodes after 30 s; see $dir/slurmctld.log" >&2
exit 1
