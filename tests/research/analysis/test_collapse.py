"""Measures of collapse against closed forms and brute force; the states and the whole command against the numpy float64
model."""

import json
from unittest import mock

import numpy as np
import pytest

from pangu_ms.cli import analyze as cli
from pangu_ms.cli.main import guarded
from pangu_ms.config import load_config
from pangu_ms.core import figure
from pangu_ms.core.errors import CheckpointError, DataError, OutputError
from pangu_ms.data.loader import batch_from_ids
from pangu_ms.research.analysis import plot
from pangu_ms.research.analysis.collapse import LayerDiversity
from tests.models.alpha import EOD, random_ids, random_parameters, small
from tests.reference import alpha_numpy


def measure(features, mask=None, share=0.8, batches=1):
    """Ours, of features [B, S, E] fed in several batches."""
    features = np.asarray(features, np.float32)
    mask = np.ones(features.shape[:2], np.float32) if mask is None else mask
    layer = LayerDiversity(features.shape[-1], share)
    for part, part_mask in zip(np.array_split(features, batches), np.array_split(mask, batches)):
        layer.update(part, part_mask)
    return layer.result()


def brute_force(sequences, share=0.8):
    """The measures of a list of sequences [T, E] from their definitions."""
    sequences = [np.asarray(z, np.float64) for z in sequences]
    tokens = np.concatenate(sequences)
    variances = np.linalg.svd(tokens - tokens.mean(axis=0), compute_uv=False) ** 2
    carried, dimension = 0.0, 0
    while carried < share * variances.sum():
        carried, dimension = carried + variances[dimension], dimension + 1
    cosines, distances, relatives = [], [], []
    for z in sequences:
        pairs = [(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        cosines.append(np.mean([a @ b / np.sqrt(a @ a * (b @ b)) for a, b in pairs]))
        ones = np.ones((len(z), 1))
        best = np.linalg.lstsq(ones, z, rcond=None)[0]
        distances.append(np.sqrt(((z - ones @ best) ** 2).sum()))
        relatives.append(distances[-1] / np.sqrt((z**2).sum()))
    names = ("effective_dimension", "token_cosine", "rank_one_distance", "relative_rank_one_distance")
    return dict(zip(names, (dimension, np.mean(cosines), np.mean(distances), np.mean(relatives))))


@pytest.mark.parametrize("share, dimension", [(0.3, 1), (0.49, 1), (0.51, 2), (0.8, 3), (0.88, 4), (0.97, 5)])
def test_dimension_of_prescribed_eigenvalues(share, dimension):
    """Eigenvalues 50, 25, 12, 8, 4, 1 of a hundred, exactly, in a rotated space and far from the origin."""
    generator = np.random.default_rng(0)
    centred = generator.normal(size=(400, 6))
    white = np.linalg.qr(centred - centred.mean(axis=0))[0] * 20  # orthogonal columns of mean 0 and variance 1
    rotation = np.linalg.qr(generator.normal(size=(16, 16)))[0][:6]
    features = white * np.sqrt([8, 50, 1, 25, 4, 12]) @ rotation + generator.normal(size=16) * 30
    assert measure(features.reshape(8, 50, 16), share=share, batches=3)["effective_dimension"] == dimension


def test_equal_tokens_have_collapsed():
    rows = np.random.default_rng(1).normal(size=16)
    collapsed = measure(np.broadcast_to(rows, (2, 9, 16)))
    assert collapsed["effective_dimension"] == 0
    assert collapsed["token_cosine"] == pytest.approx(1, abs=1e-12)
    assert collapsed["rank_one_distance"] == pytest.approx(0, abs=1e-12) and collapsed[
        "relative_rank_one_distance"
    ] == pytest.approx(0, abs=1e-12)
    different = measure(
        np.stack([np.broadcast_to(z, (9, 16)) for z in (rows, -2 * rows)])
    )  # sequences differ, their tokens do not
    assert different["effective_dimension"] == 1
    assert different["token_cosine"] == pytest.approx(1) and different["rank_one_distance"] == pytest.approx(
        0, abs=1e-12
    )
    rounded = rows * (
        1 + np.random.default_rng(2).choice([0, 6e-8], (1, 9, 16))
    )  # by a unit in the last place of float32
    assert measure(rounded)["effective_dimension"] == 0


@pytest.mark.parametrize("count", [11, 86])
def test_orthogonal_tokens(count):
    """Orthonormal tokens: their covariance has count - 1 equal eigenvalues, so that a share of 0.8 is reached exactly;
    d_M^2 = count - 1."""
    result = measure(np.eye(count)[None])
    assert result["effective_dimension"] == 0.8 * (count - 1)
    assert result["token_cosine"] == pytest.approx(0, abs=1e-12)
    assert result["rank_one_distance"] == pytest.approx(np.sqrt(count - 1))
    assert result["relative_rank_one_distance"] == pytest.approx(np.sqrt(1 - 1 / count))


def test_a_layer_of_zeros():
    expected = {"effective_dimension": 0, "token_cosine": 0, "rank_one_distance": 0, "relative_rank_one_distance": 0}
    assert measure(np.zeros((2, 3, 4))) == expected


@pytest.mark.parametrize("batches", [1, 3])
def test_brute_force_with_masks_and_batches(batches):
    generator = np.random.default_rng(2)
    features = (generator.normal(size=(7, 12, 10)) * np.geomspace(5, 0.1, 10) + generator.normal(size=10)).astype(
        np.float32
    )
    mask = (generator.random((7, 12)) < 0.6).astype(np.float32)
    mask[1], mask[2], mask[2, 4] = 0, 0, 1  # nothing, and a single token: no diversity to measure
    features[mask == 0] = 1e6
    kept = [z[m != 0] for z, m in zip(features, mask) if m.sum() > 1]
    assert len(kept) == 5
    assert measure(features, mask, batches=batches) == pytest.approx(brute_force(kept), rel=1e-9)


def reference_states(monkeypatch, config, parameters, ids, eod_id):
    """The states of the numpy model, overheard: [layer][B, S, E]."""
    rows = []
    norm, ffn = alpha_numpy._layer_norm, alpha_numpy._ffn

    def heard_norm(config, p, name, x_SE):
        if name == "blocks.0.attention_norm":
            rows.append([x_SE])  # the embedding
        elif name.endswith("ffn_norm"):
            rows[-1].append(x_SE)  # what the feed-forward is added to
        return norm(config, p, name, x_SE)

    def heard_ffn(*inputs):
        output = ffn(*inputs)
        rows[-1][-1] = rows[-1][-1] + output
        return output

    with monkeypatch.context() as patch:
        patch.setattr(alpha_numpy, "_layer_norm", heard_norm)
        patch.setattr(alpha_numpy, "_ffn", heard_ffn)
        logits = alpha_numpy.forward(config, parameters, ids, eod_id)
    return [np.stack(states) for states in zip(*rows)], logits


@pytest.fixture(scope="module")
def compiled_states(mindspore_cpu):
    """All measurements take one compiled HiddenStates, filled with the weights of each model."""
    from pangu_ms.models.build import fill, to_arrays, weights
    from pangu_ms.research.analysis import run

    states, kept = run.HiddenStates, []

    def filled(model):
        if not kept:
            kept.append(states(model))
        fill(weights(kept[0].model), to_arrays(weights(model)))
        return kept[0]

    with mock.patch.object(run, "HiddenStates", filled):
        yield states


@pytest.mark.parametrize("final_norm_position", ["before_query", pytest.param("after_query", marks=pytest.mark.slow)])
def test_hidden_states_equal_the_specification(monkeypatch, compiled_states, tiny_overrides, final_norm_position):
    """Of a model like that of `trained_run`, whose graph it takes."""
    from pangu_ms.models.build import build_model, fill
    from pangu_ms.research.analysis.run import state_names

    words = [*tiny_overrides, f"model.final_norm_position={final_norm_position}"]
    config = load_config("alpha/tiny", words).model
    parameters, ids = random_parameters(config), random_ids(config, rows=4)
    expected, logits = reference_states(monkeypatch, config, parameters, ids, EOD)
    if final_norm_position == "before_query":  # the overheard states are those that lead to the logits
        np.testing.assert_allclose(expected[-1] @ parameters["word_embedding.weight"].T, logits, atol=1e-9)
    model = build_model(config)
    fill(model.trainable_params(), parameters)
    states = compiled_states(model).of(batch_from_ids(np.pad(ids, ((0, 0), (0, 1))), EOD, 0, eod_reset=True))
    assert len(states) == len(expected) == config.num_layers + 1
    assert state_names(small(num_layers=3)) == ["embedding", "layer 1", "layer 2", "query layer"]
    for ours, theirs in zip(states, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def subject(trained_run, records, compiled_states):
    from pangu_ms.research.analysis.run import Subject

    return Subject.open(trained_run, records, "held_out")


@pytest.fixture(scope="module")
def result(subject):
    """A batch size that does not divide the rows."""
    from pangu_ms.research.analysis.run import collapse

    assert subject.records.num_rows % 4
    return collapse(subject, batch_size=4, max_batches=0, progress=False)


@pytest.mark.usefixtures("mindspore_cpu")
def test_a_checkpoint_equals_brute_force_on_the_numpy_model(subject, result, monkeypatch):
    records, config = subject.records, subject.config
    assert config.data.eod_reset and records.pad_id != records.eod_id
    ids = records.read_rows(np.arange(records.num_rows))[:, :-1]
    counts = (ids != records.pad_id) & (ids != records.eod_id)
    states, _ = reference_states(monkeypatch, config.model, subject.checkpoint.tensors("model"), ids, records.eod_id)
    assert result["tokens"] == counts.sum() and result["sequences"] == len(ids) and result["step"] == 12
    for layer, features in zip(result["layers"], states, strict=True):
        expected = brute_force([z[m] for z, m in zip(features, counts)])
        assert {name: layer[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def run(capsys, *words):
    capsys.readouterr()
    assert cli.main(["collapse", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_two_checkpoints_from_the_command_line(result, trained_run, records, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    first, figure = trained_run / "checkpoints/step-00000009", tmp_path / "new/figure.svg"
    words = [
        first,
        "--data",
        records,
        "--batch-size",
        4,
        "--max-batches",
        0,
        trained_run,
        "model.compute_dtype=float32",
        "--labels",
        "early,$late_$",
    ]
    out = run(capsys, *words, "--json", "--plot", figure, "--output", tmp_path / "report.json")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    early, late = report["checkpoints"]
    assert (early["label"], early["step"], late["label"], late["step"]) == ("early", 9, "$late_$", 12)
    for ours, expected in zip(late["layers"], result["layers"], strict=True):
        assert ours == pytest.approx(expected)
    assert early["layers"][1]["token_cosine"] != late["layers"][1]["token_cosine"]
    drawn = figure.read_text()
    assert all(
        f"<!-- {text} -->" in drawn
        for text in ("early", "effective dimension d(0.8)", "cosine of tokens", "relative distance to rank one")
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["figure.svg", "new", "report.json"]  # no temporary file left


def test_the_table(result, trained_run, records, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = run(
        capsys, trained_run, "--data", records, "--batch-size", 4, "--max-batches", 0, "--plot", tmp_path / "figure.PNG"
    )
    last = result["layers"][-1]
    row = next(line for line in out.splitlines() if "query layer" in line).split()
    assert row[2:4] == [str(last["effective_dimension"]), f"{last['token_cosine']:.4f}"]
    assert str(trained_run) in out and "step 12" in out
    assert (tmp_path / "figure.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--labels", "a,b"], "--labels a,b: 2 for 1 checkpoints"),
        (["--share", "1"], "share=1.0: must be above 0 and below 1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--plot", "figure.gif"], "--plot figure.gif: the name tells the format; it must end in .png, .svg, .pdf"),
        (["--output", "."], "is a directory"),
        (["none"], "none: no such directory"),
        (["model.num_layers=3"], "a checkpoint's model is fixed"),
    ],
)
@pytest.mark.usefixtures("mindspore_cpu")
def test_mistakes_end_with_one_line_before_anything_runs(trained_run, records, monkeypatch, capsys, options, message):
    from pangu_ms.research.analysis.run import Subject

    monkeypatch.setattr(Subject, "model", None)
    capsys.readouterr()
    assert (
        guarded("pangu analyze", lambda: cli.main(["collapse", str(trained_run), "--data", str(records), *options]))
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setattr(figure.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r'pip install "pangu-ms\[plot\]"'):
        plot.plot_collapse([], tmp_path / "figure.png")


@pytest.mark.usefixtures("mindspore_cpu")
def test_features_and_records_that_cannot_be_measured(subject, compiled_states, monkeypatch):
    from pangu_ms.data.records import RecordSet
    from pangu_ms.research.analysis.run import collapse

    states = compiled_states.of

    def overflown(self, batch):
        features = states(self, batch)
        features[1][0, 0] = np.inf
        return features

    with monkeypatch.context() as patch:
        patch.setattr(compiled_states, "of", overflown)
        with pytest.raises(CheckpointError, match="layer 1: features that are not finite"):
            collapse(subject, 4, 1, progress=False)
    read = RecordSet.read_rows
    monkeypatch.setattr(RecordSet, "read_rows", lambda self, rows: np.full_like(read(self, rows), self.pad_id))
    with pytest.raises(DataError, match="0 sequences with two tokens that count"):
        collapse(subject, 4, 1, progress=False)
