"""The fault table: what goes wrong in ranks without MindSpore or in their launcher, against the exit code, the words,
the events and what is left.

Each row is a job of its own. Rows run a few at a time, since most of their time is waiting for limits.
"""

import random
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pangu_ms.core.exit_codes import EXIT_HANG, EXIT_STOPPED
from tests.faults.common import fault, launch_light, wait_for
from tests.faults.light import checkpoints, expected

AT_A_TIME, STEPS = 3, 10
NOTABLE = ("signal", "slow", "hang", "failure", "restart")
SHORT = {"start_s": 5.0, "hang_s": 3.0}
ENDLESS = {"steps": 60, "pause": 0.03}


def by(do):
    """Signals to the launcher, from rank 1 while all compute step 7."""
    return [fault(1, "step", word, 7, seconds=0.3) for word in do.split()]


@dataclass(frozen=True)
class Case:
    """A row."""

    name: str
    faults: list[dict[str, Any]]
    code: int
    events: str = "failure"
    blamed: tuple[int | None, str | None, int | None] | None = None
    """Rank, phase and step of the last failure; no rank: any."""
    words: str = ""
    """In the last failure's words: the end of that rank's own log, or its stacks."""
    says: str = ""
    """On the terminal."""
    kept: int | None = None
    """Step of the newest checkpoint; None: any, 0: there is none."""
    within: float = 12.0
    """Seconds from the last fault to the end of the launcher."""
    resumes: bool = False
    """Whether the same job with --resume is tried, too."""
    options: dict[str, Any] = field(default_factory=dict)


