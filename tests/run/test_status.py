"""`pangu status`: fake jobs written by JobDirectory's own writers."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from pangu_ms.core.exit_codes import EXIT_PEER_LOST, EXIT_STOPPED
from pangu_run.cli.main import main
from pangu_run.job_directory import JobDirectory
from pangu_run.report.status import group_ranks, job_status, ranks_of, ranks_text
from tests.run.jobs import HERE, rank, write


def shown(capsys, *argv):
    """Exit code and output of the verb."""
    code = main(["status", *map(str, argv)])
    return code, capsys.readouterr().out


def step_event(seconds, step, attempt=0):
    """A step event at a time."""
    return {"time": seconds, "event": "step", "attempt": attempt, "step": step, "tokens_per_second": 5000.0}


def test_header_says_speed_remaining_time_checkpoint_and_slow_ranks():
    events = [
        {"time": 0.0, "event": "started", "attempt": 0},
        step_event(1.0, 10),
        {"time": 2.0, "event": "restart", "attempt": 0, "wait_s": 1},
        {"time": 10.0, "event": "started", "attempt": 1},
        step_event(100.0, 50, 1),
        {"time": 120.0, "event": "checkpoint", "attempt": 1, "step": 60},
        {"time": 130.0, "event": "slow", "attempt": 1, "rank": 3, "seconds": 4.0, "median": 1.0},
        {"time": 140.0, "event": "slow", "attempt": 1, "rank": 3, "seconds": 5.0, "median": 1.0},
        step_event(200.0, 100, 1),
    ]
    status = {
        "time": 200.0,
        "attempt": 1,
        "state": "running",
        "exit_code": None,
        "ranks": [rank(0, step=104, beat=200.0)],
    }
    seen = job_status({"id": 7}, status, events, 201.0, None, 300)
    assert (seen.step, seen.restarts, seen.tokens_per_second, seen.state, seen.well) == (
        104,
        1,
        5000.0,
        "running",
        True,
    )
    assert seen.eta_s == pytest.approx(
        (300 - 104) * (200 - 100) / (100 - 50)
    )  # steps left at 50 steps in 100 s; not at those of attempt 0
    assert seen.checkpoint == {"step": 60, "age_s": 81.0}
    assert seen.slow == ({"rank": 3, "seconds": 5.0, "median": 1.0},)


def test_exit_code_and_words_of_jobs_that_run_end_fail_and_vanish(tmp_path, capsys):
    dead = subprocess.Popen(["true"])
    dead.wait()
    lives, far = {**HERE, "time": time.time()}, {**HERE, "host": "far-away", "hosts": ["localhost"]}
    for name, options, code, words in (
        ("runs", lives, 0, "running"),
        ("complete", {"state": "ended", "exit_code": 0, "age": 9000}, 0, "ended, exit code 0"),
        ("stopped", {"state": "ended", "exit_code": EXIT_STOPPED, "age": 9000}, 0, "exit code 75"),
        ("failed", {"state": "ended", "exit_code": 1, "age": 9000}, 1, "exit code 1"),
        ("other_host_s_late_clock", {**far, "age": 80}, 0, "running"),
        ("other_host", {**far, "age": 100}, 1, "launcher gone since"),
        ("host_of_this_container", {**HERE, "launcher_pid": dead.pid, "age": 5}, 0, "running"),
        ("killed", {**HERE, "launcher_pid": dead.pid, "age": 15}, 1, "launcher gone since"),
        ("pid_of_another", {**HERE, "time": 1000.0, "age": 15}, 1, "launcher gone since"),
        ("stuck", {**lives, "age": 60}, 1, "written nothing for 60 s"),
    ):
        write(tmp_path / name, [rank(0)], **options)
        got, out = shown(capsys, tmp_path / name)
        assert (got, words in out) == (code, True), (name, out)


def test_silence_is_counted_until_the_status_where_the_launcher_is_gone():
    status = {
        "time": 100.0,
        "attempt": 0,
        "state": "running",
        "exit_code": None,
        "ranks": [rank(0, beat=95.0), rank(1, beat=60.0)],
    }
    gone = job_status({}, status, [], 9000.0, None, None)
    assert gone.state == "gone" and [row.silent_s for row in gone.ranks] == [5.0, 40.0]
    assert [row.notes for row in gone.ranks] == [(), ("silent",)]


@pytest.mark.parametrize(
    ("state", "lives", "silent"), [("running", True, 12.0), ("running", None, 7.0), ("ended", True, 7.0)]
)
def test_silence_is_what_the_leader_measured_whatever_the_ranks_clocks_say(state, lives, silent):
    """On the leader's host what has passed since is added."""
    ranks = [rank(0, beat=9000.0, silent_s=7.0), rank(1, beat=10.0, silent_s=7.0), rank(2, silent_s=7.0, state="ended")]
    status = {"time": 100.0, "attempt": 1, "state": state, "exit_code": 0 if state == "ended" else None, "ranks": ranks}
    assert [row.silent_s for row in job_status({}, status, [], 105.0, lives, None).ranks] == [silent, silent, None]


