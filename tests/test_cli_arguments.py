"""Mistakes in options: one line, with the nearest name, exit code 2, no page of usage."""

import json
import re

import pytest

from pangu_ms.cli.main import GROUPS, VERBS, main
from pangu_ms.models.registry import FAMILIES
from tests.parsers import commands


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["data", "inspekt", "x"], "did you mean inspect?"),
        (["data", "inspect", "--verfy", "x"], "did you mean --verify?"),
        (["config", "show", "--fild"], "did you mean --fields?"),
        (["status", "--jsn", "x"], "did you mean --json?"),
        (["eval", "run", "--data", "x", "--jsom"], "did you mean --json?"),
        (["eval", "run", "--tasks", "c3"], "benchmark tasks are those of `pangu tasks run CHECKPOINT --tasks c3`"),
        (["tasks", "rnu"], "did you mean run?"),
        (["plan", "shwo"], "did you mean show?"),
        (["launch", "--dryrun", "train"], "did you mean --dry-run?"),
        (["ops", "lsit"], "did you mean list?"),
        (["ops", "build", "--levle", "x"], "did you mean --level?"),
        (["manifest", "slurm", "--conifg", "alpha/tiny", "--output-dir", "x"], "--config"),
        (["manifest", "slurm", "--config", "alpha/tiny", "--output-dir", "x", "--graec", "5"], "did you mean --grace?"),
        (["ckpt", "resherd"], "did you mean reshard?"),
        (["doctor", "--outptu", "x"], "did you mean --output?"),
        (["generate"], "CHECKPOINT"),
        (["tokenizer", "encode", "x"], "--tokenizer"),
        (["train", "--output"], "expected one argument"),
        (["train", "--otput", "run"], "--otput: did you mean --output?"),
        (["manifest", "slurm", "--config", "alpha/tiny", "--output-dri=x"], "--output-dri: did you mean --output-dir?"),
    ],
)
def test_one_line_with_the_nearest_name(words, advice, capsys):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith(f"pangu {words[0]}") and advice in error, error


def test_chips_are_named_and_dashes_alone_make_no_similar_option(capsys):
    for words in (["plan", "search"], ["plan", "rehearse"], ["ops", "list"]):
        test_one_line_with_the_nearest_name([*words, "--chip", "foo"], "ascend910", capsys)
    with pytest.raises(SystemExit):
        main(["train", "--chip", "foo"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            ["convert", "a.bin", "b.bin", "--from", "official", "--output", "x"],
            "b.bin: is no override; an override has the form section.field=value",
        ),
        (["generate", "run", "other", "--prompt", "x"], "other: is no override"),
        (["eval", "run", "other", "--data", "x"], "other: is no override"),
        (["export", "run", "other", "--output", "x"], "other: is no override"),
        (["train", "alpha/tyni", "--output", "x"], "did you mean --config alpha/tiny?"),
        (["train", "alpha/tiny", "--config", "pi/tiny", "--output", "x"], "pi/tiny"),
        (["config", "show", "alpha/tiny", "--config", "pi/tiny"], "a run has one"),
        (["ckpt", "reshard", "run", "alpha/tiny", "--output", "x"], "alpha/tiny: is no override"),
    ],
)
def test_words_that_are_no_overrides(words, advice, capsys):
    test_one_line_with_the_nearest_name(words, advice, capsys)


def test_a_config_may_be_named_without_its_option(capsys, tmp_path):
    assert main(["config", "show", "--config", "pi/tiny", "train.steps=7"]) == 0
    wanted = capsys.readouterr().out
    (tmp_path / "my.yaml").write_text("base: pi/tiny\n")
    for name in ("pi/tiny", "configs/pi/tiny.yaml", str(tmp_path / "my.yaml")):
        assert main(["config", "show", name, "train.steps=7"]) == 0
        assert capsys.readouterr().out == wanted
    assert (
        main(["plan", "show", "--json", "train.steps=7", "pi/tiny"])
        == main(["plan", "show", "--json", "--config", "pi/tiny", "train.steps=7"])
        == 0
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_fields_as_json(capsys):
    assert main(["config", "show", "--fields", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    steps = next(row for row in rows if row["name"] == "train.steps")
    assert steps["default"] and not steps["required"] and steps["description"]
    assert not any("\n" in row["description"] for row in rows)
    assert {row["family"] for row in rows if row["name"] == "model.hidden_size"} == FAMILIES.keys()


def test_help_groups_the_verbs(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.endswith(":") and line[:1] != " "]
    assert heads == ["data:", "train:", "use:", "cluster:", "research:"] == [f"{group}:" for group in GROUPS]
    listed = [line.split()[0] for line in lines if line[:2] == "  "]
    assert sorted(listed) == sorted(VERBS) and len(listed) == len(set(listed))


def test_help_is_a_verb(capsys):
    assert main(["help"]) == 0 == main(["--help"])
    text = capsys.readouterr().out
    assert text[: len(text) // 2] == text[len(text) // 2 :]
    for words, usage in ((["help", "eval"], "usage: pangu eval"), (["help", "plan", "show"], "usage: pangu plan show")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0 and usage in capsys.readouterr().out


COMMANDS = [list(words) for words, parser in commands().items() if words != ("launch",) and len(parser._actions) > 2]
"""Those with options; test_launch_cli.py has those of `launch`, which stand before the verb that it starts."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_names_the_option_that_was_misspelt(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    option = max(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE), key=len)
    misspelt = option[:-2] + option[-1] + option[-2] + "x"
    test_one_line_with_the_nearest_name([*words, misspelt], f"did you mean {option}?", capsys)
    if words[1:]:
        test_one_line_with_the_nearest_name([words[0], words[1] + "x"], words[1], capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["run-mindir", "package", "--prompt", "x", "--verify-key", ""],
        ["export", "run", "--output", "x", "--sign-key="],
        ["train", "--config", "alpha/tiny", "--output", "x", "--init-from", ""],
        ["train", "--config", "alpha/tiny", "--output", "x", "--data", ""],
        ["generate", "run", "--prompt", "x", "--tokenizer", ""],
        ["convert", "run", "--to", "official", "--output", ""],
        ["launch", "--rank-table", "", "train", "--config", "alpha/tiny", "--output", "x"],
    ],
)
def test_an_empty_value_is_not_an_option_that_was_left_out(words, capsys):
    """Such as "$KEY" of a variable that is not set: without the key nothing would be verified."""
    test_one_line_with_the_nearest_name(words, ": is empty; give a value, or leave the option out", capsys)
