"""`python -m tests.bench.serve`: how fast the engine serves requests under each scheduling policy, beside what the
simulator predicts.

Random weights and prompts; lognormal lengths. The policies run in turns, and the time of each is the smallest of the
rounds. The simulator gets the time of a step with and without a chunk, measured in the same run: the graph is static,
so that a step costs the same whatever its slots hold. `static` is batch by batch.

With `--load 0.5 0.8` the requests arrive one by one instead, independently of each other (Poisson), at that share of
the rate at which no slot would ever be empty. Times to the first token count from the arrival.
"""

import argparse
import json
import statistics
import time

import numpy as np

from pangu_ms.config.load import load_config
from pangu_ms.core import runtime
from pangu_ms.core.table import table_lines
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.lengths import lognormal_lengths, noisy
from pangu_ms.infer.scheduling.policies import POLICIES, Settings
from pangu_ms.infer.scheduling.simulator import Given, Rows, simulate
from tests.bench.load import offer, poisson_arrivals, summary

SLOT_POLICIES = [name for name, policy in POLICIES.items() if policy.rows == "slots"]


class NoText:
    """A tokenizer without stop tokens; every token is the same letter."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._bytes_of = [b"x"] * vocab_size

    def _require_ids(self, ids):
        pass

    def _restored(self, text):
        return text


def make_decoder(name: str, slots: int, length: int, chunk: int) -> tuple[Decoder, int]:
    """A decoder with random weights, compiled; and its vocabulary."""
    from pangu_ms.infer.cached_model import CachedModel
    from pangu_ms.models.build import initialize
    from pangu_ms.models.common.layers import CacheShape

    model = load_config(name, ["runtime.device=CPU", "model.compute_dtype=float32"]).model
    shape = GraphShape.fitting(model.seq_length, slots, length, chunk)
    graph = CachedModel(model, CacheShape(slots, shape.capacity))
    initialize(graph.model, model, 1)
    decoder = Decoder(graph, shape, caches=graph.caches())
    decoder.append({0: 1}, (1, [1] * chunk))
    decoder.append({0: 1})
    return decoder, model.vocab_size


def step_seconds(decoder: Decoder, chunk: bool, length: int) -> float:
    """The median time of a step whose slots are half full."""
    seconds = []
    for _ in range(20):
        decoder.lengths[:] = length
        slots = range(1, decoder.shape.batch_size)
        began = time.perf_counter()
        decoder.append(dict.fromkeys(slots, 1), (0, [1] * decoder.shape.chunk) if chunk else None)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def run(decoder: Decoder, tokenizer: NoText, requests: list[Request], policy: str) -> dict:
    """Serve requests that are all there at the beginning."""
    scheduler = POLICIES[policy].make(Settings(group_size=64))
    engine = Engine(decoder, tokenizer, scheduler, prefix_cache=False)  # type: ignore[arg-type]
    began, first = time.perf_counter(), {}
    for request in requests:
        number = request.index
        engine.submit(request, lambda _, number=number: first.setdefault(number, time.perf_counter() - began))
    for _ in engine.run():
        pass
    seconds = time.perf_counter() - began
    return {"steps": engine.counts.steps, "seconds": seconds, "first_text_s": list(first.values())}


def under_load(
    decoder: Decoder, tokenizer: NoText, requests: list[Request], policy: str, rate: float
) -> dict[str, float]:
    """Serve requests that arrive at random, `rate` a second."""
    scheduler = POLICIES[policy].make(Settings(group_size=64))
    engine = Engine(decoder, tokenizer, scheduler, prefix_cache=False)  # type: ignore[arg-type]
    ends = {}

    def submit(number, on_token, on_end) -> None:
        ends[engine.submit(requests[number], lambda _: on_token())] = on_end

    def work() -> bool:
        busy = engine.busy
        for number, _ in engine.step():
            ends[number]()
        return busy

    return summary(offer(poisson_arrivals(len(requests), rate, 0), submit, work)) | {"steps": engine.counts.steps}


def print_rows(rows: list[dict]) -> None:
    """Their values below their names."""
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print(
        "\n".join(table_lines(tuple(name.replace("_", " ") for name in rows[0]), cells, "<" + ">" * (len(rows[0]) - 1)))
    )


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="alpha/10m", help="configuration")
    parser.add_argument("--slots", type=int, default=8, help="sequences at a time")
    parser.add_argument("--requests", type=int, default=96, help="number of requests")
    parser.add_argument(
        "--median", type=float, default=40.0, help="median length; the 90th percentile is 2.76 times it"
    )
    parser.add_argument("--most", type=int, default=190, help="longest length")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens of a step")
    parser.add_argument("--policies", nargs="+", choices=SLOT_POLICIES, default=SLOT_POLICIES, help="what to measure")
    parser.add_argument("--load", nargs="+", type=float, metavar="SHARE", help="Poisson arrivals at these rates")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each policy")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args()
    runtime.quiet()
    runtime.start("CPU")
    decoder, vocab_size = make_decoder(args.config, args.slots, args.most + args.chunk, args.chunk)
    rng, tokenizer = np.random.default_rng(0), NoText(vocab_size)
    lengths = lognormal_lengths(args.requests, 0, args.median, 2.76 * args.median, 4, args.most)
    predicted = np.minimum(noisy(lengths, 0, args.median / 2, args.most), lengths)  # no more than it may have
    prompts = [tuple(rng.integers(1, vocab_size, n).tolist()) for n in rng.integers(8, args.chunk, args.requests)]
    requests = [
        Request(prompt, SamplingConfig(int(n), temperature=0.0), i, predicted_tokens=float(p))
        for i, (prompt, n, p) in enumerate(zip(prompts, lengths, predicted))
    ]
    half = args.most // 2
    plain, with_chunk = step_seconds(decoder, False, half), step_seconds(decoder, True, half)
    if args.load:
        most = 1 / (lengths.mean() * plain / args.slots + with_chunk - plain)  # a prompt is one chunk
        rows = [
            {"load": load, "requests_per_s": load * most, "policy": policy}
            | under_load(decoder, tokenizer, requests, policy, load * most)
            for load in args.load
            for policy in args.policies
        ]
        print(json.dumps({"rows": rows})) if args.json else print_rows(rows)
        return
    found: dict[str, list[dict]] = {policy: [] for policy in args.policies}
    for _ in range(args.rounds):
        for policy in args.policies:
            found[policy].append(run(decoder, tokenizer, requests, policy))
    rows = []
    for policy, runs in found.items():
        best = min(runs, key=lambda one: one["seconds"])
        simulated = simulate(
            POLICIES[policy].make(Settings(group_size=64)),
            [Given(int(n), len(p), float(q)) for n, p, q in zip(lengths, prompts, predicted)],
            Rows(args.slots, decoder.shape.max_length, args.chunk),
            lambda work: with_chunk if work.prompt_tokens else plain,
            args.most,
            clock="steps",
        )
        p50, p99 = np.percentile(best["first_text_s"], [50, 99])
        rows.append(
            {
                "policy": policy,
                "steps": best["steps"],
                "simulated_steps": simulated.steps,
                "seconds": best["seconds"],
                "simulated_seconds": simulated.seconds,
                "tokens_per_s": float(lengths.sum() / best["seconds"]),
                "first_text_p50_s": float(p50),
                "first_text_p99_s": float(p99),
            }
        )
    base = rows[0]
    for row in rows:
        row["gain"] = base["seconds"] / row["seconds"]
        row["simulated_gain"] = base["simulated_seconds"] / row["simulated_seconds"]
    if args.json:
        print(json.dumps({"step_ms": 1e3 * plain, "step_with_chunk_ms": 1e3 * with_chunk, "rows": rows}))
        return
    print(f"a step {1e3 * plain:.2f} ms, with a chunk {1e3 * with_chunk:.2f} ms; {lengths.sum()} tokens\n")
    print_rows(rows)


if __name__ == "__main__":
    main()
