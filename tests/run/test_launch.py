"""Ranks as processes: their environment, the word of the one that fails, and that none survives. MindSpore's scheduler
is played by a few lines."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_PEER_LOST
from pangu_run import launcher
from pangu_run.job_directory import JobDirectory
from pangu_run.supervisor import host, scheduler
from tests.faults.common import wait_for
from tests.run.launched import SCHEDULER, alive, log, run

FAILS_ONCE = (
    "import os, sys; from pathlib import Path; p = Path(os.environ['MARK']); p.exists() or (p.touch(), sys.exit('port"
    " taken'))\n" + SCHEDULER
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(scheduler, "PROGRAM", SCHEDULER)


def test_a_rank_knows_its_place_and_only_rank_0_has_the_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("ASCEND_OPS_NUM_THREADS", "7")
    monkeypatch.setenv("RANK_TABLE_FILE", "/of/another/job")
    names = (
        "MS_ROLE RANK_ID RANK_SIZE MS_WORKER_NUM MS_NODE_ID DEVICE_ID MS_SCHED_HOST MINE ASCEND_OPS_NUM_THREADS".split()
    )
    program = (
        f"import os, sys; print(*(os.environ[name] for name in {names}), os.environ.get('RANK_TABLE_FILE'),"
        " len(sys.argv))"
    )
    assert run(tmp_path, program, program, environment={"MINE": "yes"})[0] == 0
    assert capfd.readouterr().out == log(tmp_path, 0) == "MS_WORKER 0 2 2 0 0 127.0.0.1 yes 7 None 1\n"
    assert log(tmp_path, 1) == "MS_WORKER 1 2 2 1 1 127.0.0.1 yes 7 None 1\n"


def test_a_log_is_of_one_launch_and_the_one_before_is_kept(tmp_path):
    for word in ("first", "second"):
        run(tmp_path, f"print({word!r})")
    assert log(tmp_path, 0) == "second\n" and (tmp_path / "job/logs/rank_0/output.log.1").read_text() == "first\n"


def test_the_rank_that_fails_is_shown_and_the_others_end(tmp_path, capfd):
    stubborn = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); open('{}', 'w').write(str(os.getpid()));"
        " time.sleep(60)"
    )
    code, seconds = run(
        tmp_path,
        stubborn.format(tmp_path / "pid"),
        "import time, sys; print('why it failed'); time.sleep(0.5); sys.exit(3)",
    )
    told = capfd.readouterr().err
    assert code == 3 and seconds < 12 and not alive(int((tmp_path / "pid").read_text()))
    assert re.search(
        r"rank 1 \(.*\) failed with exit code 3 .*rank_1/output.log ends with:\n  why it failed\n", told
    ), told
    assert run(tmp_path, "import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)")[0] == 128 + 9
    told = capfd.readouterr().err
    assert re.search(r"rank 1 \(.*\) was killed by SIGKILL", told) and "out-of-memory" not in told


def test_a_rank_that_the_kernel_kills_for_want_of_memory_is_told_so(tmp_path, capfd, monkeypatch):
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 7\n")
    monkeypatch.setattr(host, "VMSTAT", counters)
    assert (
        run(tmp_path, f"import os; open({str(counters)!r}, 'w').write('oom_kill 8'); os.kill(os.getpid(), 9)")[0]
        == 128 + 9
    )
    assert "was killed by SIGKILL" in (told := capfd.readouterr().err) and "out-of-memory killer" in told


def test_a_rank_that_misses_another_is_not_the_cause(tmp_path, capfd):
    lost = f"import sys; sys.exit({EXIT_PEER_LOST})"
    assert run(tmp_path, lost, "import time, sys; time.sleep(0.4); sys.exit(9)")[0] == 9
    assert re.search(r"rank 1 \(.*\) failed with exit code 9", capfd.readouterr().err)


def test_a_rank_that_goes_on_after_another_was_missed_is_the_cause(tmp_path, capfd):
    lost = f"import sys; sys.exit({EXIT_PEER_LOST})"
    busy = "import time\nfrom pangu_ms.core.heartbeat import beat\nbeat('step', 5)\ntime.sleep(60)"
    waits = "import time\nfrom pangu_ms.core.heartbeat import beat\nbeat('wait')\ntime.sleep(60)"
    assert run(tmp_path, waits, busy, f"import time; time.sleep(0.5); {lost}")[0] == 124
    assert re.search(r"rank 1 silent for \d+ s in phase step of step 5", capfd.readouterr().err)


def test_a_mistake_that_all_make_is_told_once_by_rank_0(tmp_path, capfd):
    assert (
        run(
            tmp_path,
            "import sys, time; time.sleep(0.5); print('a: b; c', file=sys.stderr); sys.exit(2)",
            "import sys; sys.exit(2)",
        )[0]
        == 2
    )
    assert capfd.readouterr().err == "a: b; c\n"


def test_another_port_is_tried_and_a_scheduler_that_never_starts_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "PROGRAM", FAILS_ONCE)
    assert run(tmp_path, "pass", environment={"MARK": str(tmp_path / "mark")})[0] == 0
    assert "port taken" in (tmp_path / "job/logs/scheduler/output.log.1").read_text()
    monkeypatch.setattr(scheduler, "PROGRAM", "import sys; sys.exit('no room')")
    with pytest.raises(LaunchError, match=r"scheduler/output.log: .* did not start: no room; "):
        run(tmp_path, f"open('{tmp_path / 'ran'}', 'w')")
    assert not (tmp_path / "ran").exists()
    assert JobDirectory(tmp_path / "job").events()[-1]["exit_code"] == 2


RANK = """
import os, signal, sys, time
from pangu_ms.core.heartbeat import beat
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
beat("init")
open(os.environ["PIDS"] + os.environ["RANK_ID"], "w").write(str(os.getpid()))
time.sleep(60)
"""
PARENT = f"""
import sys
from pathlib import Path
from pangu_run.supervisor import scheduler
from pangu_run.launcher import run_ranks
scheduler.PROGRAM = {SCHEDULER!r}
sys.exit(run_ranks(lambda rank: ["-c", {RANK!r}], 2, Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGKILL, -9)])
def test_a_signal_reaches_all_and_no_rank_survives_its_parent(tmp_path, number, code):
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "job")], env=os.environ | {"PIDS": str(tmp_path / "pid")}
    )
    wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    children = [int(pid) for pid in re.findall(r"\d+", open(f"/proc/{parent.pid}/task/{parent.pid}/children").read())]
    assert len(children) == 4  # the scheduler and the guard, too
    parent.send_signal(number)
    assert parent.wait(timeout=50) == code  # ranks that no signal reached would end after 60 seconds
    wait_for(lambda: not any(map(alive, children)), 3)


