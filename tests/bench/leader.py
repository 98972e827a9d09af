"""`python -m tests.bench.leader`: the load that the leading launcher holds: a job of many hosts over loopback.

The leader is a process of its own with real ranks, which beat and wait for their end. The other hosts are connections
of this process, which join and obey as launchers do, with ranks that only exist as messages. Two jobs: one that is
flooded with heartbeats and then stopped by a signal, one that loses a host.
"""

import argparse
import asyncio
import functools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_ms.core.isolated import JOB_SECRET
from pangu_run.job import record
from pangu_run.job.job import DeviceAssignment, Job, Limits
from pangu_run.job_directory import JobDirectory
from pangu_run.launcher import run_job
from pangu_run.supervisor import messages
from pangu_run.supervisor.leader import Leader
from pangu_run.supervisor.links import join
from tests.faults.common import free_ports

RANK = (
    "import signal, sys; from pangu_ms.core.heartbeat import beat; signal.signal(15, lambda *_: sys.exit(75));"
    " beat('step', 0); signal.pause()"
)
FLOOD = 1000
"""Steps of the flood's beats begin here."""


def job_of(hosts: int, ranks: int, port: int, directory: Path, server: int) -> Job:
    """The job as the launcher of a host sees it."""
    assignments = [DeviceAssignment(rank, f"h{rank // ranks}", rank % ranks) for rank in range(hosts * ranks)]
    limits = Limits(host_s=300.0, grace_s=20.0)
    master = ("127.0.0.1", port)
    return Job(
        lambda rank: ["-c", RANK],
        assignments,
        JobDirectory(directory),
        f"h{server}",
        start="rank-table",
        master=master,
        limits=limits,
        stream_rank=None,
    )


def lead(spec: dict) -> int:
    """The leader's process; writes how many beats of the flood it took in, and in which time, to the directory."""
    taken, first, last = 0, 0.0, 0.0
    take = Leader._handle

    def counted(self: Leader, message: dict) -> None:
        nonlocal taken, first, last
        take(self, message)
        if message["is"] == "beat" and (message["step"] or 0) >= FLOOD:
            last = time.monotonic()
            first, taken = first or last, taken + 1

    Leader._handle = counted
    code = run_job(job_of(spec["hosts"], spec["ranks"], spec["port"], Path(spec["directory"]), 0))
    Path(spec["directory"], "taken.json").write_text(json.dumps({"beats": taken, "seconds": last - first}))
    return code


class Follower:
    """Another host: a connection, and ranks that are messages."""

    def __init__(self, job: Job):
        self.job, self.link, self.end_code = job, None, None
        self.started, self.ended = asyncio.Event(), 0.0
        self.left = {assignment.rank for assignment in job.local}

    async def obey(self) -> None:
        """Join, and do as the leader says until it says how the job ended, or the connection is gone."""
        self.link = await join(self.job, [])
        alive = asyncio.create_task(self.link.keep_alive())
        while command := messages.from_leader(await self.link.receive()):
            if command["do"] == "start":
                self.beat("init", None)
                self.started.set()
            elif command["do"] in ("signal", "kill"):
                self.exit(EXIT_STOPPED if command["do"] == "signal" else -signal.SIGKILL)
            elif command["do"] == "end":
                self.end_code = command["code"]
                break
        alive.cancel()
        self.ended = time.monotonic()
        self.link.abort()

    def beat(self, phase: str, step: int | None) -> None:
        """All its ranks beat."""
        for rank in self.left:
            self.link.send(
                {
                    "is": "beat",
                    "attempt": 1,
                    "rank": rank,
                    "pid": rank + 1,
                    "phase": phase,
                    "step": step,
                    "time": time.time(),
                }
            )

    async def flood(self, rounds: int) -> None:
        """All its ranks beat as fast as the leader reads."""
        for step in range(FLOOD, FLOOD + rounds):
            self.beat("step", step)
            await self.link._writer.drain()

    def exit(self, code: int) -> None:
        """All its ranks end."""
        while self.left:
            message = {"is": "exit", "attempt": 1, "rank": self.left.pop(), "code": code, "time": time.time()}
            self.link.send(message | {"words": ["(nothing)"], "started": True, "oom": False})


