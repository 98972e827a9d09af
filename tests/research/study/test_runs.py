"""Stages of a study, with small scripts in place of `pangu`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pangu_ms.core.errors import OutputError, UserError
from pangu_ms.research.study import runs
from pangu_ms.research.study.runs import Stage, StudyStopped, claim, run_stages

SCRIPT = """
import json, os, signal, sys, time
place, what = sys.argv[1:3]
with open(place + "/starts", "a") as file:
    file.write("x")
if what == "fail":
    print("first line", file=sys.stderr)
    sys.exit("pangu train: where: what; the rule; what to do")
if what == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    def stop(*_):
        open(place + "/committed", "w").close()
        sys.exit(75)
    signal.signal(signal.SIGINT, stop)
    open(place + "/waiting", "w").close()
    end = time.monotonic() + 60
    while not os.path.exists(place + "/go") and time.monotonic() < end:
        time.sleep(0.02)
print(json.dumps({"loss": 1.5}))
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage whose command is the script above."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, str(tmp_path / "script.py")))

    def make(what, name="one", identity=None, product=None):
        return Stage(tmp_path / name, (str(tmp_path / name), what), identity, product)

    return make


def starts(stage):
    return len((stage.directory / "starts").read_text())


def start_in_thread(stage):
    """Run it in another thread until its process waits."""
    ended = []

    def target():
        try:
            ended.append(run_stages([stage], progress=False))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    while not (stage.directory / "waiting").exists():
        time.sleep(0.02)
    return thread, ended


def test_what_is_done_is_not_done_again(stage):
    stages = [stage("ok", "one"), stage("ok", "two")]
    assert run_stages(stages[:1], progress=False) == [{"loss": 1.5}]
    assert run_stages(stages, progress=False) == [{"loss": 1.5}] * 2
    assert [starts(s) for s in stages] == [1, 1]


def test_a_killed_stage_is_done_anew_without_the_product_in_its_way(stage, tmp_path):
    product = tmp_path / "one/product"
    product.parent.mkdir()
    (product.parent / "log.txt").write_text("of an earlier attempt\n")
    with pytest.raises(UserError, match="was killed by SIGKILL: it said nothing"):
        run_stages([stage("crash")], progress=False)
    product.mkdir()
    (product / "half").touch()
    (tmp_path / "one/command.json").unlink()
    again = stage("ok", product=product)
    assert run_stages([again], progress=False) == [{"loss": 1.5}] and starts(again) == 2
    assert not product.exists()
    product.write_text("a file of a stage that was killed before it could say so")
    (product.parent / "result.json").unlink()
    run_stages([again], progress=False)
    assert not product.exists()


@pytest.mark.parametrize("changed", [{"what": "ok2"}, {"what": "ok", "identity": {"lr": 2.0}}])
def test_another_command_or_configuration_is_refused_before_anything_runs(stage, changed):
    run_stages([stage("ok", identity={"lr": 1.0})], progress=False)
    first = stage("ok", "first")
    with pytest.raises(OutputError, match="one: was begun by another command"):
        run_stages([first, stage(**changed)], progress=False)
    assert not first.directory.exists()


def test_a_failing_stage_tells_its_last_line_and_can_be_repeated(stage):
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=(
                r"one/log.txt: `pangu .*` failed with exit code 1: pangu train: where: what; the rule; what to do; mend"
            ),
        ):
            run_stages([stage("fail"), stage("ok", "two")], progress=False)
    assert starts(stage("fail")) == 2 and not stage("ok", "two").directory.exists()


def test_a_second_process_in_a_stage_is_refused(stage):
    waiting = stage("wait")
    thread, ended = start_in_thread(waiting)
    with pytest.raises(OutputError, match="another process works on this stage"):
        run_stages([waiting], progress=False)
    (waiting.directory / "go").touch()
    thread.join()
    assert ended == [[{"loss": 1.5}]] and starts(waiting) == 1


def test_an_interruption_reaches_the_stage_which_ends_by_itself(stage):
    waiting = stage("wait")

    def interrupt():
        while not (waiting.directory / "waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(StudyStopped, match="SIGINT"):
        run_stages([waiting, stage("ok", "two")], progress=False)
    assert (waiting.directory / "committed").exists() and not (waiting.directory / "result.json").exists()
    (waiting.directory / "go").touch()
    assert run_stages([waiting], progress=False) == [{"loss": 1.5}]


def test_the_child_of_a_killed_study_is_not_run_beside(stage, tmp_path):
    """kill -9 of the study leaves its stage's process alive: the next start must not open the same directory."""
    waiting = stage("wait")
    run = f"runs.run_stages([runs.Stage(runs.Path({str(waiting.directory)!r}), {waiting.argv!r})])"
    program = f"from pangu_ms.research.study import runs; runs.PROGRAM = {runs.PROGRAM!r}; {run}"
    study = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (waiting.directory / "waiting").exists():
        time.sleep(0.02)
    study.kill()
    study.wait()
    with pytest.raises(OutputError, match="another process works on this stage"):
        run_stages([waiting], progress=False)
    (waiting.directory / "go").touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert run_stages([waiting], progress=False) == [{"loss": 1.5}]
            return
        except OutputError:
            time.sleep(0.1)
    pytest.fail("the lock outlived the child")


def test_a_directory_belongs_to_one_study(tmp_path):
    claim(tmp_path / "a", "pi-ablation")
    claim(tmp_path / "a", "pi-ablation")
    with pytest.raises(OutputError, match="holds the study 'pi-ablation', not 'pi-pro'"):
        claim(tmp_path / "a", "pi-pro")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine").touch()
    with pytest.raises(OutputError, match="exists with other content"):
        claim(tmp_path / "b", "pi-ablation")
    assert json.loads((tmp_path / "a/study.json").read_text()) == {"study": "pi-ablation"}
