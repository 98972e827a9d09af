#!/bin/bash
# `pangu launch ... train ...` from a checkout, from any directory.
set -u

usage() {
    cat <<'TEXT'
Start a training run on all devices of a cluster, or on CPU processes, and watch it to its end.

usage: run/train.sh --config NAME --output DIR [options] [section.field=value ...]

Options of `pangu launch` and of `pangu train` may be mixed; for example
  run/train.sh --rank-table hccl.json --config alpha/13b_8x64gib --data records --output run
  run/train.sh --device cpu --num-ranks 2 --config alpha/tiny --output run
  run/train.sh --rank-table hccl.json --dry-run --config alpha/13b_8x64gib --output run

  --launch-help   options of the launcher
  --train-help    options of the run

PYTHON names the interpreter (default: python3). The exit code is the launcher's: 0, 2 for a mistake in what was given,
75 when stopped with the state saved, else that of the rank that failed first.
TEXT
}

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P) || exit
python=${PYTHON:-python3}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[[ $# -gt 0 ]] || { usage; exit 2; }

launch=() train=() json=()
flags=" --smoke --dry-run "
valued=" --rank-table --hosts --num-ranks --device --server-id --start --master-port --max-restarts --backoff --hang-timeout --start-timeout"
valued+=" --stop-timeout --stream --bind --job-dir "
while [[ $# -gt 0 ]]; do
    case $1 in
        -h|--help) usage; exit 0;;
        --launch-help) exec "$python" -m run launch --help;;
        --train-help) exec "$python" -m pangu_ms train --help;;
        --json) json=(--json); shift; continue;;
    esac
    if [[ $flags == *" $1 "* || ( $1 == --*=* && $valued == *" ${1%%=*} "* ) ]]; then
        launch+=("$1"); shift
    elif [[ $valued == *" $1 "* ]]; then
        [[ $# -gt 1 ]] || { echo "train.sh: $1: has no value; write $1 VALUE" >&2; exit 2; }
        launch+=("$1" "$2"); shift 2
    else
        train+=("$1"); shift
    fi
done
# Both verbs have --json; of a dry run the launcher has something to print.
case " ${launch[*]} " in
    *" --dry-run "*) launch+=("${json[@]}");;
    *) train+=("${json[@]}");;
esac
exec "$python" -m run launch "${launch[@]}" train "${train[@]}"
