"""Measures what the steps of an engine cost, and what serving requests takes beside what the simulator predicts."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.continuous import FirstCome
from pangu_ms.infer.scheduling.lengths import lognormal_lengths
from pangu_ms.infer.scheduling.simulator import Given, GraphCost, Rows, Simulation, simulate
from pangu_ms.infer.scheduling.state import Scheduler
from pangu_ms.infer.scheduling.step_costs import MeasuredStep

Clock = Callable[[], float]
_TOKENS = 8
"""New tokens of a request that is measured: steps at nearly one length."""


class Served(NamedTuple):
    """What serving some requests took.

    Attributes:
        seconds: measured.
        steps: counted.
        simulated: by the simulator.
    """

    seconds: float
    steps: int
    simulated: Simulation


def endless(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer without stop tokens: continuations end at their maximum."""
    found = copy.copy(tokenizer)
    found.stop_ids = ()
    return found


def recorded(engine: Engine, clock: Clock = time.perf_counter) -> Iterator[MeasuredStep]:
    """Run an engine until no request is left; yields each step."""
    while engine.busy:
        ready = [one for one in engine.table.slots if one and one.ready]
        cached = sum(one.prompt_tokens + one.generated for one in ready)
        rows, prompt_tokens, began = engine.counts.decoded_rows, engine.counts.prompt_tokens, clock()
        engine.step()
        seconds, rows = clock() - began, engine.counts.decoded_rows - rows
        number = engine.counts.prompt_tokens - prompt_tokens
        # While a static batch reads its prompts, the slots that are ready do not decode.
        yield MeasuredStep(engine.decoder.shape.batch_size, rows, number, cached if rows else 0, seconds)


def measure_steps(
    decoder: Decoder, tokenizer: Tokenizer, sampling: SamplingConfig, rounds: int = 3, clock: Clock = time.perf_counter
) -> list[MeasuredStep]:
    """Steps of one slot, half of the slots and all of them, with short and with long sequences, some with a chunk.

    Args:
        decoder: whose slots are free, and whose graph is compiled.
        tokenizer: the model's.
        sampling: how tokens are chosen, which is a part of a step; its maximum is not used.
        rounds: how often all of it is measured, so that a disturbance of the machine does not meet one kind alone.
        clock: tells the time.
    """
    shape, found = decoder.shape, list[MeasuredStep]()
    most = max(shape.max_length - _TOKENS, 1)
    for _ in range(rounds):
        for number in sorted({1, (shape.batch_size + 1) // 2, shape.batch_size}):
            for length in (1, most):
                lengths = [min(_TOKENS, shape.max_length - length)] * number
                requests = _requests([length] * number, lengths, sampling)
                found += recorded(_engine(decoder, tokenizer, FirstCome(), requests), clock)
    return found


def serve(
    decoder: Decoder,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    cost: GraphCost,
    number: int = 48,
    scheduler: Scheduler | None = None,
    clock: Clock = time.perf_counter,
) -> Served:
    """Serve requests with prompts and answers of drawn lengths, and simulate the same."""
    shape, rng = decoder.shape, np.random.default_rng(0)
    prompts = rng.integers(1, max(shape.max_length // 4, 2), number).tolist()
    most = max(shape.max_length // 2, 1)
    lengths = lognormal_lengths(number, 0, most / 5, most / 2, 1, most).tolist()
    scheduler = scheduler or FirstCome()
    engine = _engine(decoder, tokenizer, scheduler, _requests(prompts, lengths, sampling))
    seconds = sum(step.seconds for step in recorded(engine, clock))
    given = [Given(length, prompt, float(length)) for prompt, length in zip(prompts, lengths)]
    rows = Rows(shape.batch_size, shape.max_length, shape.chunk)
    return Served(seconds, engine.counts.steps, simulate(scheduler, given, rows, cost, most, clock="steps"))


def _requests(prompts: Sequence[int], lengths: Sequence[int], sampling: SamplingConfig) -> list[Request]:
    """Requests of so many prompt and new tokens each."""
    requests = []
    for index, (prompt, length) in enumerate(zip(prompts, lengths)):
        own = SamplingConfig(
            max_new_tokens=length, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
        )
        requests.append(Request((1,) * prompt, own, index, predicted_tokens=float(length)))
    return requests


def _engine(decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler, requests: list[Request]) -> Engine:
    engine = Engine(decoder, endless(tokenizer), scheduler, prefix_cache=False)
    for request in requests:
        engine.submit(request)
    return engine