DEATHS = [
    Case(
        "leaves at interpreter start",
        [fault(1, "import", "exit")],
        1,
        blamed=(1, "start", None),
        words="SystemExit: 9",
        kept=0,
    ),  # Python makes it 1
    Case("killed at interpreter start", [fault(0, "import", "sigkill")], 137, blamed=(0, "start", None), kept=0),
    Case(
        "raises at import",
        [fault(2, "start", "raise")],
        1,
        blamed=(2, "start", None),
        words="Broken: broken on purpose",
        kept=0,
    ),
    Case(
        "raises in init",
        [fault(1, "init", "raise")],
        1,
        blamed=(1, "init", None),
        words="Broken: broken on purpose",
        kept=0,
    ),
    Case("killed in init", [fault(0, "init", "sigkill")], 137, blamed=(0, "init", None), kept=0),
    Case(
        "raises while reading",
        [fault(2, "data", "raise", 7)],
        1,
        blamed=(2, "data", 7),
        words="Broken: broken on purpose",
        kept=6,
    ),
    Case(
        "raises in a step",
        [fault(1, "step", "raise", 7)],
        1,
        blamed=(1, "step", 7),
        words="Broken: broken on purpose",
        kept=6,
    ),
    Case(
        "the streamed rank raises",
        [fault(0, "step", "raise", 7)],
        1,
        blamed=(0, "step", 7),
        says="broken on purpose(.|\n)*its words are above",
        kept=6,
    ),
    Case(
        "leaves in a step",
        [fault(2, "step", "exit", 7)],
        9,
        blamed=(2, "step", 7),
        words="about to leave",
        says="code 9 in phase step of step 7",
        kept=6,
    ),
    Case(
        "killed in a step",
        [fault(1, "step", "sigkill", 7)],
        137,
        blamed=(1, "step", 7),
        says="rank 1 .* was killed by SIGKILL",
        kept=6,
        resumes=True,
    ),
    Case(
        "crashes in a step",
        [fault(1, "step", "segv", 7)],
        139,
        blamed=(1, "step", 7),
        words="in _crash",
        says="rank 1 .* was killed by SIGSEGV",
        kept=6,
    ),
    Case("has no memory left", [fault(2, "step", "memory", 7)], 1, blamed=(2, "step", 7), words="MemoryError", kept=6),
    Case("raises while saving", [fault(0, "save", "raise", 6)], 1, blamed=(0, "save", 6), kept=3, resumes=True),
    Case("killed while saving", [fault(0, "save", "sigkill", 6)], 137, blamed=(0, "save", 6), kept=3),
    Case(
        "two die at once",
        [fault(1, "step", "sigkill", 7), fault(2, "step", "sigkill", 7)],
        137,
        blamed=(None, "step", 7),
        kept=6,
    ),
    Case(
        "a mistake of all",
        [fault(rank, "init", "mistake") for rank in range(3)],
        2,
        blamed=(None, "init", None),
        words="must be even",
        says=r"\Alight: seq_length=3: must be even; use 4\n\Z",
        kept=0,
    ),
]
HANGS = [
    Case(
        "hangs at interpreter start",
        [fault(1, "import", "hang")],
        EXIT_HANG,
        "hang failure",
        (1, "start", None),
        says="rank 1 silent",
        kept=0,
    ),
    Case(
        "hangs at import",
        [fault(1, "start", "hang")],
        EXIT_HANG,
        "hang failure",
        (1, "start", None),
        "sitecustomize.py.* in _hang",
        "rank 1 silent",
        kept=0,
    ),
    Case(
        "hangs in init",
        [fault(2, "init", "hang")],
        EXIT_HANG,
        "hang failure",
        (2, "init", None),
        "sitecustomize.py.* in _hang",
        "rank 2 silent",
        kept=0,
    ),
    Case(
        "hangs while reading",
        [fault(1, "data", "hang", 7)],
        EXIT_HANG,
        "hang failure",
        (1, "data", 7),
        "in _hang",
        "rank 1 silent",
        kept=6,
    ),
    Case(
        "hangs in a step",
        [fault(2, "step", "hang", 7)],
        EXIT_HANG,
        "hang failure",
        (2, "step", 7),
        "in _hang",
        "in phase step of step 7",
        kept=6,
    ),
    Case(
        "hangs while saving",
        [fault(0, "save", "hang", 6)],
        EXIT_HANG,
        "hang failure",
        (0, "save", 6),
        "in _hang",
        kept=3,
        resumes=True,
    ),
    Case("is stopped", [fault(1, "step", "sigstop", 7)], EXIT_HANG, "hang failure", (1, "step", 7), kept=6),
    Case(
        "hangs and ignores SIGTERM",
        [fault(1, "step", "stubborn", 7)],
        EXIT_HANG,
        "hang failure",
        (1, "step", 7),
        "in _stubborn",
        kept=6,
    ),
]
HANGS = [replace(case, options={"limits": SHORT}) for case in HANGS]
SLOW = fault(1, "data", "sleep", times=0, seconds=0.6)
SLOW_ONE = Case(
    "is slow",
    [SLOW],
    0,
    "slow",
    says="rank 1 .* is slow: 0.6. s of its own a step",
    kept=8,
    options={"steps": 8, "limits": {"hang_s": 20.0}},
)
STOPS = [
    Case("SIGTERM at interpreter start", [fault(1, "import", "launcher_sigterm")], EXIT_STOPPED, "signal", kept=0),
    Case("SIGTERM at import", [fault(2, "start", "launcher_sigterm")], EXIT_STOPPED, "signal", kept=0),
    Case(
        "SIGTERM while joining",
        [fault(1, "wait", "launcher_sigterm", seconds=1)],
        EXIT_STOPPED,
        "signal",
        options=ENDLESS,
        resumes=True,
    ),
    Case("SIGTERM while stepping", by("launcher_sigterm"), EXIT_STOPPED, "signal", options=ENDLESS, resumes=True),
    Case(
        "SIGTERM while saving",
        [fault(0, "save", "launcher_sigterm", 6)],
        EXIT_STOPPED,
        "signal",
        options=ENDLESS,
        resumes=True,
    ),
    Case("SIGUSR1", by("launcher_sigusr1"), EXIT_STOPPED, "signal", options=ENDLESS, resumes=True),
    Case("SIGINT", by("launcher_sigint"), EXIT_STOPPED, "signal", options=ENDLESS),
    Case(
        "SIGTERM twice",
        by("launcher_sigterm sleep launcher_sigterm"),
        EXIT_STOPPED,
        "signal signal",
        options=ENDLESS,
        resumes=True,
    ),
    Case(
        "SIGINT twice",
        [fault(2, "step", "hang", 7), *by("launcher_sigint sleep launcher_sigint")],
        130,
        "signal signal",
        kept=6,
    ),
    Case(
        "hangs after SIGTERM",
        [fault(2, "step", "stubborn", 7), *by("launcher_sigterm")],
        EXIT_HANG,
        "signal hang failure",
        (2, "step", 7),
        kept=6,
        options={"limits": {"stop_s": 1.0}},
    ),
    Case(
        "fails after SIGTERM",
        [*by("launcher_sigterm sleep"), fault(1, "step", "exit", 7)],
        9,
        "signal failure",
        (1, "step", 7),
        kept=6,
        options={"max_restarts": 3},
    ),
]
RESTARTS = [
    Case(
        "recovers from a death",
        [fault(1, "step", "sigkill", 7)],
        0,
        "failure restart",
        (1, "step", 7),
        kept=STEPS,
        options={"max_restarts": 1},
    ),
    Case(
        "recovers at import",
        [fault(2, "start", "raise")],
        0,
        "failure restart",
        (2, "start", None),
        kept=STEPS,
        options={"max_restarts": 1},
    ),
    Case(
        "recovers while saving",
        [fault(0, "save", "sigkill", 6)],
        0,
        "failure restart",
        (0, "save", 6),
        kept=STEPS,
        options={"max_restarts": 1},
    ),
    Case(
        "recovers from a hang",
        [fault(1, "step", "stubborn", 7)],
        0,
        "hang failure restart",
        (1, "step", 7),
        "in _stubborn",
        "in phase step of step 7",
        kept=STEPS,
        options={"max_restarts": 1, "limits": SHORT},
    ),
    Case(
        "has no more restarts",
        [fault(1, "step", "exit", 4), fault(2, "step", "exit", 8)],
        9,
        "failure restart failure",
        (2, "step", 8),
        kept=6,
        says=r"no restart: there were 1 \(--max-restarts\)",
        options={"max_restarts": 1},
    ),
    Case(
        "fails the same way twice",
        [fault(1, "step", "exit", 7, times=0)],
        9,
        "failure restart failure",
        (1, "step", 7),
        kept=6,
        says=r"no restart: the same step \(7\) failed the same way twice",
        options={"max_restarts": 5},
    ),
    Case(
        "a mistake is not tried again",
        [fault(1, "init", "mistake", times=0)],
        2,
        words="must be even",
        kept=0,
        options={"max_restarts": 5},
    ),
    Case(
        "a stop is not tried again",
        by("launcher_sigterm"),
        EXIT_STOPPED,
        "signal",
        options=ENDLESS | {"max_restarts": 5},
    ),
]
CASES = [*DEATHS, *HANGS, SLOW_ONE, *STOPS, *RESTARTS]
SLOW_ROWS = {
    "leaves at interpreter start": "killed at interpreter start",
    "raises in init": "raises at import",
    "killed in init": "killed at interpreter start",
    "raises while reading": "raises in a step",
    "leaves in a step": "has no more restarts",
    "has no memory left": "raises in a step",
    "killed while saving": "recovers while saving",
    "killed in a step": "recovers from a death",
    "two die at once": "recovers from a death",
    "hangs at interpreter start": "hangs at import",
    "hangs in init": "hangs at import",
    "hangs while reading": "hangs while saving",
    "hangs in a step": "recovers from a hang",
    "hangs and ignores SIGTERM": "recovers from a hang",
    "SIGTERM at interpreter start": "SIGTERM at import",
    "SIGTERM while joining": "SIGTERM at import",
    "SIGTERM while stepping": "test_signals_at_random_instants_stop_four_ranks_at_one_step",
    "SIGUSR1": "test_signals_at_random_instants_stop_four_ranks_at_one_step",
    "SIGTERM twice": "test_a_storm_of_signals_ends_a_job_as_one_signal_does",
    "SIGINT": "test_signals_at_random_instants_stop_four_ranks_at_one_step",
    "recovers at import": "recovers from a death",
    "a stop is not tried again": "fails after SIGTERM",
}
"""Rows of the slow tier, each with the row, or test, of the default tier that meets most of the same code."""


