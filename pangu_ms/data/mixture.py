"""Which domain each sample of a training run comes from, and which of the domain's rows it is. Both are functions of
the seed and of the sample's position, so that a resumed run needs its step alone. No mindspore import.

Legend: D domains, P positions of a period, N rows.
"""

import functools
import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from pangu_ms.config.schema import MIXTURE_STEPS, DataConfig


class RowOrder(Protocol):
    """The row at each position of a run's stream of samples. Position 0 is the first sample of step 0."""

    num_rows: int
    """Number of rows that are read at all."""

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at positions: int64, the shape of `positions`."""


class Epochs:
    """A RowOrder of epochs: each epoch reads all rows once."""

    def __init__(self, rows: np.ndarray | range, seed: Sequence[int], shuffle: bool):
        """Set up the order.

        Args:
            rows: the N rows of an epoch; a range is not expanded before an epoch is read.
            seed: determines the permutation of an epoch together with the epoch's number.
            shuffle: False reads the rows of every epoch in the given order.
        """
        self._rows, self._seed, self._shuffle = rows, seed, shuffle
        self.num_rows = len(rows)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def epoch(self, number: int) -> np.ndarray:
        """The rows in the order in which an epoch reads them: int64 [N]."""
        if self._epoch[0] != number:
            rows = self._rows
            if isinstance(rows, range):  # numpy would convert it number by number
                rows = np.arange(rows.start, rows.stop)
            if self._shuffle:
                generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._seed, number])))
                rows = rows[generator.permutation(self.num_rows)]
            self._epoch = (number, rows)
        return self._epoch[1]

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """See RowOrder."""
        epochs, offsets = np.divmod(positions, self.num_rows)
        rows = np.empty(positions.shape, np.int64)
        for number in np.unique(epochs).tolist():
            rows[epochs == number] = self.epoch(number)[offsets[epochs == number]]
        return rows


class Schedule:
    """The domain of each position: a sequence of domains that repeats.

    Attributes:
        counts: int64 [D], samples of each domain in a period.
    """

    def __init__(self, period: np.ndarray, num_domains: int):
        """Count the domains.

        Args:
            period: int64 [P], the domains of the first P positions.
            num_domains: D.
        """
        self._period = period
        self.counts = np.bincount(period, minlength=num_domains)
        order = np.argsort(period, kind="stable")
        firsts = np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        self._earlier = np.empty(len(period), np.int64)
        """Number of earlier positions of the period that have the same domain."""
        self._earlier[order] = np.arange(len(period)) - firsts

    @classmethod
    def of(cls, data: DataConfig, domains: Sequence[str]) -> "Schedule | None":
        """The schedule that a configuration says; None if it says none.

        Args:
            data: its mixture or samples_per_domain.
            domains: names of the D domains.
        """
        if data.mixture:
            return cls.mixture([data.mixture.get(name, 0) for name in domains])
        if data.samples_per_domain:
            return cls.batches([data.samples_per_domain.get(name, 0) for name in domains])
        return None

    @classmethod
    def mixture(cls, weights: Sequence[float]) -> "Schedule":
        """Mix domains by weight, as evenly as whole samples allow.

        The shares are the weights divided by their sum, exactly as their decimals say, if they have a common
        denominator of at most MIXTURE_STEPS; otherwise they are rounded to multiples of 1 / MIXTURE_STEPS. Among the
        first n samples, the number of those of a domain differs from n * share by less than 1, for every n.

        Args:
            weights: D weights, not all 0.
        """
        return cls(interleave(tuple(period_counts(weights))), len(weights))

    @classmethod
    def batches(cls, samples: Sequence[int]) -> "Schedule":
        """Batches of `samples[d]` samples of each domain d, one domain after the other."""
        return cls(np.repeat(np.arange(len(samples)), samples), len(samples))

    def domains_at(self, positions: np.ndarray) -> np.ndarray:
        """The domain of each position: int64."""
        return self._period[positions % len(self._period)]

    def indices_at(self, positions: np.ndarray) -> np.ndarray:
        """The number of earlier samples of the same domain, for each position: int64."""
        periods, offsets = np.divmod(positions, len(self._period))
        return periods * self.counts[self._period[offsets]] + self._earlier[offsets]

    def counts_before(self, position: int) -> np.ndarray:
        """The number of samples of each domain before a position: int64 [D]."""
        periods, offset = divmod(position, len(self._period))
        return periods * self.counts + np.bincount(self._period[:offset], minlength=len(self.counts))


class Mixed:
    """A RowOrder with a schedule of domains. Every domain has its own epochs, and its own permutation in each."""

    def __init__(self, schedule: Schedule, domains: Mapping[str, np.ndarray | range], seed: int, shuffle: bool):
        """Set up the orders of all domains.

        Args:
            schedule: the domain of each position.
            domains: the rows of each of the D domains by name.
            seed: determines the permutation of a domain's epoch together with its name and the epoch's number.
            shuffle: as in `Epochs`.
        """
        self.schedule = schedule
        self._domains = [Epochs(rows, [seed, _entropy(name)], shuffle) for name, rows in domains.items()]
        self.num_rows = sum(own.num_rows for own, count in zip(self._domains, schedule.counts) if count)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """See RowOrder."""
        domains, indices = self.schedule.domains_at(positions), self.schedule.indices_at(positions)
        rows = np.empty(positions.shape, np.int64)
        for domain in np.unique(domains).tolist():
            rows[domains == domain] = self._domains[domain].rows_at(indices[domains == domain])
        return rows


def period_counts(weights: Sequence[float]) -> list[int]:
    """The samples of each domain in the shortest period whose shares are those of the weights; see
    `Schedule.mixture`."""
    exact = [Fraction(str(weight)) for weight in weights]  # the decimals as written: 0.1 is a tenth
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MIXTURE_STEPS:
        return [int(share * period) for share in shares]
    counts = [int(share * MIXTURE_STEPS) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda d: counts[d] - shares[d] * MIXTURE_STEPS)
    for domain in by_remainder[: MIXTURE_STEPS - sum(counts)]:
        counts[domain] += 1
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


@functools.lru_cache(maxsize=4)  # the longest period takes a second
def interleave(counts: tuple[int, ...]) -> np.ndarray:
    """Spread the samples of each domain evenly over a period.

    Sample j of a domain (from 0) with c of P samples must not come before position floor(j * P / c) and must come
    before position ceil((j + 1) * P / c). At each position, the sample with the earliest end of these windows is
    taken among those that may come; that this meets all windows is the theorem of proportionate fairness (Baruah et
    al., 1996). So the number of samples of a domain among the first n differs from n * c / P by less than 1.

    Returns:
        The domain of each position: int64 [P].
    """
    period = sum(counts)
    begins = np.concatenate([np.arange(count) * period // count for count in counts if count])
    ends = np.concatenate([-(-np.arange(1, count + 1) * period // count) for count in counts if count])
    domains = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(begins, kind="stable")
    begin_of, urgency_of = begins[order].tolist(), (ends * len(counts) + domains)[order].tolist()
    taken: list[int] = []
    ready: list[int] = []
    known = 0
    for position in range(period):
        while known < period and begin_of[known] <= position:
            heapq.heappush(ready, urgency_of[known])
            known += 1
        taken.append(heapq.heappop(ready))
    domain_of = np.array(taken, np.int64) % len(counts)
    domain_of.flags.writeable = False  # it is shared by later calls
    return domain_of


def _entropy(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
