"""`run/train.sh`: its words reach the launcher unchanged, from any directory, and the launcher's exit code comes
back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run/train.sh"
START = str(SCRIPT.parents[1] / "pangu_ms/core/isolated.py")
RECORDER = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"words": sys.argv[1:], "path": os.environ["PYTHONPATH"], "cwd": os.getcwd()}}))
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def run(tmp_path):
    """Run the script in an empty directory with an interpreter that records what it is given."""
    python = tmp_path / "my python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    (tmp_path / "else where").mkdir()

    def start(*words, script=SCRIPT, **variables):
        environment = os.environ | {"PYTHON": str(python)} | variables
        return subprocess.run(
            [str(script), *words],
            cwd=tmp_path / "else where",
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
        )

    return start


def heard(done):
    return json.loads(done.stdout)


def test_words_stay_whole_and_the_verb_is_there(run):
    words = ["--rank-table", "$t *.json", "train", "--config", "a b.yaml", "x.y=1 2", "--output", "o'p", ""]
    assert heard(run(*words))["words"] == [START, "pangu_run", "launch", *words]


LEFT_OUT = [
    ["--config", "a b", "--output", "o"],
    ["--output", "train", "--config", "c"],
    ["--config=train"],
    ["--data=train"],
]
LEFT_OUT += [["train.steps=5", "--output", "train"]]
GIVEN = [
    ["--num-ranks", "2", "--config", "train"],
    ["--grace=5", "train"],
    ["train", "--output", "train"],
    ["eval", "--config", "c"],
]
GIVEN += [["--job-dir", "train", "train"]]


@pytest.mark.parametrize("words", LEFT_OUT)
def test_the_verb_is_added_before_an_option_of_its_own(run, words):
    assert heard(run(*words))["words"] == [START, "pangu_run", "launch", "train", *words]


@pytest.mark.parametrize("words", GIVEN)
def test_and_nowhere_else(run, words):
    assert heard(run(*words))["words"] == [START, "pangu_run", "launch", *words]


def test_it_runs_where_the_caller_stands_and_finds_its_own_tree(run, tmp_path):
    link = tmp_path / "link.sh"
    link.symlink_to(SCRIPT)
    for script in (SCRIPT, link):
        report = heard(run("--output", "o", script=script, PYTHONPATH=":/mine::"))
        assert report["path"] == f"{SCRIPT.parents[1]}:{SCRIPT.parent}:/mine"
        assert report["cwd"] == str(tmp_path / "else where")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_the_exit_code_is_the_launchers(run, code):
    assert run("--output", "o", CODE=str(code)).returncode == code


def test_help_and_nothing(run):
    assert run().returncode == 2
    assert "usage: run/train.sh" in run("--help").stdout


def test_the_real_interpreter_starts_the_launch_layer(tmp_path):
    """No stand-in: the module is found from a directory that has nothing, and another `run` directory there is no
    hindrance."""
    (tmp_path / "run").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHON": sys.executable}
    done = subprocess.run(
        [str(SCRIPT), "--num-ranks", "2", "train", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "pangu train" in done.stdout + done.stderr
