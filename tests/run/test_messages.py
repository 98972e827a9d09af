"""Nothing that a peer or a rank sends can raise: messages of random and of damaged fields, into all that use them."""

import asyncio
import json
import math
import random
from types import SimpleNamespace

import pytest

from pangu_run.job.job import DeviceAssignment, Job, Limits
from pangu_run.job_directory import JobDirectory
from pangu_run.supervisor import messages, watchdog
from pangu_run.supervisor.failure_report import first_failed_exit, report_exit, report_hang
from pangu_run.supervisor.host import HostAgent
from pangu_run.supervisor.leader import Leader
from pangu_run.supervisor.process import RankProcess
from pangu_run.supervisor.terminal import Terminal
from pangu_run.supervisor.watchdog import RankState

BEAT = {"phase": "step", "step": 3, "time": 1.7e9, "tokens_per_second": 12.5, "saved": 3}
HOST = [
    {"is": "beat", "attempt": 1, "rank": 3, "pid": 77, **BEAT},
    {
        "is": "exit",
        "attempt": 1,
        "rank": 2,
        "code": 1,
        "time": 1.7e9,
        "words": ["Broken"],
        "started": True,
        "oom": False,
    },
    {"is": "stacks", "attempt": 1, "rank": 3, "path": "/x", "lines": ["a", "b"]},
    {"is": "signal", "name": "SIGTERM"},
]
LEADER = [
    {"do": "start", "attempt": 1, "resume": False, "scheduler": ["127.0.0.1", 8118]},
    {"do": "start", "attempt": 2, "resume": True, "scheduler": None},
    {"do": "signal", "name": "SIGUSR1"},
    {"do": "kill"},
    {"do": "stacks", "ranks": [2, 3]},
    {"do": "end", "code": 75, "text": ""},
    {"do": "welcome"},
]
JUNK = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**70,
    10**400,
    1.5,
    -0.5,
    math.inf,
    math.nan,
    "",
    "x",
    "SIGKILL",
    "SIGNOSUCH",
    "\ud800",
    "\x1b[2J",
    "a\nb",
    "x" * 9000,
]
JUNK += [[], {}, [1], [None], ["\ud800"], [[]], {"x": []}, ["h", -1], ["h", 1, 2], [[0] * 70000]]
TRIALS = 1500


def damaged(rng, whole):
    """A message with some fields gone, replaced, added, or none of the sort; as it comes out of JSON."""
    if rng.random() < 0.1:
        return {rng.choice(["is", "do", "rank", "x"]): rng.choice(JUNK) for _ in range(rng.randrange(4))}
    message = dict(rng.choice(whole))
    for _ in range(rng.randrange(3)):
        name = rng.choice([*message, "x"])
        if rng.random() < 0.3:
            message.pop(name, None)
        else:
            message[name] = rng.choice(JUNK)
    return json.loads(json.dumps(message))


@pytest.fixture
def leader(tmp_path):
    """One of two hosts with two ranks each, in its first attempt."""
    assignments = [DeviceAssignment(rank, "aabb"[rank], rank % 2) for rank in range(4)]
    job = Job(
        lambda rank: ["-c", "pass"],
        assignments,
        JobDirectory(tmp_path / "job"),
        "a",
        master=("127.0.0.1", 1),
        limits=Limits(),
    )
    job.directory.path.mkdir()
    job.directory.write_job({"id": "x"})
    made = Leader(job, Terminal(0))
    made.attempt, made.states = 1, [RankState(assignment, 0.0) for assignment in assignments]
    yield made
    made.disk.close(10.0)


def test_no_message_of_a_host_raises_and_what_is_written_of_it_is_whole(leader, capfd):
    rng, taken = random.Random(1), 0
    for number in range(TRIALS):
        words = damaged(rng, HOST)
        message = messages.from_host(words)
        if message is None or not leader.links._may_report("b", message):
            continue
        taken += 1
        leader._handle(message | {"host": "b"})
        if number % 100 == 0:
            watchdog.hung(leader.states, leader.job.limits, float(number)), watchdog.slow(leader.states)
            leader.event_log._updated = 0.0
            leader.event_log.update(leader.states)
            if leader.exits and first_failed_exit(leader.exits):
                leader.event_log.print_line(report_exit(leader.job, leader.states, leader.exits).text())
            leader.event_log.print_line(
                report_hang(leader.states, leader.states, 1.0, [*leader.stacks.values()]).text()
            )
            leader.states = [RankState(state.assignment, 0.0) for state in leader.states]
            leader.exits, leader.stacks, leader.signals = [], {}, []
    leader.disk.close(10.0)
    leader.terminal.close()
    assert 0.2 * TRIALS < taken < 0.8 * TRIALS  # neither all refused nor all believed
    assert leader.job.directory.events() and leader.job.directory.status()["ranks"]
    shown = capfd.readouterr().err
    assert "Traceback" not in shown and "\x1b" not in shown


