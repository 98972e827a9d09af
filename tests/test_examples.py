"""The programs in examples/ do what they say."""

import inspect
import runpy
import subprocess
import sys
from pathlib import Path

from tests.eager import eager
from tests.export.common import export_unverified

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    return runpy.run_path(str(EXAMPLES / name))["main"]([str(argument) for argument in arguments])


def test_a_plan_is_found_that_fits(capsys):
    pasted = run("plan_a_cluster.py", "alpha/2_6b_16x32gib", 16)
    out = capsys.readouterr().out
    assert "parallel.data_parallel=" in " ".join(pasted) and "the fastest of" in out and "GiB are left" in out


def test_a_model_is_trained_and_continues_a_prompt(mindspore_cpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pangu_ms.train.run.Run.evaluate", lambda self: None)  # the program evaluates once more
    with eager():
        assert isinstance(run("train_and_generate.py", tmp_path / "new", "train.steps=1"), str)
    assert "step 1: loss " in capsys.readouterr().out


def test_a_package_is_exported_and_verified(trained_run, tmp_path, capsys, monkeypatch):
    export_unverified(monkeypatch)
    with eager():  # the package is a graph nevertheless
        assert run("export_and_verify.py", trained_run, tmp_path / "package").startswith("On Friday the owl")
    assert "bit for bit" in capsys.readouterr().out


def test_a_mistake_is_one_line(tmp_path):
    """As of the verbs."""
    for name, arguments, words in (
        ("plan_a_cluster.py", ["nope"], "plan_a_cluster.py: nope: no such file or shipped config"),
        ("train_and_generate.py", [EXAMPLES], "exists with other content"),
        ("export_and_verify.py", [], "python examples/export_and_verify.py RUN PACKAGE"),
    ):
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (1, 2) and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_functions_that_are_packages_too_show_their_arguments():
    import pangu_ms

    for function, argument in ((pangu_ms.train, "resume"), (pangu_ms.export, "sign_key")):
        assert argument in inspect.signature(function).parameters


def test_examples_are_short():
    found = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(found) == 3 and max(found.values()) < 70
