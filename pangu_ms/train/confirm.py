"""A checkpoint is committed only from weights whose loss was seen to be good: that of the next step, computed without
its update."""

import logging
from collections import deque
from collections.abc import Iterable
from itertools import islice

from pangu_ms.config.schema import RunConfig
from pangu_ms.models.common.batch import Batch
from pangu_ms.train.guard import Guard
from pangu_ms.train.steps.protocol import OptimizerStep

log = logging.getLogger(__name__)

NO_UPDATE = -3e38
"""As the limit of the loss: every loss exceeds it, so that weights and moments stay."""
TRIES = 3
"""Batches that may speak for the weights: one batch may be bad by itself."""


class LookAhead:
    """An iterator over batches that can be looked at before they are taken."""

    def __init__(self, batches: Iterable[Batch]):
        self._batches, self._seen = iter(batches), deque[Batch]()

    def __next__(self) -> Batch:
        return self._seen.popleft() if self._seen else next(self._batches)

    def next_ones(self, number: int) -> list[Batch]:
        """The next batches, which stay the next ones."""
        self._seen.extend(islice(self._batches, max(0, number - len(self._seen))))
        return list(islice(self._seen, number))


def good_loss(
    train_step: OptimizerStep, guard: Guard, config: RunConfig, step: int, batches: LookAhead
) -> float | None:
    """The first good loss of the present weights among those of the next TRIES steps; None where they have none. The
    same on all ranks, which all call it.

    The graph is that of the step, so nothing is compiled, and of the next step the loss is the very one that it will
    have.

    Args:
        step: optimizer steps done.
    """
    seen = []
    for number in range(TRIES):
        batch = batches.next_ones(number + 1)[number]
        loss = train_step(batch, step + number, 0.0, guard.scale, NO_UPDATE).loss
        if guard.is_good(config, loss):
            return loss
        seen.append(f"{loss:.4g}")
    log.warning(
        "step %d: no checkpoint of it: the losses after it are %s, so its weights may be bad", step, ", ".join(seen)
    )
    return None
