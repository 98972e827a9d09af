"""The present state of a job, from its directory and, on the launcher's own host, the launcher's process."""

import time
from typing import Any

from pangu_ms.core.errors import LaunchError
from pangu_run import this_host
from pangu_run.job_directory import JobDirectory
from pangu_run.report.status import JobStatus, job_status

CLOCK_S = 60.0
"""How far a clock may have been adjusted since a process began."""


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
    """Steps of the whole run: job.json's, else the configuration's train.steps; None for verbs without steps."""
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
    """Whether the leading launcher's process is among those of this host; None where it runs on another host.

    A container may have its host's name and not see its processes, so False counts only where the status has not
    changed for long, too.
    """
    if job.get("launcher_pid") is None or job.get("host") not in this_host.names():
        return None
    import psutil

    try:
        process = psutil.Process(job["launcher_pid"])
        # A process that began after the job has only reused the launcher's process id.
        is_launcher = job.get("time") is None or process.create_time() <= job["time"] + CLOCK_S
        return is_launcher and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
