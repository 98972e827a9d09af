"""`pangu model inherit` and `upgrade` from the command line: what is written, what is refused, and how training goes
on."""

import dataclasses
import json

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli import model as cli
from pangu_ms.cli.main import guarded, main
from pangu_ms.config.load import config_from_dict
from pangu_ms.data.compress import VocabMap
from pangu_ms.data.tokenizer import Tokenizer
from tests.research.inherit.common import PLAIN, logits, make_batch, random_tensors, small_pi, weight_gradients

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
SMALLER = ["model.hidden_size=24", "model.num_heads=3", "model.ffn_hidden_size=64"]


def run(*arguments) -> int:
    return guarded("pangu model", lambda: cli.main([str(a) for a in arguments]))


def error_of(capsys, *arguments) -> str:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def saved(directory, config):
    """A checkpoint with random weights; its tensors."""
    tensors = random_tensors(config)
    store.save(directory, 0, {"model": tensors}, {}, config_from_dict({"model": dataclasses.asdict(config)}, "test"))
    return tensors


def test_a_student_inherits_from_a_run(trained_run, records, tmp_path, capsys):
    output = tmp_path / "student"
    criteria = ["--neurons", "learned", "--heads", "taylor", "--channels", "l1", "--mask-steps", "5"]
    data = ["--data", records, "--batch-size", "4", "--calibration-batches", "2"]
    assert run("inherit", trained_run, *SMALLER, *criteria, *data, "--output", output, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["hidden_size"] == [32, 24] and result["criteria"] == {
        "channels": "l1",
        "heads": "taylor",
        "neurons": "learned",
    }
    assert result["loss_split"] == "held_out" and result["loss"][0] < result["loss"][1] < 12
    student, teacher = store.open_checkpoint(output), store.open_checkpoint(trained_run)
    made_of = student.state()["inherited"]
    assert (
        made_of["step"] == 12
        and len(made_of["manifest_sha256"]) == 64
        and made_of["choices"]["masks"]["mask_steps"] == 5
    )
    assert (
        student.config().model.num_parameters()
        == result["parameters"][1]
        == sum(array.size for array in student.tensors().values())
    )
    kept = made_of["selection"]
    expected = teacher.tensors()["blocks.0.ffn.up.weight"][np.ix_(kept["neurons"][0], kept["channels"][0])]
    np.testing.assert_array_equal(student.tensors()["blocks.0.ffn.up.weight"], expected)


@pytest.mark.slow
def test_a_student_trains_on(trained_run, records, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)  # would compile another graph
    data = ["--data", str(records)]
    assert run("inherit", trained_run, *SMALLER, *data, "--batch-size", "4", "--output", tmp_path / "o", "--json") == 0
    before = json.loads(capsys.readouterr().out)["loss"][1]
    student = store.open_checkpoint(tmp_path / "o").path
    words = ["--config", str(student / "config.yaml"), "train.steps=4", "--init-from", str(student), *data]
    assert main(["train", *words, "--output", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] < before


def test_the_table_names_what_was_inherited(trained_run, tmp_path, capsys):
    assert run("inherit", trained_run, "model.ffn_hidden_size=64", "--output", tmp_path / "o") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ffn_hidden_size 128 64 neurons: l2" in lines and "layers of the teacher: 0, 1" in lines
    assert next(line for line in lines if line.startswith("hidden_size")).split() == ["hidden_size", "32", "32"]
    assert f"--init-from {tmp_path / 'o' / 'step-00000000'}" in lines[-1]


def test_a_compact_vocabulary_keeps_the_logits_of_its_tokens(trained_run, tmp_path, capsys):
    teacher = store.open_checkpoint(trained_run)
    tokenizer, old_ids = Tokenizer.load(teacher.tokenizer_path()), np.r_[0:271, 280:384:2]
    compact = _compact(tokenizer, old_ids, tmp_path)
    assert (
        run(
            "inherit",
            trained_run,
            f"model.vocab_size={len(old_ids)}",
            "--tokenizer",
            compact,
            "--output",
            tmp_path / "o",
        )
        == 0
    )
    student, config = store.open_checkpoint(tmp_path / "o"), teacher.config().model
    assert Tokenizer.load(student.tokenizer_path()).vocab_size == len(old_ids)
    batch = make_batch(student.config().model)
    old_batch = dataclasses.replace(batch, ids=old_ids[batch.ids].astype(np.int32))
    expected = logits(config, teacher.tensors(), old_batch)[..., old_ids]
    np.testing.assert_allclose(logits(student.config().model, student.tensors(), batch), expected, atol=1e-5)
    capsys.readouterr()
    wrong = ["inherit", trained_run, "--tokenizer", compact, "--output", tmp_path / "x"]
    assert f"has {len(old_ids)} pieces: must be equal" in error_of(capsys, *wrong)
    again = [
        "inherit",
        tmp_path / "o",
        f"model.vocab_size={len(old_ids)}",
        "--tokenizer",
        compact,
        "--output",
        tmp_path / "x",
    ]
    assert "made from tokenizer" in error_of(capsys, *again)


def _compact(tokenizer, old_ids, tmp_path):
    from pangu_ms.data.compress import Compressed
    from pangu_ms.data.piece_table import PieceTable

    small = tokenizer.with_model(PieceTable(tokenizer.model).subset(old_ids))
    vocab_map = VocabMap(tokenizer.fingerprint, small.fingerprint, tokenizer.vocab_size, old_ids)
    Compressed(small, vocab_map, {}, []).save(tmp_path / "compact")
    return tmp_path / "compact"


@pytest.mark.parametrize(
    "old", [pytest.param(PLAIN, marks=pytest.mark.slow), {"siaf_init": "random", "aug_shortcut_reduction": 6}]
)
def test_an_upgraded_model_computes_the_same_and_its_additions_learn(tmp_path, capsys, old):
    from pangu_ms.research.inherit.gradients import MaskDerivatives

    more = (
        []
        if old is PLAIN
        else [
            "model.siaf_terms=3",
            "model.aug_shortcut_branches=2",
            "model.aug_shortcut_reduction=3",
            "model.attention_bias=true",
        ]
    )
    config = small_pi(num_layers=1, **old)
    tensors, output = saved(tmp_path / "old", config), tmp_path / "new"
    assert run("upgrade", tmp_path / "old", *more, "train.batch_size=4", "--output", output, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"][1] > result["parameters"][0]
    upgraded, batch = store.open_checkpoint(output), make_batch(config)
    run_config, new = upgraded.config(), upgraded.tensors()
    np.testing.assert_allclose(
        logits(run_config.model, new, batch), logits(config, tensors, batch), rtol=1e-6, atol=1e-6
    )
    _, gradients = weight_gradients(MaskDerivatives(run_config.model, new), new, batch)
    last = run_config.model.aug_shortcut_branches - 1
    for name in ("ffn.siaf.scale", "ffn.siaf.shift"):
        assert gradients[f"blocks.0.{name}"][-1].all()
    added = f"blocks.0.aug_shortcut.{last}.up.weight"
    assert not new[added].any() and gradients[added].all()


@pytest.mark.parametrize(
    ("old", "overrides", "message"),
    [
        (
            PLAIN,
            ["model.siaf_init=mean"],
            "model.siaf_init=mean: the additions would change the model's function; set model.siaf_init=identity",
        ),
        (PLAIN, ["model.siaf_position=product"], "set model.siaf_position=gate"),
        (PLAIN, ["model.aug_shortcut_init=normal"], "set model.aug_shortcut_init=zero"),
        (
            PLAIN,
            ["model.ffn_hidden_size=8"],
            "model.ffn_hidden_size=8: must stay 10; `pangu model inherit` changes sizes",
        ),
        (
            {"aug_shortcut_reduction": 2},
            ["model.aug_shortcut_reduction=4"],
            "would cut the teacher's branches; set it to 2 or less",
        ),
        ({"siaf_terms": 3}, [], "model.siaf_terms=2: the teacher has 3, and no term can be dropped"),
        ({}, [], "has these parts already"),
    ],
)
def test_upgrades_that_would_change_the_function(tmp_path, capsys, old, overrides, message):
    saved(tmp_path / "old", small_pi(num_layers=2, **old))
    assert message in error_of(capsys, "upgrade", tmp_path / "old", *overrides, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.num_layers=1"], "model.num_layers=1"),
        (["--layers", "0,x"], "--layers 0,x: must be numbers separated by commas"),
        (["--layers", "1,0"], "must be model.num_layers=2 different ones in order"),
        (
            ["model.ffn_hidden_size=64", "--neurons", "taylor"],
            "--neurons taylor: needs the loss on some data; add --data",
        ),
        (["model.vocab_size=300"], "the teacher has 384: must be equal without --tokenizer"),
        (["--config", "pi/tiny"], "the teacher is alpha"),
        (["--mask-steps", "0"], "mask_steps=0: must be positive"),
        (["--seed", "-1"], "--seed -1: must not be negative"),
        (["--data", "nowhere"], "nowhere: no MindRecord file"),
    ],
)
def test_mistakes_are_one_line(trained_run, tmp_path, capsys, arguments, message):
    assert message in error_of(capsys, "inherit", trained_run, *arguments, "--output", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_nothing_is_overwritten_and_alpha_cannot_be_upgraded(trained_run, tmp_path, capsys):
    assert "holds checkpoints; nothing is overwritten" in error_of(
        capsys, "inherit", trained_run, "--output", trained_run / "checkpoints"
    )
    assert "model.family=alpha: only pi" in error_of(capsys, "upgrade", trained_run, "--output", tmp_path / "o")
