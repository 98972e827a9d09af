"""Files of version 0.1.0, made by it (make_0_1_0.sh), load and give what it computed from them; files of a newer
version are refused by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.core import files
from pangu_ms.data import tokenizer as tokenizer_module
from pangu_ms.data.compress import load_vocab_map
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses, Order
from pangu_ms.data.token_counts import load_counts
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.export.package import sealed
from tests.reference import alpha_numpy

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
ARCHIVE = Path(__file__).with_name("0_1_0.tar.xz")
TEXT = "\u6625\u7720\u4e0d\u89ba\u66c9\uff0c\u767d\u65e5\u4f9d\u5c71\u76e1\u3002"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The files, not to be changed."""
    directory = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(ARCHIVE, directory)
    return directory / "0.1.0"


@pytest.fixture
def old(unpacked, tmp_path):
    """A copy."""
    return shutil.copytree(unpacked, tmp_path / "0.1.0")


def losses(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_tokenizers_and_counts(unpacked):
    tokenizer = Tokenizer.load(unpacked / "tokenizer")
    assert tokenizer.encode(TEXT) == [int(word) for word in (unpacked / "ids.txt").read_text().split()]
    assert load_counts(unpacked / "counts.json", tokenizer).sum() > 0
    kept = load_vocab_map(unpacked / "compact").old_ids
    assert len(kept) == 310 and [tokenizer.piece_of(i) for i in kept] == [
        Tokenizer.load(unpacked / "compact").piece_of(i) for i in range(310)
    ]


def test_records_and_a_checkpoint_score_as_they_did(unpacked, capsys):
    assert main(["data", "inspect", str(unpacked / "records"), "--verify", "--rows", "1"]) == 0
    capsys.readouterr()
    assert main(["eval", str(unpacked / "run"), "--data", str(unpacked / "records"), "--json"]) == 0
    found, expected = json.loads(capsys.readouterr().out), json.loads((unpacked / "eval.json").read_text())
    assert expected == {
        name: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        for name, value in found.items()
        if name in expected
    }


def test_a_run_goes_on_as_it_would_have(old, caplog, monkeypatch):
    """And its records' and its checkpoint's fingerprint, which does not tell of jieba, is named once."""
    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda run: None)  # compiles what the test above evaluates
    tokenizer_module._warn_of_old.cache_clear()
    words = [
        "train",
        "--config",
        str(old / "run/config.yaml"),
        "--data",
        str(old / "records"),
        "--output",
        str(old / "run"),
        "--resume",
    ]
    assert main(words) == 0
    assert losses(old / "run/metrics.jsonl") == {
        step: pytest.approx(loss, rel=1e-6) for step, loss in losses(old / "resumed.jsonl").items()
    }
    assert store.open_checkpoint(old / "run").step == 4
    fingerprint = json.loads((old / "records/manifest.json").read_text())["tokenizer"]
    (warning,) = [record.getMessage() for record in caplog.records if "fingerprint" in record.getMessage()]
    assert fingerprint in warning and str(old / "records") in warning
    assert fingerprint != Tokenizer.load(old / "tokenizer").fingerprint


def test_slices_of_ranks(unpacked):
    whole, sharded = store.open_checkpoint(unpacked / "run"), store.open_checkpoint(unpacked / "sharded")
    assert whole.manifest["format_version"] == 1 and whole.state() == sharded.state()
    for group in ("model", "optimizer"):
        tensors = whole.tensors(group)
        assert tensors.keys() == sharded.tensors(group).keys()
        assert all(np.array_equal(tensors[name], values) for name, values in sharded.each(group))


def test_losses_and_the_order_drawn_from_them(unpacked, tmp_path):
    records = RecordSet.open(unpacked / "records")
    assert BatchLosses.load(unpacked / "losses.npz").rows.shape == (62, 2)
    assert (
        main(
            [
                "data",
                "resample",
                "--losses",
                str(unpacked / "losses.npz"),
                "--keep",
                "0.5",
                "--output",
                str(tmp_path / "order.npz"),
            ]
        )
        == 0
    )
    old, new = (Order.open(path, records) for path in (unpacked / "order.npz", tmp_path / "order.npz"))
    assert np.array_equal(old.rows, new.rows) and len(old.rows) == 62


def test_a_package_is_run_by_its_own_program(unpacked, capsys):
    """Its graph has another form than today's: the message names the program, which continues greedily what numpy
    float64 does with the weights of the checkpoint."""
    words = ["--prompt", TEXT[:2], "--max-new-tokens", "6", "--temperature", "0", "--json"]
    assert main(["run-mindir", str(unpacked / "package"), *words]) == 2
    error = capsys.readouterr().err
    assert "format version 1 has another graph" in error and "run the package with its own run.pyz" in error
    command = [sys.executable, str(unpacked / "package/run.pyz"), *words]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    checkpoint = store.open_checkpoint(unpacked / "run")
    ids = Tokenizer.load(checkpoint.tokenizer_path()).encode_prompt(TEXT[:2])
    length = len(ids)
    for _ in range(6):
        logits = alpha_numpy.forward(checkpoint.config().model, checkpoint.tensors(), np.array([ids]), None)[0, -1]
        assert np.diff(np.sort(logits)[-2:]) > 1e-4  # float32 must choose the same token
        ids = [*ids, int(logits.argmax())]
    assert said["prompt"] == TEXT[:2] and said["text"] and list(said["token_ids"]) == ids[length:]


