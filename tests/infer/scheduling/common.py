"""An engine without a model, states at random, and what every plan must keep to."""

import copy

import numpy as np

from pangu_ms.infer.scheduling.policies import POLICIES, Settings
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.state import Running, State, Waiting

CONTINUOUS = ("fcfs", "sjf", "hrrn", "ljf", "reserve")


def scheduler(name, **settings):
    """The scheduler of a policy."""
    return POLICIES[name].make(Settings(**settings))


def token_after(tokens):
    """The next token of the stand-in of a model: it depends on every token before it, and on their order."""
    value = 0
    for token in tokens:
        value = (value * 31 + token + 7) % 1000003
    return value


def alone(prompt, num_tokens):
    """What the stand-in answers to a prompt."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(token_after(tokens))
    return tokens[len(prompt) :]


class EchoEngine:
    """Slots with a cache of the tokens themselves; a token depends on what its slot's cache holds. The first token of a
    prompt is its request's id, so that an answer tells whose it is.

    The scheduler's plans are checked here, independently of `require_valid`.
    """

    books = SlotTable

    def __init__(self, scheduler, num_slots, slot_tokens, chunk, budget_tokens=None):
        self.scheduler, self.chunk = scheduler, chunk
        self.table = self.books(num_slots, slot_tokens, chunk, budget_tokens, scheduler.keeps_cache)
        self.caches, self.kept = [None] * num_slots, {}
        self.prompts, self.lengths, self.answers, self.failures, self.steps = {}, {}, {}, [], 0

    def submit(self, prompt, length, most, predicted=None):
        """A request whose answer has `length` tokens; its id is prompt[0]."""
        identity = prompt[0]
        self.prompts[identity], self.lengths[identity] = list(prompt), length
        self.table.submit(Waiting(identity, len(prompt), most, predicted, float(self.steps)))

    def cancel(self, identity):
        slot = self.table.cancel(identity)
        self.kept.pop(identity, None)
        if slot is not None:
            self.caches[slot] = None

    def owner(self, one):
        """The request that an answer in a slot is given to."""
        return one.id

    def prompt_of(self, one):
        """The prompt that is computed for a request in a slot."""
        return self.prompts[one.id]

    def step(self):
        state = self.table.state(float(self.steps))
        plan = self.scheduler.plan(state)
        assert plan == self.scheduler.plan(copy.deepcopy(state)), "the plan is no function of the state"
        assert not plan.idle, "requests wait, and nothing is done"
        require_kept(state, plan)
        for one in self.table.admit(state, plan):
            assert self.caches[one.slot] is None
            self.caches[one.slot] = self.kept.pop(one.id, []) if one.generated else []
        with_token = list(plan.decode)
        if plan.prefill:
            slot, start, num_tokens = plan.prefill
            prompt = self.prompt_of(self.table.slots[slot])
            assert len(self.caches[slot]) == start
            self.caches[slot] += prompt[start : start + num_tokens]
            with_token += [slot] if start + num_tokens == len(prompt) else []
        stopped = set()
        for slot in with_token:
            one = self.table.slots[slot]
            self.caches[slot].append(token_after(self.caches[slot]))
            if one.generated + 1 == self.lengths[one.id]:
                stopped.add(slot)
        ended = self.table.advance(plan, stopped)
        for one in ended.finished:
            owner = self.owner(one)
            assert owner not in self.answers, f"request {owner} is answered twice"
            self.answers[owner] = self.caches[one.slot][one.prompt_tokens :]
        for one in ended.returned:
            self.failures.append(one.id)
            self.kept[one.id] = self.caches[one.slot]
        for one in (*ended.finished, *ended.returned):
            self.caches[one.slot] = None
        self.steps += 1

    def run(self):
        while self.table.busy:
            self.step()
            assert self.steps < 100_000


def require_kept(state, plan):
    """What holds of every plan, in words of its own."""
    waiting = {request.id: request for request in state.waiting}
    slots = {index: one for index, one in enumerate(state.slots) if one}
    assert len({admission.id for admission in plan.admit}) == len(plan.admit)
    for identity, slot, limit in plan.admit:
        request = waiting[identity]
        assert slot in range(len(state.slots)) and slot not in slots, "admitted into an occupied slot"
        assert 1 <= limit <= request.max_new_tokens and request.prompt_tokens + limit <= state.slot_tokens
        done = request.prompt_tokens if request.generated else request.cached_tokens
        slots[slot] = Running(identity, slot, request.prompt_tokens, done, request.generated, limit)
    total = sum(one.prompt_tokens + one.limit for one in slots.values())
    assert total <= state.budget_tokens, "more tokens than the budget"
    decode = set(plan.decode)
    assert len(decode) == len(plan.decode) <= plan.rows
    assert all(slots[slot].prefilled == slots[slot].prompt_tokens for slot in decode)
    if plan.prefill:
        slot, start, num_tokens = plan.prefill
        one = slots[slot]
        assert slot not in decode and start == one.prefilled, "a chunk does not begin where the prompt has come to"
        assert 1 <= num_tokens <= state.chunk and start + num_tokens <= one.prompt_tokens, "a chunk behind the prompt"


def random_state(rng, shared):
    """Any state with requests of which each fits a slot; `shared`: the budget is smaller than all slots."""
    num_slots, slot_tokens, chunk = rng.integers(1, 9), int(rng.integers(8, 200)), int(rng.integers(1, 70))
    budget = int(num_slots) * slot_tokens
    slots, identity = [], 0
    for slot in range(num_slots):
        if rng.random() < 0.5:
            slots.append(None)
            continue
        prompt = int(rng.integers(1, slot_tokens))
        limit = int(rng.integers(1, slot_tokens - prompt + 1))
        done = int(rng.integers(0, prompt + 1))
        made = int(rng.integers(1, limit)) if done == prompt and limit > 1 else 0
        if done == prompt and not made:
            done = prompt - 1
        slots.append(Running(identity, slot, prompt, done, made, limit, float(rng.integers(5))))
        identity += 1
    if shared:
        reserved = sum(one.prompt_tokens + one.limit for one in slots if one)
        budget = max(slot_tokens, int(rng.integers(reserved, budget + 1)))
    waiting = []
    for arrival in sorted(rng.integers(0, 50, rng.integers(0, 20)).tolist()):
        prompt = int(rng.integers(1, slot_tokens))
        attempts = int(rng.integers(0, 2))
        room = slot_tokens - prompt
        made = int(rng.integers(1, room)) if attempts and room > 1 and rng.random() < 0.5 else 0
        waiting.append(
            Waiting(
                identity,
                prompt,
                int(rng.integers(made + 1, 300)),
                None if rng.random() < 0.2 else float(rng.uniform(1, 300)),
                float(arrival),
                cached_tokens=int(rng.integers(0, prompt)),
                generated=made,
                attempts=attempts,
            )
        )
        identity += 1
    return State(50.0, tuple(waiting), tuple(slots), slot_tokens, budget, chunk)


def generator(seed):
    return np.random.default_rng(seed)
