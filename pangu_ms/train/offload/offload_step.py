"""The optimizer step of a model whose experts are in host memory. Source: specification C4."""

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import dtype as mstype

from pangu_ms.config.schema import RunConfig
from pangu_ms.models.build import weights
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import TokenLoss, to_tensors
from pangu_ms.models.common.stacks import is_stack
from pangu_ms.parallel.replicas import Replicas
from pangu_ms.train.offload.expert_store import ExpertStore
from pangu_ms.train.offload.working_set import WorkingSet
from pangu_ms.train.optimizer import AdamW
from pangu_ms.train.steps.gradients import Gradients, GradientSums
from pangu_ms.train.steps.protocol import NO_LIMIT, StepResult, control_tensors, dropout_key
from pangu_ms.train.steps.train_step import ApplySums
from pangu_ms.train.steps.update import GradientGuard, build_guard, build_optimizer
from pangu_ms.train.steps.whole_batch import WholeStep


class OffloadedUpdate(nn.Cell):
    """Updates the weights that the graph owns, and hands the gradients of stacks to the host."""

    def __init__(self, weights: ParameterTuple, guard: GradientGuard, optimizer: AdamW | None):
        """`optimizer` is that of the weights that are not stacks; None if none of these is trained."""
        super().__init__(auto_prefix=False)
        self.guard, self.optimizer = guard, optimizer
        self.stacks = tuple(i for i, weight in enumerate(weights) if is_stack(weight.name))
        self.others = tuple(i for i, weight in enumerate(weights) if not is_stack(weight.name))

    def construct(self, total, count, gradients, lr, scale, loss_limit):
        """-> what GuardedUpdate returns; then the factor of the gradients, the squared norms of each stack's gradient
        by member, and these gradients."""
        norms, norm, applied, factor = self.guard(total, count, gradients, scale, loss_limit)
        if self.optimizer is not None:
            if applied:
                self.optimizer(_chosen(gradients, self.others), _chosen(norms, self.others), factor, lr)
        # * 1.0 turns accumulated gradients, which are parameters, into values: a graph cannot return parameters.
        for_host = _chosen(norms, self.stacks) + tuple([gradients[i] * 1.0 for i in self.stacks])
        return (norm, applied, factor) + for_host


def _chosen(values, indices):
    return tuple([values[i] for i in indices])


@dataclass
class Traffic:
    """Bytes that steps have moved since the start."""

    gathered: int = 0
    """Copied from the store into working sets."""
    to_graph: int = 0
    """Copied from working sets to the graph; 0 in place."""
    gradients: int = 0
    """Gradients of stacks, from the graph to the host."""
    updated: int = 0
    """Weights that the host updated."""


