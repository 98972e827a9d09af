"""The quickstart as a user runs it, from an empty directory; in the slow tier also in a process of its own."""

import functools
import json
import os
import subprocess
import sys

import pytest

from pangu_ms.cli import quickstart
from pangu_ms.cli.main import main
from tests.eager import eager
from tests.export.common import export_unverified


def eagerly(function, *arguments):
    """One step, or a short text, in eager mode takes less than a compilation."""
    with eager():
        function(*arguments)


@pytest.mark.usefixtures("mindspore_cpu")
def test_on_a_user_s_corpus(text_file, tiny_overrides, tmp_path, monkeypatch, capsys):
    """The package's runner is a process of its own."""
    export_unverified(monkeypatch)
    for name in ("train_stage", "generate_stage", "export_stage"):  # what is exported is a graph nevertheless
        monkeypatch.setattr(quickstart, name, functools.partial(eagerly, getattr(quickstart, name)))
    here, output = tmp_path / "here", tmp_path / "out"
    here.mkdir()
    monkeypatch.chdir(here)
    overrides = [
        *tiny_overrides,
        "tokenizer.vocab_size=384",
        "data.held_out=0.2",
        "train.steps=1",
        "train.eval_batches=1",
    ]
    assert main(["quickstart", *overrides, "--corpus", str(text_file), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    commands = [line for line in shown.splitlines() if line.startswith("$ pangu ")]
    assert [line.split()[2] for line in commands] == ["tokenizer", "data", "train", "generate", "export", "run-mindir"]
    assert shown.count("--- def alpha_0(") == 1 and shown.count("\ndef alpha_0(") == 1
    assert "largest logit difference from the checkpoint" in shown
    table = shown[shown.rindex("\ntokenizer") :]
    assert all(str(output / name) in table for name in ("tokenizer", "records", "run", "mindir"))
    assert "unigram" in table and "bigram" in table
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "sigma/tiny", "model.domains=[law]"], "; the model, with domains law, must have the domain of"),
        (["data.mixture={law: 1}"], "no rows of domain law; there are rows of "),
    ],
)
def test_domains_that_do_not_fit_are_told_at_once(words, message, text_file, tmp_path, capsys):
    for verb in (["quickstart", "--corpus", text_file], ["quickstart"], ["train"]):
        output = tmp_path / "out"
        assert main([verb[0], *words, *map(str, verb[1:]), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, verb
        assert not list(tmp_path.rglob("tokenizer*"))


@pytest.mark.slow
def test_as_it_is_beats_the_bigram(tmp_path):
    command = [sys.executable, "-m", "pangu_ms", "quickstart", "--output", str(tmp_path / "out"), "--json"]
    (tmp_path / "here").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["perplexity"] < results["bigram_perplexity"] < results["unigram_perplexity"]
    assert results["mindir"]["max_difference"] <= 1e-4
    assert os.listdir(tmp_path / "here") == []
