"""Batches whose order is a function of (seed, epoch): resuming needs only the number of the step. No mindspore import.

Legend: N rows, B batch, S sequence length.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from pangu_ms.core.errors import DataError
from pangu_ms.data.extra_inputs import read_extra, require_sources
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.batch import Batch

_WINDOW_ROWS = 1024
"""Rows fetched at once: opening a MindDataset costs 3 ms, reading a row 0.03 ms; 4 MB of ids at S = 1024."""


def batch_from_ids(ids: np.ndarray, eod_id: int, pad_id: int, eod_reset: bool) -> Batch:
    """Positions, segments and loss mask of rows of ids.

    With `eod_reset` a document ends with its eod, and positions restart at 0 behind it. The loss mask looks at the
    input token, so the prediction made at an eod does not count.

    Args:
        ids: int32 [B, S+1].

    Source: spec A1.5 (reset), A1.6 (mask).
    """
    tokens = ids[:, :-1]
    index = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    is_eod = tokens == eod_id
    loss_mask = (~is_eod & (tokens != pad_id)).astype(np.float32)
    if not eod_reset:
        return Batch(ids, index.copy(), np.zeros_like(tokens), loss_mask)
    begins = np.zeros_like(is_eod)
    begins[:, 1:] = is_eod[:, :-1]
    first = np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    return Batch(ids, (index - first).astype(np.int32), np.cumsum(begins, axis=1, dtype=np.int32), loss_mask)


class Loader:
    """Endless batches of a record set; each rank of `world` gets its slice of the global batch.

    Attributes:
        num_rows: rows of an epoch.
    """

    def __init__(
        self,
        records: RecordSet,
        batch_size: int,
        seed: int = 1,
        shuffle: bool = True,
        eod_reset: bool = True,
        eod_id: int | None = None,
        pad_id: int | None = None,
        rank: int = 0,
        world: int = 1,
        order: np.ndarray | None = None,
        extra_inputs: Iterable[str] = (),
    ) -> None:
        """Args:
        batch_size: rows B per rank and step.
        seed: with the epoch it determines the order.
        shuffle: False reads in file order, as the official loader does (spec A6).
        eod_id, pad_id: by default the manifest's, or for official files 6, the id in the released vocabulary (spec A5).
        order: int64 [M], the rows that an epoch consists of, see `rounds.Order`; by default all in file order.
        extra_inputs: names of what the model reads beside ids, `ModelConfig.extra_inputs`.

        Raises:
            DataError: no records have such an input.
        """
        assert batch_size > 0 and 0 <= rank < world
        self._records, self._batch_size, self._seed, self._shuffle = records, batch_size, seed, shuffle
        self._eod_id = records.eod_id if eod_id is None else eod_id
        self._pad_id = records.pad_id if pad_id is None else pad_id
        self._eod_reset, self._rank, self._world = eod_reset, rank, world
        self._order = order
        self._extra_inputs = tuple(extra_inputs)
        require_sources(self._extra_inputs)
        self.num_rows = records.num_rows if order is None else len(order)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Rows in the order in which an epoch reads them: int64 [num_rows]."""
        if self._epoch[0] != epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
            rows = generator.permutation(self.num_rows) if self._shuffle else np.arange(self.num_rows)
            self._epoch = (epoch, rows if self._order is None else self._order[rows])
        return self._epoch[1]

    def row_numbers(self, step: int) -> np.ndarray:
        """Rows of this rank's batch in a step: int64 [B]. Step t's global batch is the sample positions [t, t+1) * B *
        world."""
        first = (step * self._world + self._rank) * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, offsets = np.divmod(positions, self.num_rows)
        return np.concatenate([self.epoch_rows(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps start_step, start_step + 1, ... without end."""
        steps = max(1, _WINDOW_ROWS // self._batch_size)
        while True:
            window = np.concatenate([self.row_numbers(step) for step in range(start_step, start_step + steps)])
            windows = window.reshape(steps, -1), self._records.read_rows(window).reshape(steps, self._batch_size, -1)
            for rows, ids in zip(*windows):
                batch = batch_from_ids(ids, self._eod_id, self._pad_id, self._eod_reset)
                yield batch.with_extra(read_extra(self._extra_inputs, self._records, rows, ids))
            start_step += steps


def num_batches(records: RecordSet, batch_size: int, max_batches: int = 0) -> int:
    """Number of batches that `sequential_batches` makes.

    Raises:
        DataError: a size or number that makes no batch.
    """
    require_batches(batch_size, max_batches)
    available = -(-records.num_rows // batch_size)
    return min(available, max_batches or available)


def require_batches(batch_size: int, max_batches: int) -> None:
    """Raise DataError for numbers that no records can be cut by."""
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: must be at least 1")
    if max_batches < 0:
        raise DataError(f"max_batches={max_batches}: must be at least 0; 0 scores all")


def sequential_batches(
    records: RecordSet, batch_size: int, eod_reset: bool, max_batches: int = 0, extra_inputs: Iterable[str] = ()
) -> Iterator[Batch]:
    """Batches in file order, all of one size: the last is filled up with rows that do not count. `max_batches` 0 means
    all; `extra_inputs` as of Loader.

    Raises:
        DataError: no records have such an input.
    """
    names = tuple(extra_inputs)
    require_sources(names)
    for i in range(num_batches(records, batch_size, max_batches)):
        rows = np.arange(i * batch_size, min((i + 1) * batch_size, records.num_rows))
        ids = records.read_rows(rows)
        extra = {name: _filled(array, batch_size, 0) for name, array in read_extra(names, records, rows, ids).items()}
        filled = _filled(ids, batch_size, records.pad_id)  # the pad token never counts
        yield batch_from_ids(filled, records.eod_id, records.pad_id, eod_reset).with_extra(extra)


def _filled(rows: np.ndarray, batch_size: int, value: int) -> np.ndarray:
    """[batch_size, ...]: the rows, and rows of `value` behind them."""
    padding = np.full((batch_size - len(rows), *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, padding])
