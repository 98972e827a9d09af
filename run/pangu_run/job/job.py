"""What a launcher starts: where each rank goes, its words and its environment, and how long to wait for what."""

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
"""How much later than --start-timeout MindSpore's scheduler gives up: the launcher's watchdog knows which rank is
missing, MindSpore does not say."""


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    rank: int
    server: str
    device: int


@dataclass(frozen=True)
class Limits:
    """How long the supervisor waits, in seconds."""

    host_s: float = 600.0
    """For the other hosts' launchers."""
    start_s: float = 3600.0
    """For a rank's first step: import, joining, loading, compilation."""
    hang_s: float = 600.0
    """Without a heartbeat of a rank that does not wait for others: longer than the longest step, evaluation or save."""
    stop_s: float = 600.0
    """From a stop signal until all ranks have saved and ended."""
    grace_s: float = 5.0
    """For ranks to end by themselves after another failed, then between SIGTERM and SIGKILL."""
    backoff_s: float = 5.0
    """Before the first restart; doubled before each further one, at most MAX_BACKOFF_S."""


@dataclass(frozen=True)
class Job:
    """A job as this host's launcher sees it."""

    words: Callable[[int], Sequence[str]]
    """A rank's words after `python`: ("-m", MODULE, ...) or ("-c", PROGRAM, ...)."""
    places: Sequence[Place]
    """Of all ranks, in order of ranks."""
    directory: JobDirectory
    server: str = "localhost"
    """This host's name among `places`."""
    start: Literal["cluster", "rank-table"] = "cluster"
    """How ranks find each other: MindSpore's scheduler, or the rank table (RANK_TABLE_FILE)."""
    master: tuple[str, int] | None = None
    """Address and port of MindSpore's scheduler; the leader's own port is the next one. None: one host, ports are
    chosen."""
    resume_words: Sequence[str] = ()
    """Added to `words` on a restart."""
    max_restarts: int = 0
    bind: bool = False
    """Whether ranks keep to cores of their NUMA node."""
    stream_rank: int | None = 0
    """The rank whose output the terminal shows; None: none."""
    name: str = "pangu launch"
    """What lines on the terminal begin with."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of this process and of the cluster."""
    limits: Limits = Limits()
    rank_table: Mapping[str, Any] | None = None
    """What HCCL reads, where `start` is "rank-table"."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """For job.json, with "config" and "rank_table" as JobDirectory.write_job has them."""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Marks this launcher's processes."""
    secret: bytes = field(default_factory=job_secret, repr=False)
    """What the job's launchers know each other by; empty where there is none."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.places)

    @property
    def servers(self) -> list[str]:
        """All hosts; the first one leads."""
        return list(dict.fromkeys(place.server for place in self.places))

    @property
    def leads(self) -> bool:
        """Whether this host's launcher decides."""
        return self.server == self.servers[0]

    @property
    def local(self) -> list[Place]:
        """This host's ranks, in order of devices."""
        return sorted((place for place in self.places if place.server == self.server), key=lambda place: place.device)

    def rank_words(self, number: int, resume: bool) -> list[str]:
        """A rank's words; on a restart with those that make it resume."""
        words = list(self.words(number))
        return words + [word for word in self.resume_words if resume and word not in words]

    def cluster_variables(self, scheduler: tuple[str, int]) -> dict[str, str]:
        """What MindSpore's scheduler and the ranks that meet there must have in common."""
        host, port = scheduler
        timeout = str(math.ceil(self.limits.start_s + MINDSPORE_LATER_S))
        return {
            "MS_WORKER_NUM": str(self.world),
            "MS_SCHED_HOST": host,
            "MS_SCHED_PORT": str(port),
            "MS_TOPO_TIMEOUT": timeout,
        }

    def own_variables(self, place: Place, scheduler: tuple[str, int] | None) -> dict[str, str]:
        """What is set for one rank; what a user may override comes first in `variables`."""
        index = self.local.index(place)
        own = {"RANK_ID": str(place.rank), "RANK_SIZE": str(self.world), "DEVICE_ID": str(self.device_numbers()[index])}
        if scheduler:
            own |= self.cluster_variables(scheduler) | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(place.rank)}
        else:
            own["RANK_TABLE_FILE"] = str(self.rank_table_path)
        if self.bind:
            own[binding.CORES] = ",".join(map(str, binding.cores_of(index, len(self.local), binding.numa_nodes())))
        return own | {JOB: self.identity}

    def device_numbers(self) -> list[int]:
        """DEVICE_ID of each of this host's ranks."""
        return visible_numbers([place.device for place in self.local], inherited() | dict(self.environment))

    @property
    def rank_table_path(self) -> Path:
        """This host's own copy: another host's may come late through a shared disk, or never."""
        return (self.directory.path / f"rank_table_{re.sub(r'[^A-Za-z0-9_.-]', '_', self.server)}.json").resolve()

    def write_rank_table(self) -> None:
        """Write this host's copy of the rank table, where the job has one; to be done before its ranks start.

        Raises:
            OutputError: the job directory cannot be written.
        """
        if self.rank_table is not None:
            files.write_json(self.rank_table_path, self.rank_table)

    def defaults(self, place: Place) -> dict[str, str]:
        """What the user's own variables override: processors shared out, quick tries to join, CANN's logs beside the
        rank's."""
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.local))
        return {
            "ASCEND_OPS_NUM_THREADS": str(threads),
            "MS_RETRY_INTERVAL_LOWER": "1",  # 1 s instead of 3 to 5 between a rank's tries to join the others
            "MS_RETRY_INTERVAL_UPPER": "1",
            "PYTHONUNBUFFERED": "1",  # the last words of a rank that is killed
            "ASCEND_PROCESS_LOG_PATH": str(self.log_dir(place.rank) / "ascend"),
        }

    def variables(self, place: Place, scheduler: tuple[str, int] | None) -> dict[str, str]:
        """The whole environment of a rank."""
        return self.defaults(place) | inherited() | dict(self.environment) | self.own_variables(place, scheduler)

    def log_dir(self, number: int) -> Path:
        """Where a rank's logs are."""
        return self.directory.rank_log(number).parent
