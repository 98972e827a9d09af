"""Runs of one test process that train the same graphs share one compiled model.

Compiling a tiny step and its evaluation takes three CPU seconds, and MindSpore compiles for each new cell. Within
`reused_models()`, a run whose graphs are those of an earlier run takes that run's model as soon as nothing refers to
the earlier run any more. All parameters then have the values with which a new model is built, so that a value which a
run forgets to set or to restore is not the right one by chance.
"""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from mindspore import Parameter

from ascend_ops import backend
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.model import fill_from, load_model
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.eval.perplexity import Evaluator
from pangu_ms.models.build import value_of
from pangu_ms.models.common.loss import TokenLoss
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.replicas import Replicas
from pangu_ms.train import distributed_model
from pangu_ms.train.distributed_model import ReplicatedModel


@dataclass
class CompiledModel:
    """What runs take over from each other."""

    attributes: dict[str, Any]
    """Of the first run's ReplicatedModel."""
    new: list[tuple[Parameter, np.ndarray]]
    """Its parameters, and their values when it was built."""
    user: weakref.ref
    """The ReplicatedModel of the run that has it."""

    def is_free(self) -> bool:
        """Whether that run is over."""
        return self.user() is None

    def has_run(self) -> bool:
        """Whether its graphs are compiled; a run that never began compiles none."""
        return self.attributes["evaluator"].compiled


_compiled: dict[str, list[CompiledModel]] = {}


def _graph_identity(config: RunConfig) -> str:
    """Equal texts mean equal graphs."""
    train, optimizer = config.train, config.optimizer
    step = (train.batch_size, train.accumulation_steps, train.seed, config.parallel.world, config.runtime)
    update = (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay, optimizer.clip_norm)
    update += (optimizer.expert_eps, optimizer.lazy_experts)
    return repr((FAMILIES[config.model.family].model, config.model, step, update, backend.identity()))


class ReusedModel(ReplicatedModel):
    """A ReplicatedModel that takes over a compiled one where there is one."""

    def __init__(self, config: RunConfig):
        alike = _compiled.setdefault(_graph_identity(config), [])
        if alike and not any(one.is_free() and one.has_run() for one in alike):
            gc.collect()  # an earlier run may be in a cycle of references
        free = max((one for one in alike if one.is_free()), key=CompiledModel.has_run, default=None)
        self.reused = free is not None and config.parallel.world == 1
        if not self.reused:
            super().__init__(config)
            alike.append(CompiledModel(dict(vars(self)), self._values(), weakref.ref(self)))
            return
        vars(self).update(free.attributes, config=config, ranks=Replicas.join(config), reused=True)
        self.cacheable = False  # nothing is compiled that the compile cache could count
        for parameter, value in free.new:
            _set(parameter, value)
        free.user = weakref.ref(self)

    def fill(self, group, shapes, read) -> None:
        """See DistributedModel; the graphs of a reused model have run."""
        if not self.reused:
            return super().fill(group, shapes, read)
        for parameter in self.groups[group]:
            values = read(parameter.name, self.slices_of(parameter.name, shapes[parameter.name]))
            _set(parameter, value_of(parameter, values))

    def _values(self) -> list[tuple[Parameter, np.ndarray]]:
        sums = self.train_step.accumulate.get_parameters() if not self.train_step.in_one_graph else []
        return [(p, p.asnumpy().copy()) for p in {*sums, *self.model.get_parameters(), *self.train_step.parameters()}]


def _set(parameter: Parameter, value: np.ndarray) -> None:
    """Set a parameter of a graph that has run. A graph would not see what `set_data` sets where, as for moments, only a
    branch of the graph uses it."""
    np.copyto(parameter.asnumpy(), value)


_losses: dict[str, list[tuple[TokenLoss, weakref.ref]]] = {}
"""Compiled losses, and the Evaluator that has each."""


def _load_evaluator(checkpoint: store.Checkpoint, config: RunConfig) -> Evaluator:
    """Evaluator.load, which takes the compiled loss of an earlier evaluation."""
    key = repr((FAMILIES[config.model.family].model, config.model, config.runtime, backend.identity()))
    alike = _losses.setdefault(key, [])
    free = next((one for one in alike if one[1]() is None), None)
    if free is None:
        evaluator = Evaluator(load_model(checkpoint, config), config)
    else:
        alike.remove(free)
        runtime.start(config.runtime.device)
        fill_from(checkpoint, free[0].model, config.model)
        evaluator = Evaluator(free[0].model)  # None for its configuration: nothing is compiled that could be cached
        evaluator.loss = free[0]
    alike.append((evaluator.loss, weakref.ref(evaluator)))
    return evaluator


@contextlib.contextmanager
def reused_models() -> Iterator[None]:
    """Runs and evaluations that begin here reuse compiled models. Not for tests that replace parts of a step."""
    with (
        mock.patch.object(distributed_model, "ReplicatedModel", ReusedModel),
        mock.patch.object(Evaluator, "load", _load_evaluator),
    ):
        yield