class Ahead:
    """Launches of the rows: the one that is asked for and a few after it, since most of their time is waiting for
    limits. Where workers of pytest-xdist share the rows out, some of those after it are launched in vain."""

    def __init__(self, cases, place, pool):
        self.cases, self.place, self.pool, self.launched = cases, place, pool, {}

    def __call__(self, case):
        """What the launch of a row gave."""
        at = self.cases.index(case)
        for row in self.cases[at : at + AT_A_TIME]:
            if row.name not in self.launched:
                output = self.place / re.sub(r"\W", "_", row.name)
                self.launched[row.name] = self.pool.submit(run, row, output)
        return self.launched[case.name].result()


@pytest.fixture(scope="module")
def running(request, tmp_path_factory):
    """What a row's launch gave."""
    rows = [item for item in request.session.items if item.fspath == request.fspath and item.originalname == "test_row"]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield Ahead([item.callspec.params["case"] for item in rows], tmp_path_factory.mktemp("table"), pool)


def run(case, output):
    """The job of a row, and the one that resumes it."""
    options = {"steps": STEPS} | case.options
    first = launch_light(output, case.faults, **options).finish()
    again = launch_light(output, resume=True, **options | {"pause": 0.0}) if case.resumes else None
    kept = checkpoints(output)
    return first, kept, again.finish() if again else None, options["steps"]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in SLOW_ROWS)) for case in CASES],
)
def test_row(running, case):
    job, kept, again, steps = running(case)
    assert job.code == case.code, job.stderr
    assert len(job.deeds) >= 1 and job.seconds < case.within
    assert " ".join(event["event"] for event in job.events(*NOTABLE)) == case.events
    assert re.search(case.says, job.stderr), job.stderr
    job.require_records()
    if failures := job.events("failure"):
        require_first_cause(job, case, failures[-1])
    require_nothing_lost(job, case, kept)
    if again:
        assert again.code == 0, again.stderr
        assert checkpoints(job.output)[steps] == expected(3, steps)


