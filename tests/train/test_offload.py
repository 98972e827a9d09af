"""Experts in host memory (ECSS): the numbers of the model that has all of them in its graph, bytes that move, and
checkpoints that survive a kill."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError, OutputError
from pangu_ms.data.loader import batch_from_ids
from pangu_ms.models.common.init import initial_values
from pangu_ms.train.offload import expert_store
from pangu_ms.train.offload.expert_store import STATES, ExpertStore

DOMAINS = [[0, 0, 1, 1], [1, 1, 1, 1], [2, 2, 0, 0], [2, 1, 1, 2], [0, 0, 0, 0]]
"""Domains of the sequences of a step's batch, by turns: at most two of three."""
ROOT = Path(__file__).parents[2]
STEPS, SKIPPED = 20, 7
SMALL = [
    "model.domains=[a,b,c]",
    "model.vocab_size=96",
    "model.hidden_size=16",
    "model.num_layers=2",
    "model.num_dense_layers=0",
    "model.num_heads=2",
    "model.seq_length=16",
    "model.num_experts=10",
    "model.group_sizes=[3,3,4]",
    "model.slot_of_domain=[0,1,0]",
    "model.init_std=0.1",
    "train.batch_size=4",
    "train.accumulation_steps=2",
]
ROOM = {"expert": 7, "slot": 2}


@pytest.fixture(scope="module")
def config():
    return load_config("sigma/tiny", SMALL)


def make_batch(step):
    ids = np.random.default_rng(step).integers(8, 96, (4, 17)).astype(np.int32)
    return batch_from_ids(ids, 0, 1, True).with_extra({"domain": np.array(DOMAINS[step % len(DOMAINS)], np.int32)})


def run(step):
    """Twenty steps, one of which is skipped since its loss exceeds a limit."""
    return [step(make_batch(i), i, 1e-2, loss_limit=-1.0 if i == SKIPPED else 1e9) for i in range(STEPS)]


@pytest.fixture(scope="module")
def resident(config, mindspore_cpu):
    """Results, weights and moments of the model whose graph has all experts."""
    from pangu_ms.models.build import build_model, initialize, to_arrays, weights
    from pangu_ms.train.steps.train_step import TrainStep

    model = build_model(config.model)
    initialize(model, config.model, 1)
    step = TrainStep(model, config)
    return run(step), to_arrays(weights(model)) | to_arrays(step.parameters())


def offloaded_step(config, directory=None, next_domains=None):
    from pangu_ms.models.build import build_model, fill, weights
    from pangu_ms.models.common.stacks import is_stack
    from pangu_ms.train.offload.offload_step import OffloadStep

    model, members = (
        build_model(config.model.with_members(ROOM)),
        ExpertStore(config.model, config.optimizer, directory),
    )
    values, tables = dict(initial_values(config.model, 1)), config.model.initial_tables()
    others = [weight for weight in weights(model) if not is_stack(weight.name) and weight.name not in tables]
    fill(others, values)
    for stack, shape in members.stacks.items():
        for index in range(shape[0]):
            members.set(stack, index, values[stack][index])
    step = OffloadStep(model, config, members, tables, ROOM, next_domains)
    return step, [*others, *step.parameters()]


def everything(step, parameters):
    """Weights and moments of the whole model, by name."""
    from pangu_ms.models.build import to_arrays

    members, found = step.store, to_arrays(parameters)
    for state in STATES:
        for stack, shape in members.stacks.items():
            found[state + stack] = np.stack([members.value(stack, index, state) for index in range(shape[0])])
    return found


@pytest.fixture(scope="module")
def compiled_step():
    """The first step with its parameters, whose graphs the second takes."""
    return []


def with_graphs_of(compiled, step, parameters):
    """The compiled step with the store and the way of transfer of another, and the values of its parameters."""
    from tests.reused_models import OF_A_RUN

    own, held = compiled
    vars(own).update({name: vars(step)[name] for name in (*OF_A_RUN, "copies")})
    for parameter, new in zip(held, parameters, strict=True):
        np.copyto(parameter.asnumpy(), new.asnumpy())
    return own, held


