"""A launcher as a process of its own, with faults in its ranks: how it ended, what it wrote, what is left of it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from pangu_run.job_directory import EVENTS, NAME, STATES, JobDirectory

INJECT, ROOT = Path(__file__).parent / "inject", Path(__file__).parents[2]
LEFT_S = 3.0
SECRET = "a secret of one job, for tests alone"
STARTED: list["Launch"] = []


def free_ports():
    """Two neighbours that nobody has now: MindSpore's scheduler and the leader. The system gives none of this range to
    connections, such as those of other tests, between now and the launch."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


class Launch:
    """One launcher. Its processes, and theirs, inherit a variable of their own, FAULT_LOG, by which all that is left of
    them is found."""

    def __init__(self, words, output, faults=(), **variables):
        self.output = Path(output)
        self.log = self.output.with_name(f"{self.output.name}.{uuid.uuid4().hex[:8]}.deeds")
        self.log.touch()
        path = os.pathsep.join(filter(None, [str(INJECT), str(ROOT), str(ROOT / "run"), os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "FAULT": json.dumps(list(faults)), "FAULT_LOG": str(self.log)}
        self.began = time.time()
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | own | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.code, self.ended = None, float("inf")
        STARTED.append(self)

    def finish(self, timeout=60):
        """Wait for its end, and require that nothing is left of it."""
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=timeout)
        finally:
            left = self.left(0 if self.process.poll() is None else LEFT_S)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        self.code, self.ended = self.process.returncode, time.time()
        self.seconds = self.ended - (self.deeds[-1]["time"] if self.deeds else self.began)
        assert not left, f"left: {left}"
        self.history = [event for event in self.job.events() if event["time"] >= self.began]
        self.status = self.job.status()
        return self

    def left(self, patience=0.0):
        """Processes that have FAULT_LOG, some seconds from now at the latest."""
        deadline = time.monotonic() + patience
        while (found := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def alive(self):
        """Process ids of all that live, by their environments."""
        marker, found = f"FAULT_LOG={self.log}".encode(), []
        for directory in Path("/proc").iterdir():
            try:
                if directory.name.isdecimal() and marker in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
            except OSError:
                continue
        return found

    @property
    def deeds(self):
        """What sitecustomize did."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def job(self):
        """The job directory."""
        return JobDirectory(self.output / NAME)

    def events(self, *names):
        """Events of this launch with these names, so far."""
        return [
            event
            for event in self.job.events()
            if event["event"] in names and self.began <= event["time"] <= self.ended
        ]

    def require_records(self):
        """Events and status are whole, in order, and say how the job ended."""
        events, status = self.history, self.status
        assert (self.job.path / "events.jsonl").read_text().endswith("\n") and not list(self.job.path.rglob("*.tmp"))
        assert [event["time"] for event in events] == sorted(event["time"] for event in events)
        assert {event["event"] for event in events} <= set(EVENTS)
        assert [event["attempt"] for event in events if event["event"] == "started"] == [
            *range(1, status["attempt"] + 1)
        ]
        assert [event["exit_code"] for event in events if event["event"] == "ended"] == [self.code] and events[-1][
            "event"
        ] == "ended"
        assert (status["state"], status["exit_code"]) == ("ended", self.code) and status["state"] in STATES
        assert [row["rank"] for row in status["ranks"]] == [*range(len(status["ranks"]))]
        pids = [row["pid"] for row in status["ranks"] if row["pid"]]
        assert len(set(pids)) == len(pids) and not any(
            Path(f"/proc/{pid}/environ").exists() and pid in self.alive() for pid in pids
        )


def launch_light(output, faults=(), pause=0.01, secret=SECRET, **spec):
    """A job of tests.faults.light; see light_launch for `spec`."""
    spec = {"output": str(output), "steps": 10} | spec
    words = ["-m", "tests.faults.light_launch", json.dumps(spec)]
    output.mkdir(parents=True, exist_ok=True)
    return Launch(words, output, faults, LIGHT_NAME=f"light-{output}", LIGHT_PAUSE=str(pause), PANGU_JOB_SECRET=secret)


def wait_for(condition, seconds=30.0):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.02)


def fault(rank, at, do, step=None, **more):
    """A fault as sitecustomize reads it."""
    return {"rank": rank, "at": at, "do": do, **more} | ({} if step is None else {"step": step})
