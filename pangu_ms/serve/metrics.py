"""What Prometheus reads at /metrics."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pangu_ms.serve.engine_thread import EngineThread

T = TypeVar("T", Counter, Histogram)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counters of a server. It is the Observer of its engine's thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[int, str], Any] = {}

        def counter(name: str, text: str, labels: Iterable[str]) -> Counter:
            return Counter(f"pangu_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"pangu_{name}", text, ["model"], registry=self.registry, buckets=(*buckets,))

        self.requests = counter("requests", "Answers by path and status.", ["path", "status"])
        self.rejected = counter("rejected", "Requests that were refused, by the code of the error.", ["code"])
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", ["model"])
        self.cached_tokens = counter(
            "cached_prompt_tokens", "Tokens of prompts that were not computed anew.", ["model"]
        )
        self.new_tokens = counter("generated_tokens", "Tokens of continuations.", ["model"])
        self.disconnected = counter("disconnects", "Clients that left before the end of their answer.", ["model"])
        self.first = histogram("time_to_first_token_seconds", "From the request to its first token.", _SECONDS)
        self.per_token = histogram("step_seconds", "A step, which gives each running request a token.", _TOKEN_SECONDS)
        self.whole = histogram("request_seconds", "From a request to the end of its answer.", _SECONDS)
        self.up = Gauge("pangu_ready", "Whether requests are taken.", registry=self.registry)

    def started(self, model: str, waited: float) -> None:
        """See Observer."""
        self._of(self.first, model).observe(waited)

    def step(self, model: str, new_tokens: int, seconds: float) -> None:
        """See Observer."""
        self._of(self.new_tokens, model).inc(new_tokens)
        self._of(self.per_token, model).observe(seconds)

    def _of(self, metric: T, model: str) -> T:
        """`metric.labels(model)`, which takes longer than to count."""
        key = id(metric), model
        if key not in self._children:
            self._children[key] = metric.labels(model)
        return self._children[key]

    def watch(self, thread: EngineThread) -> None:
        """Show the queue and the slots of an engine's thread."""
        self.registry.register(_Queue(thread))
        self.up.set_function(lambda: float(thread.state == "ready"))

    def text(self) -> bytes:
        """The answer of /metrics."""
        return generate_latest(self.registry)


class _Queue(Collector):
    """Reads the counts of the engines when it is asked."""

    def __init__(self, thread: EngineThread):
        self._thread = thread

    def collect(self) -> Iterable[Metric]:
        thread = self._thread

        def gauge(name: str, text: str, value: Callable[[str], float]) -> Metric:
            family = GaugeMetricFamily(f"pangu_{name}", text, labels=["model"])
            for model in thread.engines:
                family.add_metric([model], value(model))
            return family

        def busy(model: str) -> int:
            return sum(slot is not None for slot in thread.engines[model].table.slots)

        yield gauge("slots", "Continuations that are generated at a time.", lambda model: thread.slots[model])
        yield gauge("slots_busy", "Slots that are taken.", busy)
        yield gauge("queue", "Continuations that wait.", lambda model: max(0, thread.live[model] - busy(model)))
        steps = CounterMetricFamily("pangu_steps", "Steps of the engine.", labels=["model"])
        for model, engine in thread.engines.items():
            steps.add_metric([model], engine.counts.steps)
        yield steps