class OffloadStep:
    """Takes optimizer steps on a model that holds a working set; owns the moments of the other weights."""

    def __init__(
        self,
        model: nn.Cell,
        config: RunConfig,
        store: ExpertStore,
        tables: dict[str, np.ndarray],
        sizes: dict[str, int],
        next_domains: Callable[[int], Iterable[int]] | None = None,
    ):
        """Build the step.

        Args:
            model: built from `config.model.with_members(sizes)`.
            config: of the run, with the whole model.
            store: the members of all stacks.
            tables: the whole model's tables, by name.
            sizes: room for members in a working set, by the axis of the stack.
            next_domains: gives the domains of a step's batch ahead of it; None fetches what a step needs when it
                begins.
        """
        self.config, self.store, self.traffic = config, store, Traffic()
        self.copies = config.offload.transfer == "copy" or (
            config.offload.transfer == "auto" and config.runtime.device != "CPU"
        )
        # While a graph reads one set, the other is filled with what the next step needs.
        self.sets = [WorkingSet(store, config.model, tables, sizes) for _ in range(2)]
        self.bound = [parameter for parameter in weights(model) if is_stack(parameter.name) or parameter.name in tables]
        self.next_domains = next_domains
        self._fetching: Future[int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert fetch")
        trained = ParameterTuple(model.trainable_params())
        self.stacks = [weight.name for weight in trained if is_stack(weight.name)]
        others = [weight for weight in trained if not is_stack(weight.name)]
        self.optimizer = build_optimizer(config, others) if others else None
        gradients = Gradients(TokenLoss(model), trained)
        guard = build_guard(config, trained, config.train.batch_size // config.train.accumulation_steps)
        update = OffloadedUpdate(trained, guard, self.optimizer)
        self.in_one_graph = config.train.accumulation_steps == 1
        self.whole = WholeStep(gradients, update) if self.in_one_graph else None
        if not self.in_one_graph:
            self.accumulate = GradientSums(gradients, trained)
            self.apply = ApplySums(self.accumulate, update, Replicas())

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> StepResult:
        """See OptimizerStep. The metrics `fetched_mb` and `updated_mb` are the megabytes of experts that the step
        copied from the store and updated in it."""
        before = dataclasses.replace(self.traffic)
        self.fetch(batch)
        self._begin_fetching(step + 1)
        outputs = [output.asnumpy() for output in self._compute(batch, step, control_tensors(lr, scale, loss_limit))]
        # From here on the graph is done: its inputs, which are the set's arrays, may be written again.
        total, count, norm, applied = (output.item() for output in outputs[:4])
        self._finish_fetching()  # it reads the members that are about to be written
        if applied:
            self._update(outputs[5:], lr, outputs[4].item())
        metrics = {
            "fetched_mb": (self.traffic.gathered - before.gathered) / 1e6,
            "updated_mb": (self.traffic.updated - before.updated) / 1e6,
        }
        return StepResult(total, count, norm, bool(applied), metrics)

    def fetch(self, batch: Batch) -> None:
        """Make the members that a batch needs present in the model."""
        domains = np.unique(batch.extra["domain"]).tolist()
        self._finish_fetching()
        if self.sets[1].domains == tuple(domains):
            self.sets.reverse()
        current = self.sets[0]
        self.traffic.gathered += current.load(domains)
        for parameter in self.bound:
            array = (
                current.tables[parameter.name] if parameter.name in current.tables else current.arrays[parameter.name]
            )
            parameter.set_data(Tensor(array) if self.copies else Tensor.from_numpy(array))
            self.traffic.to_graph += array.nbytes if self.copies else 0

    def _begin_fetching(self, step: int) -> None:
        """Fill the other set, in the background, with what another step needs."""
        if self.next_domains is None:
            return
        domains = sorted({int(domain) for domain in self.next_domains(step)})
        if tuple(domains) != self.sets[0].domains:
            self._fetching = self._thread.submit(self.sets[1].load, domains)

    def _finish_fetching(self) -> None:
        if self._fetching:
            self.traffic.gathered += self._fetching.result()
            self._fetching = None

    def _compute(self, batch: Batch, step: int, controls: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Sum of losses, tokens that count, and the outputs of OffloadedUpdate."""
        seed, parts = self.config.train.seed, self.config.train.accumulation_steps
        if self.whole:
            self.whole.set_train()  # an evaluation between steps switched the model's dropout off
            return self.whole(*to_tensors(batch), Tensor(dropout_key(seed, step, 0)), *controls)
        self.accumulate.set_train()
        for i, micro_batch in enumerate(batch.split(parts)):
            keep = Tensor(float(i > 0), mstype.float32)
            self.accumulate(*to_tensors(micro_batch), Tensor(dropout_key(seed, step, i)), controls[1], keep)
        return self.apply(*controls)

    def _update(self, norms_and_gradients: list[np.ndarray], lr: float, factor: float) -> None:
        """Update the members that have a gradient; see the outputs of OffloadedUpdate."""
        number = len(self.stacks)
        for stack, norms, gradients in zip(self.stacks, norms_and_gradients[:number], norms_and_gradients[number:]):
            self.traffic.gradients += gradients.nbytes
            for index, norm, gradient in zip(self.sets[0].members_of(stack), norms, gradients):
                if self.store.update(stack, index, gradient, norm.item(), lr, factor):
                    self.traffic.updated += gradient.nbytes

    def parameters(self) -> list[Parameter]:
        """See OptimizerStep: moments of the weights that are not in the store."""
        return [*self.optimizer.m, *self.optimizer.v] if self.optimizer else []

    def close(self) -> None:
        """End the background thread."""
        self._thread.shutdown()
