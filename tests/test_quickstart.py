"""The quickstart as a user runs it: in a process of its own, from an empty directory."""

import json
import os
import subprocess
import sys

import pytest

from pangu_ms.cli.main import main


def quickstart(here, *words):
    return subprocess.run(
        [sys.executable, "-m", "pangu_ms", "quickstart", *map(str, words)],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )


def test_on_a_user_s_corpus(text_file, tiny_overrides, tmp_path):
    here, output = tmp_path / "here", tmp_path / "out"
    here.mkdir()
    overrides = [
        *tiny_overrides,
        "tokenizer.vocab_size=384",
        "data.held_out=0.2",
        "train.steps=10",
    ]
    done = quickstart(here, *overrides, "--corpus", text_file, "--output", output)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ pangu ")]
    assert [line.split()[2] for line in commands] == ["tokenizer", "data", "train", "generate", "export", "run-mindir"]
    assert "--- def alpha_0(" in done.stdout and "largest logit difference from the checkpoint" in done.stdout
    table = done.stdout[done.stdout.rindex("\ntokenizer") :]
    assert all(str(output / name) in table for name in ("tokenizer", "records", "run", "mindir"))
    assert "unigram" in table and "bigram" in table
    assert os.listdir(here) == []
    assert (output / "mindir/run.pyz").is_file()  # the tests of packages run such a file


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
    done = quickstart(tmp_path, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["perplexity"] < results["bigram_perplexity"] < results["unigram_perplexity"]
    assert results["mindir"]["max_difference"] <= 1e-4
