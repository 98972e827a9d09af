"""A job: the device, arguments and environment of each rank, and the time limits of the launcher."""

import math
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pangu_ms.core import files
from pangu_ms.core.cluster_variables import inherited
from pangu_run.job import binding
from pangu_run.job.devices import visible_numbers
from pangu_run.job.secret import job_secret
from pangu_run.job_directory import JobDirectory
from pangu_run.orphans import JOB

MINDSPORE_LATER_S = 300.0
"""Seconds that MindSpore's scheduler waits longer than --start-timeout, so that the launcher's watchdog acts first: it
knows which rank is missing, which MindSpore does not report."""


@dataclass(frozen=True)
class DeviceAssignment:
    """The device and host of a rank."""

    rank: int
    server: str
    device: int
    """Number of the device on the host, as in the rank table."""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.server}, device {self.device})"


@dataclass(frozen=True)
class Limits:
    """How long the supervisor waits, in seconds."""

    host_s: float = 600.0
    """Wait for the launchers of the other hosts to connect."""
    start_s: float = 3600.0
    """Wait for the end of a rank's first step, which includes import, joining the cluster, loading and compilation."""
    hang_s: float = 600.0
    """Longest time without a heartbeat of a rank that is not waiting for others; must exceed the longest step,
    evaluation or save."""
    stop_s: float = 600.0
    """Wait from a stop signal until all ranks have saved and ended."""
    grace_s: float = 5.0
    """Wait for ranks to end by themselves after another rank failed, and again between SIGTERM and SIGKILL."""
    backoff_s: float = 5.0
    """Pause before the first restart; it doubles with each further restart, up to MAX_BACKOFF_S."""


@dataclass(frozen=True)
class Job:
    """A job as this host's launcher sees it."""

    argv: Callable[[int], Sequence[str]]
    """Arguments of `python` for a rank: ("-m", MODULE, ...) or ("-c", PROGRAM, ...)."""
    assignments: Sequence[DeviceAssignment]
    """The assignments of all ranks, in order of ranks."""
    directory: JobDirectory
    server: str = "localhost"
    """This host's name among `assignments`."""
    start: Literal["cluster", "rank-table"] = "cluster"
    """How ranks find each other: MindSpore's scheduler, or the rank table (RANK_TABLE_FILE)."""
    master: tuple[str, int] | None = None
    """Address and port of MindSpore's scheduler; the leader listens on the next port. None for a job of one host, for
    which free ports are chosen."""
    resume_argv: Sequence[str] = ()
    """Arguments added to `argv` on a restart."""
    max_restarts: int = 0
    bind: bool = False
    """Whether ranks are bound to cores of their NUMA node."""
    stream_rank: int | None = 0
    """The rank whose output the terminal shows; None for none."""
    name: str = "pangu launch"
    """Prefix of the launcher's lines on the terminal."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables in addition to those of this process and of the cluster."""
    limits: Limits = Limits()
    rank_table: Mapping[str, Any] | None = None
    """Content of the file that HCCL reads, if `start` is "rank-table"."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """Content of job.json, and "config" and "rank_table"; see JobDirectory.write_job."""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Id of this launch; marks this launcher's processes."""
    secret: bytes = field(default_factory=job_secret, repr=False)
    """Authenticates the job's launchers to each other; empty where the user gave none."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.assignments)

    @property
    def servers(self) -> list[str]:
        """All hosts, starting with the leader."""
        return list(dict.fromkeys(assignment.server for assignment in self.assignments))

    @property
    def leads(self) -> bool:
        """Whether this host's launcher is the leader."""
        return self.server == self.servers[0]

    @property
    def scheduler_address(self) -> tuple[str, int]:
        """`master`, which a job of several hosts always has."""
        assert self.master is not None
        return self.master

    @property
    def local(self) -> list[DeviceAssignment]:
        """This host's ranks, in order of devices."""
        return sorted((one for one in self.assignments if one.server == self.server), key=lambda one: one.device)

    def rank_argv(self, number: int, resume: bool) -> list[str]:
        """Arguments of `python` for a rank; on a restart including `resume_argv`."""
        argv = list(self.argv(number))
        return argv + [argument for argument in self.resume_argv if resume and argument not in argv]

    def cluster_variables(self, scheduler: tuple[str, int | str]) -> dict[str, str]:
        """Environment variables that MindSpore's scheduler and its ranks have in common."""
        host, port = scheduler
        timeout = str(math.ceil(self.limits.start_s + MINDSPORE_LATER_S))
        return {
            "MS_WORKER_NUM": str(self.world),
            "MS_SCHED_HOST": host,
            "MS_SCHED_PORT": str(port),
            "MS_TOPO_TIMEOUT": timeout,
        }

    def own_variables(self, assignment: DeviceAssignment, scheduler: tuple[str, int | str] | None) -> dict[str, str]:
        """Environment variables of one rank that a user cannot override.

        Args:
            assignment: of a rank of this host.
            scheduler: address and port of MindSpore's scheduler; None if the rank reads the rank table. In a dry run
                the port is a text.
        """
        index = self.local.index(assignment)
        own = {"RANK_ID": str(assignment.rank), "RANK_SIZE": str(self.world)}
        own |= {"DEVICE_ID": str(self.device_numbers()[index])}
        if scheduler:
            own |= self.cluster_variables(scheduler) | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(assignment.rank)}
        else:
            own["RANK_TABLE_FILE"] = str(self.rank_table_path)
        if self.bind:
            own[binding.CORES] = ",".join(map(str, binding.cores_of(index, len(self.local), binding.numa_nodes())))
        return own | {JOB: self.identity}

    def device_numbers(self) -> list[int]:
        """DEVICE_ID of each of this host's ranks."""
        return visible_numbers([assignment.device for assignment in self.local], inherited() | dict(self.environment))

    @property
    def rank_table_path(self) -> Path:
        """This host's own copy of the rank table, since a file written by another host may appear late on a shared
        disk, or never."""
        return (self.directory.path / f"rank_table_{re.sub(r'[^A-Za-z0-9_.-]', '_', self.server)}.json").resolve()

    def write_rank_table(self) -> None:
        """Write this host's copy of the rank table, if the job has one; call this before the ranks start.

        Raises:
            OutputError: the job directory cannot be written.
        """
        if self.rank_table is not None:
            files.write_json(self.rank_table_path, self.rank_table)

    def defaults(self, assignment: DeviceAssignment) -> dict[str, str]:
        """Default environment variables of one rank, which the user's environment overrides."""
        # The cores that this process may use, which in a container may be fewer than the machine has.
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.local))
        return {
            "ASCEND_OPS_NUM_THREADS": str(threads),  # the host's processors, shared out among its ranks
            "MS_RETRY_INTERVAL_LOWER": "1",  # 1 s instead of 3 to 5 between a rank's tries to join the cluster
            "MS_RETRY_INTERVAL_UPPER": "1",
            "PYTHONUNBUFFERED": "1",  # else the last lines of a rank that is killed are lost
            "ASCEND_PROCESS_LOG_PATH": str(self.log_dir(assignment.rank) / "ascend"),  # CANN's logs beside the rank's
        }

    def variables(self, assignment: DeviceAssignment, scheduler: tuple[str, int | str] | None) -> dict[str, str]:
        """The whole environment of a rank; arguments as in `own_variables`."""
        given = inherited() | dict(self.environment)
        return self.defaults(assignment) | given | self.own_variables(assignment, scheduler)

    def log_dir(self, number: int) -> Path:
        """Where a rank's logs are."""
        return self.directory.rank_log(number).parent
