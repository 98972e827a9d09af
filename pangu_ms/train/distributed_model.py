"""How a run's model is distributed: replicated (every process has all of it), or sharded over the ranks of a plan; who
loads, saves and evaluates it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mindspore import Parameter, Tensor

from pangu_ms.checkpoint import sharded, store
from pangu_ms.checkpoint.save_ranks import save_rank
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.heartbeat import SAVE, beat
from pangu_ms.data.loader import sequential_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.eval.perplexity import Evaluator, Score
from pangu_ms.models.build import build_model, initial_value, to_arrays, value_of, weights
from pangu_ms.parallel import apply
from pangu_ms.parallel.device_ranks import DeviceRanks
from pangu_ms.parallel.plan import MOMENTS, Plan
from pangu_ms.parallel.rendezvous import FAILED, PeerLost
from pangu_ms.parallel.replicas import Ranks, Replicas
from pangu_ms.train.checks import require_executable
from pangu_ms.train.steps.protocol import OptimizerStep
from pangu_ms.train.steps.rank_step import RankStep
from pangu_ms.train.steps.train_step import TrainStep

log = logging.getLogger(__name__)

Read = Callable[[str, sharded.Slices], np.ndarray]
"""From a tensor's name and the part that is wanted."""
Find = Callable[[], store.Checkpoint | None]


class DistributedModel(Protocol):
    """What a run needs of its model, however it is distributed."""

    config: RunConfig
    cacheable: bool
    """Whether the compiled step may come from the compile cache."""
    groups: dict[str, list[Parameter]]
    """What a checkpoint holds: this rank's parameters, by group of tensors."""
    loader_part: dict[str, int]
    """batch_size, rank and world of the loader of this rank's batches."""

    @property
    def ranks(self) -> Ranks:
        """This process among those of the job."""

    @property
    def train_step(self) -> OptimizerStep:
        """The step."""

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint that the ranks go on from."""

    def compile(self) -> None:
        """Compile the step where that must be done before parameters are set."""

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """The part of a tensor that this rank holds."""

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step; every rank calls it."""

    def evaluate(self, held_out: RecordSet) -> Score | None:
        """Score train.eval_batches global batches of held-out records; None where this rank does not."""


class ReplicatedModel:
    """Every process has the whole model; rank 0 alone saves and evaluates."""

    cacheable = True

    def __init__(self, config: RunConfig):
        self.config, self.ranks = config, Replicas.join(config)
        self.model = build_model(config.model)
        self.train_step = TrainStep(self.model, config, self.ranks)
        self.evaluator = Evaluator(self.model, config)
        self.groups = {"model": weights(self.model), "optimizer": self.train_step.parameters()}
        self.loader_part = {"batch_size": config.train.batch_size, "rank": self.ranks.rank, "world": self.ranks.world}

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint that each rank finds."""
        found = find()
        self.ranks.barrier()  # all have looked before rank 0 writes
        return found

    def compile(self) -> None:
        """Nothing: the first step compiles."""

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """The part of a tensor that this rank holds."""
        return tuple(slice(0, size) for size in shape)

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step."""
        if self.ranks.leads:
            arrays = {group: to_arrays(parameters) for group, parameters in self.groups.items()}
            store.save(
                root, step, arrays, state, self.config, tokenizer=tokenizer, keep=self.config.train.keep_checkpoints
            )

    def evaluate(self, held_out: RecordSet) -> Score | None:
        """Score train.eval_batches global batches, in batches of the size that fits a replica, on rank 0; None
        elsewhere."""
        train = self.config.train
        if not self.ranks.leads:
            return None
        num_batches, extra_inputs = train.eval_batches * self.ranks.world, self.config.model.extra_inputs()
        batches = sequential_batches(held_out, train.batch_size, self.config.data.eod_reset, num_batches, extra_inputs)
        return self.evaluator.score(batches)


