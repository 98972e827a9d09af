"""Runs a scheduler against given lengths and a cost model instead of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.state import Scheduler, State, StepPlan, Waiting


class Work(NamedTuple):
    """What one step computes.

    Attributes:
        rows: decoding rows that are paid for; see StepPlan.
        prompt_tokens: tokens of the chunk.
        tokens: rows that get a token; fewer than `rows` where requests of a static batch have ended.
        cached_tokens: that these rows attend to.
    """

    rows: int
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0


Cost = Callable[[Work], float]
"""Seconds of a step."""
CLOCKS = ("seconds", "steps")


@dataclass(frozen=True)
class LinearCost:
    """Seconds of a step: `step + row * rows + prompt_token * prompt tokens`.

    The defaults are the published ratio of row to step (spec G1.2), with a step as the unit of time.
    """

    step: float = 1.0
    row: float = 0.004
    prompt_token: float = 0.0

    def __call__(self, work: Work) -> float:
        """The seconds of a step."""
        return self.step + self.row * work.rows + self.prompt_token * work.prompt_tokens


@dataclass(frozen=True)
class GraphCost:
    """Seconds of a step of static graphs, whose products cost the same however many of their rows are used; what is
    done for each row behind the graph, and attention to cached tokens, comes on top. `step_costs.py` measures it.

    Attributes:
        decode: seconds of the graph without a chunk, by its decoding rows.
        with_chunk: seconds of the graph with a chunk, likewise.
        row: seconds for each row that gets a token, such as choosing it.
        cached_token: seconds for each cached token that a row attends to.
    """

    decode: Mapping[int, float]
    with_chunk: Mapping[int, float]
    row: float = 0.0
    cached_token: float = 0.0

    def __call__(self, work: Work) -> float:
        """The seconds of the smallest graph with so many rows.

        Raises:
            GenerationError: there is none.
        """
        graphs = self.with_chunk if work.prompt_tokens else self.decode
        large = [graph for graph in graphs if graph >= work.rows]
        if not large:
            raise GenerationError(f"a step of {work.rows} rows: the largest graph that was measured has {max(graphs)}")
        return graphs[min(large)] + self.row * work.tokens + self.cached_token * work.cached_tokens


@dataclass(frozen=True)
class Given:
    """A request of a simulation.

    Attributes:
        new_tokens: how many tokens it will generate, unless `max_new_tokens` of `simulate` is smaller.
        prompt_tokens: length of its prompt; 0: its cost does not count, as in the paper.
        predicted_tokens: what a predictor says; None: nothing.
        arrival: when it comes, on the simulation's clock.
        template: of its prompt.
    """

    new_tokens: int
    prompt_tokens: int = 0
    predicted_tokens: float | None = None
    arrival: float = 0.0
    template: str = ""


@dataclass(frozen=True)
class Rows:
    """The shape of the engine, as the arguments of SlotTable."""

    num_slots: int
    slot_tokens: int
    chunk: int = 64
    budget_tokens: int | None = None


@dataclass
class Simulation:
    """What a scheduler did with the requests.

    Attributes:
        steps: steps of the engine.
        seconds: their time, and the time without any request.
        decoded_rows: decoding rows of all steps, those of ended requests in a static batch included.
        computed_tokens: decoded_rows, and the first tokens that came from chunks: all tokens that were paid for.
        useful_tokens: tokens of the answers.
        failures: how often a request reached a limit and had to go on or begin anew.
        peak_tokens: the most cache tokens that running requests reserved.
        peak_kept_tokens: the most tokens whose cache was kept outside of the slots, beside the budget.
        waits: of each request, from its arrival to its first admission, on the simulation's clock.
        first_tokens: of each request, from its arrival to its first token.
        latencies: of each request, from its arrival to its last token.
        answers: of each request, how many tokens it got.
    """

    requests: int
    steps: int = 0
    seconds: float = 0.0
    decoded_rows: int = 0
    computed_tokens: int = 0
    useful_tokens: int = 0
    failures: int = 0
    peak_tokens: int = 0
    peak_kept_tokens: int = 0
    waits: dict[int, float] = field(default_factory=dict)
    first_tokens: dict[int, float] = field(default_factory=dict)
    latencies: dict[int, float] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The figures of a report. `average_length` and `effective_ratio` are the paper's metrics (spec G1): computed
        tokens for each request, and the share of them that is useful."""
        waits, latencies = np.array([*self.waits.values()]), np.array([*self.latencies.values()])
        firsts, per_token = np.array([*self.first_tokens.values()]), np.array(self.times_per_token())
        return {
            "requests": self.requests,
            "steps": self.steps,
            "seconds": self.seconds,
            "tokens": self.useful_tokens,
            "tokens_per_second": self.useful_tokens / self.seconds,
            "requests_per_second": self.requests / self.seconds,
            "average_length": self.computed_tokens / self.requests,
            "effective_ratio": self.useful_tokens / self.computed_tokens,
            "failures": self.failures,
            "failure_ratio": self.failures / self.requests,
            "peak_cache_tokens": self.peak_tokens,
            "peak_kept_tokens": self.peak_kept_tokens,
            "wait": _spread(waits),
            "first_token": _spread(firsts),
            "per_token": _spread(per_token),
            "latency": _spread(latencies),
        }

    def times_per_token(self) -> list[float]:
        """Of each request, the mean time between its tokens; 0 if it has one."""
        return [
            (self.latencies[one] - self.first_tokens[one]) / max(self.answers[one] - 1, 1) for one in self.latencies
        ]


