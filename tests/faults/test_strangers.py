"""Who may say something in a job of several hosts: the launchers that have its secret and its version, however many
others come. Ranks without MindSpore."""

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_run.supervisor.links import MAX_UNIDENTIFIED
from tests.faults.common import SECRET, launch_light, wait_for
from tests.faults.hosts import WORLD, Pair, computing
from tests.faults.light import checkpoints, expected


def test_ports_of_the_leader_and_strangers_at_its_door(tmp_path):
    pair = Pair(tmp_path / "run")
    port = pair.options["master"][1] + 1
    with socket.create_server(("127.0.0.1", port)):
        taken = pair.start("a").finish()
    assert taken.code == 2 and re.fullmatch(
        rf"pangu launch: 127.0.0.1:{port}: cannot be listened on .*\n", taken.stderr
    ), taken.stderr
    pair.start("a")
    wait_for(lambda: knocks(port, b"GET / HTTP/1.1\r\n\r\n"))
    knocks(port, b'{"is": "hello"}\n'), knocks(port, b"[]\n"), knocks(port, b"\xff" * 100)
    pair.start("b")
    assert pair.finish() == (0, 0) and "Traceback" not in pair.a.stderr, pair.a.stderr


def test_idle_strangers_make_room_for_each_other_and_end_nothing(tmp_path):
    pair = Pair(tmp_path / "run", hello_s=600.0, steps=100)
    port = led(pair)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
    wait_for(lambda: sum(closed(stranger) for stranger in idle) >= 1000 - 2 - MAX_UNIDENTIFIED)  # the oldest make room
    knocks(port, b"[" * 100000 + b"\n"), knocks(port, b'{"is": "hello", "host": ["b"]}\n')
    pair.start("b")
    assert pair.finish() == (0, 0) and pair.a.stderr == pair.b.stderr == "", pair.a.stderr
    for stranger in idle:
        stranger.close()


@pytest.mark.slow
def test_strangers_leave_file_descriptors_for_the_job(tmp_path):
    pair = Pair(tmp_path / "run", descriptors=80, hello_s=600.0, steps=30)
    port = led(pair)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
    pair.start("b")
    assert pair.finish() == (0, 0) and pair.a.stderr == "", pair.a.stderr
    for stranger in idle:
        stranger.close()


def test_a_leader_without_file_descriptors_says_so_once_and_goes_on(tmp_path):
    """As where something else of the host takes them: here by as many strangers as come."""
    pair = Pair(tmp_path / "run", descriptors=100, hello_s=600.0, strangers=10**6)
    port = led(pair)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(500)]
    wait_for(lambda: sum(map(closed, idle)) > 150)  # it has come to its limit twice
    for stranger in idle:
        stranger.close()
    pair.start("b")
    assert pair.finish() == (0, 0), pair.a.stderr
    lines = [line for line in pair.a.stderr.splitlines() if "waiting for" not in line]
    assert len(lines) == 1 and "no room for another connection (Too many open files)" in lines[0], lines


