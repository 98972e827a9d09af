"""A run with experts in host memory whose gradients are given instead of computed, so that nothing is compiled.

`python -m tests.train.offload_child RECORDS OUTPUT UPDATE DELAY OVERRIDE...` continues one and kills itself DELAY
seconds after that update of an expert.
"""

import itertools
import os
import signal
import sys
import threading
from unittest import mock

import numpy as np
from mindspore import Tensor

from pangu_ms.config import load_config
from pangu_ms.train.loop import train
from pangu_ms.train.offload.expert_store import ExpertStore
from pangu_ms.train.offload.offload_step import OffloadStep


def given(step, batch, number, controls):
    """In the place of OffloadStep._compute: gradients are a function of the weights and the number of the step."""
    total, count, limit = 200.0, 100.0, controls[2].asnumpy()
    gradients = [0.1 * np.cos(step.sets[0].arrays[stack] + number) for stack in step.stacks]
    norms = [(gradient**2).sum(tuple(range(1, gradient.ndim))) for gradient in gradients]
    outputs = [total, count, 1.0, bool(total <= limit * count), 1.0]
    return [Tensor(np.array(value)) for value in (*map(np.float32, outputs), *norms, *gradients)]


def train_given(records, output, overrides):
    """Train or continue a run of given gradients to its end."""
    with (
        mock.patch.object(OffloadStep, "_compute", given),
        mock.patch("pangu_ms.train.run.Run.evaluate", return_value=None),
    ):
        train(load_config("sigma/tiny", overrides), records, output, resume=True, progress=False)


def main(records, output, update, delay, *overrides):
    """See above."""
    numbers, updated = itertools.count(), ExpertStore.update

    def counted(*values):
        if next(numbers) == int(update):
            threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGKILL)).start()
        return updated(*values)

    with mock.patch.object(ExpertStore, "update", counted):
        train_given(records, output, overrides)


if __name__ == "__main__":
    main(*sys.argv[1:])