def test_a_scheduler_that_dies_is_the_cause(tmp_path, monkeypatch, capfd):
    """Without it MindSpore ends the ranks by SIGTERM, which would look like their own fault."""
    monkeypatch.setattr(
        scheduler, "PROGRAM", SCHEDULER.replace("time.sleep(60)", "print('no memory'); time.sleep(1); os._exit(5)")
    )
    code, _ = run(tmp_path, "import time; time.sleep(60)", "import os, time; time.sleep(2); os.kill(os.getpid(), 15)")
    said = capfd.readouterr().err
    assert (
        code == 5 and "MindSpore's scheduler ended with exit code 5 while ranks ran" in said and "\n  no memory" in said
    )
    assert JobDirectory(tmp_path / "job").events()[-2]["kind"] == "scheduler"


def test_a_signal_to_everybody_does_not_take_the_scheduler_from_ranks_that_save(tmp_path):
    save = (
        "import os, signal, time; signal.signal(15, lambda *_: None); os.kill(int(open(os.environ['PID']).read()), 15);"
        " time.sleep(1)"
    )
    tell = SCHEDULER.replace(
        "import os", "import os; open(os.environ['PID'], 'w').write(str(os.getpid())); import sys", 1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "PROGRAM", tell)
        assert run(tmp_path, save, "import time; time.sleep(2)", environment={"PID": str(tmp_path / "pid")})[0] == 0


def test_two_launchers_do_not_share_a_directory(tmp_path, monkeypatch):
    directory = JobDirectory(tmp_path / "job")
    directory.write_job({"id": "other", "host": "elsewhere", "launcher_pid": 1})
    going = threading.Event()

    def other():
        while not going.wait(0.1):
            directory.write_status(
                {"time": time.time(), "attempt": 1, "state": "running", "exit_code": None, "ranks": []}
            )

    thread = threading.Thread(target=other)
    thread.start()
    try:
        time.sleep(0.3)
        with pytest.raises(LaunchError, match="another launcher .process 1 on host elsewhere. runs a job there"):
            run(tmp_path, "pass")
    finally:
        going.set()
        thread.join()
    monkeypatch.setattr(launcher, "TAKEOVER_S", 1.0)
    assert run(tmp_path, "pass")[0] == 0  # it was killed: its status stands still


def test_a_terminal_that_nobody_reads_does_not_hold_up_a_job(tmp_path):
    """A pager, Ctrl-S, a connection that hangs: ranks go on, and their logs have it all."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom pangu_run.launcher import run_ranks\nfrom pangu_run.supervisor"
        " import scheduler, terminal\n"
    )
    program += f"scheduler.PROGRAM = {SCHEDULER!r}\nterminal.FLUSH_S = 0.5\n"
    program += "sys.exit(run_ranks(lambda rank: ['-c', 'print(\"x\" * 1000000)'], 2, Path(sys.argv[1])))\n"
    reader, writer = os.pipe()
    try:
        assert (
            subprocess.run([sys.executable, "-c", program, str(tmp_path / "job")], stdout=writer, timeout=60).returncode
            == 0
        )
    finally:
        os.close(reader), os.close(writer)
    assert len(log(tmp_path, 0)) == 1000001
