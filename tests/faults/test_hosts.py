"""Two launchers as on two hosts, on one machine: who comes late, who is lost, who launches something else. Four ranks
without MindSpore."""

import re
import signal
import time

import pytest

from pangu_ms.core.exit_codes import EXIT_HANG, EXIT_HOST, EXIT_STOPPED
from tests.faults.common import fault, launch_light, wait_for
from tests.faults.hosts import WORLD, Pair, computing
from tests.faults.light import checkpoints, expected


def test_a_job_of_two_hosts_and_one_that_comes_late(tmp_path):
    pair = Pair(tmp_path / "run")
    late = pair.start("b")
    time.sleep(1.0)
    assert late.process.poll() is None
    pair.start("a")
    assert pair.finish() == (0, 0) and pair.a.stderr == pair.b.stderr == ""
    assert checkpoints(pair.output)[10] == expected(WORLD, 10)
    pair.a.require_records()
    assert [(row["rank"], row["host"], row["device"]) for row in pair.a.status["ranks"]] == [
        (0, "a", 0),
        (1, "a", 1),
        (2, "b", 0),
        (3, "b", 1),
    ]
    assert pair.a.history[0]["hosts"] == ["a", "b"]


def test_a_disk_that_stalls_for_longer_than_a_host_may_be_silent_ends_nothing(tmp_path):
    pair = Pair(tmp_path / "run", steps=100, pause=0.04, stall_s=4.0, lost_s=2.0).both()
    assert pair.finish() == (0, 0) and pair.a.stderr == pair.b.stderr == ""
    assert pair.a.ended - pair.a.history[0]["time"] > 4


def test_a_host_that_never_comes_is_named(tmp_path):
    alone = Pair(tmp_path / "run", limits={"host_s": 1.0}).start("a").finish()
    assert alone.code == EXIT_HOST and re.search(r"1 of 2 hosts did not come within 1 s: b;", alone.stderr), (
        alone.stderr
    )
    alone.require_records()
    assert not alone.events("started") and alone.events("failure")[0]["host"] == "b"
    alone = Pair(tmp_path / "other", limits={"host_s": 1.0}).start("b").finish()
    assert alone.code == EXIT_HOST and re.fullmatch(
        r"pangu launch: 127.0.0.1:\d+: no launcher of the first host \(a\) came .*\n", alone.stderr
    ), alone.stderr


@pytest.mark.parametrize("server", [pytest.param("a", marks=pytest.mark.slow), "b"])
def test_a_signal_ends_the_wait_for_a_host(tmp_path, server):
    alone = Pair(tmp_path / "run", limits={"host_s": 300.0}).start(server)
    wait_for(lambda: len(alone.alive()) == 2)  # the launcher and its guard
    time.sleep(0.5)
    alone.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert alone.finish().code == EXIT_STOPPED and time.monotonic() - began < 3


def test_the_first_cause_on_another_host_is_told_where_the_job_is_led(tmp_path):
    pair = Pair(tmp_path / "run", [fault(3, "step", "raise", 7)]).both()
    assert pair.finish() == (1, 1)
    told = (
        r"rank 3 \(host b, device 1\) failed with exit code 1 in phase step of step 7(.|\n)*Broken: broken on purpose"
    )
    assert re.search(told, pair.a.stderr), pair.a.stderr
    assert "rank 3 (host b, device 1)" in pair.b.stderr and "PeerLost" not in pair.a.stderr + pair.b.stderr
    assert (
        pair.a.events("failure")[0]["words"][-1].endswith("Broken: broken on purpose")
        and max(checkpoints(pair.output)) == 6
    )


def test_a_hang_on_another_host_is_found_and_shown(tmp_path):
    pair = Pair(tmp_path / "run", [fault(2, "step", "stubborn", 7)], limits={"start_s": 2.5, "hang_s": 2.5}).both()
    assert pair.finish() == (EXIT_HANG, EXIT_HANG) and pair.a.seconds < 20
    assert re.search(r"rank 2 silent for \d s in phase step of step 7(.|\n)* in _stubborn", pair.a.stderr), (
        pair.a.stderr
    )
    assert pair.a.events("hang")[0]["ranks"] == [2]


