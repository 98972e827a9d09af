"""The members of stacks that a batch needs, gathered into arrays of a fixed size. No mindspore import."""

from collections.abc import Sequence

import numpy as np

from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import COLLECTIONS
from pangu_ms.train.offload.expert_store import ExpertStore, Member, collection_of

_AXES = {collection: axis for axis, collection in COLLECTIONS.items()}


class WorkingSet:
    """Copies of the members that some domains need, and tables that point to these copies.

    A graph may read the arrays in place: they must not be written while it runs.
    """

    def __init__(self, store: ExpertStore, model: ModelConfig, tables: dict[str, np.ndarray], sizes: dict[str, int]):
        """Make the arrays.

        Args:
            store: the members.
            model: the configuration of the whole model.
            tables: the whole model's tables by name.
            sizes: room for members, by the axis of the stack.
        """
        self.store, self.model, self._whole_tables = store, model, tables
        self.arrays = {
            stack: np.zeros((sizes[_axis(stack)], *shape[1:]), np.float32) for stack, shape in store.stacks.items()
        }
        """Float32 [room, ...] for each stack, by its name."""
        self.tables = {name: np.zeros_like(table) for name, table in tables.items()}
        """The tables with positions in `arrays`. Only the lines of the present domains are meaningful."""
        self.domains: tuple[int, ...] = ()
        self.members: dict[str, list[int]] = {}
        """The members that are present, by axis, in the order in which the arrays hold them."""
        self._versions: dict[str, dict[int, tuple[int, int]]] = {stack: {} for stack in self.arrays}

    def load(self, domains: Sequence[int]) -> int:
        """Make the members of these domains present, in their latest state; returns the number of bytes that were
        copied.

        Raises:
            AssertionError: the arrays have too little room.
        """
        if tuple(domains) != self.domains:
            self.domains, self.members = tuple(domains), self.model.members_of(domains)
            for name, domain, line in self.model.local_tables(self._whole_tables, domains):
                self.tables[name][domain] = line
        return sum(self._load_stack(stack) for stack in self.arrays)

    def members_of(self, stack: str) -> list[int]:
        """The members of a stack that are present, in the order in which its array holds them."""
        return self.members[_axis(stack)]

    def _load_stack(self, stack: str) -> int:
        """Copy those members of a stack that are not here yet or have changed since they were copied."""
        array, collection, held = self.arrays[stack], collection_of(stack), self._versions[stack]
        members = self.members_of(stack)
        assert len(members) <= len(array), f"{stack}: {len(members)} members, room for {len(array)}"
        copied = 0
        for position, index in enumerate(members):
            latest = (index, self.store.versions[Member(collection, index)])
            if held.get(position) != latest:
                array[position] = self.store.value(stack, index)
                held[position] = latest
                copied += array[position].nbytes
        return copied


def _axis(stack: str) -> str:
    """The axis of a stack, by its name."""
    return _AXES[collection_of(stack).rpartition(".")[2]]