def require_first_cause(job, case, failure):
    """The rank that failed is named, with the last words of its own log; those that only followed are not."""
    if case.blamed:
        assert (failure["phase"], failure["step"]) == case.blamed[1:] and case.blamed[0] in (None, *failure["ranks"])
    assert re.search(case.words, "\n".join(failure["words"]))
    assert failure["summary"].startswith(f"rank {failure['ranks'][0]} ") and (
        failure["summary"] in job.stderr or case.code == 2
    )
    assert "PeerLost" not in job.stderr


def require_nothing_lost(job, case, kept):
    """Every checkpoint is what an uninterrupted run has at its step, none that was told is missing, and no part of one
    lies about."""
    assert kept == {step: expected(3, step) for step in kept}
    assert [event["step"] for event in job.events("checkpoint")][-1:] == [*kept][-1:] and not list(
        job.output.glob(".*")
    )
    assert case.kept is None or max(kept, default=0) == case.kept


KILLS = {
    "while ranks compute": [fault(1, "step", "launcher_sigkill", 7)],
    "while ranks start": [fault(1, "start", "launcher_sigkill")],
    "with a daemon of a rank": [fault(1, "step", "daemon", 7), fault(1, "step", "launcher_sigkill", 7)],
    "with ranks that hear nothing": [
        fault(2, "step", "stubborn", 7),
        fault(0, "step", "sigstop", 7),
        *by("daemon sleep launcher_sigkill"),
    ],
}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(KILLS["while ranks compute"], marks=pytest.mark.slow),
        KILLS["while ranks start"],
        pytest.param(KILLS["with a daemon of a rank"], marks=pytest.mark.slow),
        KILLS["with ranks that hear nothing"],  # and that compute, and have a daemon
    ],
    ids=KILLS,
)
def test_nothing_survives_a_launcher_that_is_killed(tmp_path, faults):
    job = launch_light(
        tmp_path / "run", faults, steps=1000, pause=0.02
    ).finish()  # which requires that nothing is left, 3 s later
    assert job.code == -signal.SIGKILL and job.deeds and job.seconds < 6
    again = launch_light(tmp_path / "run", resume=True, steps=12).finish()
    assert again.code == 0 and checkpoints(tmp_path / "run")[12] == expected(3, 12), again.stderr


