"""The model of a run whose experts are in host memory, and its checkpoints."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import safetensors_file, store
from pangu_ms.checkpoint.step_directory import write_step
from pangu_ms.config.schema import RunConfig
from pangu_ms.data.loader import Loader
from pangu_ms.eval.perplexity import Evaluator, Score
from pangu_ms.models.build import build_model, to_arrays, weights
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import is_stack
from pangu_ms.parallel.replicas import Replicas
from pangu_ms.train.distributed_model import Read, ReplicatedModel
from pangu_ms.train.offload.expert_store import WEIGHT, ExpertStore, Member
from pangu_ms.train.offload.offload_step import OffloadStep
from pangu_ms.train.steps.protocol import OptimizerStep


class OffloadedModel(ReplicatedModel):
    """One process has the whole model: the experts in an ExpertStore, all other weights in the graph."""

    def __init__(self, config: RunConfig, loader: Loader):
        """Build the model with room for the experts of any batch of the run.

        Raises:
            ConfigError: the host has too little memory.
            OutputError: the disk of offload.directory has too little room.
        """
        self.config, self.ranks = config, Replicas.join(config)
        self.sizes = room_for_batches(config, loader)
        small = config.model.with_members(self.sizes)
        self.graph_identity = {"working_set": self.sizes}
        directory = Path(config.offload.directory) if config.offload.directory else None
        self.store = ExpertStore(
            config.model, config.optimizer, directory
        )  # first: it tells if there is too little room
        self.model = build_model(small)
        shapes = config.model.parameter_shapes()
        self.tables = {
            name: np.zeros(shapes[name], np.int32)
            for name, spec in config.model.parameters().items()
            if spec.dtype == "int32"
        }
        step = OffloadStep(self.model, config, self.store, self.tables, self.sizes, loader.domains_of_step)
        self.train_step: OptimizerStep = step
        self.evaluator = FetchingEvaluator(self.model, small, config, step)
        others = [
            weight for weight in weights(self.model) if not is_stack(weight.name) and weight.name not in self.tables
        ]
        self.groups = {"model": others, "optimizer": self.train_step.parameters()}
        self.loader_part = {"batch_size": config.train.batch_size, "rank": 0, "world": 1}
        self._last: tuple[Path, dict[str, Any]] | None = None

    def fill(self, group: str, shapes: dict[str, tuple[int, ...]], read: Read) -> None:
        """See DistributedModel."""
        super().fill(group, shapes, read)
        for name, table in self.tables.items() if group == "model" else ():
            table[...] = read(name, self.slices_of(name, shapes[name]))
        for state in self.store.states():
            if (state == WEIGHT) != (group == "model"):
                continue
            for stack, shape in self.store.stacks.items():
                for index in range(shape[0]):
                    one = (slice(index, index + 1), *self.slices_of(stack, shape)[1:])
                    self.store.set(stack, index, read(state + stack, one)[0], state)

    def restored(self, checkpoint: store.Checkpoint) -> None:
        """See DistributedModel: files of this run's own checkpoint need not be written again."""
        self._last = (checkpoint.path, checkpoint.manifest["files"])
        self.store.changed.clear()

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step: a file for each member and state. Those that have not changed since the last
        checkpoint are hard links to its files."""
        whole = {group: to_arrays(parameters) for group, parameters in self.groups.items()}
        whole["model"] |= self.tables
        contents = store.description(state, self.config, tokenizer)
        counts: dict[str, int] = {}
        for group, tensors in store.with_routing(whole).items():
            counts[group] = len(tensors)
            if tensors:
                contents[f"{group}.safetensors"] = safetensors_file.encode(tensors)
        with store.new_step(root, step, self.config.train.keep_checkpoints) as temporary:
            linked = self._linked(temporary)
            for name, member, prefix in self._files():
                group = name.partition("/")[0]
                tensors = self.store.tensors(member, prefix)
                counts[group] = counts.get(group, 0) + len(tensors)
                if name not in linked:
                    contents[name] = safetensors_file.encode(tensors)
            entries = write_step(temporary, contents, step, counts, linked)
        self._last = (store.step_path(root, step), entries)
        self.store.changed.clear()

    def _files(self) -> Iterator[tuple[str, Member, str]]:
        """Name of each file of a checkpoint that holds a member in one state, with the member and the state."""
        for state in self.store.states():
            group = "model" if state == WEIGHT else "optimizer"
            for member in self.store.members():
                yield f"{group}/{state}{member.collection}.{member.index}.safetensors", member, state

    def _linked(self, temporary: Path) -> dict[str, Any]:
        """Link the files of members that have not changed; returns their manifest entries by name."""
        if self._last is None:
            return {}
        (last, entries), linked = self._last, {}
        for name, member, _ in self._files():
            if member in self.store.changed or name not in entries:
                continue
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(last / name, temporary / name)
            except OSError:
                continue  # it was removed, or this file system has no links: the file is written again
            linked[name] = entries[name]
        return linked


class FetchingEvaluator(Evaluator):
    """Fetches the experts of each batch before it scores it."""

    def __init__(self, model: Any, small: ModelConfig, config: RunConfig, step: OffloadStep):
        """`small` is the configuration of `model`, which identifies its graph in the compile cache."""
        super().__init__(model, config)
        self.small, self.step = small, step

    def graph_config(self) -> dict[str, Any]:
        """See Evaluator."""
        return super().graph_config() | {"working_set": vars(self.small)}

    def each(self, batches: Iterable[Batch]) -> Iterator[Score]:
        """See Evaluator."""
        for batch in batches:
            self.step.fetch(batch)
            yield from super().each([batch])


def room_for_batches(config: RunConfig, loader: Loader) -> dict[str, int]:
    """Members that a batch of a run can need at most, by the axis of their stack. A batch of held-out records has one
    domain."""
    model, room, axis_sizes = config.model, {}, config.model.axis_sizes()
    for axis in model.members_of(range(len(model.domains))):
        sizes = np.array([len(model.members_of([domain])[axis]) for domain in range(len(model.domains))])
        most = loader.most_domains(range(config.train.steps), sizes)
        room[axis] = min(axis_sizes[axis], max(most, int(sizes.max())))
    return room
