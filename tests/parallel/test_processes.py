"""Ranks as processes: their environment, the word of the one that fails, and that none survives. MindSpore's scheduler is played by a few lines."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from pangu_ms.errors import PlanError
from pangu_ms.parallel import processes
from pangu_ms.parallel.meeting import Meeting, PeerLost

SCHEDULER = "import os, socket, time; s = socket.create_server(('127.0.0.1', int(os.environ['MS_SCHED_PORT']))); time.sleep(60)"
FAILS_ONCE = "import os, sys; from pathlib import Path; p = Path(os.environ['MARK']); p.exists() or (p.touch(), sys.exit('port taken'))\n" + SCHEDULER


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(processes, "SCHEDULER", SCHEDULER)
    monkeypatch.setattr(processes, "GRACE_S", 1.0)


def run(tmp_path, *programs, **environment):
    began = time.monotonic()
    code = processes.run_ranks(lambda rank: [sys.executable, "-c", programs[rank]], len(programs), tmp_path / "logs", environment)
    return code, time.monotonic() - began


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_knows_its_place_and_only_rank_0_has_the_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("ASCEND_OPS_NUM_THREADS", "7")
    names = "MS_ROLE RANK_ID RANK_SIZE MS_WORKER_NUM MS_NODE_ID DEVICE_ID MS_SCHED_HOST MINE ASCEND_OPS_NUM_THREADS".split()
    program = f"import os; print(*(os.environ[name] for name in {names}))"
    assert run(tmp_path, program, program, MINE="yes")[0] == 0
    assert capfd.readouterr().out == "MS_WORKER 0 2 2 0 0 127.0.0.1 yes 7\n"
    assert (tmp_path / "logs/rank_1.log").read_text() == "MS_WORKER 1 2 2 1 1 127.0.0.1 yes 7\n"


def test_the_rank_that_fails_is_shown_and_the_others_end(tmp_path, caplog):
    stubborn = "import os, signal, time; signal.signal(15, signal.SIG_IGN); open('{}', 'w').write(str(os.getpid())); time.sleep(60)"
    code, seconds = run(tmp_path, stubborn.format(tmp_path / "pid"), "import time, sys; print('why it failed'); time.sleep(0.5); sys.exit(3)")
    assert code == 3 and seconds < 8 and not alive(int((tmp_path / "pid").read_text()))
    assert "rank 1 failed with exit code 3" in caplog.text and "rank_1.log ends with:\n  why it failed" in caplog.text
    caplog.clear()
    assert run(tmp_path, "import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)")[0] == 128 + 9
    assert "rank 1 was killed by SIGKILL" in caplog.text


def test_a_rank_that_misses_another_is_not_the_cause(tmp_path, caplog):
    lost = f"import sys; sys.exit({processes.EXIT_PEER_LOST})"
    assert run(tmp_path, lost, "import time, sys; time.sleep(0.4); sys.exit(9)")[0] == 9
    assert "rank 1 failed with exit code 9" in caplog.text


def test_a_mistake_that_all_make_is_told_once_by_rank_0(tmp_path, caplog):
    assert run(tmp_path, "import time, sys; time.sleep(0.5); sys.exit(2)", "import sys; sys.exit(2)")[0] == 2
    assert not caplog.text


def test_another_port_is_tried_and_a_scheduler_that_never_starts_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SCHEDULER", FAILS_ONCE)
    assert run(tmp_path, "pass", MARK=str(tmp_path / "mark"))[0] == 0
    assert "port taken" in (tmp_path / "logs/scheduler.log").read_text()
    monkeypatch.setattr(processes, "SCHEDULER", "import sys; sys.exit('no room')")
    with pytest.raises(PlanError, match=r"scheduler.log: .* did not start: no room; "):
        run(tmp_path, f"open('{tmp_path / 'ran'}', 'w')")
    assert not (tmp_path / "ran").exists()


RANK = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open(os.environ["PIDS"] + os.environ["RANK_ID"], "w").write(str(os.getpid()))
time.sleep(60)
"""
PARENT = f"""
import sys
from pathlib import Path
from pangu_ms.parallel import processes
processes.SCHEDULER = {SCHEDULER!r}
sys.exit(processes.run_ranks(lambda rank: [sys.executable, "-c", {RANK!r}], 2, Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_signal_reaches_all_and_no_rank_survives_its_parent(tmp_path, number, code):
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "logs")], env=os.environ | {"PIDS": str(tmp_path / "pid")})
    wait_until(lambda: all(path.exists() and path.read_text() for path in pids))
    children = [int(pid) for pid in re.findall(r"\d+", open(f"/proc/{parent.pid}/task/{parent.pid}/children").read())]
    assert len(children) == 3  # the scheduler too
    parent.send_signal(number)
    assert parent.wait(timeout=10) == code
    wait_until(lambda: not any(map(alive, children)))


def test_ranks_meet_agree_on_the_first_word_and_notice_who_is_gone():
    words, meetings = {}, {}

    def rank(number):
        meetings[number] = Meeting(f"test-{os.getpid()}", number, 3)
        time.sleep(0.1 * number)
        words[number] = [meetings[number].agree(), meetings[number].agree("SIGTERM" if number == 1 else ""), meetings[number].agree()]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert words == {number: ["", "SIGTERM", ""] for number in range(3)}
    for connection in meetings.pop(1)._peers:
        connection.close()
    with pytest.raises(PeerLost) as lost:
        meetings[0].agree()
    assert lost.value.code == processes.EXIT_PEER_LOST
