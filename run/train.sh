#!/bin/bash
# `pangu launch` of `pangu train` from a checkout, from any directory.
set -u

usage() {
    cat <<'TEXT'
Start a training run on all devices of a cluster, or on CPU processes, and watch it to its end.

usage: run/train.sh [launch options] train --config NAME --output DIR [train options] [section.field=value ...]
       run/train.sh --config NAME --output DIR ...        before one of --config, --output, --data or section.field=value train may be left out

  run/train.sh --rank-table hccl.json train --config alpha/13b_8x64gib --data records --output run
  run/train.sh --device cpu --num-ranks 2 train --config alpha/tiny --output run

PYTHON names the interpreter (default: python3). The exit code is the launcher's.
`python -m pangu_run launch --help` and `python -m pangu_ms train --help` list the options of both.
TEXT
}

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P) || exit
export PYTHONPATH="$root:$root/run${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
PYTHONPATH=$(printf %s "$PYTHONPATH" | tr -s :)  # an empty part would be the working directory, of which nothing is imported
PYTHONPATH=${PYTHONPATH%:}
case "${1:-}" in
    "") usage; exit 2;;
    -h|--help) usage; exit 0;;
esac
verb=()
case "$1" in  # no launch options
    --config|--config=*|--output|--output=*|--data|--data=*|[!-]*=*) verb=(train);;
esac
exec "${PYTHON:-python3}" "$root/pangu_ms/core/isolated.py" pangu_run launch ${verb[@]+"${verb[@]}"} "$@"  # bash 4.3 and older have no empty array under set -u
