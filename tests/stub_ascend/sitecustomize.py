"""Ascend devices that are not there, from outside of the product: Python imports this file in every process that has
its directory on PYTHONPATH.

With ASCEND_STUB set, `mindspore.set_device("Ascend")` makes the process a rank of a virtual cluster (of one, where it
stands alone), whose graphs MindSpore compiles for an Ascend chip. What a device would do is stubbed there, and nothing
else: sums over ranks go through a meeting of this machine, and a compiled graph is not executed: a stand-in of its cell
answers (`executed`, `loss_of`, `logits_of`). Devices that were opened are noted in ASCEND_STUB.devices, one a line.
"""

import os

SOC = "ascend910b"
KEPT = 0.5


def loss_of(ids, mask):
    """Sum of losses, tokens, and what a step does with a batch: what the graph would compute, were it this simple."""
    count = float(mask.sum())
    return count * 3.0, count, float(ids.mean()) / 1000


def executed(values, change):
    """A tensor after a step: of each element alone, so that slices change as the whole does."""
    import numpy as np

    return (values * np.float32(KEPT) + np.float32(change)).astype(np.float32)


def logits_of(tokens, vocab_size):
    """Behind each token comes its successor."""
    import numpy as np

    return np.eye(vocab_size, dtype=np.float32)[(np.asarray(tokens) + 1) % vocab_size]


def set_device(target, device_id=None):
    """Stands for `mindspore.set_device`."""
    if target != "Ascend":
        return real["set_device"](target, device_id)
    import mindspore as ms

    from ascend_ops import backend
    from pangu_ms.rehearsal import virtual_cluster

    with open(f"{os.environ['ASCEND_STUB']}.devices", "a") as file:
        file.write(f"{device_id}\n")
    rank, world = runtime.place()
    ms.set_context(mode=ms.GRAPH_MODE)
    virtual_cluster.enter(world, rank)
    backend.assume_soc(os.environ.get("ASCEND_STUB_SOC", SOC))
    if not real.get("entered"):
        real["entered"] = True
        stand_in_for_ranks(rank, world) if world > 1 else stand_in_for_cells()


def stand_in_for_ranks(rank, world):
    """Sums over ranks that meet, and steps of a plan."""
    import mindspore as ms

    from pangu_ms.parallel import device_ranks
    from pangu_ms.train.steps import rank_step

    ms.communication.init = lambda: None
    device_ranks.DeviceRanks._sum = sums_of(rank, world)
    compile_step = rank_step.RankStep.compile

    def compiled(step):
        compile_step(step)
        step.cell = Executed(step)

    rank_step.RankStep.compile = compiled


def sums_of(rank, world):
    """Sums over ranks: whoever's turn it is brings numbers, the others nothing."""
    import json

    import numpy as np

    from pangu_ms.parallel.rendezvous import Rendezvous

    rendezvous = Rendezvous(os.environ["ASCEND_STUB"], rank, world)
    return lambda ranks, values: np.sum(
        [json.loads(rendezvous.barrier(json.dumps([*map(int, values)]) if r == rank else "")) for r in range(world)],
        axis=0,
        dtype=np.float32,
    )


class Executed:
    """A compiled step of a plan whose execution is `executed`."""

    def __init__(self, step):
        self.step, self.cell = step, step.cell

    def __getattr__(self, name):
        return getattr(self.cell, name)

    def __call__(self, *inputs):
        assert self.cell(*inputs) is None and len(self.cell.compile_cache) == 1, (
            "the inputs are not those that it was compiled for"
        )
        limit = inputs[-1] if self.step.plan.num_micro_batches == 1 else self.cell.loss_limit
        return update(
            [*self.step.weights, *self.step.parameters()], *loss_of(inputs[0].asnumpy(), inputs[3].asnumpy()), limit
        )


def update(parameters, total, count, change, limit):
    """The outputs of a step, which changes parameters unless the loss exceeds its limit."""
    import numpy as np
    from mindspore import Tensor

    applied = total <= float(limit.asnumpy()) * count
    for parameter in parameters if applied else ():
        parameter.set_data(Tensor(executed(parameter.asnumpy(), change)), slice_shape=parameter.sliced)
    return tuple(Tensor(np.float32(value)) for value in (total, count, 1.0)) + (Tensor(bool(applied)),)


def stand_in_for_cells():
    """Cells that a process of one device calls: they compile, and a stand-in gives the outputs."""
    from mindspore import nn

    real["stand_ins"] = Cells()
    for base in (nn.Cell, nn.GraphCell):
        base.__call__ = answered(base.__call__)


def answered(call):
    """A cell's call that is answered by its stand-in once the graph is compiled."""

    def called(cell, *inputs):
        made = call(cell, *inputs)
        stand_in = getattr(real["stand_ins"], type(cell).__name__, None)
        return stand_in(cell, *inputs) if made is None and stand_in else made

    return called


class Cells:
    """Class of a cell -> what its execution gives."""

    def __init__(self):
        self.sums = []

    def WholeStep(self, cell, ids, positions, segments, mask, *rest):
        return self._update(cell.update.optimizer, loss_of(ids.asnumpy(), mask.asnumpy()), rest[-1])

    def GradientSums(self, cell, ids, positions, segments, mask, *rest):
        from mindspore import Tensor

        self.sums = [*(self.sums if float(rest[-1].asnumpy()) else []), loss_of(ids.asnumpy(), mask.asnumpy())]
        return Tensor(self.sums[-1][0])

    def ApplySums(self, cell, lr, scale, limit):
        total, count, change = map(sum, zip(*self.sums))
        return self._update(cell.update.optimizer, (total, count, change / len(self.sums)), limit)

    def _update(self, optimizer, computed, limit):
        return update([*optimizer.parameters, *optimizer.m, *optimizer.v], *computed, limit)

    def TokenLoss(self, cell, ids, positions, segments, mask, *rest):
        from mindspore import Tensor

        return tuple(Tensor(value) for value in loss_of(ids.asnumpy(), mask.asnumpy())[:2])

    def Gradients(self, cell, ids, positions, segments, mask, *rest):
        from mindspore import Tensor

        total, count, _ = loss_of(ids.asnumpy(), mask.asnumpy())
        return Tensor(total), Tensor(count), [Tensor(weight.asnumpy()) for weight in cell.loss.model.trainable_params()]

    def CachedModel(self, cell, ids, positions, last, chunk_slot, with_chunk, *extra):
        from mindspore import Tensor

        (table,) = (p for p in cell.get_parameters() if p.name == "word_embedding.weight")
        return Tensor(logits_of(ids.asnumpy()[last.asnumpy()], table.shape[0]))

    GraphCell = CachedModel

    def HiddenStates(self, cell, ids, positions, segments, *extra):
        import numpy as np
        from mindspore import Tensor

        from pangu_ms.models.common.layers import Attention

        shape, num_states = (
            (*positions.shape, cell.model.word_embedding.weight.shape[1]),
            sum(isinstance(part, Attention) for _, part in cell.model.cells_and_names()) + 1,  # one in each layer
        )
        return tuple(
            Tensor(np.random.default_rng(i).standard_normal(shape).astype(np.float32)) for i in range(num_states)
        )


def start(device):
    """Stands for `runtime.start`, which imports mindspore."""
    import mindspore as ms

    if "set_device" not in real:
        real["set_device"], ms.set_device = ms.set_device, set_device
    real["start"](device)


if "ASCEND_STUB" in os.environ:
    from pangu_ms.core import runtime

    real = {"start": runtime.start}
    runtime.start = start
