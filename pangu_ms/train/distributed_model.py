"""How a run's model is distributed over processes: replicated (every process has the whole model), or sharded over the
ranks of a plan. The classes here load, save and evaluate it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from mindspore import Parameter, Tensor

from pangu_ms.checkpoint import sharded, store
from pangu_ms.checkpoint.save_ranks import save_rank
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.heartbeat import SAVE, beat
from pangu_ms.data.domains import known_domains
from pangu_ms.data.loader import Loader, batch_rows, sequential_batches
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

if TYPE_CHECKING:
    from pangu_ms.train.task_scores import TaskScores

log = logging.getLogger(__name__)

Read = Callable[[str, sharded.Slices], np.ndarray]
"""Returns the values of a part of a tensor, given the tensor's name and the slices of the part."""
Find = Callable[[], store.Checkpoint | None]


class DistributedModel(Protocol):
    """The interface that a run needs of its model, replicated or sharded."""

    config: RunConfig
    cacheable: bool
    """Whether the compiled step may come from the compile cache."""
    graph_identity: dict[str, Any]
    """What the step's graph depends on beside the configuration."""
    groups: dict[str, list[Parameter]]
    """This rank's parameters that a checkpoint contains, by group ("model", "optimizer")."""
    loader_part: dict[str, int]
    """Arguments batch_size, rank and world of the loader of this rank's batches."""

    @property
    def ranks(self) -> Ranks:
        """This process as one of the ranks of the job."""

    @property
    def train_step(self) -> OptimizerStep:
        """The optimizer step."""

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint from which all ranks continue."""

    def compile(self) -> None:
        """Compile the step, if that must happen before parameters are set."""

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """The part of a tensor that this rank holds."""

    def fill(self, group: str, shapes: dict[str, tuple[int, ...]], read: Read) -> None:
        """Set this rank's part of every tensor of a group; `shapes` are those of the whole tensors."""

    def restored(self, checkpoint: store.Checkpoint) -> None:
        """Called when the run continues from a checkpoint of its own, after all groups were filled from it."""

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step; every rank calls it."""

    def evaluate(self, held_out: RecordSet) -> Score | None:
        """Score train.eval_batches global batches of held-out records; None on ranks that do not evaluate."""

    def score_tasks(self, tasks: "TaskScores") -> dict[str, float]:
        """Scores on benchmark tasks by name; only the leading rank calls it."""


class HeldParameters:
    """What models share whose tensors are the parameters of a graph."""

    graph_identity: dict[str, Any] = {}
    groups: dict[str, list[Parameter]]

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """See DistributedModel."""
        raise NotImplementedError

    def fill(self, group: str, shapes: dict[str, tuple[int, ...]], read: Read) -> None:
        """See DistributedModel. One parameter after the other is set, so that memory holds only one tensor in
        addition."""
        for parameter in self.groups[group]:
            values = read(parameter.name, self.slices_of(parameter.name, shapes[parameter.name]))
            parameter.set_data(Tensor(value_of(parameter, values)), slice_shape=parameter.sliced)

    def restored(self, checkpoint: store.Checkpoint) -> None:
        """Does nothing."""


class ReplicatedModel(HeldParameters):
    """Every process has the whole model; only rank 0 saves and evaluates."""

    cacheable = True

    def __init__(self, config: RunConfig):
        self.config, self.ranks = config, Replicas.join(config)
        self.model = build_model(config.model)
        self.train_step: OptimizerStep = TrainStep(self.model, config, self.ranks)
        self.evaluator = Evaluator(self.model, config)
        self.groups = {"model": weights(self.model), "optimizer": self.train_step.parameters()}
        self.loader_part = {"batch_size": config.train.batch_size, "rank": self.ranks.rank, "world": self.ranks.world}

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint that each rank finds."""
        found = find()
        self.ranks.barrier()  # all ranks have looked for the checkpoint before rank 0 writes one
        return found

    def compile(self) -> None:
        """Does nothing, since the first step compiles."""

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
        elsewhere. Rows of domains that the model lacks are left out."""
        train, model = self.config.train, self.config.model
        if not self.ranks.leads:
            return None
        num_batches, domains = train.eval_batches * self.ranks.world, known_domains(held_out.domain_names, model)
        if not domains:
            return None
        parts = batch_rows(held_out, train.batch_size, num_batches, domains)
        batches = sequential_batches(
            held_out, train.batch_size, self.config.data.eod_reset, num_batches, model, domains
        )
        return self.evaluator.score(batches, [domain for domain, _ in parts])

    def score_tasks(self, tasks: "TaskScores") -> dict[str, float]:
        """See DistributedModel."""
        return tasks.score(self.model)


class ShardedModel(HeldParameters):
    """Each rank holds the plan's slices of the parameters on its pipeline stage, computes its part of each step, and
    saves its own slices. Untested on hardware."""

    cacheable = False  # the key of the compile cache contains neither plan nor rank

    def __init__(self, config: RunConfig):
        self.config, self.ranks, self.plan = config, DeviceRanks.join(), Plan.of(config)
        apply.begin(self.plan, self.ranks.rank)
        model = build_model(config.model)
        apply.apply(self.plan, model)
        self.train_step = RankStep(self.plan, model, self.ranks.rank)
        self.groups = {"model": self.train_step.weights, "optimizer": self.train_step.parameters()}
        self.loader_part = {"batch_size": config.global_batch_size, "rank": 0, "world": 1}  # MindSpore splits it

    def find_checkpoint(self, find: Find) -> store.Checkpoint | None:
        """The checkpoint that rank 0 finds and verifies. The other ranks check only file sizes, so that the digests of
        terabytes are computed once."""
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
        """Compile the step; raises PlanError if MindSpore does not follow the plan."""
        self.train_step.compile()

    def slices_of(self, name: str, shape: tuple[int, ...]) -> sharded.Slices:
        """The part of a tensor that this rank holds."""
        return sharded.layout_in(self.plan, name, shape).slices(self.ranks.rank % self.plan.mesh.stage_size)

    def save(self, root: Path, step: int, state: dict[str, Any], tokenizer: Path | None) -> None:
        """Commit a checkpoint of a step; all ranks do this together."""
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
        """Does nothing, since no rank has the whole model."""

    def score_tasks(self, tasks: "TaskScores") -> dict[str, float]:
        """No rank has the whole model: the configuration refuses tasks."""
        raise NotImplementedError


def build_distributed_model(config: RunConfig, loader: Loader) -> DistributedModel:
    """Build a run's model in the form for its device, which must have been selected.

    Args:
        loader: of the global batches; with offload.experts it tells which experts the steps need.

    Raises:
        ConfigError: the job has another number of processes than the configuration, or its device cannot execute the
            plan, or the host has too little memory for the experts.
    """
    require_executable(config)
    if config.offload.experts:
        from pangu_ms.train.offload.offloaded_model import OffloadedModel  # it derives from a class of this module

        return OffloadedModel(config, loader)
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
    """Whole shapes of all tensors of a run's checkpoint, by group and name."""
    trained = config.model.trainable_parameter_shapes()
    moments = {prefix + name: shape for prefix in MOMENTS for name, shape in trained.items()}
    return {"model": config.model.parameter_shapes(), "optimizer": moments}


def initialize(model: DistributedModel, token_counts: np.ndarray | None = None) -> None:
    """Give every weight its initial value; moments are zero since they were built. For `token_counts` see
    `ModelConfig.initial_tables`."""
    config = model.config
    specs, shapes = config.model.parameters(), config.model.parameter_shapes()
    tables = config.model.initial_tables(token_counts)

    def value(name: str, part: sharded.Slices) -> np.ndarray:
        if name in tables:
            return tables[name][part]
        return initial_value(specs[name], name, shapes[name], config.train.seed, part)

    model.fill("model", shapes, value)


def load(model: DistributedModel, checkpoint: store.Checkpoint, group: str) -> None:
    """Load a group of parameters from a checkpoint, whatever plan it was saved with.

    Raises:
        CheckpointError: names or shapes are not those of the configuration.
    """
    stored, shapes = checkpoint.stored(group), whole_shapes(model.config)[group]
    store.check_names_and_shapes(str(checkpoint.path), stored, shapes)
    model.fill(group, shapes, lambda name, part: stored[name].spec.values(stored[name].read(part)))
