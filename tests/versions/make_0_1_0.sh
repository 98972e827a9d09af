#!/bin/bash
# make_0_1_0.sh PYTHON: write 0_1_0.tar.xz, files made by version 0.1.0 itself (its last commit), with what it computes from them
set -euo pipefail
python=$1 here=$(cd "$(dirname "$0")" && pwd) work=$(mktemp -d)
git -C "$here/../.." archive d3a5624 | tar -x -C "$work" --one-top-level=program
mkdir "$work/0.1.0" && cd "$work/0.1.0"
pangu() { env -i HOME="$work" PATH=/usr/bin:/bin PYTHONPATH="$work/program" "$python" -m pangu_ms "$@"; }

"$python" - > "$work/poems.jsonl" <<'EOF'
import itertools, json
lines = "春眠不覺曉", "處處聞啼鳥", "夜來風雨聲", "花落知多少", "白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"
for number, (a, b, c) in enumerate(itertools.permutations(lines, 3)):
    if number % 4 == 0:
        print(json.dumps({"text": f"{a}，{b}。\n{c}。", "domain": "zh"}, ensure_ascii=False))
EOF
model="model.vocab_size=320 model.hidden_size=8 model.num_heads=2 model.num_layers=2 model.seq_length=16"
run="--config alpha/tiny $model train.batch_size=2 train.steps=4 train.eval_batches=2 optimizer.warmup_steps=1 data.shuffle=false"
pangu tokenizer train --corpus "$work/poems.jsonl" --vocab-size 320 --output tokenizer
pangu tokenizer compress --tokenizer tokenizer --corpus "$work/poems.jsonl" --vocab-size 310 --save-counts counts.json --output compact
pangu data prepare --corpus "$work/poems.jsonl" --tokenizer tokenizer --seq-length 16 --held-out 0.1 --num-workers 1 --output records
pangu train $run --data records --stop-at 2 --output run || test $? = 75
pangu launch --device cpu --num-ranks 2 train $run train.batch_size=1 --data records --output launched
pangu ckpt reshard run --output sharded parallel.model_parallel=2
pangu data losses run --data records --output losses.npz
pangu data resample --losses losses.npz --keep 0.5 --output order.npz
pangu export run --output package --batch-size 1

# What 0.1.0 computes from these.
cp -r run "$work/run"
pangu train $run --data records --resume --output "$work/run"
pangu tokenizer encode --tokenizer tokenizer 春眠不覺曉，白日依山盡。 > ids.txt
pangu eval run --data records --json > eval.json
cp "$work/run/metrics.jsonl" resumed.jsonl
rm -rf launched/{data,checkpoints} launched/job/logs/scheduler
cd "$work" && XZ_OPT=-9e tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=2026-01-01 -cJf "$here/0_1_0.tar.xz" 0.1.0
ls -l "$here/0_1_0.tar.xz"
rm -rf "$work"