def test_a_job_directory(unpacked, capsys):
    assert main(["status", str(unpacked / "launched"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["step"], len(status["ranks"])) == ("ended", 4, 2)
    assert main(["logs", str(unpacked / "launched"), "--errors"]) == 0


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def seal(directory):
    """A manifest that fits what its directory holds now, as whoever changed it would write."""
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"] = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": files.sha256_file(directory / name)}
        for name in manifest["files"]
    }
    (directory / "manifest.json").write_text(json.dumps(sealed(manifest)))


def npz(path):
    with np.load(path) as archive:
        fields = dict(archive)
    np.savez(path, **fields | {"format_version": 9})


def newer_config(path):
    path.write_text(f"format_version: 9\n{path.read_text()}")


STEP, RESUME = (
    "run/checkpoints/step-00000002",
    [
        "train",
        "--config",
        "run/config.yaml",
        "--data",
        "records",
        "--output",
        "run",
        "--resume",
    ],
)
EVAL = ["eval", "run", "--data", "records"]
NEWER = {
    "tokenizer": (
        lambda: edit(Path("tokenizer/tokenizer.json"), format=9),
        ["tokenizer", "encode", "--tokenizer", "tokenizer", "a"],
    ),
    "vocabulary map": (
        lambda: edit(Path("compact/vocab_map.json"), format=9),
        [
            "model",
            "inherit",
            "run",
            "--config",
            "run/config.yaml",
            "model.vocab_size=310",
            "--tokenizer",
            "compact",
            "--output",
            "new",
        ],
    ),
    "counts": (
        lambda: edit(Path("counts.json"), format=9),
        [
            "tokenizer",
            "compress",
            "--tokenizer",
            "tokenizer",
            "--counts",
            "counts.json",
            "--vocab-size",
            "310",
            "--output",
            "new",
        ],
    ),
    "records": (lambda: edit(Path("records/manifest.json"), format=9), ["data", "inspect", "records"]),
    "config": (lambda: newer_config(Path("run/config.yaml")), ["config", "show", "--config", "run/config.yaml"]),
    "checkpoint": (lambda: (edit(Path(STEP, "manifest.json"), format_version=9), seal(Path(STEP))), EVAL),
    "checkpoint, resumed": (lambda: (edit(Path(STEP, "manifest.json"), format_version=9), seal(Path(STEP))), RESUME),
    "checkpoint's config": (lambda: (newer_config(Path(STEP, "config.yaml")), seal(Path(STEP))), EVAL),
    "checkpoint's state": (lambda: (edit(Path(STEP, "state.json"), format_version=9), seal(Path(STEP))), RESUME),
    "losses": (
        lambda: npz("losses.npz"),
        ["data", "resample", "--losses", "losses.npz", "--keep", "0.5", "--output", "new"],
    ),
    "order": (lambda: npz("order.npz"), [*RESUME, "data.order=order.npz"]),
    "package": (
        lambda: (edit(Path("package/manifest.json"), format_version=9), seal(Path("package"))),
        ["run-mindir", "package", "--prompt", "a"],
    ),
    "job": (lambda: edit(Path("launched/job/job.json"), format_version=9), ["status", "launched"]),
    "job's logs": (lambda: edit(Path("launched/job/job.json"), format_version=9), ["logs", "launched"]),
}


def contents(directory):
    return {path: files.sha256_file(path) for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_version_is_refused_by_name(old, name, capsys, monkeypatch):
    monkeypatch.chdir(old)
    change, words = NEWER[name]
    change()
    before = contents(old)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "format version 9 was written by a newer version of pangu-ms; this one reads up to " in error
    ), error
    assert error.endswith("; upgrade pangu-ms\n")
    assert contents(old) == before


@pytest.mark.parametrize("found", [0, True, "1", None, 1.0])
def test_what_no_version_writes_is_no_version(old, found, capsys):
    edit(old / "records/manifest.json", format=found)
    assert main(["data", "inspect", str(old / "records")]) == 2
    assert f"format version {found!r}: no version of pangu-ms writes that" in capsys.readouterr().err


def test_a_damaged_version_is_passed_over(old, caplog):
    """One bit of a manifest must not end the search for an older checkpoint: only what is whole is newer."""
    newest = shutil.copytree(old / STEP, old / "run/checkpoints/step-00000004")
    edit(newest / "manifest.json", format_version=9, step=4)
    found, passed_over = store.latest_valid(old / "run/checkpoints")
    assert found.step == 2 and "format version 9" in passed_over[0]
    seal(newest)
    with pytest.raises(store.NewerCheckpoint):
        store.latest_valid(old / "run/checkpoints")
