"""The mesh of ranks: MindSpore's order of ranks, and the placement of ranks on devices. No mindspore import.

MindSpore divides the ranks into pipeline stages, which are contiguous blocks; inside a stage the ranks form a row-major
matrix whose last axis varies fastest: (dp, mp), or (dp, ep, mp) with expert parallelism. The placement on devices has
another order, with the heaviest traffic innermost: the model_parallel ranks of one replica are in one server, its
pipeline stages in the next ones, replicas outermost (spec A4, topology-aware placement).
"""

import functools
import math
from dataclasses import dataclass

from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.core.errors import PlanError


@dataclass(frozen=True)
class Coordinate:
    """The position of one rank in the mesh."""

    stage: int
    axes: tuple[int, ...]
    """Index along each axis of the stage's matrix, in the order of `Mesh.axes`."""


@dataclass(frozen=True)
class Device:
    """One accelerator of the cluster: its server, and its number in the server, both from 0."""

    server: int
    device: int


@dataclass(frozen=True)
class Mesh:
    """The number of pipeline stages, and the axes of the device matrix of each stage."""

    num_stages: int
    axes: tuple[tuple[str, int], ...]
    """(name, size), slowest first: (("dp", 16), ("mp", 8))."""
    devices_per_server: int = 8

    @classmethod
    def of(cls, parallel: ParallelConfig) -> "Mesh":
        """The mesh of a configuration. With expert parallelism the axis dp has data_parallel / expert_parallel devices,
        and a batch is split over dp and ep together."""
        dp, ep, mp = parallel.data_parallel, parallel.expert_parallel, parallel.model_parallel
        axes = (("dp", dp), ("mp", mp)) if ep == 1 else (("dp", dp // ep), ("ep", ep), ("mp", mp))
        return cls(parallel.pipeline_stage, axes, parallel.devices_per_server)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(name for name, _ in self.axes)

    @property
    def matrix(self) -> tuple[int, ...]:
        """Sizes of the axes: MindSpore's device matrix."""
        return tuple(size for _, size in self.axes)

    @property
    def stage_size(self) -> int:
        """Ranks of one stage."""
        return math.prod(self.matrix)

    @property
    def world(self) -> int:
        """Ranks of the job."""
        return self.num_stages * self.stage_size

    def coordinate(self, rank: int) -> Coordinate:
        """The coordinate of a rank.

        Raises:
            PlanError: there is no such rank.
        """
        if not 0 <= rank < self.world:
            raise PlanError(f"rank {rank}: the plan has {self.world} devices; ranks are 0 to {self.world - 1}")
        stage, rest = divmod(rank, self.stage_size)
        return Coordinate(stage, unravel(rest, self.matrix))

    def rank(self, at: Coordinate) -> int:
        """The rank at a coordinate."""
        return at.stage * self.stage_size + ravel(at.axes, self.matrix)

    def group(self, rank: int, *names: str) -> list[int]:
        """The ranks that differ from `rank` only along the named axes, itself included, in ascending order."""
        at = self.coordinate(rank)
        others = [self.coordinate(r) for r in self.stage_ranks(at.stage)]
        fixed = [i for i, name in enumerate(self.names) if name not in names]
        return [self.rank(other) for other in others if all(other.axes[i] == at.axes[i] for i in fixed)]

    def stage_ranks(self, stage: int) -> range:
        """Ranks of one stage."""
        return range(stage * self.stage_size, (stage + 1) * self.stage_size)

    def placement(self) -> list[Device]:
        """The device on which each rank should run: from inside to outside the last axis (mp), the stages, and the
        other axes, with replicas outermost."""
        last, stages = self.matrix[-1], self.num_stages
        devices = []
        for rank in range(self.world):
            stage, rest = divmod(rank, self.stage_size)
            outer, inner = divmod(rest, last)
            devices.append(Device(*divmod((outer * stages + stage) * last + inner, self.devices_per_server)))
        return devices

    def servers(self, ranks: list[int]) -> int:
        """Number of servers that a group of ranks spans when placed."""
        return len({self._placed[r].server for r in ranks})

    @functools.cached_property
    def _placed(self) -> list[Device]:
        return self.placement()


def ravel(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Row-major (flat) number of an index."""
    number = 0
    for i, size in zip(index, shape, strict=True):
        number = number * size + i
    return number


def unravel(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Index of a row-major (flat) number."""
    index = []
    for size in reversed(shape):
        number, i = divmod(number, size)
        index.append(i)
    return tuple(reversed(index))
