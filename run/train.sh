#!/bin/bash
# Runs `pangu launch ... train` from a checkout that is not installed; works in any directory.
set -u

usage() {
    cat <<'TEXT'
Start a training run on all devices of a cluster, or on CPU processes, and watch it to its end.

usage: run/train.sh [launch options] train --config NAME --output DIR [train options] [section.field=value ...]
       run/train.sh --config NAME --output DIR ...        (the word train can be omitted before --config, --output, --data and section.field=value)

  run/train.sh --rank-table hccl.json train --config alpha/13b_8x64gib --data records --output run
  run/train.sh --device cpu --num-ranks 2 train --config alpha/tiny --output run

PYTHON names the interpreter (default: python3). The exit code is that of the launcher.
`python -m pangu_run launch --help` and `python -m pangu_ms train --help` list the options of launch and train.
TEXT
}

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P) || exit
export PYTHONPATH="$root:$root/run${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
PYTHONPATH=$(printf %s "$PYTHONPATH" | tr -s :)  # an empty entry would mean the working directory, from which nothing may be imported
PYTHONPATH=${PYTHONPATH%:}
case "${1:-}" in
    "") usage; exit 2;;
    -h|--help) usage; exit 0;;
esac
verb=()
case "$1" in  # no launch options
    --config|--config=*|--output|--output=*|--data|--data=*|[!-]*=*) verb=(train);;
esac
exec "${PYTHON:-python3}" "$root/pangu_ms/core/isolated.py" pangu_run launch ${verb[@]+"${verb[@]}"} "$@"  # in bash 4.3 and older an empty array is an error under set -u