@pytest.fixture(scope="module", params=["in_place", "copy"])
def offloaded(request, config, compiled_step, tmp_path_factory, mindspore_cpu):
    """Results, weights and moments, and the step, by each way of transfer: in memory and fetched ahead, and in mapped
    files and fetched when needed."""
    config = dataclasses.replace(config, offload=dataclasses.replace(config.offload, transfer=request.param))
    ahead = request.param == "in_place"
    directory = None if ahead else tmp_path_factory.mktemp("experts")
    step, parameters = offloaded_step(config, directory, (lambda i: DOMAINS[i % len(DOMAINS)]) if ahead else None)
    if compiled_step:
        step, parameters = with_graphs_of(compiled_step, step, parameters)
    compiled_step[:] = step, parameters
    results = run(step)
    return results, everything(step, parameters), dataclasses.replace(step.traffic), step, parameters


def test_it_computes_what_the_model_with_all_experts_does_bit_for_bit(resident, offloaded):
    """Accumulation 2, two domains of three in a batch, experts and slots, a skipped step."""
    assert [dataclasses.replace(result, metrics={}) for result in offloaded[0]] == resident[0]
    assert [result.metrics["updated_mb"] > 0 for result in offloaded[0]] == [i != SKIPPED for i in range(STEPS)]
    assert [result.applied for result in resident[0]].index(False) == SKIPPED
    for name, value in offloaded[1].items():
        assert np.array_equal(value, resident[1][name]), name
    tables = load_config("sigma/tiny", SMALL).model.initial_tables()
    assert resident[1].keys() - offloaded[1].keys() == tables.keys()


def test_bytes_that_move_are_those_of_the_batch_s_domains(offloaded, config):
    """Against a count by hand of the members that the domains of each step need."""
    traffic, step = offloaded[2:4]
    in_place = step.config.offload.transfer == "in_place"
    sizes = {stack: 4 * int(np.prod(shape[1:])) for stack, shape in step.store.stacks.items()}
    expert, slot = (sum(size for stack, size in sizes.items() if part in stack) for part in ("experts", "slots"))
    groups, slots, needed = (3, 3, 4), (0, 1, 0), 0
    for i in range(STEPS):
        domains = set(DOMAINS[i % len(DOMAINS)])
        needed += expert * sum(groups[d] for d in domains) + slot * len({slots[d] for d in domains})
    room = ROOM["expert"] * expert + ROOM["slot"] * slot
    # An expert of a present group that had no token is left alone; nearly all have some.
    assert 0.8 * needed < traffic.updated < needed
    # A member that is fetched ahead and then updated is fetched twice.
    assert traffic.updated < traffic.gathered <= needed * (2 if in_place else 1)
    assert traffic.gradients == (STEPS - 1) * room
    tables = sum(table.nbytes for table in config.model.initial_tables().values())
    assert traffic.to_graph == (0 if in_place else STEPS * (room + tables))


def test_only_experts_with_tokens_are_updated(offloaded):
    """A step on one domain leaves the others' experts, slot and moments as they are."""
    *_, step, parameters = offloaded
    before = everything(step, parameters)
    step(make_batch(STEPS + 4), STEPS + 4, 1e-2)  # domain a alone: experts 0 to 2, slot 0
    after = everything(step, parameters)
    for name in step.store.stacks:
        own = range(3) if ".experts." in name else range(1)
        for state in STATES:
            changed = [not np.array_equal(*pair) for pair in zip(before[state + name], after[state + name])]
            assert changed == [index in own for index in range(len(changed))], state + name


TRAIN = [
    "model.domains=[code,other]",
    "train.batch_size=4",
    "train.keep_checkpoints=0",
    "optimizer.lr=0.01",
    "optimizer.min_lr=0",
]


@pytest.fixture(scope="module")
def overrides(tiny_overrides):
    return [*tiny_overrides, *TRAIN, "offload.experts=true"]


@pytest.fixture(scope="module")
def finished(overrides, records, tmp_path_factory, compiled_models):
    """A run of twelve steps, saved every three, on records of one of the model's two domains."""
    from pangu_ms.train.loop import train

    output = tmp_path_factory.mktemp("runs") / "run"
    train(load_config("sigma/tiny", overrides), records, output, progress=False)
    return output