async def one_job(args: argparse.Namespace, directory: Path, lose: bool) -> dict:
    """One job from its start to its end; what was measured."""
    port = free_ports()
    spec = {"hosts": args.hosts, "ranks": args.ranks, "port": port, "directory": str(directory)}
    words = [sys.executable, "-m", "tests.bench.leader", "--lead", json.dumps(spec)]
    leader = await asyncio.create_subprocess_exec(*words, stderr=subprocess.PIPE)
    told = asyncio.create_task(leader.stderr.read())
    while not listens(port + 1):
        assert leader.returncode is None, (await told).decode()
        await asyncio.sleep(0.05)
    followers = [Follower(job_of(args.hosts, args.ranks, port, directory, host)) for host in range(1, args.hosts)]
    began = time.monotonic()
    tasks = [asyncio.create_task(follower.obey()) for follower in followers]
    await asyncio.gather(*(follower.started.wait() for follower in followers))
    found = {"gather_s": time.monotonic() - began}
    await until_ready(JobDirectory(directory))
    if not lose:
        before = cpu_seconds(leader.pid)
        await steady(followers, args.seconds)
        found["steady_cpu"] = (cpu_seconds(leader.pid) - before) / args.seconds
        before = cpu_seconds(leader.pid)
        await asyncio.gather(*(follower.flood(args.rounds) for follower in followers))
        await asyncio.sleep(1.0)
        found["flood_cpu_s"] = cpu_seconds(leader.pid) - before
    found |= {"leader_mib": int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{leader.pid}/status").read_text())[1]) / 1024}
    began = time.monotonic()
    if lose:
        followers[-1].link.abort()
    else:
        leader.send_signal(signal.SIGTERM)
    code = await leader.wait()
    found |= {"end_s": time.monotonic() - began, "code": code}
    await asyncio.gather(*tasks)
    ends = {follower.end_code for follower in followers[: -1 if lose else None]}
    assert code == (EXIT_HOST if lose else EXIT_STOPPED) and ends == {code}, (code, ends, (await told).decode())
    return found | {"told": (await told).decode()} | json.loads((directory / "taken.json").read_text())


async def steady(followers: list[Follower], seconds: float) -> None:
    """Each rank beats twice a second."""
    for number in range(int(2 * seconds)):
        for follower in followers:
            follower.beat("step" if number % 2 else "data", number // 2)
        await asyncio.sleep(0.5)


async def until_ready(directory: JobDirectory) -> None:
    """Wait until the leader has heard of all ranks."""
    while not any(event["event"] == "ready" for event in directory.events()):
        await asyncio.sleep(0.1)


def listens(port: int) -> bool:
    """Whether somebody does; the leader takes the question for a stranger that leaves."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(args: argparse.Namespace) -> dict:
    """Both jobs."""
    os.environ[JOB_SECRET] = secrets.token_hex(32)
    record.versions = functools.cache(record.versions)  # each host asks for its own
    with tempfile.TemporaryDirectory() as scratch:
        stopped = asyncio.run(one_job(args, Path(scratch, "stopped"), lose=False))
        lost = asyncio.run(one_job(args, Path(scratch, "lost"), lose=True))
    assert "was lost" in lost["told"], lost["told"]
    facts = {
        "hosts": args.hosts,
        "ranks": args.hosts * args.ranks,
        "gather_s": stopped["gather_s"],
        "leader_mib": stopped["leader_mib"],
    }
    facts |= {"steady_messages_per_s": 2 * (args.hosts - 1) * args.ranks, "steady_cpu": stopped["steady_cpu"]}
    facts |= {"flood_messages": stopped["beats"], "messages_per_s": stopped["beats"] / stopped["seconds"]}
    facts["messages_per_cpu_s"] = stopped["beats"] / max(stopped["flood_cpu_s"], 0.01)
    return facts | {"signal_to_end_s": stopped["end_s"], "lost_host_to_end_s": lost["end_s"]}


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hosts", type=int, default=256, help="hosts, the leading one with them (default: %(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=8, help="ranks of each host (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="beats of each rank in the flood (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of two beats a second from each rank (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--lead", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lead:
        sys.exit(lead(json.loads(args.lead)))
    facts = measure(args)
    print(json.dumps(facts) if args.json else "\n".join(f"{name:<24}{value:>12,.6g}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
