#!/usr/bin/env bash
# scripts/launch.sh CONFIG COMMAND [overrides]: a command on the processes of scripts/accelerate/CONFIG.yaml, e.g.
#   scripts/launch.sh ddp pretrain experiment=nano engine=ddp2
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG COMMAND [overrides]; CONFIG is one of: $(cd "$(dirname "$0")/accelerate" && ls | sed 's/\.yaml//' | xargs)" >&2
    exit 2
fi
config="$(dirname "$0")/accelerate/$1.yaml"
shift
exec accelerate launch --config_file "$config" -m revision "$@"
