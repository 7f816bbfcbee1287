#!/usr/bin/env bash
# scripts/launch.sh ENGINE COMMAND [overrides]: a training command under `accelerate launch`, on the processes of
# scripts/accelerate/ENGINE.yaml, or on PROCESSES of them, e.g.
#   PROCESSES=8 scripts/launch.sh zero3 instruct experiment=revision_8b
set -euo pipefail
scripts="$(cd "$(dirname "$0")" && pwd)"
files="$scripts/accelerate"
source "$scripts/forward.sh"
if [ $# -lt 2 ] || [ ! -f "$files/$1.yaml" ]; then
    echo "usage: [PROCESSES=n] $0 ENGINE COMMAND [overrides]; ENGINE is one of: $(ls "$files" | sed 's/\.yaml//' | xargs)" >&2
    exit 2
fi
case "$1" in
cpu | one_gpu) # one process: accelerate would add nothing, and keep signals to itself
    engine="$1" command="$2"
    shift 2
    exec "${PYTHON:-python}" -m revision "$command" "engine=$engine" "$@"
    ;;
esac
engine="$1"
launch=(accelerate launch --config_file "$files/$engine.yaml")
command=(-m revision "$2" "engine=$engine")
shift 2
if [ -n "${PROCESSES:-}" ]; then
    launch+=(--num_processes "$PROCESSES")
    command+=("engine.processes=$PROCESSES")
fi
# Each process gets an equal share of the cores. torchrun would give one, on which DeepSpeed's Adam on the host is slow.
processes="${PROCESSES:-$(sed -n 's/^num_processes: //p' "$files/$engine.yaml")}"
threads=$(($(nproc) / processes))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
# torchrun, below accelerate, would die from SIGUSR1 in place of passing it on, and kill 30 s after SIGTERM.
export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1}"
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-600}"
forward "${launch[@]}" "${command[@]}" "$@"
