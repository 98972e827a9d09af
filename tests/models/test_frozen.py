"""Weights that training leaves as they are: no gradient, no moments, and in all else weights. See tests/frozen.py."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from tests.export.common import export_without_kernels, load_packages_once, replay_here
from tests.frozen import MATRIX, TABLE, frozen, permutation, unfrozen
from tests.reference import alpha_numpy


@pytest.fixture(scope="module")
def config(tiny_overrides):
    return load_config("alpha/tiny", [*tiny_overrides, "model.dropout=0.0"]).model


@pytest.fixture(scope="module")
def run(records, tiny_overrides, tmp_path_factory, compiled_models):
    """A finished run, and a copy of it that was resumed half way."""
    from pangu_ms.train.loop import train

    config = load_config("alpha/tiny", [*tiny_overrides, "train.steps=6", "model.dropout=0.0", "optimizer.lr=0.01"])
    directory = tmp_path_factory.mktemp("frozen")
    with frozen(), mock.patch("pangu_ms.train.run.Run.evaluate", return_value=None):
        train(config, records, directory / "whole", progress=False)
        shutil.copytree(directory / "whole", directory / "resumed")
        shutil.rmtree(directory / "resumed/checkpoints/step-00000006")
        train(config, records, directory / "resumed", progress=False, resume=True)
        yield directory


def test_training_changes_all_but_them(run):
    first, last = (store.open_checkpoint(run / "whole/checkpoints" / f"step-0000000{step}") for step in (3, 6))
    before, after = first.tensors(), last.tensors()
    same = {name for name in after if np.array_equal(before[name], after[name])}
    assert same == {MATRIX, TABLE} and after[MATRIX].std() > 0.01
    assert after[TABLE].dtype == np.int32 and np.array_equal(after[TABLE], permutation(384))
    assert {name.partition(".")[2] for name in last.tensors("optimizer")} == after.keys() - same


def test_a_resumed_run_ends_as_the_whole_one(run):
    for group in ("model", "optimizer"):
        whole, resumed = (store.open_checkpoint(run / name).tensors(group) for name in ("whole", "resumed"))
        assert whole.keys() == resumed.keys() and all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_they_are_resharded_to_a_plan_and_back(run, tmp_path):
    plan = [
        "parallel.data_parallel=2",
        "parallel.model_parallel=2",
        "parallel.optimizer_shard=true",
        "parallel.vocab_embedding=row",
    ]
    assert main(["ckpt", "reshard", str(run / "whole"), "--output", str(tmp_path / "cut"), *plan]) == 0
    single = [
        "parallel.data_parallel=1",
        "parallel.model_parallel=1",
        "parallel.optimizer_shard=false",
        "parallel.vocab_embedding=replicated",
    ]
    assert main(["ckpt", "reshard", str(tmp_path / "cut"), "--output", str(tmp_path / "back"), *single]) == 0
    whole, cut, back = (store.open_checkpoint(path) for path in (run / "whole", tmp_path / "cut", tmp_path / "back"))
    for group in ("model", "optimizer"):
        for other in (cut, back):
            found = other.tensors(group)
            assert found.keys() == whole.tensors(group).keys()
            assert all(
                np.array_equal(found[name], value) and found[name].dtype == value.dtype
                for name, value in whole.tensors(group).items()
            )


@pytest.fixture
def verified_here(monkeypatch):
    """`pangu export` verifies a package in this process, where it is loaded once."""
    load_packages_once(monkeypatch)
    export_without_kernels(monkeypatch)
    monkeypatch.setattr("pangu_ms.export.write.replay_in_fresh_process", replay_here)


def test_they_are_exported(run, verified_here, config, tmp_path, capsys):
    """Against numpy float64 over the numbers of the checkpoint's file."""
    from pangu_ms.export.package import Package

    options = [
        "--output",
        str(tmp_path / "package"),
        "--batch-size",
        "1",
        "--max-length",
        "16",
        "--chunk",
        "1",
        "--json",
    ]
    assert main(["export", str(run / "whole"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]["max_difference"] <= 1e-4
    weights, prompt = store.open_checkpoint(run / "whole").tensors(), [7, 300, 5, 81, 9]
    ids = weights.pop(TABLE)[[prompt]]
    with unfrozen():
        expected = alpha_numpy.forward(config, weights, ids, None)
    np.testing.assert_allclose(
        Package.open(tmp_path / "package").decoder().prefill([prompt])[0], expected[0, -1], atol=1e-4
    )


def test_an_export_that_zeroes_a_weight_is_not_committed(run, verified_here, tmp_path, monkeypatch, capsys):
    """The trial alone would not see it, were it made of the graph that was zeroed."""
    from pangu_ms.infer.cached_model import CachedModel

    monkeypatch.setattr(
        CachedModel, "caches", lambda self: [p for p in self.model.get_parameters() if not p.requires_grad]
    )
    options = ["--output", str(tmp_path / "package"), "--batch-size", "1", "--max-length", "16", "--chunk", "1"]
    assert main(["export", str(run / "whole"), *options]) == 2
    error = capsys.readouterr().err
    assert (
        MATRIX in error and "does not hold" in error and error.count("\n") == 1 and not (tmp_path / "package").exists()
    )


def test_whole_numbers_are_not_made_of_fractions(run):
    from pangu_ms.core.errors import CheckpointError
    from pangu_ms.models.build import build_model, fill, weights

    checkpoint = store.open_checkpoint(run / "whole")
    tensors = checkpoint.tensors()
    tensors[TABLE] = tensors[TABLE].astype(np.float32)
    with pytest.raises(CheckpointError, match="token_map.rows: is stored as float32; the model has it as int32"):
        fill(weights(build_model(checkpoint.config().model)), tensors)
