"""`pangu analyze experts` against a count one token after the other."""

import json
from collections import Counter

import pytest

from pangu_ms.cli.main import main
from tests.models.sigma import CODE, save_sigma

TRAIN = ["--split", "train"]


@pytest.fixture(scope="module")
def sigma(records, tmp_path_factory):
    return save_sigma(tmp_path_factory.mktemp("sigma"), records)


def answer(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_tokens_of_each_expert(sigma, records, tmp_path, capsys):
    from pangu_ms.data.records import RecordSet

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
    assert "model.family=alpha: has no domains" in capsys.readouterr().err
