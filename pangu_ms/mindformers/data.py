"""Our loader as a MindSpore data set whose n-th element is the whole batch of step n. mindspore is imported when the
data set is made."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.batch import INPUTS, Batch
from pangu_ms.models.common.config import ModelConfig


def columns(model: ModelConfig) -> list[str]:
    """Names of the arrays that one element of the data set holds."""
    return [*INPUTS, *model.extra_inputs(), "dropout_key"]


class StepBatches:
    """Batches indexed by step: a data set that skips n elements resumes at step n.

    Batches are read sequentially; only a jump to another step starts a new iteration of the loader.
    """

    def __init__(self, loader: Loader, num_steps: int, seed: int):
        self._loader, self._num_steps, self._seed = loader, num_steps, seed
        self._batches: Iterator[Batch] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        from pangu_ms.train.steps.protocol import dropout_key

        step = int(step)
        if step != self._next:
            self._batches = self._loader.batches(step)
        batch, self._next = next(self._batches), step + 1
        return *batch.arrays(), np.asarray(dropout_key(self._seed, step, 0))


def step_dataset(run: RunConfig) -> Any:
    """Make a GeneratorDataset of run.train.steps batches, the same batches in the same order that `pangu train` reads.

    Raises:
        ConfigError: no records are named.
        DataError: the records cannot be read or do not fit the model.
    """
    from mindspore.dataset import GeneratorDataset

    if not run.data.records:
        raise ConfigError(
            "pangu: data.records: is empty; name a directory written by `pangu data prepare` (--data on the command"
            " line)"
        )
    records = RecordSet.open(run.data.records, "train")
    records.check(run.model)
    loader = Loader.of(records, run)
    source = StepBatches(loader, run.train.steps, run.train.seed)
    # The only worker runs in this process: the source reads sequentially, and more workers are slower.
    return GeneratorDataset(
        source, columns(run.model), shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
