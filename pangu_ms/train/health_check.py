"""The health check before a checkpoint: weights are committed only if the loss of one of the next steps, computed
without its update, is good."""

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
"""A loss limit that skips the update, since every loss exceeds it."""
TRIES = 3
"""Number of batches to try, since a single batch may be bad by itself."""


class PeekableBatches:
    """An iterator over batches that can also return the next batches without consuming them."""

    def __init__(self, batches: Iterable[Batch]):
        self._batches, self._seen = iter(batches), deque[Batch]()

    def __next__(self) -> Batch:
        return self._seen.popleft() if self._seen else next(self._batches)

    def peek(self, number: int) -> list[Batch]:
        """The next batches, without taking them."""
        self._seen.extend(islice(self._batches, max(0, number - len(self._seen))))
        return list(islice(self._seen, number))


def healthy_loss(
    train_step: OptimizerStep, guard: Guard, config: RunConfig, step: int, batches: PeekableBatches
) -> float | None:
    """The first good loss of the present weights on the batches of the next TRIES steps; None if none is good. All
    ranks must call this, and get the same result.

    It uses the graph of the training step, so nothing is compiled, and its first loss is exactly the loss that the next
    step will have.

    Args:
        step: number of optimizer steps done.
    """
    seen = []
    for number in range(TRIES):
        batch = batches.peek(number + 1)[number]
        loss = train_step(batch, step + number, 0.0, guard.scale, NO_UPDATE).loss
        if guard.is_good(config, loss):
            return loss
        seen.append(f"{loss:.4g}")
    log.warning(
        "step %d: no checkpoint of it: the losses after it are %s, so its weights may be bad", step, ", ".join(seen)
    )
    return None