def test_no_command_raises(tmp_path, monkeypatch):
    class Rank:
        def __init__(self, number, argv, environment, *others):
            assert all(isinstance(value, str) for value in environment.values())
            self.number, self.stacks = number, tmp_path / "none"

        def signal(self, name):
            assert name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

        def kill(self):
            pass

        dump_stacks = kill

    monkeypatch.setattr("pangu_run.supervisor.host.RankProcess", Rank)
    monkeypatch.setattr("pangu_run.supervisor.host.STACKS_S", 0.0)
    monkeypatch.setattr("pangu_run.orphans.kill_job_processes", lambda job: None)
    job = Job(
        lambda rank: ["-c", "pass"],
        [DeviceAssignment(rank, "aabb"[rank], rank % 2) for rank in range(4)],
        JobDirectory(tmp_path),
        "b",
    )

    async def obey():
        rng, taken, told, raised = random.Random(2), 0, [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        agent = HostAgent(job, Terminal(None), told.append)
        for _ in range(TRIALS):
            command = messages.from_leader(damaged(rng, LEADER))
            if command:
                taken += 1
                agent.execute(command)
        await asyncio.sleep(1.0)
        assert 0.2 * TRIALS < taken < 0.8 * TRIALS and told and not raised
        assert all(messages.from_host(message) for message in told)

    asyncio.run(obey())


def test_no_line_of_a_rank_raises_and_it_speaks_for_itself_alone():
    told, rng = [], random.Random(3)
    rank = SimpleNamespace(_unfinished_beat=b"", number=2, pid=77, on_message=told.append)
    for _ in range(TRIALS):
        RankProcess._read_beats(
            rank, json.dumps(damaged(rng, [BEAT, BEAT | {"is": "exit", "rank": 0, "pid": 1}])).encode() + b"\n"
        )
    RankProcess._read_beats(
        rank,
        b"\xff\n[1]\n3\n" + b"[" * 100000 + b"\n" + b'{"phase": "step", "step": ' + b"9" * 5000 + b', "time": 1}\n',
    )
    assert 0.2 * TRIALS < len(told) < 0.8 * TRIALS
    assert {(message["is"], message["rank"], message["pid"]) for message in told} == {("beat", 2, 77)}
    assert all(messages.from_host(message | {"attempt": 1}) == message | {"attempt": 1} for message in told)


def test_what_is_right_comes_back_as_it_was():
    assert all(messages.from_host(message) == message for message in HOST)
    assert [messages.from_leader(command) for command in LEADER[1:]] == LEADER[1:]
    assert messages.from_leader(LEADER[0])["scheduler"] == ("127.0.0.1", 8118)
    assert messages.from_host(HOST[3] | {"x": 1}) == HOST[3]


FORGED = [
    {"is": "lost"},
    {"is": "lost", "host": "a"},
    {"is": "scheduler", "code": 1},
    {"is": "exit", "rank": 3},
    {"is": "beat", "rank": "3"},
    {"is": "signal"},
]
FORGED += [HOST[0] | {"time": time} for time in (math.nan, math.inf, -1.0, 10**400, True, "1")]
FORGED += [
    HOST[0] | {"attempt": 0},
    HOST[0] | {"rank": -1},
    HOST[0] | {"phase": "x"},
    HOST[1] | {"code": None},
    HOST[3] | {"name": "SIGKILL"},
    {"x": 1},
    {},
    None,
]


def test_a_host_tells_what_it_may_and_of_its_own_ranks_alone(leader):
    assert not any(map(messages.from_host, FORGED))
    assert [leader.links._may_report("b", HOST[0] | {"rank": rank}) for rank in (0, 1, 2, 3, 4, 2**40)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_a_rank_that_has_ended_stays_so(leader):
    for message in (HOST[1], HOST[1] | {"code": 0}, HOST[0] | {"rank": 2}):
        leader._handle(messages.from_host(message))
    assert (len(leader.exits), leader.states[2].exit_code, leader.states[2].runs) == (1, 1, False)


def test_texts_of_others_move_no_cursor_and_make_no_line():
    text = messages.from_leader({"do": "end", "code": 2, "text": "a\nb: c\x1b[2J\ud800\x00"})["text"]
    assert text == "a b: c?"