def test_lines_without_an_end_take_no_memory(tmp_path):
    pair = Pair(tmp_path / "run")
    port = led(pair)
    before, endless = peak_mb(pair.a.process.pid), [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    for stranger in endless:
        try:
            stranger.sendall(b"x" * (16 << 20))
        except OSError:
            pass  # it was hung up on, as it should be
    assert peak_mb(pair.a.process.pid) - before < 32
    pair.start("b")
    assert pair.finish() == (0, 0) and pair.a.stderr == "" and all(map(closed, endless)), pair.a.stderr


@pytest.mark.parametrize(
    ("leaders", "others", "told"),
    [
        pytest.param(SECRET, "", "has none", marks=pytest.mark.slow),
        pytest.param("", SECRET, "or none", marks=pytest.mark.slow),
        (SECRET, "x" * 32, "another"),
    ],
)
def test_a_launcher_with_another_secret_or_none_is_sent_away_and_told_what_to_do(tmp_path, leaders, others, told):
    pair = Pair(tmp_path / "run", secret=leaders)
    led(pair)
    wrong = pair.start("b", secret=others).finish()
    assert (
        wrong.code == 2
        and len(wrong.stderr.splitlines()) == 1
        and told in wrong.stderr
        and "openssl rand -hex 32" in wrong.stderr
    ), wrong.stderr
    pair.start("b", secret=leaders)
    assert pair.finish() == (0, 0) and checkpoints(pair.output)[10] == expected(WORLD, 10)
    others = ("is not set", "waiting for 1 of 2 hosts")  # the latter on a busy machine
    lines = [line for line in pair.a.stderr.splitlines() if not any(words in line for words in others)]
    assert (
        len(lines) == 1
        and "host b: a launcher came by that name with another PANGU_JOB_SECRET or none, and was sent away" in lines[0]
    )


@pytest.mark.slow
def test_a_running_job_does_not_hear_who_has_not_its_secret(tmp_path):
    """All else can be known: the version, the digest, the names."""
    pair = Pair(tmp_path / "run", steps=1000, pause=0.02).both()
    wait_for(lambda: computing(pair))
    known = pair.options | {"server": "b"}
    wrong = launch_light(pair.output, secret="x" * 32, **known).finish()
    assert wrong.code == 2 and pair.a.process.poll() is None and not pair.a.events("failure", "signal")
    pair.a.process.terminate()
    assert pair.finish() == (EXIT_STOPPED, EXIT_STOPPED)


def test_without_a_secret_there_is_one_warning_whose_advice_works(tmp_path):
    pair = Pair(tmp_path / "run", secret="").both()
    assert pair.finish() == (0, 0) and pair.b.stderr == ""
    assert re.fullmatch(
        r"pangu launch: PANGU_JOB_SECRET is not set: whoever reaches 127.0.0.1:\d+ can stop this job .*\n",
        pair.a.stderr,
    ), pair.a.stderr
    advised = re.search(r"`export PANGU_JOB_SECRET=(.*)`", pair.a.stderr)[1]
    secret = subprocess.run(
        ["bash", "-c", f"echo {advised}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    pair = Pair(tmp_path / "other", secret=secret).both()
    assert pair.finish() == (0, 0) and pair.a.stderr == pair.b.stderr == ""
    assert launch_light(tmp_path / "alone", secret="").finish().stderr == ""
    short = launch_light(tmp_path / "short", secret="x").finish()
    assert short.code == 2 and re.fullmatch(r"pangu launch: PANGU_JOB_SECRET: has 1 characters; .*\n", short.stderr)


def test_the_secret_goes_nowhere_but_to_launchers(tmp_path):
    pair = Pair(tmp_path / "run", steps=1000, pause=0.02).both()
    wait_for(lambda: computing(pair))
    launchers, secret = {pair.a.process.pid, pair.b.process.pid}, SECRET.encode()
    know = {
        pid for one in (pair.a, pair.b) for pid in one.alive() if secret in Path(f"/proc/{pid}/environ").read_bytes()
    }
    assert len(pair.a.alive()) == 4 and know == launchers  # the launcher, its guard, its ranks
    assert not any(secret in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in launchers)
    pair.a.process.terminate()
    assert pair.finish() == (EXIT_STOPPED, EXIT_STOPPED)
    written = [path for path in pair.output.rglob("*") if path.is_file()]
    assert (
        len(written) > 5
        and not any(secret in path.read_bytes() for path in written)
        and SECRET not in pair.a.stderr + pair.b.stderr
    )


def test_launchers_of_different_versions_refuse_each_other_by_name(tmp_path):
    pair = Pair(tmp_path / "run", version="9.9.9, protocol 2")
    led(pair)
    other = pair.start("b", version="0.0.1, protocol 2").finish()
    told = (
        r"the launcher there is 9.9.9, protocol 2, that of b is 0.0.1, protocol 2; .* install the same on all hosts\n$"
    )
    assert other.code == 2 and re.search(told, other.stderr), other.stderr
    for number in range(20):  # who has not the secret fills no terminal
        knocks(
            pair.options["master"][1] + 1,
            json.dumps({"is": "hello", "host": "b", "version": str(number), "nonce": ""}).encode() + b"\n",
        )
    pair.start("b")
    assert pair.finish() == (0, 0)
    assert re.fullmatch(
        r"pangu launch: host b: its launcher is 0.0.1, protocol 2, that of a is 9.9.9, protocol 2; .*\n", pair.a.stderr
    ), pair.a.stderr


def test_launchers_that_tell_no_version_are_refused_too(tmp_path):
    """Those of protocol 1: the host that says hello waits for a line with "do", "code" and "text"; the leader answers
    so at once."""
    pair = Pair(tmp_path / "run")
    with socket.create_connection(("127.0.0.1", led(pair))) as old:
        old.sendall(b'{"is": "hello", "host": "b", "digest": "1234"}\n')
        answer = json.loads(old.makefile().readline())
    assert (answer["do"], answer["code"]) == (
        "end",
        2,
    ) and "host b: its launcher is of an earlier version, that of a is " in answer["text"]
    pair.a.process.terminate()
    assert (
        pair.a.finish().code == EXIT_STOPPED
        and pair.a.stderr.count("host b: its launcher is of an earlier version") == 1
    )
    pair = Pair(tmp_path / "other")
    with socket.create_server(("127.0.0.1", pair.options["master"][1] + 1)) as server:
        pair.start("b")
        connection, _ = server.accept()
        with connection:
            hello = json.loads(connection.makefile().readline())
            assert (hello["is"], hello["host"]) == ("hello", "b") and "digest" not in hello
            connection.sendall(b'{"do": "end", "code": 0, "text": "launches something else"}\n')
            assert (
                pair.b.finish().code == 2
                and "the launcher there is of an earlier version, or none of ours, that of b is " in pair.b.stderr
            )


def test_a_host_that_has_the_secret_and_talks_nonsense_ends_nothing(tmp_path):
    """A launcher of another state of mind: its lines are signed, and mean nothing."""
    pair = Pair(tmp_path / "run", steps=30)
    led(pair)
    beat = {"is": "beat", "attempt": 1, "rank": 2, "pid": 1, "step": 1, "time": 1.0}
    nonsense = [
        beat,
        beat | {"phase": None},
        {"is": "exit", "rank": 99},
        {"is": "exit", "attempt": 1, "rank": 2},
        {"is": "signal", "name": "x"},
        {"x": 1},
    ]
    pair.start("b", nonsense=nonsense)
    assert pair.finish() == (0, 0) and pair.a.stderr == pair.b.stderr == "", pair.a.stderr


def led(pair):
    """Start the leader and wait until it listens; its port."""
    port = pair.options["master"][1] + 1
    pair.start("a")
    wait_for(lambda: knocks(port, b""))
    return port


def peak_mb(pid):
    """The most memory that a process has had, in MB."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1000


def closed(stranger):
    """Whether the other side has closed."""
    stranger.setblocking(False)
    try:
        return stranger.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def knocks(port, words):
    """Whether somebody listens; a stranger's words are said."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
            return True
    except OSError:
        return False
