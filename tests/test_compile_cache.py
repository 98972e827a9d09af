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
from mindspore import Parameter, Tensor, nn
from pangu_ms.core.compile_cache import cached_compile

class Net(nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.weight = float(factor), Parameter(Tensor(np.ones(3, np.float32)), name="weight")

    def construct(self, x):
        return x * self.factor + self.weight

for argument in sys.argv[1:]:
    identity, *factors = argument.split(":")
    with cached_compile(True, {"graph": identity}) as found:
        values = [Net(factor)(Tensor(np.ones(3, np.float32))).asnumpy()[0] for factor in factors]
    print(found, *values)
"""
"""Arguments IDENTITY:FACTOR:FACTOR...: a graph for each factor gives 1 + FACTOR, unless it is another graph."""


@pytest.fixture
def run(forks, tmp_path):
    """Run the program; for each of its arguments whether its graphs were found, and their values."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(*arguments, cache=tmp_path / "cache", program=("program.py",)):
        done = forks.run([*program, *arguments], tmp_path, os.environ | {"XDG_CACHE_HOME": str(cache)})
        assert done.returncode == 0, done.stderr
        lines = (line.split() for line in done.stdout.splitlines())
        return [(words[0] == "True", *map(float, words[1:])) for words in lines]

    return start


def test_several_graphs_of_a_process_are_found_in_any_order_and_a_damaged_one_is_compiled_again(run, tmp_path):
    """Factors that are not those of an identity show where a graph comes from."""
    assert run("a:2") == [(False, 3)]
    # MindSpore's own cache would serve the first graph for each of the others, without a word.
    assert run("a:70", "b:3:4", "c:5") == [(True, 3), (False, 4, 5), (False, 6)]

    compiled = tmp_path / "cache/pangu_ms/compiled"
    (entry,) = (entry for entry in compiled.iterdir() if len([*entry.rglob("*.mindir")]) == 2)
    graph = min(entry.rglob("*.mindir"))
    graph.write_bytes(flipped(graph.read_bytes()))
    # After a miss MindSpore compiles all other graphs of that process.
    assert run("a:70", "b:3:4", "c:5") == [(True, 3), (False, 4, 5), (False, 6)]
    assert run("c:70", "a:70", "b:70:70") == [(True, 6), (True, 3), (True, 4, 5)]
    assert len([*compiled.iterdir()]) == 3
    assert not [p for p in tmp_path.iterdir() if p.name not in ("cache", "program.py")]


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


@pytest.mark.slow
@pytest.mark.parametrize("override", ["model.siaf_position=product", "model.aug_shortcut_input=stream"])
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
    compiled = tmp_path / "cache/pangu_ms/compiled"
    before = {entry: entry.stat().st_mtime_ns for entry in compiled.iterdir()}
    assert first_loss() == (True, base[1])
    # An entry that is taken is touched: those of the training step and of the evaluation.
    taken = [entry for entry in compiled.iterdir() if entry.stat().st_mtime_ns != before.get(entry)]
    assert len(before) == 4 and len(taken) == 2
    assert not base[0] and not changed[0] and base[1] != changed[1]


def test_a_cache_that_cannot_be_written_changes_nothing(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert run("a:2", cache=tmp_path / "file") == [(False, 3)]


def test_a_program_without_a_file_runs_without_the_cache(run):
    assert run("a:2", program=("-c", "import program")) == [(False, 3)]
