"""Policies of continuous batching: whenever a slot is free, the first waiting request in the policy's order gets it."""

import abc
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pangu_ms.infer.scheduling.state import Admission, State, StepPlan, Waiting, after_admissions, next_chunk


def expected_steps(request: Waiting, state: State) -> float:
    """Steps that a request is expected to need: its chunks, and one for each new token but the first, which its last
    chunk gives."""
    left = request.expected_tokens - request.generated
    if request.generated or not request.prompt_tokens:  # nothing to compute before it decodes
        return max(left, 1)
    return math.ceil((request.prompt_tokens - request.cached_tokens) / state.chunk) + max(left, 1) - 1


def predicted_limit(request: Waiting, state: State, bin_tokens: int, margin_tokens: int) -> int:
    """New tokens that a request may have in its first attempt: the prediction and a margin, rounded up to a multiple of
    `bin_tokens`. Later attempts, and requests without a prediction, may have all that they can have."""
    full = state.full_limit(request)
    if request.attempts or request.predicted_tokens is None:
        return full
    bins = math.ceil((request.predicted_tokens + margin_tokens) / bin_tokens)
    return min(full, max(bins, 1) * bin_tokens)


@dataclass(frozen=True)
class FirstCome:
    """First come, first served. The base of the other policies, which have another order.

    If there is no room for the first request in the order, no other request passes it, so that large requests do not
    starve. Where every slot has its own rows of the cache there is room in every free slot.

    Attributes:
        bin_tokens: with 0, a request reserves cache for all tokens that it may have. Otherwise it reserves its
            predicted tokens, rounded up to a multiple of this; if it needs more it leaves its slot and goes on from its
            kept cache as soon as there is room for its maximum.
        margin_tokens: added to the prediction before it is rounded.
    """

    bin_tokens: int = 0
    margin_tokens: int = 0
    keeps_cache: bool = True

    def first(self, number: int, state: State) -> Sequence[Waiting]:
        """The first `number` waiting requests in the policy's order."""
        return state.waiting[:number]

    def plan(self, state: State) -> StepPlan:
        """See `Scheduler.plan`."""
        admit = self._admissions(state)
        running = after_admissions(state, admit)
        decode = tuple(one.slot for one in running if one.ready)
        return StepPlan(admit, next_chunk(running, state.chunk), decode, len(decode))

    def _admissions(self, state: State) -> tuple[Admission, ...]:
        free = state.free_slots if state.waiting else []
        if not free:
            return ()
        room, admit = state.budget_tokens - state.reserved_tokens, []
        for slot, request in zip(free, self.first(len(free), state)):
            limit = self._limit(request, state)
            room -= request.prompt_tokens + limit
            if room < 0:
                break
            admit.append(Admission(request.id, slot, limit))
        return tuple(admit)

    def _limit(self, request: Waiting, state: State) -> int:
        if not self.bin_tokens:
            return state.full_limit(request)
        return predicted_limit(request, state, self.bin_tokens, self.margin_tokens)


@dataclass(frozen=True)
class ByPriority(FirstCome, abc.ABC):
    """The base of policies that compare requests."""

    @abc.abstractmethod
    def priority(self, request: Waiting, state: State) -> float:
        """The smallest is admitted first; equal ones in order of arrival."""

    def first(self, number: int, state: State) -> Sequence[Waiting]:
        """See `FirstCome.first`."""
        return heapq.nsmallest(number, state.waiting, key=lambda request: self.priority(request, state))


@dataclass(frozen=True)
class ShortestFirst(ByPriority):
    """The request with the fewest expected steps first, with aging: its steps count less the longer it has waited, and
    not at all from `max_wait` on. So no request waits for `max_wait` and then sees a later one pass.

    Attributes:
        max_wait: on the caller's clock; infinite: no aging, a long request may wait for ever.
    """

    max_wait: float = math.inf

    def priority(self, request: Waiting, state: State) -> float:
        """See `ByPriority.priority`."""
        age = (state.now - request.arrival) / self.max_wait if self.max_wait else math.inf
        return expected_steps(request, state) * max(0.0, 1 - age)


@dataclass(frozen=True)
class HighestResponseRatio(ByPriority):
    """The highest (waited + expected) / expected first (HRRN): short requests pass, and every request's turn comes.

    Attributes:
        seconds_per_step: converts expected steps to the caller's clock; 1 if it counts steps.
    """

    seconds_per_step: float = 1.0

    def priority(self, request: Waiting, state: State) -> float:
        """See `ByPriority.priority`."""
        return -(state.now - request.arrival) / (expected_steps(request, state) * self.seconds_per_step)


@dataclass(frozen=True)
class LongestFirst(ByPriority):
    """The request with the most expected steps first: for a job whose requests are all there, since the short ones fill
    the slots at its end. Short requests starve if longer ones keep coming."""

    def priority(self, request: Waiting, state: State) -> float:
        """See `ByPriority.priority`."""
        return -expected_steps(request, state)
