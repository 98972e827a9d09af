"""Ranks that are a few lines of Python, launched in this process."""

import time

from pangu_run.job.job import Limits
from pangu_run.job_directory import JobDirectory
from pangu_run.launcher import run_ranks

SCHEDULER = (
    "import os, socket, time; s = socket.create_server(('127.0.0.1', int(os.environ['MS_SCHED_PORT']))); time.sleep(60)"
)


QUICK = Limits(grace_s=1.0)


def run(tmp_path, *programs, limits=QUICK, environment=None, **options):
    began = time.monotonic()
    code = run_ranks(
        lambda rank: ["-c", programs[rank]], len(programs), tmp_path / "job", environment, limits=limits, **options
    )
    return code, time.monotonic() - began


def log(tmp_path, rank):
    return JobDirectory(tmp_path / "job").rank_log(rank).read_text()


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
