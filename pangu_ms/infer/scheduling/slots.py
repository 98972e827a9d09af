"""Books of the requests that wait and run: makes a scheduler's states, and applies its plans. The engine and the
simulator keep the same books, so that both need the same number of steps."""

from collections.abc import Collection, Hashable
from dataclasses import replace
from typing import NamedTuple

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.scheduling.state import Running, State, StepPlan, Waiting, admitted, require_valid


class Ended(NamedTuple):
    """The requests that left their slots after a step, with all their tokens counted.

    Attributes:
        finished: they stopped, or have all tokens that they may have.
        returned: they reached a lower limit and wait again.
    """

    finished: tuple[Running, ...]
    returned: tuple[Running, ...]


class SlotTable:
    """Which request is in which slot, and which wait.

    A step is `state = table.state(now)`, `plan = scheduler.plan(state)`, `table.admit(state, plan)`, the computation,
    and `table.advance(plan, stopped)`. Requests are submitted, updated and cancelled between steps.
    """

    def __init__(
        self, num_slots: int, slot_tokens: int, chunk: int, budget_tokens: int | None = None, keeps_cache: bool = False
    ):
        """Make empty books.

        Args:
            num_slots: the most requests that run at a time.
            slot_tokens: the most tokens of one slot.
            chunk: the most prompt tokens of a step.
            budget_tokens: the most tokens of all slots together; None: every slot may be full.
            keeps_cache: whether a request that is returned goes on from its kept cache; `Scheduler.keeps_cache`.
        """
        self.slots: list[Running | None] = [None] * num_slots
        self._waiting: dict[int, Waiting] = {}  # in order of arrival
        self._waiting_tuple: tuple[Waiting, ...] | None = None  # the same for states; None: it has changed
        self._slot_tokens, self._chunk, self._keeps_cache = slot_tokens, chunk, keeps_cache
        self._budget_tokens = num_slots * slot_tokens if budget_tokens is None else budget_tokens
        self._requests: dict[int, Waiting] = {}  # those in slots, as they were admitted
        self._memory: Hashable = None

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._requests)

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """The requests that wait, in order of arrival."""
        if self._waiting_tuple is None:
            self._waiting_tuple = tuple(self._waiting.values())
        return self._waiting_tuple

    def submit(self, request: Waiting) -> None:
        """Add a request.

        Raises:
            GenerationError: no slot can hold it.
            ValueError: a live request has its id, or its whole prompt counts as cached.
        """
        if request.id in self._waiting or request.id in self._requests:
            raise ValueError(f"request {request.id}: a live request has this id")
        if request.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens={request.max_new_tokens}: must be at least 1")
        room = min(self._slot_tokens, self._budget_tokens)
        if request.prompt_tokens >= self._slot_tokens or self._least(request) > self._budget_tokens:
            raise GenerationError(
                f"request {request.id}: {request.prompt_tokens} prompt tokens and up to {request.max_new_tokens} new"
                f" ones; a slot holds {room} in all, one of them new; shorten the prompt, or enlarge the cache"
            )
        last = next(reversed(self._waiting.values()), request)
        self._put(request)
        if _order(last) > _order(request):
            self._sort()

    def update(self, request: Waiting) -> None:
        """Replace a request that waits, such as when it has got a prediction, or a prefix cache holds more of it."""
        if request.id not in self._waiting:
            raise ValueError(f"request {request.id}: does not wait")
        self._put(request)

    def skip_to(self, slot: int, prefilled: int) -> None:
        """The prompt of the request in a slot is computed up to `prefilled`: its beginning was copied."""
        self.slots[slot] = self._running(slot)._replace(prefilled=prefilled)

    def most_new_tokens(self, identity: int) -> int:
        """The most new tokens that a running request can have."""
        return self._full_limit(self._requests[identity])

    def cancel(self, identity: int) -> int | None:
        """Forget a request. Returns the slot that became free, None if it waited."""
        if identity in self._waiting:
            self._take(identity)
            return None
        del self._requests[identity]
        slot = next(one.slot for one in self.slots if one and one.id == identity)
        self.slots[slot] = None
        return slot

    def state(self, now: float) -> State:
        """What a scheduler sees at this time."""
        return State(
            now,
            self.waiting,
            tuple(self.slots),
            self._slot_tokens,
            self._budget_tokens,
            self._chunk,
            self._memory,
        )

    def admit(self, state: State, plan: StepPlan) -> list[Running]:
        """Carry out the admissions of the plan that was made for this state; returns the requests in their slots.

        Raises:
            ValueError: the plan cannot be carried out; a mistake in the policy.
        """
        require_valid(state, plan)
        self._memory = plan.memory
        here = []
        for admission in plan.admit:
            request = self._requests[admission.id] = self._take(admission.id)
            self.slots[admission.slot] = one = admitted(request, admission, state.now)
            here.append(one)
        return here

    def advance(self, plan: StepPlan, stopped: Collection[int] = ()) -> Ended:
        """Count the tokens of a step that was computed, and free the slots of the requests that end with it.

        Args:
            plan: the step's; its admissions are carried out.
            stopped: slots whose new token ends their request.
        """
        with_token = list(plan.decode)
        if plan.prefill:
            slot, _, num_tokens = plan.prefill
            running = self._running(slot)
            self.slots[slot] = running = running._replace(prefilled=running.prefilled + num_tokens)
            if running.ready:
                with_token.append(slot)
        finished: list[Running] = []
        returned: list[Running] = []
        for slot in with_token:
            one = self._running(slot)
            self.slots[slot] = one = one._replace(generated=one.generated + 1)
            if slot not in stopped and one.generated < one.limit:
                continue
            if slot in stopped or one.limit >= self._full_limit(self._requests[one.id]):
                finished.append(one)
                self._leave(one)
            else:
                returned.append(one)
                self._return(one)
        if returned:
            self._sort()
        return Ended(tuple(finished), tuple(returned))

    def _running(self, slot: int) -> Running:
        running = self.slots[slot]
        assert running is not None, f"slot {slot} is free"
        return running

    def _full_limit(self, request: Waiting) -> int:
        return min(request.max_new_tokens, self._slot_tokens - request.prompt_tokens)

    def _least(self, request: Waiting) -> int:
        """Tokens that must be free for a request in the end."""
        return request.prompt_tokens + self._full_limit(request)

    def _leave(self, running: Running) -> Waiting:
        self.slots[running.slot] = None
        return self._requests.pop(running.id)

    def _return(self, running: Running) -> None:
        request = self._leave(running)
        generated = running.generated if self._keeps_cache else 0
        self._put(replace(request, generated=generated, attempts=request.attempts + 1))

    def _put(self, request: Waiting) -> None:
        # The last token of a prompt is always computed: it gives the first new one.
        if not 0 <= request.cached_tokens <= max(request.prompt_tokens - 1, 0):
            raise ValueError(
                f"request {request.id}: {request.cached_tokens} cached tokens of {request.prompt_tokens}: must be fewer"
            )
        self._waiting[request.id], self._waiting_tuple = request, None

    def _take(self, identity: int) -> Waiting:
        self._waiting_tuple = None
        return self._waiting.pop(identity)

    def _sort(self) -> None:
        self._waiting = {request.id: request for request in sorted(self._waiting.values(), key=_order)}
        self._waiting_tuple = None


def _order(request: Waiting) -> tuple[float, int]:
    return request.arrival, request.id
