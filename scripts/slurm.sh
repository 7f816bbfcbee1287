#!/usr/bin/env bash
#SBATCH --job-name=revision
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
# A training command on several nodes, one torchrun on each, which meet at the first node of the job:
#   sbatch [--nodes=4 --gpus-per-node=8 ...] scripts/slurm.sh ENGINE COMMAND [overrides]
#   scripts/slurm.sh --print ENGINE COMMAND [overrides]     shows what would be started
# ENGINE is a file of configs/engine. The environment is that of sbatch: activate .venv first. `runs` and `data.stores`
# must lie on a file system that all nodes share. PROCESSES_PER_NODE takes the place of the number of GPUs. A node's cores
# all go to its one torchrun, whose ranks and data-loading processes share them. With `sbatch --signal=B:USR1@600` the job
# saves ten minutes before its time is over and ends with 138, after which the same sbatch goes on.
set -euo pipefail
show=
if [ "${1:-}" = --print ]; then
    show=yes
    shift
fi
if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 ENGINE COMMAND [overrides], or $0 --print ENGINE COMMAND [overrides]" >&2
    exit 2
fi
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
    first="${hosts%%$'\n'*}"
elif [ -n "$show" ]; then
    first=FIRST_NODE
else
    echo "$0: this is no job of Slurm; start it with sbatch, or use --print to see what it would do" >&2
    exit 2
fi
engine="$1" command="$2"
shift 2
job="${SLURM_JOB_ID:-0}"
nodes="${SLURM_JOB_NUM_NODES:-2}"
cores="${SLURM_CPUS_ON_NODE:+--cpus-per-task=$SLURM_CPUS_ON_NODE}"
here="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}"
line=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    --cpu-bind=none ${cores:+"$cores"} \
    python -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$here" \
    --rdzv_id="revision-$job" --rdzv_backend=c10d --rdzv_endpoint="$first:$((20000 + job % 40000))" \
    -m revision "$command" "engine=$engine" "engine.processes=$((nodes * here))" "$@")
# Each process gets an equal share of the cores. torchrun would give one, on which DeepSpeed's Adam on the host is slow.
if [ -n "${SLURM_CPUS_ON_NODE:-}" ]; then
    threads=$((SLURM_CPUS_ON_NODE / here))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
fi
# torchrun would die from SIGUSR1 in place of passing it on, and kill 30 s after SIGTERM.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-600}"
if [ -n "$show" ]; then
    printf '%q ' ${OMP_NUM_THREADS:+OMP_NUM_THREADS="$OMP_NUM_THREADS"} PET_SIGNALS_TO_HANDLE="$PET_SIGNALS_TO_HANDLE" PET_SHUTDOWN_TIMEOUT="$PET_SHUTDOWN_TIMEOUT" "${line[@]}"
    echo
    exit
fi
source "$(cd "$(dirname "$0")" && pwd)/forward.sh"
forward "${line[@]}"