def test_an_earlier_launch_in_the_same_directory_is_not_this_one(tmp_path, capsys):
    directory = write(tmp_path, [rank(0)], state="ended", exit_code=1, id="first")
    directory.write_event("failure", 0, rank=0, kind="exit", summary="old cause", words=[])
    directory.write_event("restart", 0, wait_s=1)
    directory.write_event("checkpoint", 0, step=7)
    again = JobDirectory(directory.path)
    again.write_job({**HERE, "id": "second", "time": time.time()})
    assert shown(capsys, tmp_path) == (0, "job second, attempt 0, starting\n")
    again.write_event("checkpoint", 0, step=9)
    again.write_status({"time": time.time(), "attempt": 0, "state": "ended", "exit_code": 0, "ranks": [rank(0)]})
    code, out = shown(capsys, tmp_path)
    assert (
        code == 0
        and "old cause" not in out
        and "restarts" not in out
        and "checkpoint of step 9" in out
        and " of 1000" not in out
    )
    assert [event["step"] for event in directory.events() if event["event"] == "checkpoint"] == [7, 9]


def test_thousands_of_ranks_are_groups_and_who_stands_out_comes_first():
    now = time.time()
    entries = [rank(number, beat=now - 1) for number in range(2048)]
    entries[5].update(beat=now - 31)
    entries[6].update(beat=now - 500, phase="wait")  # who waits is not who hangs
    entries[700].update(step=119)
    entries[9].update(state="ended", exit_code=1, step=None)
    rows = group_ranks(ranks_of(entries, now))
    assert [(row.ranks, row.notes) for row in rows[:3]] == [
        ((9,), ("failed",)),
        ((5,), ("silent",)),
        ((700,), ("behind",)),
    ]
    assert [(ranks_text(row.ranks), row.phase, row.notes) for row in rows[3:]] == [
        ("0-4,7-8,10-699,701-2047", "step", ()),
        ("6", "wait", ()),
    ]
    assert len(rows[3].hosts) == 256 and rows[3].silent_s == pytest.approx(1.0)
    many = group_ranks(ranks_of([rank(number, step=119 + (number % 2 or number > 100)) for number in range(2048)], now))
    assert [len(row.ranks) for row in many] == [51, 1997]  # too many that are behind to show one by one


def test_ranks_that_the_launcher_stopped_did_not_fail():
    entries = [
        rank(0, state="ended", exit_code=143),
        rank(1, state="ended", exit_code=-9),
        rank(2, state="ended", exit_code=EXIT_PEER_LOST),
    ]
    failed = [{"time": 1.0, "event": "failure", "attempt": 0, "rank": 1, "code": -9}]
    status = {"time": 2.0, "attempt": 0, "state": "ended", "exit_code": 137, "ranks": entries}
    assert [row.notes for row in job_status({}, status, failed, 3.0, None, None).ranks] == [
        (),
        ("failed",),
        ("lost a peer",),
    ]
    assert [row.notes for row in job_status({}, status, [], 3.0, None, None).ranks] == [
        ("failed",),
        ("failed",),
        ("lost a peer",),
    ]


