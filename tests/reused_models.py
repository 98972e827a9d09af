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
from pangu_ms.data.loader import Loader
from pangu_ms.eval.perplexity import Evaluator
from pangu_ms.export import write
from pangu_ms.infer import load
from pangu_ms.infer.cached_model import CachedModel
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.load import domains_of, load_decoder
from pangu_ms.infer.packed_model import fill_packed
from pangu_ms.models.build import value_of
from pangu_ms.models.common.loss import TokenLoss
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.replicas import Replicas
from pangu_ms.train import distributed_model
from pangu_ms.train.distributed_model import ReplicatedModel
from pangu_ms.train.offload import offloaded_model
from pangu_ms.train.offload.offload_step import OffloadStep
from pangu_ms.train.offload.offloaded_model import OffloadedModel


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
        """Whether its step is compiled; a run that never began compiles none."""
        step = self.attributes["train_step"]
        if not step.in_one_graph:
            return bool(step.accumulate.compile_cache)
        return bool((step.whole if isinstance(step, OffloadStep) else step.whole.cell).compile_cache)


_compiled: dict[str, list[CompiledModel]] = {}


def _graph_identity(config: RunConfig, working_set: dict[str, int] | None = None) -> str:
    """Equal texts mean equal graphs."""
    train, optimizer = config.train, config.optimizer
    step = (train.batch_size, train.accumulation_steps, train.seed, config.parallel.world, config.runtime)
    update = (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay, optimizer.clip_norm)
    update += (optimizer.expert_eps, optimizer.lazy_experts)
    model = (FAMILIES[config.model.family].model, config.model, working_set and config.offload, working_set)
    return repr((model, step, update, backend.identity()))


def _free_model(alike: list[CompiledModel]) -> CompiledModel | None:
    """One that no run has any more, if possible a compiled one."""
    if alike and not any(one.is_free() and one.has_run() for one in alike):
        gc.collect()  # an earlier run may be in a cycle of references
    return max((one for one in alike if one.is_free()), key=CompiledModel.has_run, default=None)


class ReusedModel(ReplicatedModel):
    """A ReplicatedModel that takes over a compiled one where there is one."""

    def __init__(self, config: RunConfig):
        alike = _compiled.setdefault(_graph_identity(config), [])
        free = _free_model(alike)
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


class ReusedOffloadedModel(OffloadedModel, ReusedModel):
    """An OffloadedModel that takes over the graphs of a compiled one, with a store of its own."""

    def __init__(self, config: RunConfig, loader: Loader):
        OffloadedModel.__init__(self, config, loader)
        alike = _compiled.setdefault(_graph_identity(config, self.sizes), [])
        free = _free_model(alike)
        self.reused = free is not None
        if free is None:
            alike.append(CompiledModel(dict(vars(self)), self._values(), weakref.ref(self)))
            return
        own, step = self.train_step, free.attributes["train_step"]
        vars(step).update({name: vars(own)[name] for name in OF_A_RUN})
        for name in ("model", "train_step", "evaluator", "groups"):
            setattr(self, name, free.attributes[name])
        self.cacheable = False
        for parameter, value in free.new:
            _set(parameter, value)
        free.user = weakref.ref(self)


OF_A_RUN = ("config", "store", "traffic", "sets", "next_domains", "_fetching", "_thread")
"""Attributes of an OffloadStep that are not of its graphs."""


def _set(parameter: Parameter, value: np.ndarray) -> None:
    """Set a parameter of a graph that has run. A graph would not see what `set_data` sets where, as for moments, only a
    branch of the graph uses it."""
    np.copyto(parameter.asnumpy(), value)


_load_any = Evaluator.load
_losses: dict[str, list[tuple[TokenLoss, weakref.ref]]] = {}
"""Compiled losses, and the Evaluator that has each."""


def _load_evaluator(checkpoint: store.Checkpoint, config: RunConfig) -> Evaluator:
    """Evaluator.load, which takes the compiled loss of an earlier evaluation."""
    if checkpoint.quantized:
        return _load_any(checkpoint, config)
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


_decoders: dict[str, list[tuple[CachedModel, weakref.ref]]] = {}
"""Compiled graphs that generate, and the Decoder that has each."""


def _load_decoder(
    checkpoint: store.Checkpoint,
    shape: GraphShape,
    config: RunConfig | None = None,
    weights: str = "",
    generates: bool = True,
    cache_dtype: str = "",
) -> Decoder:
    """load_decoder, which takes the compiled graph of an earlier decoder."""
    config = config or checkpoint.config()
    if checkpoint.quantized or not generates:
        return load_decoder(checkpoint, shape, config, weights, generates, cache_dtype)
    dtypes = weights, cache_dtype, backend.identity()
    key = repr((FAMILIES[config.model.family].model, config.model, shape, config.runtime, *dtypes))
    alike = _decoders.setdefault(key, [])
    free = next((one for one in alike if one[1]() is None), None)
    if free is None:
        decoder = load_decoder(checkpoint, shape, config, weights, cache_dtype=cache_dtype)
    else:
        alike.remove(free)
        graph = free[0]
        if weights in ("", load.STORED):
            fill_from(checkpoint, graph.model, config.model)
        else:
            fill_packed(checkpoint, graph.model, config.model, weights)
        decoder = Decoder(graph, shape, domains_of(config.model), graph.caches(), contextlib.nullcontext)
    alike.append((decoder.graph, weakref.ref(decoder)))
    return decoder


@contextlib.contextmanager
def reused_models() -> Iterator[None]:
    """Runs, evaluations and generations that begin here reuse compiled models. Not for tests that replace parts of a
    step."""
    with (
        mock.patch.object(distributed_model, "ReplicatedModel", ReusedModel),
        mock.patch.object(offloaded_model, "OffloadedModel", ReusedOffloadedModel),
        mock.patch.object(Evaluator, "load", _load_evaluator),
        mock.patch.object(load, "load_decoder", _load_decoder),
        mock.patch.object(write, "load_decoder", _load_decoder),
    ):
        yield