def test_a_daemon_of_a_rank_does_not_survive_a_job_that_ends_well(tmp_path):
    job = launch_light(tmp_path / "run", [fault(1, "step", "daemon", 7)], steps=8).finish()
    assert job.code == 0 and job.deeds


def test_pauses_before_restarts_grow_and_a_signal_ends_one(tmp_path):
    deaths = [fault(1, "step", "exit", step) for step in (4, 7, 8)]
    job = launch_light(tmp_path / "run", deaths, steps=1000, max_restarts=3, limits={"backoff_s": 0.3})
    wait_for(lambda: len(job.events("restart")) == 3 and job.job.status()["state"] == "waiting")
    job.process.send_signal(signal.SIGTERM)
    job.finish()
    job.require_records()
    assert [event["wait_s"] for event in job.events("restart")] == [0.3, 0.6, 1.2]
    assert job.code == EXIT_STOPPED and len(job.events("started")) == 3  # a fourth would begin after the pause
    assert max(checkpoints(job.output)) == 6


SCHEDULER = (
    "import os, socket, time; s = socket.create_server(('127.0.0.1', int(os.environ['MS_SCHED_PORT']))); time.sleep(60)"
)


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        job = launch_light(tmp_path / "run", start="cluster", scheduler=SCHEDULER, master=["127.0.0.1", port]).finish()
    assert job.code == 2 and re.fullmatch(
        rf"pangu launch: 127.0.0.1:{port}: cannot be listened on .*--master-port\n", job.stderr
    ), job.stderr
    job.require_records()


@pytest.mark.parametrize("what", ["a file", "below a file", "not allowed"])
def test_a_job_directory_that_cannot_be_is_told_in_one_line(tmp_path, what):
    place = {"a file": tmp_path / "file", "below a file": tmp_path / "file/job", "not allowed": "/sys/no-job"}[
        what
    ]  # there not even root may
    (tmp_path / "file").write_text("precious")
    job = launch_light(tmp_path / "run", job_dir=str(place)).finish()
    assert job.code == 2 and re.fullmatch(
        rf"pangu launch: {re.escape(str(place))}: .*; name another .*\n", job.stderr
    ), job.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_a_disk_that_is_full_for_the_launcher_does_not_end_a_job_that_trains(tmp_path):
    """First the logs do not fit, then not even the events."""
    for room, told in ((8000, "output.log"), (300, "run_300/job: .*File too large; the job goes on")):
        output = tmp_path / f"run_{room}"
        job = launch_light(output, [fault(1, "step", "talk", 4), fault(2, "step", "talk", 7)], file_bytes=room).finish()
        assert job.code == 0 and re.search(told, job.stderr), job.stderr
        assert (job.job.rank_log(1)).stat().st_size <= room and checkpoints(output)[STEPS] == expected(3, STEPS)
        assert job.history[0]["event"] == "started" and len(job.stderr.splitlines()) < 12


def test_a_rank_may_write_anything(tmp_path):
    job = launch_light(tmp_path / "run", [fault(1, "step", "babble", 4), fault(1, "step", "exit", 4)]).finish()
    assert job.code == 9 and b"\xff\x00" in job.job.rank_log(1).read_bytes()
    assert r"no \u0085 end" in job.events("failure")[0]["words"][-1] and r"no \u0085 end" in job.stderr


@pytest.mark.parametrize("sessions", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_signals_at_random_instants_stop_four_ranks_at_one_step(tmp_path, sessions):
    """Each session goes on where the one before was stopped, and every checkpoint is that of a run that never was."""
    rng, output, reached = random.Random(12), tmp_path / "run", 0  # its first three signals are of three kinds
    for session in range(sessions):
        job = launch_light(output, world=4, steps=100000, resume=session > 0)
        wait_for(lambda: job.events("started" if session else "checkpoint"))
        time.sleep(rng.uniform(0.0, 1.2))
        job.process.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
        job.finish()
        assert job.code == EXIT_STOPPED and not job.stderr, job.stderr
        job.require_records()
        saved = checkpoints(output)
        assert max(saved, default=0) >= reached and all(value == expected(4, step) for step, value in saved.items())
        assert len(job.events("checkpoint")) == len({event["step"] for event in job.events("checkpoint")})
        reached = max(saved, default=0)
    assert reached > sessions
