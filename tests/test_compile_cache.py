"""The compile cache: the second start finds the graph, another configuration never does, damage costs time and nothing
else."""

import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from pangu_ms.core import compile_cache

PROGRAM = """
import sys
from pangu_ms.core import runtime
runtime.quiet()
runtime.start("CPU")
import numpy as np
from mindspore import Tensor
from pangu_ms.core.compile_cache import cached_compile
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
        done = subprocess.run(
            [sys.executable, *program, *overrides],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        return done.stdout.strip().splitlines()[-1].split(" ", 1)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("override", ["optimizer.weight_decay=50.0", "model.num_layers=3"])
def test_the_graph_of_another_configuration_is_computed_as_without_a_cache(run, tmp_path, override):
    assert run()[0] == "False"
    found, values = run(override)
    assert found == "False" and values == run(override, cache=tmp_path / "other")[1]


def test_hit_miss_and_damage(run, tmp_path):
    cold, expected = run()
    warm, values = run()
    assert (cold, warm) == ("False", "True") and values == expected
    # MindSpore's own cache would serve the first graph, without a word.
    found, values = run("optimizer.weight_decay=50.0")
    assert found == "False" and values != expected
    for graph in (tmp_path / "cache/pangu_ms/compiled").rglob("*.mindir"):
        graph.write_bytes(flipped(graph.read_bytes()))
    assert run() == ["False", expected] and run() == ["True", expected]
    assert not [p for p in tmp_path.iterdir() if p.name not in ("cache", "other", "program.py")]


def flipped(content):
    """One bit in the middle."""
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


def remove(path):
    path.unlink()


@pytest.fixture
def published(tmp_path):
    """An entry of two files, and a place for a copy of it."""
    private, entry = tmp_path / "private", tmp_path / "compiled/entry"
    (private / "rank_0").mkdir(parents=True)
    (private / "rank_0/graph.mindir").write_bytes(bytes(range(256)))
    (private / "dependencies.json").write_text("{}")
    compile_cache._publish(private, entry)
    shutil.rmtree(private)
    return entry, private


def test_a_sound_entry_is_copied_without_a_word(published, caplog):
    entry, private = published
    assert compile_cache._copy_if_sound(entry, private) and (private / "rank_0/graph.mindir").read_bytes() == bytes(
        range(256)
    )
    assert (
        not compile_cache._copy_if_sound(entry.with_name("other"), private.with_name("second")) and not caplog.records
    )


@pytest.mark.parametrize("name", ["rank_0/graph.mindir", "dependencies.json", "checksums.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(flipped(path.read_bytes())),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{}" if path.name == "checksums.json" else b"[]"),
        lambda path: path.write_bytes(b"[" * 100_000),
        remove,
        lambda path: path.with_name("added").write_bytes(b""),
    ],
    ids=["flipped", "cut", "empty", "no digests", "deep", "missing", "added"],
)
def test_a_damaged_entry_is_removed_with_one_line(published, caplog, name, damage):
    entry, private = published
    damage(entry / name)
    assert not compile_cache._copy_if_sound(entry, private) and not entry.exists() and not private.exists()
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING
        and "damaged" in record.getMessage()
        and str(entry) in record.getMessage()
        and "\n" not in record.getMessage()
    )


def test_an_entry_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Each of its files and directories, then the name, then the directory with the name."""
    done, sync, rename = [], compile_cache.sync_path, os.rename
    monkeypatch.setattr(compile_cache, "sync_path", lambda path: done.append(path.name) or sync(path))
    monkeypatch.setattr(os, "rename", lambda source, target: done.append("renamed") or rename(source, target))
    (tmp_path / "private/rank_0").mkdir(parents=True)
    (tmp_path / "private/rank_0/graph.mindir").write_bytes(b"graph")
    compile_cache._publish(tmp_path / "private", tmp_path / "compiled/entry")
    assert sorted(done[:4]) == ["checksums.json", "graph.mindir", "graphs", "rank_0"] and done[4:] == [
        "renamed",
        "compiled",
    ]


@pytest.mark.parametrize(
    "override",
    ["model.siaf_position=product", pytest.param("model.aug_shortcut_input=stream", marks=pytest.mark.slow)],
)
def test_pangu_train_never_takes_the_graph_of_another_pi(records, tiny_overrides, tmp_path, override):
    """The override changes no parameter's name or shape, so an old graph would run with the new weights."""
    overrides = [
        *tiny_overrides,
        "model.aug_shortcut_reduction=4",
        "model.num_kv_heads=2",
        "model.init_std=0.3",
        "train.steps=1",
    ]

    def first_loss(*changes):
        output = str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        command = [
            sys.executable,
            "-m",
            "pangu_ms",
            "train",
            "--config",
            "pi/tiny",
            *overrides,
            *changes,
            "--data",
            str(records),
            "--output",
            output,
            "--json",
        ]
        done = subprocess.run(
            command,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        result = json.loads(done.stdout)
        return result["cache_hit"], result["loss"]

    base = first_loss()
    changed = first_loss(override)
    assert first_loss() == (True, base[1])
    assert not base[0] and not changed[0] and base[1] != changed[1]


def test_a_cache_that_cannot_be_written_changes_nothing(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(cache=tmp_path / "file")[0] == "False"


def test_a_program_without_a_file_runs_without_the_cache(run):
    assert run(program=("-c", PROGRAM))[0] == "False"
