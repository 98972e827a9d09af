"""What a scheduler sees and what it answers.

One engine step computes one token for each decoding slot, plus one chunk of at most `State.chunk` tokens of one prompt.
The chunk that ends a prompt gives that request's first new token in the same step; the request decodes from the next
step on. So a request with n new tokens needs ceil(prompt / chunk) chunk steps and n - 1 decoding steps.

`plan` is a pure function: equal schedulers give equal plans for equal states. What a policy remembers from step to step
(the batches of a group that are still to come) is the value `memory`, which the caller carries from a plan into the
next state and never looks into. A scheduler thus has no state of its own that an engine and a simulator could feed
differently, can be shared by both, and a step can be repeated from its state alone. Failures, which are requests that
did not end within the tokens that a policy allowed them, are a part of the state: `Waiting.attempts`.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Waiting:
    """A request without a slot.

    Attributes:
        id: a number that no other live request has; a later request has a larger one.
        prompt_tokens: length of the prompt. 0 stands for a prompt whose cost does not count (simulations only): such a
            request decodes at once and needs as many decoding steps as it has tokens.
        max_new_tokens: the most tokens that it may generate.
        predicted_tokens: how many it is expected to generate; None if nothing predicts it.
        arrival: when it came, on the caller's clock (steps or seconds).
        template: what its prompt was made from, or the job that it belongs to, "" if unknown; for predictors.
        cached_tokens: prompt tokens that a prefix cache holds, fewer than `prompt_tokens`; the chunks begin behind
            them.
        generated: tokens that it generated in an earlier attempt and whose cache was kept.
        attempts: how often it was returned because it reached a limit below its maximum.
    """

    id: int
    prompt_tokens: int
    max_new_tokens: int
    predicted_tokens: float | None = None
    arrival: float = 0.0
    template: str = ""
    cached_tokens: int = 0
    generated: int = 0
    attempts: int = 0

    @property
    def expected_tokens(self) -> float:
        """New tokens that it is expected to have in all: the predicted ones, or the maximum if nothing predicts it or
        the prediction has proved too small."""
        if self.predicted_tokens is None or self.attempts:
            return self.max_new_tokens
        return min(self.predicted_tokens, self.max_new_tokens)


class Running(NamedTuple):
    """A request in a slot (a named tuple, because a new one is made for each token).

    Attributes:
        id: the request's.
        slot: the index of its slot.
        prompt_tokens: length of its prompt.
        prefilled: prompt tokens whose cache is computed.
        generated: new tokens so far.
        limit: the most new tokens that it may have in this slot, earlier ones included.
        admitted: when it got the slot.
    """

    id: int
    slot: int
    prompt_tokens: int
    prefilled: int
    generated: int
    limit: int
    admitted: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether its prompt is computed, so that it decodes."""
        return self.prefilled >= self.prompt_tokens


@dataclass(frozen=True)
class State:
    """What is waiting and running at the beginning of a step.

    Attributes:
        now: the caller's clock.
        waiting: requests without a slot, in order of arrival.
        slots: what is in each slot; None: it is free.
        slot_tokens: the most tokens that one slot may hold, prompt and new tokens.
        budget_tokens: the most tokens that all slots may hold together. It is len(slots) * slot_tokens where each slot
            has its own rows of the cache, and less where slots share them.
        chunk: the most prompt tokens that one step computes.
        memory: the `memory` of the last plan; None at first.
    """

    now: float
    waiting: tuple[Waiting, ...]
    slots: tuple[Running | None, ...]
    slot_tokens: int
    budget_tokens: int
    chunk: int
    memory: Hashable = None

    @property
    def free_slots(self) -> list[int]:
        """Indices of the free slots, ascending."""
        return [index for index, running in enumerate(self.slots) if running is None]

    @property
    def reserved_tokens(self) -> int:
        """Tokens that the running requests may come to hold."""
        return sum(running.prompt_tokens + running.limit for running in self.slots if running)

    def full_limit(self, request: Waiting) -> int:
        """The most new tokens that a request can have: its maximum, or what a slot has room for."""
        return min(request.max_new_tokens, self.slot_tokens - request.prompt_tokens)


class Admission(NamedTuple):
    """A waiting request gets a slot, and may have `limit` new tokens there."""

    id: int
    slot: int
    limit: int


class Chunk(NamedTuple):
    """Prompt tokens [start, start + num_tokens) of the request in a slot are computed."""

    slot: int
    start: int
    num_tokens: int


