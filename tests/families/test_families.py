"""What every family can do, from its configuration to its exported package; a family is one folder and one line."""

import json
import math
import shutil

import mindspore as ms
import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.models.common.init import initial_values
from pangu_ms.models.common.stacks import stored_shapes
from pangu_ms.models.registry import FAMILIES
from tests.eager import eager
from tests.export.common import export_without_kernels, load_packages_once, replay_here
from tests.families.conftest import COSTLY, EVALUATED, SOURCE

GREEDY = ["--prompt", "def alpha_1(beta):", "--max-new-tokens", "6", "--temperature", "0", "--json"]


def answer(capsys, *words):
    """The JSON that a command prints."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_the_added_family_is_five_short_files():
    files = sorted(path.name for path in SOURCE.glob("*.py"))
    assert files == ["__init__.py", "config.py", "model.py", "sharding.py", "weights.py"]
    assert sum(len(path.read_text().splitlines()) for path in SOURCE.glob("*.py")) < 200


@pytest.mark.usefixtures("mindspore_cpu")
def test_its_files_agree(tiny, overrides):
    """What the configuration says, the model has, the rules lay out and the formats name."""
    from pangu_ms.models.build import build_model, weights
    from pangu_ms.models.common.layers import CacheShape, Logits

    family, config = FAMILIES[tiny.family], load_config(tiny.config, overrides).model
    specs, shapes = config.parameters(), config.parameter_shapes()
    assert type(config) is family.config and config.family == tiny.family
    for cache in (None, CacheShape(1, 8)):
        model = build_model(config, cache)
        found = {weight.name: (weight.shape, weight.dtype, weight.requires_grad) for weight in weights(model)}
        wanted = {name: (shapes[name], getattr(ms, spec.dtype), spec.trainable) for name, spec in specs.items()}
        assert found == wanted and list(found) == list(wanted)  # of one order, by which ranks' gradients are named
    assert sum(isinstance(cell, Logits) for _, cell in model.cells_and_names()) == 1
    assert {axis for spec in specs.values() for axis in spec.axes} <= family.rules.keys() & config.axis_sizes().keys()
    for naming in family.formats.values():
        ours = {rule.ours for rule in naming.rules(config)}
        assert ours in (specs.keys(), stored_shapes(shapes).keys())


def test_it_trains(run, tiny, trained_config):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0] < 1.1 * math.log(384)
    balance = [line["balance_loss"] for line in lines if "balance_loss" in line]
    assert len(balance) == (12 if tiny.family == "moge" else 0)
    layers = trained_config.model.num_layers
    assert all(0.00095 < value / layers < 0.0015 for value in balance)  # 0.001 in a layer if all experts are equal
    assert store.open_checkpoint(run).config().model.family == tiny.family


def test_a_resumed_run_ends_as_the_whole_one(run, trained_config, records, tmp_path, monkeypatch):
    from pangu_ms.train.loop import train

    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)
    resumed = shutil.copytree(run, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints/step-00000012")
    result = train(trained_config, records, resumed, progress=False, resume=True)
    assert result.step == 12
    for group in ("model", "optimizer"):
        assert_same(store.open_checkpoint(resumed).tensors(group), store.open_checkpoint(run).tensors(group))


@EVALUATED
def test_it_is_evaluated(run, records, capsys):
    found = answer(capsys, "eval", run, "--data", records, "--max-batches", 1, "--no-baselines")
    assert 0 < found["loss"] < math.log(384)


@COSTLY
@pytest.mark.parametrize("with_kernels", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_its_package_generates_as_it_does(run, decoder, with_kernels, tmp_path, capsys, monkeypatch):
    """With the decoder of the checkpoint in eager mode, and the package verified in this process and loaded once."""
    from pangu_ms.export import write
    from pangu_ms.infer import load

    monkeypatch.setattr(write, "replay_in_fresh_process", replay_here)
    load_packages_once(monkeypatch)
    if not with_kernels:
        export_without_kernels(monkeypatch)
    for module in (load, write):
        monkeypatch.setattr(module, "load_decoder", lambda *_, **__: decoder)
    sizes = ["--batch-size", 1, "--max-length", 32, "--chunk", 8]
    with eager():
        assert main(["generate", str(run), *GREEDY]) == 0
        text = json.loads(capsys.readouterr().out)["text"]
        manifest = answer(capsys, "export", run, "--output", tmp_path / "package", *sizes)
    assert manifest["verified"]["max_difference"] <= 1e-4
    assert main(["run-mindir", str(tmp_path / "package"), *GREEDY]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text and text


def test_its_weights_go_to_every_format_and_back(tiny, overrides, records, tmp_path):
    """Weights of two layers, all of them random."""
    config, random = load_config(tiny.config, overrides), np.random.default_rng(0)
    weights = {
        name: value if value.dtype == np.int32 else random.standard_normal(value.shape).astype(value.dtype)
        for name, value in initial_values(config.model, 1)
    }
    run = tmp_path / "run"
    source = store.open_checkpoint(store.save(run, 7, {"model": weights}, {}, config, records.parent / "tokenizer"))
    for name, naming in FAMILIES[tiny.family].formats.items():
        file, back = tmp_path / f"{name}.safetensors", tmp_path / name
        assert main(["convert", str(run), "--to", name, "--output", str(file)]) == 0
        config = ["--config", str(source.path / "config.yaml")]
        assert main(["convert", str(file), "--from", name, *config, "--output", str(back)]) == 0
        assert_same(store.open_checkpoint(back).tensors(), source.tensors())
        if naming.write_config is None:
            continue
        directory, back = tmp_path / f"{name}-directory", tmp_path / f"{name}-again"
        assert main(["convert", str(run), "--to", name, "--output", str(directory)]) == 0
        assert main(["convert", str(directory), "--from", name, "--output", str(back)]) == 0
        found = store.open_checkpoint(back)
        assert_same(found.tensors(), source.tensors())
        assert found.config().model.parameters().keys() == source.config().model.parameters().keys()


DEVICES = ["parallel.data_parallel=2", "parallel.model_parallel=2", "parallel.optimizer_shard=true"]
STAGES = ["parallel.pipeline_stage=2", "parallel.micro_batch_num=2"]


def test_it_is_planned(tiny, overrides, capsys):
    model = load_config(tiny.config, overrides).model
    words = ["--config", tiny.config, *overrides, *DEVICES, *STAGES, "model.compute_dtype=float16"]
    shown = answer(capsys, "plan", "show", *words)
    assert sum(row["count"] for row in shown["parameters"]) == len(model.parameters())
    assert shown["num_parameters"] == model.num_parameters() and len(shown["stages"]) == 2
    estimated = answer(capsys, "plan", "estimate", *words)
    assert estimated["gib"] > 4 * model.num_parameters() / 8 / 2**30 and estimated["step_seconds"] > 0


@pytest.mark.slow
def test_its_plan_is_executed(tiny, overrides, capsys):
    fields = [*overrides, "parallel.model_parallel=2", "model.seq_length=16"]
    found = answer(capsys, "plan", "execute", "--config", tiny.config, *fields, "--steps", 2)
    assert found["agrees"] and len(found["losses"]) == 2


@EVALUATED
def test_its_collapse_is_measured(run, trained_config, records, capsys):
    found = answer(capsys, "analyze", "collapse", run, "--data", records, "--max-batches", 1)
    layers = found["checkpoints"][0]["layers"]
    assert len(layers) == trained_config.model.num_layers + 1
    assert all(layer["effective_dimension"] > 0 for layer in layers)


def test_it_trains_small_in_a_smoke_run(tiny, overrides):
    """`pangu train --smoke` thins any configuration of any family."""
    from pangu_ms.train.smoke import smoke_overrides

    config = load_config(tiny.config, overrides)
    thin = load_config(tiny.config, [*overrides, *smoke_overrides(config)]).model
    assert thin.num_layers == 2 and thin.hidden_size == 64 and thin.head_dim == 16
