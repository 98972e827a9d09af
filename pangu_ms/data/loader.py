"""Batches of records. Their order is a function of the seed and the epoch, so a resumed run needs only its step number.
No mindspore import.

Legend: N rows, B batch, S sequence length.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import DataError
from pangu_ms.data.domains import model_indices, read_domains, require_domains, require_known
from pangu_ms.data.extra_inputs import read_extra, require_sources
from pangu_ms.data.mixture import Epochs, Mixed, RowOrder, Schedule
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig

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

    The samples of a run are numbered consecutively: the global batch of step t consists of the samples t * B * world to
    (t + 1) * B * world - 1. Which row a sample is depends on its number and the seed alone.

    Attributes:
        num_rows: number of rows that are read at all.
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
        model: ModelConfig | None = None,
        schedule: Schedule | None = None,
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
            model: the model that reads the batches; its extra inputs are read, too.
            schedule: the domain of each sample, as an index of records.domain_names. Then each domain has epochs of its
                own, and an epoch of a domain consists of those rows of `order` that are of the domain. By default an
                epoch consists of the rows of all domains.

        Raises:
            DataError: no records have an extra input of the model, or the model lacks a domain of the rows, or `order`
                has no row of a domain.
        """
        assert batch_size > 0 and 0 <= rank < world
        self._records, self._batch_size = records, batch_size
        self._eod_id = records.eod_id if eod_id is None else eod_id
        self._pad_id = records.pad_id if pad_id is None else pad_id
        self._eod_reset, self._rank, self._world, self._model = eod_reset, rank, world, model
        self._schedule, self._order = schedule, _row_order(records, seed, shuffle, order, schedule)
        if model:
            require_sources(model.extra_inputs())
            require_known(records.source, _domains_read(records, order, schedule), model)
        self.num_rows = self._order.num_rows

    @classmethod
    def of(
        cls,
        records: RecordSet,
        config: RunConfig,
        batch_size: int | None = None,
        rank: int = 0,
        world: int = 1,
        order: np.ndarray | None = None,
    ) -> "Loader":
        """The loader of a run's training batches.

        Args:
            records: the run's training records.
            config: its data and model sections say what is read, and in which order.
            batch_size: rows per rank and step; by default train.batch_size.
            rank, world, order: as for the class.

        Raises:
            DataError: as for the class; or data.mixture or data.samples_per_domain reads a domain that the records
                lack.
        """
        data = config.data
        read_domains(records.source, records.domain_names, data)
        return cls(
            records,
            config.train.batch_size if batch_size is None else batch_size,
            seed=data.seed,
            shuffle=data.shuffle,
            eod_reset=data.eod_reset,
            rank=rank,
            world=world,
            order=order,
            model=config.model,
            schedule=Schedule.of(data, records.domain_names),
        )

    @property
    def domain_names(self) -> list[str]:
        """Names to which the numbers in `domains_of_step` refer: the model's domains or, if it has none, those of the
        records."""
        return list(self._model.domains) if self._model and self._model.domains else self._records.domain_names

    def epoch_rows(self, epoch: int) -> np.ndarray:
        """Rows in the order in which an epoch reads them: int64 [num_rows]. With a schedule there is no such epoch."""
        assert isinstance(self._order, Epochs), "each domain has epochs of its own"
        return self._order.epoch(epoch)

    def row_numbers(self, step: int) -> np.ndarray:
        """Rows of this rank's batch in a step: int64 [B]."""
        first = (step * self._world + self._rank) * self._batch_size
        return self._order.rows_at(np.arange(first, first + self._batch_size))

    def domains_of_step(self, step: int) -> np.ndarray:
        """Domain of each sample of a step's global batch, as an index of `domain_names`: int64 [B * world]. No row is
        read."""
        size = self._batch_size * self._world
        return self._domains_at(np.arange(step * size, (step + 1) * size))

    def most_domains(self, steps: range, sizes: np.ndarray | None = None) -> int:
        """The largest number of different domains in one global batch, over some steps. No row is read.

        Args:
            steps: consecutive steps.
            sizes: int64 [number of domain_names], counts domain d as sizes[d]; by default as 1.

        Returns:
            The largest sum of the sizes of the domains that a global batch has; 0 without steps.
        """
        size, weights = self._batch_size * self._world, np.ones(len(self.domain_names), np.int64)
        weights, most = weights if sizes is None else np.asarray(sizes), 0
        at_once = max(1, _WINDOW_ROWS * 64 // size)
        for first in range(steps.start, steps.stop, at_once):
            count = min(at_once, steps.stop - first)
            domains = self._domains_at(np.arange(first * size, (first + count) * size)).reshape(count, size)
            has = np.zeros((count, len(self.domain_names)), bool)
            has[np.arange(count)[:, None], domains] = True
            most = max(most, int((has @ weights).max()))
        return most

    def _domains_at(self, positions: np.ndarray) -> np.ndarray:
        if self._schedule:
            numbers = self._schedule.domains_at(positions)
        else:
            numbers = self._records.domain_of(self._order.rows_at(positions))
        if not (self._model and self._model.domains):
            return numbers
        return model_indices(self._records.domain_names, self._model).astype(np.int64)[numbers]

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps start_step, start_step + 1, and so on, without end."""
        steps = max(1, _WINDOW_ROWS // self._batch_size)
        while True:
            window = np.concatenate([self.row_numbers(step) for step in range(start_step, start_step + steps)])
            windows = window.reshape(steps, -1), self._records.read_rows(window).reshape(steps, self._batch_size, -1)
            for rows, ids in zip(*windows):
                batch = batch_from_ids(ids, self._eod_id, self._pad_id, self._eod_reset)
                yield batch.with_extra(read_extra(self._model, self._records, rows, ids))
            start_step += steps


def _row_order(
    records: RecordSet, seed: int, shuffle: bool, order: np.ndarray | None, schedule: Schedule | None
) -> RowOrder:
    """The order of the rows; the arguments are those of `Loader`."""
    if schedule is None:
        return Epochs(range(records.num_rows) if order is None else order, [seed], shuffle)
    domains: Mapping[str, np.ndarray | range] = records.domains
    if order is not None:
        number_of = records.domain_of(order)
        domains = {name: order[number_of == number] for number, name in enumerate(domains)}
    for (name, rows), count in zip(domains.items(), schedule.counts):
        if count and not len(rows):
            raise DataError(
                f"{records.source}: data.order lists no row of domain {name}, which is to be read; set its weight in"
                " data.mixture (or its number in data.samples_per_domain) to 0, or draw again"
            )
    return Mixed(schedule, domains, seed, shuffle)


def _domains_read(records: RecordSet, order: np.ndarray | None, schedule: Schedule | None) -> list[str]:
    """Names of the domains whose rows are read; the arguments are those of `Loader`."""
    names = records.domain_names
    if schedule:
        return [name for name, count in zip(names, schedule.counts) if count]
    return names if order is None else [names[number] for number in np.unique(records.domain_of(order))]


def batch_rows(
    records: RecordSet, batch_size: int, max_batches: int = 0, domains: Sequence[str] | None = None
) -> list[tuple[str, range]]:
    """The rows of the batches that `sequential_batches` makes, each with their domain.

    A batch has rows of one domain, in file order. The batches take the domains in turn, so that a limit leaves as many
    batches of each domain as possible.

    Args:
        records: the rows.
        batch_size: rows B. The last batch of a domain may have fewer.
        max_batches: number of batches, but at least one of each domain; 0 for all.
        domains: names of domains; by default those of all rows.

    Raises:
        DataError: `batch_size` or `max_batches` is out of range, or the records lack a domain.
    """
    require_batches(batch_size, max_batches)
    names = records.domain_names if domains is None else domains
    require_domains(records.source, records.domain_names, names)
    parts = []
    for name in names:
        rows = records.domains[name]
        parts.append([(name, rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)])
    in_turn = [batch for turn in itertools.zip_longest(*parts) for batch in turn if batch]
    return in_turn[: max(max_batches, len(names))] if max_batches else in_turn


def num_batches(records: RecordSet, batch_size: int, max_batches: int = 0, domains: Sequence[str] | None = None) -> int:
    """Number of batches that `sequential_batches` makes; raises as `batch_rows`."""
    return len(batch_rows(records, batch_size, max_batches, domains))


def require_batches(batch_size: int, max_batches: int) -> None:
    """Raise DataError if the batch size or the number of batches is out of range."""
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: must be at least 1")
    if max_batches < 0:
        raise DataError(f"max_batches={max_batches}: must be at least 0; 0 scores all")


def sequential_batches(
    records: RecordSet,
    batch_size: int,
    eod_reset: bool,
    max_batches: int = 0,
    model: ModelConfig | None = None,
    domains: Sequence[str] | None = None,
) -> Iterator[Batch]:
    """Yield the batches of `batch_rows`, all of the same size. The last one of a domain is filled up with rows of
    padding, which the loss mask excludes.

    Args:
        records: the rows.
        batch_size: rows B.
        eod_reset: see `batch_from_ids`.
        max_batches, domains: as in `batch_rows`.
        model: the model that reads the batches; its extra inputs are read, too.

    Raises:
        DataError: as `batch_rows`; or no records have an extra input of the model, or the model lacks a domain.
    """
    parts = batch_rows(records, batch_size, max_batches, domains)
    if model:
        require_sources(model.extra_inputs())
        require_known(records.source, records.domain_names if domains is None else domains, model, leave_out="option")
    for _, own in parts:
        rows = np.array(own)
        ids = records.read_rows(rows)
        # Rows of padding have the domain of the other rows, so that they need no expert of another one.
        extra = {name: _filled(array, batch_size) for name, array in read_extra(model, records, rows, ids).items()}
        filled = _filled(ids, batch_size)
        filled[len(rows) :] = records.pad_id  # the loss mask excludes the pad token
        yield batch_from_ids(filled, records.eod_id, records.pad_id, eod_reset).with_extra(extra)


def _filled(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Repeat the last row until there are `batch_size` rows."""
    return np.concatenate([rows, np.repeat(rows[-1:], batch_size - len(rows), axis=0)])
