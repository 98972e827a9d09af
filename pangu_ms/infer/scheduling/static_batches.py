"""Policies of static batching: a batch is admitted when the one before it has ended altogether.

Source: *Response Length Perception and Sequence Scheduling* (spec G1), whose published program attaches answers to
wrong prompts: it applies the sorting permutation twice instead of its inverse, and looks up failed requests by their
place in the sorted batch. Here a request is known by its id alone, and no answer has a place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from pangu_ms.infer.scheduling.continuous import predicted_limit
from pangu_ms.infer.scheduling.state import Admission, Running, State, StepPlan, Waiting, admitted, next_chunk

PUBLISHED_BATCH_SIZES = ((50, 256), (100, 128), (150, 64), (200, 32))
"""(limit in tokens, batch size) of the paper; longer bins have 16. They need up to 12,800 tokens of cache, where its
baseline, 16 rows of 512, needs 8,192 (spec G1.2)."""


class Batch(NamedTuple):
    """Requests that are decoded together, with the limit that each has unless its maximum is smaller."""

    ids: tuple[int, ...]
    limit: int


class Memory(NamedTuple):
    """The batches of a group that are still to come, and the rows of the one that runs."""

    batches: tuple[Batch, ...] = ()
    rows: int = 0


@dataclass(frozen=True)
class Static:
    """Batch by batch in order of arrival. The prompts of a batch are computed first; then all its rows are decoded
    until the longest answer has ended."""

    keeps_cache: bool = False

    def plan(self, state: State) -> StepPlan:
        """See `Scheduler.plan`."""
        memory = cast(Memory, state.memory or Memory())
        running = [one for one in state.slots if one]
        if running:
            return _step(running, memory, state)
        admit, batches = self._next_batch(state, memory.batches)
        waiting = {request.id: request for request in state.waiting}
        running = [admitted(waiting[admission.id], admission, state.now) for admission in admit]
        return _step(running, Memory(batches, len(admit)), state, admit)

    def form(self, state: State) -> tuple[Batch, ...]:
        """Batches of requests that wait; none if none waits."""
        return _cut(list(state.waiting[: len(state.slots)]), state.slot_tokens, len(state.slots), state)[:1]

    def _next_batch(self, state: State, batches: tuple[Batch, ...]) -> tuple[tuple[Admission, ...], tuple[Batch, ...]]:
        """The admissions of the next batch, and the batches behind it. Requests that no longer wait were cancelled."""
        waiting = {request.id: request for request in state.waiting}
        # A new group only if every request of the last one that had no slot yet was cancelled.
        batches = tuple(batch for batch in batches if not waiting.keys().isdisjoint(batch.ids)) or self.form(state)
        if not batches:
            return (), ()
        ids, limit = batches[0]
        here = [waiting[identity] for identity in ids if identity in waiting]
        limits = [min(limit, state.full_limit(request)) for request in here]
        return tuple(Admission(one.id, slot, limits[slot]) for slot, one in enumerate(here)), batches[1:]


def _step(running: list[Running], memory: Memory, state: State, admit: tuple[Admission, ...] = ()) -> StepPlan:
    chunk = next_chunk(running, state.chunk)
    if chunk or not running:
        return StepPlan(admit, chunk, memory=memory)
    return StepPlan(admit, None, tuple(one.slot for one in running), memory.rows, memory)


@dataclass(frozen=True)
class SortedBatches(Static):
    """Groups of requests, sorted by their predicted lengths and cut into batches of equal size: the rows of a batch end
    at about the same time.

    Attributes:
        group_size: requests that are sorted together; the next group begins when all of a group have ended.
    """

    group_size: int = 256

    def form(self, state: State) -> tuple[Batch, ...]:
        """See `Static.form`."""
        return _cut(_sorted(state.waiting[: self.group_size]), state.slot_tokens, len(state.slots), state)


@dataclass(frozen=True)
class StaticBins(Static):
    """The paper's static bins. A group is sorted by prediction; each bin of predictions has batches of its own size
    (VBS) and a limit; requests that do not end within it are collected and run again (FCR).

    Attributes:
        group_size: as in SortedBatches.
        bin_tokens: width of a bin: predictions are rounded up to a multiple of it.
        margin_tokens: added to a prediction before it is rounded: fewer failures, smaller batches.
        batch_sizes: (limit, size) of each bin, and 16 above the last, whatever cache they need; empty: as many rows of
            the longest prompt and the limit as the budget holds.
        limited: whether a batch ends at its bin's limit; otherwise with its longest answer (VBS without FCR).
        failures_last: whether failures of all groups are run again at the end of the job, in larger batches than those
            of one group, instead of at the end of their group. Not for endless streams, where they would never be run.
    """

    group_size: int = 256
    bin_tokens: int = 50
    margin_tokens: int = 0
    batch_sizes: tuple[tuple[int, int], ...] = ()
    limited: bool = True
    failures_last: bool = False

    def form(self, state: State) -> tuple[Batch, ...]:
        """See `Static.form`."""
        fresh = [request for request in state.waiting if not request.attempts]
        failed = [request for request in state.waiting if request.attempts]
        if failed and not (fresh and self.failures_last):
            return _cut(failed, state.slot_tokens, 16 if self.batch_sizes else len(state.slots), state)
        return self._bins(_sorted(fresh[: self.group_size]), state)

    def _bins(self, group: list[Waiting], state: State) -> tuple[Batch, ...]:
        """Batches of a sorted group. A remainder that would make a small batch joins the next longer bin: one of less
        than half the bin's batch, or than a batch of requests with the longest answers."""
        least = 16 if self.batch_sizes else state.budget_tokens // state.slot_tokens
        bins: dict[int, list[Waiting]] = {}
        for request in group:
            bins.setdefault(self._bin(request, state), []).append(request)
        batches: list[Batch] = []
        carried: list[Waiting] = []
        for upper in sorted(bins):
            members = carried + bins[upper]
            limit = upper if self.limited else state.slot_tokens
            size = self._size(members, upper, limit, state)
            rest = len(members) % size
            carry = rest < max(size // 2, least) and upper != max(bins)
            whole = len(members) - rest if carry else len(members)
            batches += _cut(members[:whole], limit, size, state)
            carried = members[whole:]
        return tuple(batches)

    def _bin(self, request: Waiting, state: State) -> int:
        """The upper end of a request's bin, in new tokens."""
        return predicted_limit(request, state, self.bin_tokens, self.margin_tokens)

    def _size(self, members: list[Waiting], upper: int, limit: int, state: State) -> int:
        if self.batch_sizes:
            return min(next((size for most, size in self.batch_sizes if upper <= most), 16), len(state.slots))
        widest = max(_row_tokens(request, limit, state) for request in members)
        return min(max(state.budget_tokens // widest, 1), len(state.slots))


def _sorted(requests: Sequence[Waiting]) -> list[Waiting]:
    """By expected tokens; equal ones in order of arrival."""
    return sorted(requests, key=lambda request: request.expected_tokens)


def _cut(requests: list[Waiting], limit: int, size: int, state: State) -> tuple[Batch, ...]:
    """Batches of at most `size` neighbours that the budget holds."""
    batches = []
    while requests:
        rows = _fitting(requests[:size], limit, state)
        batches.append(Batch(_ids(requests[:rows]), limit))
        requests = requests[rows:]
    return tuple(batches)


def _fitting(requests: Sequence[Waiting], limit: int, state: State) -> int:
    """How many of the first requests can be rows of one batch: rows have the capacity of the widest."""
    widest = rows = 0
    for request in requests:
        widest = max(widest, _row_tokens(request, limit, state))
        if (rows + 1) * widest > state.budget_tokens:
            break
        rows += 1
    return max(rows, 1)


def _row_tokens(request: Waiting, limit: int, state: State) -> int:
    return request.prompt_tokens + min(limit, state.full_limit(request))


def _ids(requests: Sequence[Waiting]) -> tuple[int, ...]:
    return tuple(request.id for request in requests)