@pytest.mark.parametrize("server", [pytest.param("a", marks=pytest.mark.slow), "b"])
def test_a_signal_to_either_launcher_stops_all_ranks_at_one_step(tmp_path, server):
    pair = Pair(tmp_path / "run", steps=1000, pause=0.02).both()
    wait_for(lambda: computing(pair))
    getattr(pair, server).process.send_signal(signal.SIGTERM)
    assert pair.finish() == (EXIT_STOPPED, EXIT_STOPPED), pair.a.stderr + pair.b.stderr
    kept = checkpoints(pair.output)
    assert kept == {step: expected(WORLD, step) for step in kept} and pair.a.events("signal")[0]["host"] == server
    resumed = Pair(tmp_path / "run", steps=max(kept) + 3, resume=True).both()
    assert resumed.finish() == (0, 0) and checkpoints(pair.output)[max(kept) + 3] == expected(WORLD, max(kept) + 3)


def test_a_death_on_one_host_restarts_both(tmp_path):
    pair = Pair(tmp_path / "run", [fault(3, "step", "sigkill", 7), fault(1, "step", "exit", 8)], max_restarts=2).both()
    assert pair.finish() == (0, 0), pair.a.stderr
    assert checkpoints(pair.output)[10] == expected(WORLD, 10)
    assert [event["rank"] for event in pair.a.events("failure")] == [3, 1] and len(pair.a.events("started")) == 3
    pair.a.require_records()


def test_what_a_slow_host_tells_of_an_attempt_does_not_count_in_the_next_one(tmp_path):
    faults = [
        fault(2, "step", "launcher_still", 7, seconds=5),
        fault(0, "step", "sleep", 7, seconds=0.5),
        fault(0, "step", "exit", 7),
    ]
    pair = Pair(tmp_path / "run", faults, max_restarts=1, limits={"grace_s": 0.1}).both()
    assert pair.finish() == (0, 0), pair.a.stderr
    assert [event["rank"] for event in pair.a.events("failure")] == [0] and checkpoints(pair.output)[10] == expected(
        WORLD, 10
    )


@pytest.mark.parametrize("deed", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_host_that_is_lost_ends_the_job(tmp_path, deed):
    """A launcher that is killed, and one whose machine stands still: signs of life have to be missed."""
    pair = Pair(tmp_path / "run", steps=100000, pause=0.02, max_restarts=3).both()
    wait_for(lambda: computing(pair))
    pair.b.process.send_signal(deed)
    began = time.monotonic()
    assert pair.a.finish().code == EXIT_HOST, pair.a.stderr
    assert time.monotonic() - began < (30 if deed == signal.SIGSTOP else 5)
    assert (
        re.search(r"host b was lost \(ranks 2, 3\)", pair.a.stderr) and "no restart: a host was lost" in pair.a.stderr
    )
    pair.b.process.kill()
    assert pair.b.finish().code == -signal.SIGKILL
    pair.a.require_records()
    assert max(checkpoints(pair.output)) >= 3


def test_a_leader_that_is_killed_ends_the_other_host(tmp_path):
    pair = Pair(tmp_path / "run", [fault(2, "step", "daemon", 4)], steps=100000, pause=0.02).both()
    wait_for(lambda: computing(pair, 6))
    pair.a.process.kill()
    began = time.monotonic()
    assert pair.finish() == (-signal.SIGKILL, EXIT_HOST) and time.monotonic() - began < 5
    assert re.fullmatch(r"pangu launch: the first host \(a\) is gone; .*\n", pair.b.stderr), pair.b.stderr


OTHERS = [
    ({"steps": 11}, "launches something else than a"),
    pytest.param({"servers": ["a", "c"], "server": "c"}, "is none of the hosts", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("change", "told"), OTHERS)
def test_a_host_that_launches_something_else_is_sent_away_and_the_right_one_may_come(tmp_path, change, told):
    pair = Pair(tmp_path / "run")
    pair.start("a")
    other = launch_light(pair.output, **pair.options | {"server": "b"} | change).finish()
    assert other.code == 2 and len(other.stderr.splitlines()) == 1 and told in other.stderr, other.stderr
    pair.start("b")
    assert pair.finish() == (0, 0) and checkpoints(pair.output)[10] == expected(WORLD, 10)
