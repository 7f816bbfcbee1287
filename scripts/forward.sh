# For scripts that start a launcher (`source`d): runs it, hands SIGTERM and SIGUSR1 on, and ends with 128 and the signal's
# number where it ended in consequence, as `revision` itself does; torchrun and srun end with codes of their own.
forward() {
    local asked=0 code=0
    "$@" &
    local child=$!
    trap 'asked=143; kill -TERM "$child" 2>/dev/null || true' TERM
    trap 'asked=138; kill -USR1 "$child" 2>/dev/null || true' USR1
    while :; do
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break # a signal ends `wait`, not the child
    done
    if [ "$asked" -ne 0 ] && [ "$code" -ne 0 ]; then
        code=$asked
    fi
    return "$code"
}
