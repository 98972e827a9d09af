"""Batches of records. Their order is a function of the seed and the epoch, so a resumed run needs only its step number.
No mindspore import.

Legend: N rows, B batch, S sequence length.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from pangu_ms.core.errors import DataError
from pangu_ms.data.extra_inputs import read_extra, require_sources
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.batch import Batch

_WINDOW_ROWS = 1024
"""Rows per read, 4 MB of ids at S = 1024. Reads are batched because opening a MindDataset takes 3 ms, and reading a row
only 0.03 ms."""


def batch_from_ids(ids: np.ndarray, eod_id: int, pad_id: int, eod_reset: bool) -> Batch:
    """Make a batch from rows of ids: compute their positions, segments and loss mask.

    With `eod_reset` a new segment begins after each eod, with position 0. The loss mask is decided by the input token:
    a prediction at an eod is masked out, since its label is the first token of an unrelated document.

    Args:
        ids: int32 [B, S+1]; the input tokens are all but the last, the labels all but the first.
        eod_id: id of the end-of-document token.
        pad_id: id of the padding token, which is masked out.
        eod_reset: restart positions and segments at each document.

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
    """Endless batches of a record set; each of `world` ranks gets its slice of the global batch.

    Attributes:
        num_rows: rows of one epoch.
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
        """Set up the order of the rows. Nothing is read yet.

        Args:
            records: the rows.
            batch_size: rows B per rank and step.
            seed: determines the order together with the epoch.
            shuffle: False reads in file order, as the official loader does (spec A6).
            eod_reset: see `batch_from_ids`.
            eod_id, pad_id: by default those of the manifest. For official files both are 6, the id in the released
                vocabulary (spec A5).
            rank, world: index of the part of the global batch that this loader reads, and the number of parts.
            order: int64 [M], the rows that an epoch consists of (see `resample.Order`); by default all, in file order.
            extra_inputs: names of the inputs that the model reads besides ids, see `ModelConfig.extra_inputs`.

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
        """Rows of this rank's batch in a step: int64 [B].

        The samples of all epochs are numbered consecutively. The global batch of step t consists of the samples t * B *
        world to (t + 1) * B * world - 1.
        """
        first = (step * self._world + self._rank) * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, offsets = np.divmod(positions, self.num_rows)
        return np.concatenate([self.epoch_rows(int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps start_step, start_step + 1, and so on, without end."""
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
        DataError: `batch_size` or `max_batches` is out of range.
    """
    require_batches(batch_size, max_batches)
    available = -(-records.num_rows // batch_size)
    return min(available, max_batches or available)


def require_batches(batch_size: int, max_batches: int) -> None:
    """Raise DataError if the batch size or the number of batches is out of range."""
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: must be at least 1")
    if max_batches < 0:
        raise DataError(f"max_batches={max_batches}: must be at least 0; 0 scores all")


def sequential_batches(
    records: RecordSet, batch_size: int, eod_reset: bool, max_batches: int = 0, extra_inputs: Iterable[str] = ()
) -> Iterator[Batch]:
    """Yield batches in file order, all of the same size. The last one is filled up with rows of padding, which the loss
    mask excludes.

    Args:
        records: the rows.
        batch_size: rows B.
        eod_reset: see `batch_from_ids`.
        max_batches: 0 for all.
        extra_inputs: as in `Loader`.

    Raises:
        DataError: no records have such an input.
    """
    names = tuple(extra_inputs)
    require_sources(names)
    for i in range(num_batches(records, batch_size, max_batches)):
        rows = np.arange(i * batch_size, min((i + 1) * batch_size, records.num_rows))
        ids = records.read_rows(rows)
        extra = {name: _filled(array, batch_size, 0) for name, array in read_extra(names, records, rows, ids).items()}
        filled = _filled(ids, batch_size, records.pad_id)  # the loss mask excludes the pad token
        yield batch_from_ids(filled, records.eod_id, records.pad_id, eod_reset).with_extra(extra)


def _filled(rows: np.ndarray, batch_size: int, value: int) -> np.ndarray:
    """Append rows of `value` until there are `batch_size` rows."""
    padding = np.full((batch_size - len(rows), *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, padding])
