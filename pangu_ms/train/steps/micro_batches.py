"""The graph of a step in micro-batches. With pipeline stages MindSpore's compiler turns the micro-batches into sends
and receives between stages; with one stage it accumulates their gradients."""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.communication import create_group
from mindspore.nn.wrap.cell_wrapper import _MicroBatch

from pangu_ms.models.common.loss import TokenLoss
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.train.steps.update import GuardedUpdate

CONTROLS = ("learning_rate", "loss_scale", "loss_limit")
"""Names of the parameters that `MicroBatchStep.control` sets."""

# HyperMap instead of operations on whole tuples, because MindSpore removes the parameters of other stages from the
# tuples.
_after, _clear = ops.MultitypeFuncGraph("after"), ops.MultitypeFuncGraph("clear")


@_after.register("Tensor", "Tensor")
def _sum_after(accumulated, gradient):
    """The accumulated gradient, after all micro-batches: MindSpore adds each micro-batch's gradient to `accumulated`
    while it computes `gradient`."""
    return ops.depend(accumulated, gradient)


@_clear.register("Tensor", "Tensor", "Tensor")
def _clear_after(applied, accumulated, gradient):
    accumulated = ops.depend(accumulated, (applied, gradient))
    return ops.assign(accumulated, ops.zeros_like(accumulated))


class MicroBatches(nn.Cell):
    """Sum of the TokenLoss of all micro-batches. MindSpore recognises the loop over micro-batches by the class of the
    slices and the attributes of the sums."""

    def __init__(self, loss: TokenLoss, num_micro_batches: int, num_stages: int):
        super().__init__(auto_prefix=False)
        self.loss, self.num_micro_batches = loss, num_micro_batches
        self.slices = nn.CellList([_MicroBatch(num_micro_batches) for _ in range(num_micro_batches)])
        if num_stages == 1:
            for cell in self.slices:
                cell.strided_slice.add_prim_attr("grad_accu_num", num_micro_batches)
        end = "pipeline_end" if num_stages > 1 else "forward_end"
        self.sums = [[ops.Add().add_prim_attr(end, i) for i in range(num_micro_batches)] for _ in range(2)]

    def construct(self, *inputs):
        """`inputs` are those of TokenLoss for the whole batch, with one dropout key for each micro-batch."""
        total, count = self.loss(*self.slices[0](0, *inputs))
        for i in range(1, self.num_micro_batches):
            next_total, next_count = self.loss(*self.slices[i](i, *inputs))
            total, count = self.sums[0][i](total, next_total), self.sums[1][i](count, next_count)
        return total, count


class MicroBatchStep(nn.Cell):
    """One optimizer step: gradients of all micro-batches, then `GuardedUpdate`, which makes the same decision on every
    stage.

    Every input of such a graph must be split into micro-batches. The controls are not, so they are parameters, which
    `control` sets before a step.
    """

    def __init__(
        self, loss: TokenLoss, update: GuardedUpdate, mesh: Mesh, num_micro_batches: int, optimizer_shard: bool
    ):
        """With `optimizer_shard` MindSpore returns the gradients of the whole batch; without it they are in the
        accumulated sums."""
        super().__init__(auto_prefix=False)
        self.loss = MicroBatches(loss, num_micro_batches, mesh.num_stages)
        self.update, self.optimizer_shard = update, optimizer_shard
        self.weights = update.optimizer.parameters
        # MindSpore recognises the accumulated gradients by this prefix
        self.accumulated: ParameterTuple = self.weights.clone(prefix="accu_grads", init="zeros")
        self.gradients, self.hyper_map = ops.GradOperation(get_by_list=True, sens_param=True), ops.HyperMap()
        self.of_all_stages = None
        if mesh.num_stages > 1:
            group = _stages_group(mesh, ms.get_auto_parallel_context("global_rank"))
            self.of_all_stages = ops.AllReduce(group=group)
        self.stack, self.unstack = ops.Stack(), ops.Unstack()
        self.lr, self.scale, self.loss_limit = (
            Parameter(Tensor(1.0, ms.float32), name, requires_grad=False) for name in CONTROLS
        )
        self.zero = Tensor(0.0, ms.float32)
        self.loss.set_grad()

    def control(self, lr: float, scale: float, loss_limit: float) -> None:
        """Set learning rate, loss scale and loss limit (the mean loss above which the step is skipped) of the next
        step."""
        for parameter, value in ((self.lr, lr), (self.scale, scale), (self.loss_limit, loss_limit)):
            parameter.set_data(Tensor(value, ms.float32))

    def construct(self, *inputs):
        """`inputs`: see MicroBatches -> sum of losses, tokens that count, gradient norm, whether it was applied."""
        total, count = self.loss(*inputs)  # both are 0 on all stages except the last
        weight_of_total = ops.ones_like(total) * (self.scale / self.update.micro_batch_tokens)
        gradients = self.gradients(self.loss, self.weights)(*inputs, (weight_of_total, self.zero))
        if self.of_all_stages is not None:
            # Both values are summed in one tensor. With two all-reduces, on the stages where both are 0 MindSpore would
            # merge them into one, and the stages would wait for each other for ever.
            total, count = self.unstack(self.of_all_stages(self.stack((total, count))))
        whole = gradients if self.optimizer_shard else self.hyper_map(_after, self.accumulated, gradients)
        norm, applied = self.update(total, count, whole, self.lr, self.scale, self.loss_limit)
        cleared = self.hyper_map(ops.partial(_clear, applied), self.accumulated, gradients)
        return ops.depend(total, cleared), count, norm, applied


def _stages_group(mesh: Mesh, rank: int) -> str:
    """Create the group of ranks that have this rank's position in their stages, one per stage; returns its name."""
    ranks = list(range(rank % mesh.stage_size, mesh.world, mesh.stage_size))
    name = f"{len(ranks)}-stages-of-{ranks[0]}"
    create_group(name, ranks)
    return name
