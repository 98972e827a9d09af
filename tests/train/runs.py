"""What a run of `pangu train` wrote, and the command that starts one."""

import json
import sys

import numpy as np

from pangu_ms.checkpoint.store import open_checkpoint


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output):
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in metrics(output) if "loss" in row}


def require_equal_runs(first, second):
    assert losses(first) == losses(second)
    a, b = open_checkpoint(first), open_checkpoint(second)
    assert a.step == b.step and a.state() == b.state()
    for group in ("model", "optimizer"):
        expected, found = a.tensors(group), b.tensors(group)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def command(records, output, overrides, *options):
    return [
        sys.executable,
        "-m",
        "pangu_ms",
        "train",
        "--config",
        "alpha/tiny",
        *overrides,
        "--data",
        str(records),
        "--output",
        str(output),
        *options,
    ]


def steps_of(output):
    return sorted(int(path.name[5:]) for path in (output / "checkpoints").glob("step-*"))
