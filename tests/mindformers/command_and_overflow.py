"""Child of test_trainer.py: `python -m pangu_ms.mindformers` with the same arguments, and then its training step on two
weights, so that MindFormers is imported once for both.

The last argument is the output directory; overflow.json beside it tells of three steps of which the gradient of
the second is infinite: whether the step overflowed, and the weights after it.
"""

import json
import runpy
import sys
from pathlib import Path

try:
    runpy.run_module("pangu_ms.mindformers", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise

from mindspore import Parameter, Tensor, nn

from pangu_ms.mindformers.wrapper import PanguTrainOneStepCell


class Product(nn.Cell):
    """The sum of weight * x."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([1.0, 1.0]), name="weight")  # SGD takes no scalar on a CPU

    def construct(self, x):
        return (self.weight * x).sum()


network = Product()
optimizer = nn.SGD(network.trainable_params(), learning_rate=0.25)
step = PanguTrainOneStepCell(network, optimizer, use_clip_grad=True, max_grad_norm=10.0, scale_sense=1024.0)
steps = []
for x in (1.0, 3e38, 1.0):
    overflow = step(Tensor(x))[1]
    steps.append([bool(overflow.asnumpy().item()), network.weight.asnumpy().tolist()])
(Path(sys.argv[-1]).parent / "overflow.json").write_text(json.dumps(steps))