def checkpoint_tensors(run):
    found = store.open_checkpoint(run)
    return found.tensors("model") | found.tensors("optimizer")


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_is_the_one_that_has_all_experts_in_its_graph(
    finished, overrides, records, tmp_path, monkeypatch, caplog
):
    """Its checkpoints have the same tensors; a run may go on either way."""
    from pangu_ms.train.loop import train

    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)  # it compiles
    begun = shutil.copytree(finished, tmp_path / "run")
    for step in (9, 12):
        shutil.rmtree(begun / f"checkpoints/step-{step:08d}")
    resident = load_config("sigma/tiny", [*overrides, "offload.experts=false", "offload.transfer=copy"])
    train(resident, records, begun, resume=True, progress=False)
    assert "have no effect without offload.experts=true" in caplog.text
    assert same(checkpoint_tensors(begun), checkpoint_tensors(finished))
    shutil.rmtree(begun / "checkpoints/step-00000012")
    train(load_config("sigma/tiny", overrides), records, begun, resume=True, progress=False)
    assert same(checkpoint_tensors(begun), checkpoint_tensors(finished))


def test_a_checkpoint_links_what_has_not_changed(finished):
    """Experts of the domain without records are the same inode in every checkpoint; others are new in each."""
    first, last = (finished / f"checkpoints/step-{step:08d}" for step in (3, 12))
    linked = {}
    for path in sorted([*first.glob("model/*"), *first.glob("optimizer/*")]):
        expert = int(path.name.split(".")[-2])
        linked.setdefault(expert, set()).add(path.samefile(last / path.relative_to(first)))
    assert linked == {expert: {expert >= 4} for expert in range(8)}


def test_mapped_files_have_no_name(config, tmp_path):
    """So no checkpoint can be a link to one, and nothing is left of a process that is killed."""
    members = ExpertStore(config.model, config.optimizer, tmp_path / "experts")
    members.set("blocks.0.ffn.experts.up.bias", 2, np.arange(64, dtype=np.float32))
    assert members.value("blocks.0.ffn.experts.up.bias", 2).tolist() == list(range(64))
    assert list((tmp_path / "experts").iterdir()) == []


def test_too_little_memory_is_told_with_what_is_needed(config, monkeypatch):
    monkeypatch.setattr(expert_store, "available_memory", lambda: 1 << 10)
    with pytest.raises(
        ConfigError,
        match=r"offload.experts: .* [KM]iB are needed for .* has 1.0 KiB of free memory; .* offload.directory",
    ):
        ExpertStore(config.model, config.optimizer)


def test_a_file_in_the_place_of_the_directory_is_told(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"offload.directory=.*file: .*file is a file; name a directory"):
        ExpertStore(config.model, config.optimizer, tmp_path / "file")


def test_a_full_disk_is_told_before_anything_is_mapped(config, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device; .* are needed .*; free some room"):
        ExpertStore(config.model, config.optimizer, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "alpha/tiny"], "offload.experts: family alpha has no experts"),
        (["--config", "sigma/tiny", "parallel.data_parallel=2"], "the plan has 2 ranks"),
    ],
    ids=["no experts", "replicas"],
)
def test_what_it_cannot_do_is_refused(words, message, records, tmp_path, capsys, tiny_overrides):
    small = [*tiny_overrides, *(TRAIN if "sigma/tiny" in words else [])]
    assert (
        main(
            ["train", *words, "--data", str(records), "--output", str(tmp_path / "run"), *small, "offload.experts=true"]
        )
        == 2
    )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_minus_nine_at_any_instant_loses_nothing(kills, overrides, records, tmp_path, mindspore_cpu):
    """The process is killed at random instants of updates and saves, a moment after one of about 200 updates, and
    another one goes on bit for bit. Gradients are given: a graph has no part in what is lost."""
    from tests.train.offload_child import train_given

    train_given(records, tmp_path / "whole", overrides)
    expected = checkpoint_tensors(tmp_path / "whole")
    first = store.open_checkpoint(tmp_path / "whole/checkpoints/step-00000003").tensors("model")
    assert not same(first, {name: expected[name] for name in first})
    generator, output = np.random.default_rng(kills), tmp_path / "run"
    child = [sys.executable, "-m", "tests.train.offload_child", records, output]
    for _ in range(kills):
        instant = [str(generator.integers(150)), str(generator.uniform(0, 0.1))]
        done = subprocess.run([*child, *instant, *overrides], cwd=ROOT, check=False)
        assert done.returncode in (0, -9)
        if done.returncode == 0:  # it came to its end before that update: the next one begins
            assert same(checkpoint_tensors(output), expected)
            shutil.rmtree(output)
    train_given(records, output, overrides)
    assert same(checkpoint_tensors(output), expected)
