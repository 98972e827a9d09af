"""`pangu analyze experts` against a count one token after the other."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.data.records import RecordSet
from tests.models.moge import random_parameters, small
from tests.models.sigma import CODE, save_sigma
from tests.reference import moge_numpy

TRAIN = ["--split", "train"]


@pytest.fixture(scope="module")
def sigma(records, tmp_path_factory):
    return save_sigma(tmp_path_factory.mktemp("sigma"), records)


def answer(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_tokens_of_each_expert(sigma, records, tmp_path, capsys):
    figure, output = tmp_path / "load.png", tmp_path / "load.json"
    report = answer(
        capsys, "analyze", "experts", sigma.path, "--data", records, *TRAIN, "--plot", figure, "--output", output
    )
    tables = sigma.tensors()
    ids = [token for rows in RecordSet.open(records).rows() for row in rows.tolist() for token in row[:-1]]
    assert report["tokens"] == {"text": 0, "code": len(ids), "law": 0} and len(report["layers"]) == 2
    for layer in report["layers"]:
        line = tables[f"{layer['name']}.ffn.routing"][CODE].tolist()
        counts = Counter(line[token] for token in ids)
        assert layer["experts"] == [counts[expert] for expert in range(6)]
        busiest = max(counts.values()) / (len(ids) / 3)
        assert layer["domains"] == {"code": {"experts": [2, 4], "max_over_mean": pytest.approx(busiest), "unused": 1}}
    assert json.loads(output.read_text()) == report and figure.stat().st_size > 1000
    assert main(["analyze", "experts", str(sigma.path), "--data", str(records)]) == 0
    assert "query_layer" in capsys.readouterr().out


def test_a_balanced_table_has_a_balanced_load(trained_run, records, tmp_path, capsys):
    fields = ["family=sigma", "domains=[code]", "num_experts=4", "routing_mode=frequency_balanced"]
    words = ["model", "upgrade", trained_run, *(f"model.{field}" for field in fields)]
    assert main([*map(str, words), "--output", str(tmp_path / "never")]) == 2
    assert "add --data RECORDS, or use random" in capsys.readouterr().err
    ratios = []
    for name, more in (("balanced", ["--data", records]), ("random", ["model.routing_mode=random"])):
        answer(capsys, *words, *more, "--output", tmp_path / name)
        report = answer(capsys, "analyze", "experts", tmp_path / name, "--data", records, *TRAIN)
        ratios.append(max(layer["domains"]["code"]["max_over_mean"] for layer in report["layers"]))
    assert ratios[0] < 1.05 < ratios[1]


def test_models_without_experts_are_refused(trained_run, records, capsys):
    assert main(["analyze", "experts", str(trained_run), "--data", str(records)]) == 2
    assert "this alpha model has no experts; name the checkpoint" in capsys.readouterr().err
    assert main(["analyze", "experts", str(trained_run), "--data", str(records), "--max-batches", "-1"]) == 2
    assert "max_batches=-1: must be at least 0" in capsys.readouterr().err


@pytest.mark.usefixtures("mindspore_cpu")
def test_the_choices_of_routers(records, tmp_path, monkeypatch, capsys):
    """Against the choices of the numpy model, of which each token has 3."""
    model = small(vocab_size=384, seq_length=32)
    config = dataclasses.replace(
        load_config("moge/tiny", ["model.vocab_size=384", "tokenizer.vocab_size=384"]), model=model
    )
    parameters = random_parameters(model)
    store.save(tmp_path / "run", 7, {"model": parameters}, {}, config, records / "tokenizer")
    words = ["analyze", "experts", tmp_path / "run", "--data", records]
    report = answer(capsys, *words, "--batch-size", "3", "--max-batches", "2", "--plot", tmp_path / "load.svg")

    rows = RecordSet.open(records, "held_out")
    ids, chosen, route = rows.read_rows(np.arange(6))[:, :-1], [], moge_numpy.route
    monkeypatch.setattr(moge_numpy, "route", lambda *given: chosen.append(route(*given)) or chosen[-1])
    moge_numpy.forward(model, parameters, ids, rows.eod_id)
    assert min(margin for _, _, margin in chosen) > 1e-6, "another seed is needed"
    experts = np.array([experts for experts, _, _ in chosen]).reshape(model.num_layers, ids.size, 3)
    counted = ((ids != rows.pad_id) & (ids != rows.eod_id)).ravel()
    assert (report["tokens"], report["group_sizes"]) == ({"code": counted.sum()}, [4, 4, 4])
    assert 0 < counted.sum() < ids.size and len(report["layers"]) == model.num_layers
    for layer, of_layer in zip(report["layers"], experts, strict=True):
        counts = np.bincount(of_layer[counted].ravel(), minlength=12)
        assert layer["experts"] == counts.tolist() and counts.reshape(3, 4).sum(1).tolist() == [counted.sum()] * 3
        busiest = pytest.approx(counts.max() / counts.mean())
        expected = {"experts": [0, 11], "max_over_mean": busiest, "unused": (counts == 0).sum()}
        assert layer["domains"] == {"code": expected}
    assert (tmp_path / "load.svg").stat().st_size > 1000
