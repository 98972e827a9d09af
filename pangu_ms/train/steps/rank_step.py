"""The optimizer step of one rank of a plan. Compilation is tested on virtual ranks; untested on hardware."""

import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.core.errors import PlanError
from pangu_ms.models.build import to_arrays, weights
from pangu_ms.models.common.batch import Batch
from pangu_ms.parallel.expert_batches import arranged, require_room
from pangu_ms.parallel.plan import Plan, parameter_of
from pangu_ms.train.steps.protocol import NO_LIMIT, GraphStep
from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs


class RankStep(GraphStep):
    """Takes steps on the batches of all replicas, which MindSpore splits; owns this rank's slices of the optimizer
    state."""

    def __init__(self, plan: Plan, model: nn.Cell, rank: int):
        """Build the step of a model to which `apply` has given layouts."""
        super().__init__(build_rank_graph(plan, model).set_train(), plan.config.train.seed, plan.num_micro_batches)
        self.plan, self.rank = plan, rank
        self.held = set(plan.stage_parameters(plan.mesh.coordinate(rank).stage))
        self.weights = [p for p in weights(model) if p.name in self.held]
        self.tables: dict[str, np.ndarray] | None = None

    def inputs(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> tuple[Tensor, ...]:
        """See GraphStep: with the sequences in the order in which each goes to a rank with experts of its domain.

        Raises:
            PlanError: the ranks of a group get too many or too few sequences, or more tokens than they have room for.
        """
        if self.plan.config.parallel.expert_parallel > 1:
            batch = arranged(batch, self.plan)
            if self.tables is None:  # they were loaded after the step had been built, and do not change
                self.tables = to_arrays([p for p in self.weights if p.name.endswith(".routing")])
            require_room(batch, self.tables, self.plan)
        return super().inputs(batch, step, lr, scale, loss_limit)

    def compile(self) -> None:
        """Compile the graph. After that the parameters have the shapes of their slices, and can be set to slices.

        Raises:
            PlanError: MindSpore has given a parameter another layout than the plan.
        """
        self.cell.compile(*example_inputs(self.plan))
        for parameter in (*self.weights, *self.parameters()):
            wanted = self.plan.layouts[parameter_of(parameter.name)].slice_shape
            if tuple(parameter.shape) != wanted:
                found = f"MindSpore gives rank {self.rank} {list(parameter.shape)} of it"
                raise PlanError(
                    f"{parameter.name}: {found}; the plan says {list(wanted)}; use other degrees; `pangu plan rehearse`"
                    " shows whether they fit"
                )

    def parameters(self) -> list[Parameter]:
        """Moments of the parameters that this rank's stage holds."""
        return [moment for moment in super().parameters() if parameter_of(moment.name) in self.held]