class ShardedModel:
    """Each rank has the slices of its stage that the plan gives it, computes its part of each step, and saves its own
    slices. Untested on hardware."""

    cacheable = False  # the cache's key names neither plan nor rank

    def __init__(self, config: RunConfig):
        self.config, self.ranks, self.plan = config, DeviceRanks.join(), Plan.of(config)
        apply.begin(self.plan, self.ranks.rank)
        model = build_model(config.model)
        apply.apply(self.plan, model)
        self.train_step = RankStep(self.plan, model, self.ranks.rank)
        self.groups = {"model": self.train_step.weights, "optimizer": self.train_step.parameters()}
        self.loader_part = {"batch_size": config.global_batch_size, "rank": 0, "world": 1}  # MindSpore cuts it

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint that rank 0 finds and verifies; the others look at sizes alone, since digests of terabytes are
        computed once."""
        if self.ranks.leads:
            try:
                found = find()
            except Exception:
                self.ranks.broadcast(FAILED)
                raise
            self.ranks.broadcast(str(found.path) if found else "")
            return found
        path = self.ranks.broadcast()
        if path == FAILED:
            raise PeerLost
        return store.open_checkpoint(Path(path), digests=False) if path else None

    def compile(self) -> None:
        """Compile the step; raises PlanError where MindSpore does not follow the plan."""
        self.train_step.compile()

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """The part of a tensor that this rank holds."""
        return sharded.layout_in(self.plan, name, shape).slices(self.ranks.rank % self.plan.mesh.stage_size)

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step; all ranks do together."""
        own = {parameter.name: parameter for parameters in self.groups.values() for parameter in parameters}
        shapes = whole_shapes(self.config)
        keep = self.config.train.keep_checkpoints

        def agree(word: str | None) -> str | None:
            answer = self.ranks.barrier(word)
            beat(SAVE, step)
            return answer

        save_rank(
            root,
            step,
            self.plan,
            self.ranks.rank,
            shapes,
            lambda name: own[name].asnumpy(),
            state,
            agree,
            tokenizer,
            keep,
        )

    def evaluate(self, held_out: RecordSet) -> None:
        """Nothing: no rank has the whole model."""


def build_distributed_model(config: RunConfig) -> DistributedModel:
    """Build a run's model as its device executes it; the device has been selected.

    Raises:
        ConfigError: the job has another number of processes than the configuration, or its device cannot execute the
            plan.
    """
    require_executable(config)
    if config.runtime.device == "CPU" or config.parallel.world == 1:
        return ReplicatedModel(config)
    model = ShardedModel(config)
    if model.ranks.leads:
        log.warning(
            "no rank has the whole model, so that held-out records are not scored during this run; `pangu eval` scores"
            " its checkpoints"
        )
    return model


def whole_shapes(config: RunConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of all tensors of a checkpoint of a run by name, for each group."""
    trained = config.model.trainable_parameter_shapes()
    moments = {prefix + name: shape for prefix in MOMENTS for name, shape in trained.items()}
    return {"model": config.model.parameter_shapes(), "optimizer": moments}


def initialize(model: DistributedModel) -> None:
    """Give every weight its initial value; moments are zero as built."""
    config = model.config
    specs, shapes = config.model.parameters(), config.model.parameter_shapes()
    fill(
        model,
        model.groups["model"],
        shapes,
        lambda name, part: initial_value(specs[name], name, shapes[name], config.train.seed)[part],
    )


def load(model: DistributedModel, checkpoint: store.Checkpoint, group: str) -> None:
    """Give a group of parameters the checkpoint's values, whatever plan it was saved with.

    Raises:
        CheckpointError: names or shapes are not those of the configuration.
    """
    stored, shapes = checkpoint.stored(group), whole_shapes(model.config)[group]
    store.check_names_and_shapes(str(checkpoint.path), stored, shapes)
    fill(model, model.groups[group], shapes, lambda name, part: stored[name].spec.values(stored[name].read(part)))


def fill(model: DistributedModel, parameters: list[Parameter], shapes: dict[str, tuple[int, ...]], read: Read) -> None:
    """Set parameters to their parts, one after the other: memory holds one tensor beside them."""
    for parameter in parameters:
        values = read(parameter.name, model.slices_of(parameter.name, shapes[parameter.name]))
        parameter.set_data(Tensor(value_of(parameter, values)), slice_shape=parameter.sliced)