def test_first_cause_is_explained_and_json_holds_all_ranks(tmp_path, capsys):
    directory = write(tmp_path, [rank(number) for number in range(100)], state="ended", exit_code=1)
    for number, words in ((3, ["RuntimeError:", "EI0006: Getting socket times out."]), (4, "later")):
        facts = {"rank": number, "host": "host-0", "code": 1, "step": 120, "phase": "step", "words": words, "log": ""}
        directory.write_event("failure", 0, kind="exit", summary=f"rank {number} failed", **facts)
    code, out = shown(capsys, tmp_path)
    assert (
        code == 1
        and "first cause: rank 3 failed: EI0006" in out
        and "HCCL_CONNECT_TIMEOUT" in out
        and "later" not in out
    )
    assert "0-99  13 hosts" in out and "step 120 of 1000" in out
    code, out = shown(capsys, directory.path, "--json")  # the job directory itself does, too
    seen = json.loads(out)
    assert (code, len(seen["ranks"]), seen["failure"]["rank"], seen["total_steps"]) == (1, 100, 3, 1000)


def test_job_that_has_not_written_a_status_yet(tmp_path, capsys):
    JobDirectory(tmp_path / "job").write_job({"id": "x", "time": time.time()})
    assert shown(capsys, tmp_path) == (0, "job x, attempt 0, starting\n")


def test_mistakes_are_one_line(tmp_path, capsys):
    directory = write(tmp_path, [rank(0)])
    (directory.path / "job.json").write_text('{"time": ')
    for argv, word in (
        ([tmp_path / "no"], "no job was launched there"),
        ([tmp_path, "--interval", "0"], "--interval 0"),
        ([tmp_path], "is damaged"),
    ):
        assert main(["status", *map(str, argv)]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


def test_watch_redraws_in_place_on_a_terminal_until_the_job_ends(tmp_path):
    ranks = [rank(number) for number in range(4)]
    directory = write(tmp_path, ranks, **HERE, time=time.time())
    terminal, child_end = pty.openpty()
    command = [sys.executable, "-m", "pangu_run", "status", str(tmp_path), "--watch", "--interval", "0.1"]
    child = subprocess.Popen(
        command, stdout=child_end, stderr=child_end, env={**os.environ, "COLUMNS": "100", "LINES": "40"}
    )
    os.close(child_end)
    text = os.read(terminal, 1 << 16).decode()
    directory.write_status({"time": time.time(), "attempt": 0, "state": "ended", "exit_code": 0, "ranks": ranks})
    try:
        while block := os.read(terminal, 1 << 16):
            text += block.decode()
    except OSError:  # the terminal's other end is closed
        pass
    assert child.wait() == 0
    last = text.split("\x1b[J")[-1]
    assert (
        "\x1b[8F" in text and "ended, exit code 0" in last and "running" not in last.split("\r\n")[0]
    )  # 2 lines, a gap, 5 rows: back over all of them


def test_plot_is_a_picture_of_steps_and_events(tmp_path, capsys):
    directory = write(tmp_path, [rank(0), rank(1, step=119)])
    for step in (10, 20):
        directory.write_event("step", 0, step=step, tokens_per_second=1.0)
    directory.write_event("checkpoint", 0, step=20)
    directory.write_event("failure", 0, rank=1, code=1, words="x")
    assert main(["status", str(tmp_path), "--plot", str(tmp_path / "a.txt")]) == 2
    assert main(["status", str(tmp_path), "--plot", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text().count("<svg") == 1


def test_verbs_start_fast_with_nothing_of_pangu_ms_but_core():
    for verb in ("status", "logs"):
        program = (
            f"import sys; from pangu_run.cli.main import main\ntry: main(['{verb}', '--help'])\nexcept SystemExit:"
            " pass\nprint(sorted(sys.modules), file=sys.stderr)"
        )
        modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
        assert not any(f"'{name}'" in modules for name in ("mindspore", "numpy", "matplotlib", "yaml", "psutil"))
        assert set(re.findall(r"'pangu_ms\.(\w+)", modules)) == {"core"}