@dataclass(frozen=True)
class StepPlan:
    """What one step does, in this order: admit, then compute the chunk and the decoding slots together.

    Attributes:
        admit: requests that get a slot.
        prefill: the chunk of a prompt, which may be one that is admitted in this step; None: no prompt is computed.
        decode: slots that get one token each.
        rows: decoding rows that the step pays for: len(decode), and in a static batch also the rows of its requests
            that have ended.
        memory: for the next state.
    """

    admit: tuple[Admission, ...] = ()
    prefill: Chunk | None = None
    decode: tuple[int, ...] = ()
    rows: int = 0
    memory: Hashable = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.admit or self.prefill or self.decode)


class Scheduler(Protocol):
    """A policy.

    A request that reaches a limit below its maximum goes back to the waiting ones. `keeps_cache` says whether the
    tokens that it has, and their cache, are kept for its next attempt, or whether it begins anew.
    """

    @property
    def keeps_cache(self) -> bool:
        """See above."""

    def plan(self, state: State) -> StepPlan:
        """What the next step does. Pure."""


def admitted(request: Waiting, admission: Admission, now: float) -> Running:
    """A waiting request in its slot. If its cache was kept, its prompt is computed."""
    prefilled = request.prompt_tokens if request.generated else request.cached_tokens
    return Running(
        request.id, admission.slot, request.prompt_tokens, prefilled, request.generated, admission.limit, now
    )


def after_admissions(state: State, admit: tuple[Admission, ...]) -> list[Running]:
    """The running requests in the order of their slots once these are admitted."""
    running = [one for one in state.slots if one]
    if admit:
        waiting = {request.id: request for request in state.waiting}
        running += [admitted(waiting[admission.id], admission, state.now) for admission in admit]
        running.sort(key=lambda one: one.slot)
    return running


def next_chunk(running: list[Running], chunk: int) -> Chunk | None:
    """The chunk that is computed next: of the request that was admitted first; at the same time, of the lower slot."""
    waiting = [one for one in running if not one.ready]
    if not waiting:
        return None
    first = min(waiting, key=lambda one: (one.admitted, one.slot))
    return Chunk(first.slot, first.prefilled, min(chunk, first.prompt_tokens - first.prefilled))


def require_valid(state: State, plan: StepPlan) -> None:
    """Raise ValueError if a plan cannot be carried out: a mistake in a policy, which would otherwise show as a wrong
    answer."""
    if wrong := _first_fault(state, plan):
        raise ValueError(f"invalid plan: {wrong}")


def _first_fault(state: State, plan: StepPlan) -> str:
    if not (plan.admit or plan.prefill):
        running = {one.slot: one for one in state.slots if one}
    else:
        if fault := _fault_of_admissions(state, plan.admit):
            return fault
        running = {one.slot: one for one in after_admissions(state, plan.admit)}
    if len(set(plan.decode)) != len(plan.decode):
        return f"a slot decodes twice in {plan.decode}"
    for slot in plan.decode:
        if slot not in running or not running[slot].ready:
            return f"slot {slot} decodes and holds no request with a computed prompt"
    if plan.rows < len(plan.decode):
        return f"{plan.rows} rows for {len(plan.decode)} decoding slots"
    if plan.prefill:
        slot, start, num_tokens = plan.prefill
        if slot not in running or start != running[slot].prefilled:
            return f"the chunk of slot {slot} does not begin where its prompt has come to"
        if not 1 <= num_tokens <= min(state.chunk, running[slot].prompt_tokens - start):
            return f"the chunk of slot {slot} has {num_tokens} tokens"
    return ""


def _fault_of_admissions(state: State, admit: tuple[Admission, ...]) -> str:
    waiting = {request.id: request for request in state.waiting} if admit else {}
    taken, reserved = set(), state.reserved_tokens
    for identity, slot, limit in admit:
        request = waiting.pop(identity, None)
        if request is None:
            return f"request {identity} is admitted and does not wait"
        if not 0 <= slot < len(state.slots) or state.slots[slot] or slot in taken:
            return f"request {identity} is admitted into slot {slot}, which is not free"
        if not request.generated < limit <= state.full_limit(request):
            return f"request {identity} may have {limit} tokens"
        taken.add(slot)
        reserved += request.prompt_tokens + limit
    return f"{reserved} tokens of {state.budget_tokens}" if admit and reserved > state.budget_tokens else ""
