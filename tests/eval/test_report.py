"""Evaluation of a checkpoint against numpy float64 on the same rows, and the mistakes that end with one line."""

import json
import math

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli.main import main
from pangu_ms.core.errors import DataError
from pangu_ms.data.loader import batch_from_ids
from pangu_ms.data.records import RecordSet
from pangu_ms.eval.ngram import NgramModels
from pangu_ms.eval.report import baselines, bits_per_byte, evaluate
from tests.eager import eager
from tests.reference import alpha_numpy

pytestmark = pytest.mark.usefixtures("compiled_models")


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return open_checkpoint(trained_run)


@pytest.fixture(scope="module")
def held_out(records):
    """The held-out records and all their rows."""
    record_set = RecordSet.open(records, "held_out")
    return record_set, record_set.read_rows(np.arange(record_set.num_rows))


@pytest.fixture(scope="module")
def result(checkpoint, records, held_out):
    """A batch size that does not divide the rows."""
    assert held_out[0].num_rows % 4
    return evaluate(checkpoint, records, "held_out", batch_size=4, progress=False)


def test_it_equals_numpy_on_the_same_rows(result, checkpoint, held_out):
    record_set, ids = held_out
    config = checkpoint.config()
    assert config.data.eod_reset
    mask = (ids[:, :-1] != record_set.eod_id) & (ids[:, :-1] != record_set.pad_id)
    logits = alpha_numpy.forward(config.model, checkpoint.tensors("model"), ids[:, :-1], record_set.eod_id)
    expected = alpha_numpy.loss(logits, ids[:, 1:], mask)
    assert result["tokens"] == mask.sum() and result["step"] == 12
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_rows_that_fill_the_last_batch_do_not_count(result, checkpoint, records, held_out):
    with eager():
        whole = evaluate(checkpoint, records, "held_out", batch_size=held_out[0].num_rows, progress=False)
    assert whole["tokens"] == result["tokens"]
    assert whole["loss"] == pytest.approx(result["loss"], rel=1e-6)


def test_bits_per_byte_charges_all_tokens_of_the_split(result, records, held_out):
    record_set, ids = held_out
    tokens, size = (ids != record_set.pad_id).sum(), record_set.manifest["splits"]["held_out"]["bytes"]
    assert record_set.pad_id != record_set.eod_id and tokens > result["tokens"]
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2) * tokens / size, rel=1e-12)
    # 10 tokens of ln 256 nats = 8 bits each, over 40 bytes
    assert bits_per_byte(math.log(256), {"tokens": 10, "bytes": 40}) == pytest.approx(2)


def test_another_compute_dtype_scores_nearly_the_same(result, checkpoint, records):
    from pangu_ms.checkpoint.model import checkpoint_config

    assert checkpoint.config().model.compute_dtype == "float32"
    config = checkpoint_config(checkpoint, ["model.compute_dtype=float16"])
    with eager():
        half = evaluate(checkpoint, records, "held_out", 4, progress=False, config=config)
    assert half["loss"] != result["loss"]
    assert half["loss"] == pytest.approx(result["loss"], rel=1e-2)  # 11 bits of mantissa through two layers


def test_baselines_are_counted_on_train_and_scored_where_the_model_is(result, records, held_out):
    train_set = RecordSet.open(records, "train")
    batches = [
        batch_from_ids(s.read_rows(np.arange(s.num_rows)), s.eod_id, s.pad_id, False) for s in (train_set, held_out[0])
    ]
    unigram, bigram, tokens = NgramModels.count(batches[:1], 384).score(batches[1:])
    assert tokens == result["tokens"]
    scores = baselines(records, "held_out", 384, batch_size=4)
    assert scores == pytest.approx(
        {"unigram_perplexity": math.exp(unigram / tokens), "bigram_perplexity": math.exp(bigram / tokens)}, rel=1e-5
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"batch_size": 4, "max_batches": -1}, "max_batches=-1: must be at least 0; 0 scores all"),
    ],
)
def test_sizes_that_make_no_batch(checkpoint, records, options, message):
    for call in (
        lambda: evaluate(checkpoint, records, "held_out", **options),
        lambda: baselines(records, "held_out", 384, **options),
    ):
        with pytest.raises(DataError, match=f"^{message}$"):
            call()


