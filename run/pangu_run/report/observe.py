"""The current state of a job, from its directory and, on the launcher's own host, from the launcher's process."""

import time
from typing import Any

from pangu_ms.core.errors import LaunchError
from pangu_run import this_host
from pangu_run.job_directory import JobDirectory
from pangu_run.report.status import JobStatus, job_status

CLOCK_S = 60.0
"""Seconds by which a clock may have been adjusted since a process started."""


def observe(directory: JobDirectory) -> JobStatus:
    """The job as it is now."""
    job = directory.job()
    status, events = directory.status(), directory.latest_events(job.get("id"))
    return job_status(job, status, events, time.time(), launcher_lives(job), total_steps(directory, job))


def is_over(directory: JobDirectory) -> bool:
    """Whether the job has ended or its launcher is gone."""
    job = directory.job()
    return job_status(job, directory.status(), [], time.time(), launcher_lives(job), None).over


def total_steps(directory: JobDirectory, job: dict[str, Any]) -> int | None:
    """Number of steps of the whole run, from job.json or else from train.steps of the configuration; None for verbs
    without steps."""
    if job.get("total_steps") is not None:
        return job["total_steps"]
    path = directory.path / "config.yaml"
    if not path.is_file():
        return None
    from pangu_ms.core import yaml_file

    try:
        steps = (yaml_file.read(path, LaunchError) or {}).get("train", {}).get("steps")
    except (LaunchError, AttributeError):
        return None  # then the remaining time is not shown, as for a configuration without steps
    return steps if isinstance(steps, int) else None


def launcher_lives(job: dict[str, Any]) -> bool | None:
    """Whether the leader's process is running on this host; None if it runs on another host.

    A container may have its host's name without seeing the processes of the host, so the result False only counts if
    the status has not changed for long, either.
    """
    if job.get("launcher_pid") is None or job.get("host") not in this_host.names():
        return None
    import psutil

    try:
        process = psutil.Process(job["launcher_pid"])
        # A process that started after the job has reused the launcher's process id.
        is_launcher = job.get("time") is None or process.create_time() <= job["time"] + CLOCK_S
        return is_launcher and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
