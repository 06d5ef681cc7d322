#!/bin/bash
# down.sh FOLDER: end what up.sh began in FOLDER, each by the id it wrote down
PATH=$PATH:/usr/sbin:/sbin
dir=$(realpath "$1")
export SLURM_CONF=$dir/slurm.conf
squeue --noheader --format=%i 2>/dev/null | xargs -r scancel
sleep 1
for pid in "$dir"/slurmd.n1.pid "$dir"/slurmd.n2.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [[ -s $pid ]] && kill "$(cat "$pid")" 2>/dev/null
done
exit 0
