"""`pangu convert` from the command line and from Python."""

import json

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, store
from pangu_ms.cli.main import main
from pangu_ms.core.errors import CheckpointError, OutputError
from tests.checkpoint.alpha_tensors import foreign_tensors, our_tensors
from tests.checkpoint.common import SIZES, assert_same, small_config
from tests.checkpoint.official_names import expected
from tests.eager import eager

OVERRIDES = [*SIZES, "model.num_layers=3"]


@pytest.fixture
def official(tmp_path):
    path = tmp_path / "pangu.npz"
    foreign.write_file(path, {name: array.astype(np.float16) for name, array in foreign_tensors("official").items()})
    return path


def ours_from_half() -> dict[str, np.ndarray]:
    return {name: array.astype(np.float16).astype(np.float32) for name, array in our_tensors(3).items()}


def test_command_line_there_and_back(tmp_path, official, capsys):
    arguments = ["convert", str(official), "--from", "official", "--config", "alpha/tiny", *OVERRIDES]
    assert main([*arguments, "--output", str(tmp_path / "ours"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    notes = told.pop("notes")
    assert told == {"output": str(tmp_path / "ours" / "step-00000000"), "format": "official", "dtype": "float32"}
    assert notes[0] == "weights: float16 widened to float32, which holds them exactly" and notes[1].startswith(
        "tokenizer: none comes along; name one with --tokenizer"
    )
    checkpoint = store.open_checkpoint(tmp_path / "ours")
    assert checkpoint.step == 0 and checkpoint.config() == small_config(3) and checkpoint.tokenizer_path() is None
    assert checkpoint.state()["imported"]["file"] == "pangu.npz"
    assert_same(checkpoint.tensors(), ours_from_half())  # half precision is stored as float32
    for format in ("official", "huggingface"):
        for suffix in (".ckpt", ".npz", ".safetensors"):
            output = tmp_path / f"{format}{suffix}"
            assert main(["convert", str(tmp_path / "ours"), "--to", format, "--output", str(output)]) == 0
            again = convert.import_file(output, format, small_config(3), tmp_path / f"again-{output.name}")
            assert_same(store.open_checkpoint(again).tensors(), ours_from_half())
    assert foreign.read_file(tmp_path / "huggingface.npz").keys() == {row[2] for row in expected(3)} | {
        "lm_head.weight"
    }


def test_the_released_dtype_can_be_kept(tmp_path, official):
    path = convert.import_file(official, "official", small_config(3), tmp_path / "ours", dtype="float16")
    assert {array.dtype for array in store.open_checkpoint(path).tensors().values()} == {np.dtype(np.float16)}


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, official, capsys):
    output = tmp_path / "ours"
    start = ["convert", str(official), "--output", str(output), "--config", "alpha/tiny"]
    for arguments, message in (
        ([*start, "--from", "official", *SIZES, "model.num_layers=5"], "pangu.npz: 32 missing: backbone.blocks.2"),
        (
            [*start, "--from", "official", *OVERRIDES, "model.seq_length=7"],
            "position_embedding.embedding_table (6, 8) instead of (7, 8)",
        ),
        (
            [*start, "--from", "nemo", *OVERRIDES],
            "nemo: unknown format; alpha weights are known as official, huggingface, megatron, mindformers",
        ),
        ([*start, "--from", "huggingface", *OVERRIDES], "missing: transformer.wte.weight"),
        ([*start, "--from", "huggingface", *OVERRIDES], "belongs to these weights: --from official, and family alpha"),
        (["convert", str(tmp_path), "--to", "official", "--output", str(tmp_path / "x.npz")], "no valid checkpoint"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not output.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--to", "official", "--config", "alpha/tiny"],
        ["--to", "official", "model.seq_length=7"],
        [],
    ],
)
def test_options_that_do_not_go_together(tmp_path, official, options):
    with pytest.raises(SystemExit) as error:
        main(["convert", str(official), "--output", str(tmp_path / "o.npz"), *options])
    assert error.value.code == 2


def test_without_a_configuration_the_one_that_fits_is_named(tmp_path, official, capsys):
    assert main(["convert", str(official), "--from", "official", "--output", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert "name its configuration (--config): family alpha with hidden_size=8, num_layers=3, vocab_size=12" in error
    assert error.count("\n") == 1 and not (tmp_path / "ours").exists()


def test_nothing_is_overwritten(tmp_path, official):
    path = convert.import_file(official, "official", small_config(3), tmp_path / "ours")
    with pytest.raises(OutputError, match="holds checkpoints"):
        convert.import_file(official, "official", small_config(3), tmp_path / "ours")
    with pytest.raises(OutputError, match="exists"):
        convert.export_file(path, "official", official)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_the_dtype_cannot_hold(tmp_path, value):
    tensors = foreign_tensors("official")
    tensors["backbone.layernorm.beta"] = np.full(8, value, np.float32)
    foreign.write_file(tmp_path / "w.npz", tensors)
    with pytest.raises(CheckpointError, match="final_norm.bias has values that are not finite in float16"):
        convert.import_file(tmp_path / "w.npz", "official", small_config(3), tmp_path / "ours", dtype="float16")


def test_integer_weights_are_refused(tmp_path):
    tensors = foreign_tensors("official") | {"backbone.layernorm.beta": np.zeros(8, np.int8)}
    foreign.write_file(tmp_path / "w.npz", tensors)
    with pytest.raises(CheckpointError, match="final_norm.bias has dtype int8"):
        convert.import_file(tmp_path / "w.npz", "official", small_config(3), tmp_path / "ours")


@pytest.fixture
def eagerly(mindspore_cpu):
    """Models of this test compile no graph."""
    with eager():
        yield


@pytest.mark.usefixtures("eagerly")
def test_converted_weights_generate_and_train_on(trained_run, records, tiny_overrides, tmp_path, capsys, monkeypatch):
    """Out as the official .ckpt and in again with a bare vocab.model: the same text; a run can start from the
    weights."""
    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)
    greedy = ["--prompt", "def alpha", "--temperature", "0", "--max-new-tokens", "3"]
    assert main(["generate", str(trained_run), *greedy]) == 0
    text = capsys.readouterr().out
    assert main(["convert", str(trained_run), "--to", "official", "--output", str(tmp_path / "w.ckpt")]) == 0
    base = ["convert", str(tmp_path / "w.ckpt"), "--from", "official", "--config", "alpha/tiny", *tiny_overrides]
    assert main([*base, "--output", str(tmp_path / "bare")]) == 0
    assert main(["generate", str(tmp_path / "bare"), *greedy]) == 2
    assert "name one with --tokenizer" in capsys.readouterr().err
    assert (
        main(
            [*base, "--output", str(tmp_path / "x"), "model.vocab_size=385", "--tokenizer", str(records / "tokenizer")]
        )
        == 2
    )
    assert "384 pieces, model.vocab_size=385: must be equal" in capsys.readouterr().err
    assert main([*base, "--output", str(tmp_path / "full"), "--tokenizer", str(records / "tokenizer")]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "full"), *greedy]) == 0
    assert capsys.readouterr().out == text
    begin = ["--data", str(records), "--output", str(tmp_path / "run"), "--init-from", str(tmp_path / "full"), "--json"]
    assert (
        main(
            [
                "train",
                "--config",
                "alpha/tiny",
                *tiny_overrides,
                "train.steps=1",
                "optimizer.lr=0",
                "optimizer.min_lr=0",
                *begin,
            ]
        )
        == 0
    )
    assert_same(store.open_checkpoint(tmp_path / "run").tensors(), store.open_checkpoint(trained_run).tensors())
