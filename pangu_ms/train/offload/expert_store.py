"""All members of a model's stacks in host memory: float32 weights and AdamW moments. No mindspore import."""

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ascend_ops.host
from pangu_ms.config.schema import OptimizerConfig
from pangu_ms.core.errors import ConfigError, OutputError
from pangu_ms.core.free_memory import available_memory
from pangu_ms.core.size_text import size_text
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import COLLECTIONS, is_stack, member_name
from pangu_ms.parallel.plan import MOMENTS

WEIGHT = ""
STATES = (WEIGHT, *MOMENTS)
"""Prefixes of the names of a member's tensors in a checkpoint: its weights and the two moments."""
_ALIGNMENT = 16
"""Values (64 bytes) at whose multiples a tensor of a member begins, so that vector loads are aligned."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One expert of a layer, or one embedding slot."""

    collection: str
    """The part of the names of its tensors before its number, such as blocks.2.ffn.experts."""
    index: int


class ExpertStore:
    """Weights and moments of every member, in memory or in memory-mapped files.

    The files are scratch without a name: the system removes them with the process, however it ends. Checkpoints copy
    what has changed since the last one.
    """

    def __init__(self, model: ModelConfig, optimizer: OptimizerConfig, directory: Path | None = None):
        """Reserve the room; all values are 0.

        Args:
            model: has the stacks.
            optimizer: the settings of `update`.
            directory: where to make the files; None keeps everything in memory.

        Raises:
            ConfigError: the host has too little memory.
            OutputError: the disk has too little room.
        """
        specs, shapes = model.parameters(), model.parameter_shapes()
        self.stacks = {name: shapes[name] for name in specs if is_stack(name)}
        """Shape of each stack, by its name."""
        self.trainable = {name: specs[name].trainable for name in self.stacks}
        self.decay = {name: optimizer.weight_decay if specs[name].decay else 0.0 for name in self.stacks}
        self.optimizer, self.directory = optimizer, directory
        self._tensors: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}  # offset and shape in a member, by stack
        self._sizes: dict[str, int] = {}  # values of a member, by collection
        for name, shape in self.stacks.items():
            self._add(name, shape[1:])
        self.changed: set[Member] = set()
        """Members that were written since the last checkpoint."""
        self.versions: dict[Member, int] = dict.fromkeys(self.members(), 0)
        """Counts the writes to each member, so that a copy of it knows whether it is stale."""
        self._require_room()
        self._flat = {
            (state, collection): self._allocate(collection) for state in self.states() for collection in self._tensors
        }

    def _add(self, stack: str, shape: tuple[int, ...]) -> None:
        collection = collection_of(stack)
        offset = self._sizes.get(collection, 0)
        self._tensors.setdefault(collection, {})[stack] = (offset, shape)
        self._sizes[collection] = -(-(offset + math.prod(shape)) // _ALIGNMENT) * _ALIGNMENT

    def _allocate(self, collection: str) -> np.ndarray:
        """Float32 zeros [members, values of a member]."""
        shape = (self._number(collection), self._sizes[collection])
        if self.directory is None:
            return np.zeros(shape, np.float32)  # the system gives it memory at the first write
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.directory) as file:
            try:
                # A later write to a hole would kill the process if the disk is full then.
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            except OSError as error:
                raise OutputError(f"{self.directory}: {error.strerror}; {self._needed()}; free some room") from None
            return np.memmap(file, np.float32, "r+", shape=shape)

    def _number(self, collection: str) -> int:
        return self.stacks[next(iter(self._tensors[collection]))][0]

    def states(self) -> tuple[str, ...]:
        """Prefixes of the states that it holds: without trainable stacks there are no moments."""
        return STATES if any(self.trainable.values()) else (WEIGHT,)

    def members(self) -> Iterator[Member]:
        """All members, collection by collection."""
        for collection in self._tensors:
            yield from (Member(collection, index) for index in range(self._number(collection)))

    def stacks_of(self, collection: str) -> list[str]:
        """Names of the stacks of a collection."""
        return list(self._tensors[collection])

    def value(self, stack: str, index: int, state: str = WEIGHT) -> np.ndarray:
        """The tensor of one member, not a copy."""
        collection = collection_of(stack)
        offset, shape = self._tensors[collection][stack]
        return self._flat[state, collection][index, offset : offset + math.prod(shape)].reshape(shape)

    def tensors(self, member: Member, state: str = WEIGHT) -> dict[str, np.ndarray]:
        """The tensors of a member under the names that they have in a checkpoint."""
        return {
            state + member_name(stack, member.index): self.value(stack, member.index, state)
            for stack in self._tensors[member.collection]
        }

    def set(self, stack: str, index: int, value: np.ndarray, state: str = WEIGHT) -> None:
        """Write the tensor of one member."""
        self.value(stack, index, state)[...] = value
        self._written(Member(collection_of(stack), index))

    def update(self, stack: str, index: int, gradient: np.ndarray, norm: float, lr: float, factor: float) -> bool:
        """AdamW on the tensor of one member; nothing if it is not trained, or if the squared norm of its gradient is 0
        and optimizer.lazy_experts is on. Returns whether it was updated.

        Args:
            gradient: float32, contiguous, of the tensor's shape.
            norm: its squared norm.
            lr, factor: as for `ascend_ops.adamw`.
        """
        if not self.trainable[stack] or (norm == 0.0 and self.optimizer.lazy_experts):
            return False
        o = self.optimizer
        weight, m, v = (self.value(stack, index, state) for state in STATES)
        ascend_ops.host.host_adamw(
            weight, m, v, gradient, lr, factor, o.beta1, o.beta2, o.expert_eps, self.decay[stack]
        )
        self._written(Member(collection_of(stack), index))
        return True

    def _written(self, member: Member) -> None:
        self.changed.add(member)
        self.versions[member] += 1

    @property
    def nbytes(self) -> int:
        """Bytes of all members in all states."""
        return 4 * len(self.states()) * sum(self._sizes[member.collection] for member in self.members())

    def _needed(self) -> str:
        count = sum(math.prod(shape) for shape in self.stacks.values())
        return (
            f"{size_text(self.nbytes)} are needed for {count:,} parameters of experts and embedding slots, each"
            f" with {len(self.states()) - 1} float32 moments"
        )

    def _require_room(self) -> None:
        if self.directory is None:
            if self.nbytes > (free := available_memory()):
                raise ConfigError(
                    f"offload.experts: {self._needed()}; the host has {size_text(free)} of free memory; name a"
                    " directory on a disk by offload.directory, or use a smaller model"
                )
            return
        absolute = self.directory.absolute()
        existing = next(path for path in (absolute, *absolute.parents) if path.exists())
        if not existing.is_dir():
            raise ConfigError(f"offload.directory={self.directory}: {existing} is a file; name a directory")
        if self.nbytes > (free := shutil.disk_usage(existing).free):
            raise OutputError(
                f"{self.directory}: {self._needed()}; the disk has {size_text(free)} left; name an"
                " offload.directory on a larger disk"
            )


def collection_of(stack: str) -> str:
    """The part of a stack's name before the numbers of members: that of blocks.2.ffn.experts.up.weight is
    blocks.2.ffn.experts."""
    parts = stack.split(".")
    return ".".join(parts[: max(i for i, part in enumerate(parts) if part in COLLECTIONS.values()) + 1])