def test_records_without_a_token_that_counts(checkpoint, records, monkeypatch):
    read = RecordSet.read_rows
    monkeypatch.setattr(RecordSet, "read_rows", lambda self, rows: np.full_like(read(self, rows), self.pad_id))
    with pytest.raises(DataError, match="0 tokens that count in split held_out"):
        evaluate(checkpoint, records, "held_out", 4, progress=False)


def test_json(result, trained_run, records, capsys):
    capsys.readouterr()
    words = [
        str(trained_run),
        "runtime.device=CPU",
        "--data",
        str(records),
        "--batch-size",
        "4",
        "model.compute_dtype=float32",
        "--json",
    ]
    assert main(["eval", *words]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and not err
    assert json.loads(out) == pytest.approx(result | baselines(records, "held_out", 384, 4))


def test_baselines_are_not_compared_on_the_records_they_are_counted_on(trained_run, records, capsys):
    words = ["eval", str(trained_run), "--split", "train", "--batch-size", "4", "--max-batches", "1", "--data"]
    official = min(map(str, records.glob("train*.mindrecord")))  # without the manifest
    for data, has_manifest in ((str(records), True), (official, False)):
        capsys.readouterr()
        assert main([*words, data, "--json"]) == 0
        out, err = capsys.readouterr()
        scores = json.loads(out)
        assert scores["bigram_perplexity"] is scores["unigram_perplexity"] is None
        assert ("bits_per_byte" in scores) == has_manifest
        assert "unigram and bigram left out" in err
    assert main([*words, str(records)]) == 0
    assert "bigram perplexity left out" in " ".join(capsys.readouterr().out.split())


def test_each_domain_has_its_score(checkpoint, trained_run, two_domains, capsys):
    """Scored together, alone, and alone by numpy."""
    record_set, config = RecordSet.open(two_domains, "held_out"), checkpoint.config()
    capsys.readouterr()
    words = ["eval", str(trained_run), "--data", str(two_domains), "--batch-size", "4"]
    assert main([*words, "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert list(together["domains"]) == ["a", "b"]
    for domain, rows in record_set.domains.items():
        ids = record_set.read_rows(rows)
        mask = (ids[:, :-1] != record_set.eod_id) & (ids[:, :-1] != record_set.pad_id)
        logits = alpha_numpy.forward(config.model, checkpoint.tensors("model"), ids[:, :-1], record_set.eod_id)
        own = together["domains"][domain]
        assert own["tokens"] == mask.sum()
        assert own["loss"] == pytest.approx(alpha_numpy.loss(logits, ids[:, 1:], mask), rel=1e-5)
        text = record_set.manifest["splits"]["held_out"]["domains"][domain]
        assert own["bits_per_byte"] == bits_per_byte(own["loss"], text)
        alone = evaluate(checkpoint, two_domains, "held_out", 4, progress=False, domain=domain)
        assert alone == {"step": 12, "split": "held_out", "domain": domain} | own
    parts = together["domains"].values()
    total = sum(own["tokens"] * own["loss"] for own in parts) / together["tokens"]
    assert together["loss"] == pytest.approx(total, rel=1e-6)
    assert main([*words, "--domain", "b", "--max-batches", "1"]) == 0
    assert "domain" in capsys.readouterr().out
    assert main([*words, "--no-baselines", "--max-batches", "1"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in shown if words][-3:] == ["domain", "a", "b"]
    assert main([*words, "--domain", "c"]) == 2
    assert "no rows of domain c; there are rows of a, b; name one of these" in capsys.readouterr().err


def test_overrides_of_the_model_itself_are_refused(trained_run, records, capsys):
    capsys.readouterr()
    assert main(["eval", str(trained_run), "model.num_layers=3", "--data", str(records)]) == 2
    assert "model.num_layers=3: a checkpoint's model is fixed" in capsys.readouterr().err
