"""Ascend devices that are not there, from outside of the product: Python imports this file in every process that has its directory on PYTHONPATH.

With ASCEND_STUB set, `runtime.start("Ascend")` gives a process that stands alone the CPU under that name, and a rank of several a virtual rank, which
compiles its graphs with MindSpore's parallel compiler for an Ascend chip. What a device would do is stubbed there, and nothing else: sums over ranks
go through a meeting of this machine, and a step's graph is not executed: `executed` stands for it.
"""

import os

SOC = "ascend910b"
KEPT = 0.5


def start(device):
    """Stands for `runtime.start`."""
    if device != "Ascend":
        return real_start(device)
    rank, world = runtime.place()
    if world == 1:
        return real_start("CPU")
    import mindspore as ms

    from ascend_ops import backend
    from pangu_ms.parallel import device_ranks, planned_step, virtual_cluster

    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(world, rank)
    backend.assume_soc(SOC)
    ms.communication.init = lambda: None
    device_ranks.DeviceRanks._sum = sums_of(rank, world)
    compile_step = planned_step.PlannedStep.compile

    def compiled(step):
        compile_step(step)
        step.cell = Executed(step)

    planned_step.PlannedStep.compile = compiled


def sums_of(rank, world):
    """Sums over ranks that meet: whoever's turn it is brings numbers, the others nothing."""
    import json

    import numpy as np

    from pangu_ms.parallel.meeting import Meeting

    meeting = Meeting(os.environ["ASCEND_STUB"], rank, world)
    return lambda ranks, values: np.sum([json.loads(meeting.agree(json.dumps([*map(int, values)]) if r == rank else "")) for r in range(world)], axis=0, dtype=np.float32)


class Executed:
    """A compiled step whose execution is `executed`."""

    def __init__(self, step):
        self.step, self.cell = step, step.cell

    def __getattr__(self, name):
        return getattr(self.cell, name)

    def __call__(self, *inputs):
        import numpy as np
        from mindspore import Tensor

        assert self.cell(*inputs) is None and len(self.cell.compile_cache) == 1, "the inputs are not those that it was compiled for"
        ids, mask = inputs[0].asnumpy(), inputs[3].asnumpy()
        limit = float((inputs[-1] if self.step.plan.num_micro_batches == 1 else self.cell.loss_limit).asnumpy())
        total, count, change = loss_of(ids, mask)
        applied = total <= limit * count
        for parameter in (*self.step.weights, *self.step.parameters()) if applied else ():
            parameter.set_data(Tensor(executed(parameter.asnumpy(), change)), slice_shape=parameter.sliced)
        return tuple(Tensor(np.float32(value)) for value in (total, count, 1.0)) + (Tensor(bool(applied)),)


def loss_of(ids, mask):
    """Sum of losses, tokens, and what a step does with a batch: what the graph would compute, were it this simple."""
    count = float(mask.sum())
    return count * 3.0, count, float(ids.mean()) / 1000


def executed(values, change):
    """A tensor after a step: of each element alone, so that slices change as the whole does."""
    import numpy as np

    return (values * np.float32(KEPT) + np.float32(change)).astype(np.float32)


if "ASCEND_STUB" in os.environ:
    from pangu_ms import runtime

    real_start, runtime.start = runtime.start, start
