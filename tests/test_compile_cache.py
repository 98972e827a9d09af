"""The compile cache: the second start finds the graph, another configuration never does, damage costs time and nothing else."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pangu_ms import runtime
runtime.quiet()
runtime.start("CPU")
import numpy as np
from mindspore import Tensor
from pangu_ms.compile_cache import cached_compile
from pangu_ms.config import load_config
from pangu_ms.config.load import config_to_dict
from pangu_ms.data.loader import batch_from_ids
from pangu_ms.models.build import build_model, initialize
from pangu_ms.train.step import TrainStep

model = ["vocab_size=50", "hidden_size=16", "num_layers=2", "num_heads=2", "seq_length=8"]
config = load_config("alpha/tiny", [f"model.{m}" for m in model] + ["train.batch_size=2"] + sys.argv[1:])
net = build_model(config.model)
initialize(net, config.model, 1)
step = TrainStep(net, config)
batch = batch_from_ids(np.arange(18, dtype=np.int32).reshape(2, 9), 49, 48, True)
with cached_compile(True, {"graph": "test", "config": config_to_dict(config)}) as found:
    step(batch, 0, 0.1)
results = [step(batch, i, 0.1).loss for i in (1, 2)]
print(found, *results)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(*overrides, cache=tmp_path / "cache", program=("program.py",)):
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        done = subprocess.run([sys.executable, *program, *overrides], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stdout.strip().splitlines()[-1].split(" ", 1)

    return start


def test_hit_miss_and_damage(run, tmp_path):
    cold, expected = run()
    warm, values = run()
    assert (cold, warm) == ("False", "True") and values == expected
    # MindSpore's own cache would serve the first graph for each of these, without a word.
    for override in ("optimizer.weight_decay=50.0", "model.num_layers=3"):
        found, values = run(override)
        assert found == "False" and values != expected
        assert values == run(override, cache=tmp_path / "other")[1]
    for graph in (tmp_path / "cache/pangu_ms/compiled").rglob("*.mindir"):
        graph.write_bytes(graph.read_bytes()[:-50])
    assert run() == ["False", expected] and run() == ["True", expected]
    assert not [p for p in tmp_path.iterdir() if p.name not in ("cache", "other", "program.py")]


def test_pangu_train_never_takes_the_graph_of_another_pi(records, tiny_overrides, tmp_path):
    """The overrides change no parameter's name or shape, so an old graph would run with the new weights."""
    overrides = [*tiny_overrides, "model.aug_shortcut_reduction=4", "model.num_kv_heads=2", "model.init_std=0.3", "train.steps=1"]

    def first_loss(*changes):
        output = str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        command = [sys.executable, "-m", "pangu_ms", "train", "--config", "pi/tiny", *overrides, *changes, "--data", str(records), "--output", output, "--json"]
        done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        return result["cache_hit"], result["loss"]

    base = first_loss()
    changed = [first_loss(override) for override in ("model.siaf_position=product", "model.aug_shortcut_input=stream")]
    assert first_loss() == (True, base[1])
    assert not any(hit for hit, _ in [base, *changed]) and len({loss for _, loss in [base, *changed]}) == 3


def test_a_cache_that_cannot_be_written_changes_nothing(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(cache=tmp_path / "file")[0] == "False"


def test_a_program_without_a_file_runs_without_the_cache(run):
    assert run(program=("-c", PROGRAM))[0] == "False"
