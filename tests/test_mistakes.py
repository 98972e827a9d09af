"""Mistakes of every verb are one line, before MindSpore is imported, which takes seconds, and nothing is written: one
child runs the whole table."""

import shutil

import pytest

from tests.without_mindspore import answers_to

TRAIN = "train --config RUN/config.yaml --data RECORDS"
PREPARE = "data prepare --tokenizer RECORDS/tokenizer --output NEW --corpus"
COMPRESS = "tokenizer compress --tokenizer RECORDS/tokenizer --output NEW --vocab-size"
MISTAKES = {
    "train --config alpha/tyni --output NEW": "did you mean alpha/tiny?",
    f"{TRAIN} --output FULL": "exists with other content",
    f"{TRAIN} --output FILE": "exists and is a file",
    f"{TRAIN} --output RUN": "add --resume",
    f"{TRAIN} --output NEW --stop-at 0": "--stop-at 0: must be at least 1",
    f"{TRAIN} --output NEW --data NONE": "no MindRecord file",
    f"{TRAIN} --output NEW --data FULL": "no MindRecord file",
    f"{TRAIN} --output NEW --init-from NONE": "no such directory",
    f"{TRAIN} --output NEW model.vocab_size=400": "prepared with 384 pieces, model.vocab_size=400",
    f"{TRAIN} --output NEW model.seq_length=64": "rows of 33 ids, model.seq_length=64",
    f"{TRAIN} --output NEW model.ffn_hidden_size=64 --init-from RUN": "(128, 32) instead of (64, 32)",
    f"{TRAIN} --output RUN --resume model.num_layers=3": "model.num_layers=3 (was 2)",
    f"{TRAIN} --output RUN --resume-from 99": "name one of these",
    "train --config alpha/tiny --output NEW --init-from NONE": "no such directory",  # before records are made
    "data losses NONE --data RECORDS --output NEW": "no such directory",
    "data losses RUN --data NONE --output NEW": "no MindRecord file",
    "data losses RUN --data RECORDS --output FILE": "exists; nothing is overwritten",
    "data losses RUN --data RECORDS --output NEW --batch-size 0": "--batch-size 0: must be at least 1",
    "data losses RUN --data RECORDS --output NEW train.steps=3": "only runtime.* and model.compute_dtype",
    "data resample --losses NONE --output NEW": "NONE",
    "data resample --losses FILE --output NEW": "FILE",
    f"{PREPARE} NONE": "No such file",
    f"{PREPARE} FILE --tokenizer NONE": "a tokenizer is a vocab.model file",
    f"{PREPARE} FILE --output FULL": "exists with other content",
    f"{PREPARE} FILE --seq-length 0": "seq_length=0",
    f"{PREPARE} FILE --held-out 2": "held_out=2",
    f"{PREPARE} FILE --num-workers 0": "num_workers=0",
    "data inspect NONE": "NONE",
    "data inspect FULL": "FULL",
    "tokenizer train --corpus NONE --output NEW": "No such file",
    "tokenizer train --corpus FILE --vocab-size 3 --output NEW": "vocab_size=3: must be at least",
    "tokenizer train --corpus FILE --output FULL": "exists with other content",
    "tokenizer encode --tokenizer NONE x": "a tokenizer is a vocab.model file",
    "tokenizer encode --tokenizer RECORDS/tokenizer --file NONE": "NONE",
    "tokenizer decode --tokenizer RECORDS/tokenizer 999999": "999999",
    "tokenizer decode --tokenizer RECORDS/tokenizer x": "'x' is not an id",
    f"{COMPRESS} 300 --tokenizer NONE --corpus FILE": "a tokenizer is a vocab.model file",
    f"{COMPRESS} 300 --corpus NONE": "No such file",
    f"{COMPRESS} 30000 --corpus FILE": "30000",
    "convert NONE --from official --config alpha/tiny --output NEW": "no such file or directory",
    "convert FILE --from offical --config alpha/tiny --output NEW": "offical: unknown format",
    "convert FILE.npz --from official --config alpha/tiny --output RUN": "RUN: holds checkpoints",
    "convert FILE OTHER --from official --output NEW": "OTHER: is no override",
    "convert NONE --to official --output NEW.npz": "no such directory",
    "convert RUN --to offcial --output NEW.npz": "offcial: unknown format",
    "convert RUN --to official --output FILE": "FILE",
    "convert RUN --to official --output NEW.foo": "NEW.foo",
    "quantize NONE --weights int8 --output NEW": "no such directory",
    "quantize RUN --weights int4 --output NEW": "invalid choice: 'int4'",
    "quantize RUN --weights int8 --output FULL": "exists with other content",
    "quantize RUN --weights int8 --output NEW --max-batches 2": "is an option of --data",
    "quantize RUN --weights int8 --output NEW --split train": "--split train: is an option of --data; add --data, or",
    "quantize RUN --weights int8 --output NEW --data NONE": "no MindRecord file",
    "quantize RUN --weights int8 --output NEW --data RECORDS --batch-size 0": "batch_size=0",
    "schedule calibrate RUN --output NEW --max-length 999999": "must be between 2 and the model's context",
    "ckpt reshard NONE --output NEW": "no such directory",
    "ckpt reshard RUN --output FULL": "has other content",
    "ckpt reshard RUN --output NEW --step 77": "77",
    "ckpt reshard RUN --output NEW parallel.model_parallel=3": "must divide",
    "ckpt reshard --from-mindspore NONE --strategy NONE --config alpha/tiny --output NEW": "NONE",
    "model inherit NONE --output NEW": "no such directory",
    "model inherit RUN --output RUN": "RUN: holds checkpoints",
    "model inherit RUN --output NEW --layers 0,7": "7",
    "analyze collapse NONE --data RECORDS": "no such directory",
    "analyze collapse RUN --data NONE": "no MindRecord file",
    "analyze collapse RUN --data RECORDS --output FILE": "exists; nothing is overwritten",
    "analyze collapse RUN --data RECORDS --share 7": "share=7",
    "analyze collapse RUN --data RECORDS --batch-size 0": "--batch-size 0",
    "chat NONE": "no such directory",
    "chat RUN --max-new-tokens -1": "--max-new-tokens -1: must be at least 0",
    "chat RUN --key-file FILE": "--key-file: only packages have one; leave it out",
    "chat RUN --domain law": "domain=law: the model has no domains",
    "schedule simulate --lengths NONE": "NONE: cannot be read",
    "schedule simulate --lengths FILE": "FILE:1: not JSON",
    "schedule simulate --policy lifo": "lifo: no such policy",
    "schedule simulate --predictor FILE": "a file needs --tokenizer",
    "schedule label FILE --output NEW": "FILE:1: not JSON",
    "schedule label FILE --output OTHER": "OTHER: exists; nothing is overwritten",
    "schedule train-predictor NONE --tokenizer RECORDS/tokenizer --output NEW": "NONE: cannot be read",
    "schedule train-predictor FILE --tokenizer NONE --output NEW": "a tokenizer is a vocab.model file",
    "plan show --config alpha/13b parallel.model_parallel=7": "model_parallel=7",
    "plan estimate --config alpha/13b --hbm 1x": "--hbm 1x",
    "plan search --config alpha/13b --devices 0": "--devices 0",
    "plan rehearse --config alpha/13b_64x32gib --output FULL": "exists with other content",
    "plan inspect NONE": "NONE",
    "plan inspect FILE": "FILE",
    "study latency NONE": "no such directory",
    "study pi-ablation --output FULL": "FULL",
    "study pi-ablation --output NEW --seeds x": "--seeds x",
    "quickstart --output FULL": "exists with other content",
    "quickstart --corpus NONE --output NEW": "No such file",
    "config show train.stps=3": "did you mean steps?",
    "status NONE": "no job was launched there",
    "logs RUN": "no job was launched there",
    "ranktable show NONE": "NONE",
    "manifest slurm --config x/y --output-dir o": "x/y",
    "manifest docker --config alpha/tiny --output-dir o --output FILE": "exists; nothing is overwritten",
    "doctor --json --output-dir": "did you mean --output?",
}


@pytest.fixture(scope="module")
def place(trained_run, records, tmp_path_factory):
    """What the words in capitals stand for."""
    place = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(trained_run, place / "RUN")
    shutil.copytree(records, place / "RECORDS")
    (place / "FULL").mkdir()
    for name in ("FULL/mine", "FILE", "FILE.npz", "OTHER"):
        (place / name).write_text("my text\n")
    return place


@pytest.fixture(scope="module")
def answers(place):
    """(exit code or traceback, stderr) of each."""
    before = sorted(path for path in place.rglob("*"))
    found = answers_to([command.split() for command in MISTAKES], cwd=place)
    assert sorted(path for path in place.rglob("*")) == before
    return dict(zip(MISTAKES, found, strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake(command, answers):
    code, said = answers[command]
    assert code == 2, f"{code}\n{said}"
    assert said.count("\n") == 1 and said.startswith(f"pangu {command.split()[0]}") and MISTAKES[command] in said, said
