"""`python -m tests.faults.light_launch JSON`: launch tests.faults.light as `pangu launch` launches `train`.

Keys: output, steps; world (3), servers (["localhost"]), server (the first), start, master ([host, port]), max_restarts,
limits (fields of Limits), scheduler (a program instead of MindSpore's), file_bytes (no longer file can be written once
the job has begun), stall_s (so long takes the third write of the status), lost_s (without a sign of life a host is
lost), descriptors (how many files the launcher may have open), strangers (how many connections may be identifying
themselves), version (of the launcher), hello_s (for one to say who it is), nonsense (messages that it sends beside each
of its own), job_dir, stream, resume.
"""

import itertools
import json
import resource
import sys
import time
from pathlib import Path

from pangu_ms.core import stop_signals
from pangu_ms.core.console import guarded
from pangu_run.job.job import DeviceAssignment, Job, Limits
from pangu_run.job_directory import NAME, JobDirectory
from pangu_run.launcher import run_job
from pangu_run.supervisor import links, scheduler

QUICK = {"start_s": 60.0, "grace_s": 0.5, "backoff_s": 0.2, "host_s": 20.0}


def job_of(spec):
    """The job that JSON describes."""
    servers, world = spec.get("servers", ["localhost"]), spec.get("world", 3)
    each = world // len(servers)
    return Job(
        argv=lambda rank: [
            "-m",
            "tests.faults.light",
            spec["output"],
            str(spec["steps"]),
            *(["--resume"] if spec.get("resume") else []),
        ],
        assignments=[DeviceAssignment(rank, servers[rank // each], rank % each) for rank in range(world)],
        directory=JobDirectory(Path(spec.get("job_dir", Path(spec["output"]) / NAME))),
        server=spec.get("server", servers[0]),
        start=spec.get("start", "rank-table"),
        master=tuple(spec["master"]) if "master" in spec else None,
        resume_argv=("--resume",),
        max_restarts=spec.get("max_restarts", 0),
        stream_rank=spec.get("stream", 0),
        limits=Limits(**QUICK | spec.get("limits", {})),
    )


def fill_the_disk(file_bytes):
    """No file can be longer than that once job.json is written."""
    write_job = JobDirectory.write_job

    def write_the_last(self, description):
        write_job(self, description)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    JobDirectory.write_job = write_the_last


def stall_the_disk(seconds):
    """As a shared file system does that is busy with a checkpoint."""
    write_status, writes = JobDirectory.write_status, itertools.count(1)

    def write_slowly(self, status):
        time.sleep(seconds if next(writes) == 3 else 0)
        write_status(self, status)

    JobDirectory.write_status = write_slowly


def talk_nonsense(words):
    """With each message of this host comes one that no launcher would send."""
    send, others = links.HostLink.send, itertools.cycle(words)

    def send_both(self, message):
        send(self, message)
        if "do" not in message and message.get("is") != "join":
            send(self, next(others))

    links.HostLink.send = send_both


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    scheduler.PROGRAM = spec.get("scheduler", scheduler.PROGRAM)
    if "file_bytes" in spec:
        fill_the_disk(spec["file_bytes"])
    stall_the_disk(spec.get("stall_s", 0))
    if "lost_s" in spec:
        links.LOST_S, links.ALIVE_S = spec["lost_s"], spec["lost_s"] / 10
    if "descriptors" in spec:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["descriptors"],) * 2)
    if "strangers" in spec:
        links.max_unidentified = lambda hosts: spec["strangers"]
    if "version" in spec:
        links.version = lambda: spec["version"]
    links.HELLO_S = spec.get("hello_s", links.HELLO_S)
    if "nonsense" in spec:
        talk_nonsense(spec["nonsense"])
    with stop_signals.command(stops=True):
        code = guarded("pangu launch", lambda: run_job(job_of(spec)))
    sys.exit(code)