def _spread(values: np.ndarray) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": float(values.mean()), "p50": float(p50), "p99": float(p99), "max": float(values.max())}


def simulate(
    scheduler: Scheduler,
    requests: Sequence[Given],
    rows: Rows,
    cost: Cost | None = None,
    max_new_tokens: int = 512,
    clock: str = "seconds",
) -> Simulation:
    """Run the requests to their ends.

    Args:
        scheduler: the policy, the same object that an engine would use.
        requests: in any order of arrival; request i has id i among those sorted by arrival.
        rows: the shape of the engine.
        cost: seconds of a step; None: LinearCost().
        max_new_tokens: the most tokens of an answer.
        clock: what arrivals and waits are counted in; "steps": they do not depend on the cost.

    Raises:
        GenerationError: no slot can hold a request.
        ValueError: the scheduler made an invalid plan.
        RuntimeError: requests wait, none runs, and the scheduler admits none.
    """
    return _Run(scheduler, requests, rows, cost or LinearCost(), max_new_tokens, clock).run()


class _Run:
    def __init__(
        self,
        scheduler: Scheduler,
        requests: Sequence[Given],
        rows: Rows,
        cost: Cost,
        max_new_tokens: int,
        clock: str,
    ):
        self.scheduler, self.cost, self.in_steps = scheduler, cost, clock == "steps"
        self.requests = sorted(requests, key=lambda given: given.arrival)
        self.max_new_tokens = max_new_tokens
        self.table = SlotTable(rows.num_slots, rows.slot_tokens, rows.chunk, rows.budget_tokens, scheduler.keeps_cache)
        self.result, self.now, self.submitted = Simulation(len(requests)), 0.0, 0

    def run(self) -> Simulation:
        while self.submitted < len(self.requests) or self.table.busy:
            if not self.table.busy:
                self._sleep_until(self.requests[self.submitted].arrival)
            self._submit()
            state = self.table.state(self.now)
            plan = self.scheduler.plan(state)
            if plan.idle:
                raise RuntimeError(f"{self.scheduler}: requests wait, and nothing is admitted or computed")
            self._step(state, plan)
        return self.result

    def _sleep_until(self, arrival: float) -> None:
        if arrival > self.now:
            self.result.seconds += 0 if self.in_steps else arrival - self.now
            self.now = arrival

    def _submit(self) -> None:
        while self.submitted < len(self.requests) and self.requests[self.submitted].arrival <= self.now:
            given = self.requests[self.submitted]
            self.table.submit(
                Waiting(
                    self.submitted,
                    given.prompt_tokens,
                    self.max_new_tokens,
                    given.predicted_tokens,
                    given.arrival,
                    given.template,
                )
            )
            self.submitted += 1

    def _step(self, state: State, plan: StepPlan) -> None:
        result, table = self.result, self.table
        for one in table.admit(state, plan):
            result.waits.setdefault(one.id, self.now - self.requests[one.id].arrival)
        if plan.admit:
            reserved = sum(one.prompt_tokens + one.limit for one in table.slots if one)
            result.peak_tokens = max(result.peak_tokens, reserved)
        decoding = [running for slot in plan.decode if (running := table.slots[slot])]
        cached = sum(running.prompt_tokens + running.generated for running in decoding)
        seconds = self.cost(Work(plan.rows, plan.prefill.num_tokens if plan.prefill else 0, len(decoding), cached))
        first_tokens = self._first_tokens(plan)
        before = tuple(table.slots)
        ended = table.advance(plan, self._stopped(plan, first_tokens))
        result.steps += 1
        result.seconds += seconds
        self.now += 1 if self.in_steps else seconds
        for slot in (*plan.decode, *first_tokens):
            if (running := before[slot]) and not running.generated:
                result.first_tokens.setdefault(running.id, self.now - self.requests[running.id].arrival)
        result.decoded_rows += plan.rows
        result.computed_tokens += plan.rows + len(first_tokens)
        for one in ended.finished:
            result.latencies[one.id] = self.now - self.requests[one.id].arrival
            result.answers[one.id] = one.generated
            result.useful_tokens += one.generated
        if ended.returned:
            result.failures += len(ended.returned)
            kept = sum(one.prompt_tokens + one.generated for one in table.waiting if one.generated)
            result.peak_kept_tokens = max(result.peak_kept_tokens, kept)

    def _first_tokens(self, plan: StepPlan) -> tuple[int, ...]:
        """The slot whose prompt ends with the step's chunk, if it does."""
        if not plan.prefill:
            return ()
        slot, start, num_tokens = plan.prefill
        running = self.table.slots[slot]
        return (slot,) if running and start + num_tokens == running.prompt_tokens else ()

    def _stopped(self, plan: StepPlan, first_tokens: tuple[int, ...]) -> set[int]:
        """The slots whose answer ends with the token of this step."""
        stopped = set()
        for slot in (*plan.decode, *first_tokens):
            one = self.table.slots[slot]
            if one and one.generated + 1 >= self.requests[one.id].new_tokens:
                stopped.add(slot)
        return stopped
