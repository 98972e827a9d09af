"""Optimizer steps of one rank of a plan, an `OptimizerStep`. Compilation is tested on virtual ranks; untested on
hardware."""

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from pangu_ms.core.errors import PlanError
from pangu_ms.models.build import weights
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import mean_loss, to_tensors
from pangu_ms.parallel.plan import Plan, parameter_of
from pangu_ms.train.parallel_step import build_step, step_inputs
from pangu_ms.train.step import StepResult, dropout_key


class PlannedStep:
    """Runs steps on batches of all replicas, which MindSpore cuts; owns this rank's slices of the optimizer state."""

    in_one_graph = True

    def __init__(self, plan: Plan, model: nn.Cell, rank: int):
        """Build the step of a model that `apply` has laid out."""
        self.plan, self.rank = plan, rank
        self.held = set(plan.stage_parameters(plan.mesh.coordinate(rank).stage))
        self.weights = [p for p in weights(model) if p.name in self.held]
        self.cell = build_step(plan, model).set_train()

    def compile(self) -> None:
        """Compile it: from then on parameters have the shapes of their slices, and can be set to these.

        Raises:
            PlanError: MindSpore has laid out a parameter otherwise than the plan.
        """
        self.cell.compile(*step_inputs(self.plan))
        for parameter in (*self.weights, *self.parameters()):
            wanted = self.plan.layouts[parameter_of(parameter.name)].slice_shape
            if tuple(parameter.shape) != wanted:
                found = f"MindSpore gives rank {self.rank} {list(parameter.shape)} of it"
                raise PlanError(
                    f"{parameter.name}: {found}; the plan says {list(wanted)}; use other degrees; `pangu plan rehearse`"
                    " shows whether they fit"
                )

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = float("inf")
    ) -> StepResult:
        """One optimizer step on the batch of all replicas, which every rank is given; the result is the same on all."""
        total, count, norm, applied = (
            output.asnumpy().item() for output in self.cell(*self.inputs(batch, step, lr, scale, min(loss_limit, 3e38)))
        )
        return StepResult(mean_loss(total, count), norm, bool(applied))

    def inputs(self, batch: Batch, step: int, lr: float, scale: float, loss_limit: float) -> tuple[Tensor, ...]:
        """The cell's inputs. With micro-batches these can be cut, and the controls are set."""
        parts = self.plan.num_micro_batches
        keys = np.array([dropout_key(self.plan.config.train.seed, step, i) for i in range(parts)], np.int32)
        if parts == 1:
            return (
                *to_tensors(batch),
                Tensor(keys[0]),
                *(Tensor(value, mstype.float32) for value in (lr, scale, loss_limit)),
            )
        self.cell.control(lr, scale, loss_limit)
        return *to_tensors(batch), Tensor(keys)

    def parameters(self) -> list[Parameter]:
        """The optimizer's state of the parameters that this rank's stage holds: first and second moments."""
        optimizer = self.cell.update.optimizer
        return [
            state
            for states in (optimizer.m, optimizer.v)
            for weight, state in zip(optimizer.parameters, states)
            if weight.name in self.held
        ]
