"""Open-loop load: requests arrive when they arrive, however long the ones before them take.

`offer` knows no engine and no server. It calls `submit` for each request at its time, and `work` in between: an engine
of this process computes a step there; a client of a server has nothing to do there and is called back from other
threads.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Submit(Protocol):
    """Sends a request."""

    def __call__(self, number: int, on_token: Callable[[], None], on_end: Callable[[], None]) -> None:
        """Send the request of that number; call `on_token` whenever a new token (or a piece of text) of it is there,
        and `on_end` behind the last, on any thread."""


@dataclass
class Served:
    """When one request came and got its tokens, in seconds since the load began."""

    arrival: float
    """As planned: if it could only be sent later, the delay counts."""
    tokens: list[float] = field(default_factory=list)


def poisson_arrivals(count: int, rate: float, seed: int) -> np.ndarray:
    """Seconds float64 [count] at which requests arrive, `rate` a second on average, independently of each other."""
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


def offer(
    arrivals: Sequence[float] | np.ndarray,
    submit: Submit,
    work: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Served]:
    """Send requests at their times, until all have ended.

    Args:
        arrivals: seconds from now, ascending.
        submit: see Submit.
        work: does a piece of the work of an engine on this thread; whether there was some. None: others work.
        clock: seconds.
        sleep: waits so many seconds.
    """
    began, served = clock(), [Served(float(arrival)) for arrival in arrivals]
    ended = threading.Semaphore(0)

    def send(number: int) -> None:
        submit(number, lambda: served[number].tokens.append(clock() - began), ended.release)

    sent = finished = 0
    while finished < len(served):
        while sent < len(served) and served[sent].arrival <= clock() - began:
            send(sent)
            sent += 1
        if not (work and work()):
            # Without work there is nothing to wait for but arrivals and, behind the last, ends on other threads.
            sleep(max(served[sent].arrival - (clock() - began), 0.0) if sent < len(served) else 0.001)
        while ended.acquire(blocking=False):
            finished += 1
    return served


def summary(served: Sequence[Served]) -> dict[str, float]:
    """Tokens a second, and percentiles of the time to the first token and between tokens, in seconds."""
    first = [one.tokens[0] - one.arrival for one in served if one.tokens]
    between = np.concatenate([np.diff(one.tokens) for one in served])
    total = sum(len(one.tokens) for one in served)
    last = max(one.tokens[-1] for one in served if one.tokens)
    found = {"tokens_per_s": total / (last - min(one.arrival for one in served))}
    for name, values in (("first", first), ("token", between)):
        for percent in (50, 99):
            found[f"{name}_p{percent}_s"] = float(np.percentile(values, percent)) if len(values) else float("nan")
    return found
