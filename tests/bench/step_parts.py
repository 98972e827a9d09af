"""`python -m tests.bench.step_parts`: what fusing parts of a decoding step could save at most.

* norms: a step of the same graph without its norms. What fuses a norm with the product behind it saves less.
* sampling: choosing a token for each row on the host, behind the graph, with several settings and vocabularies.

Both in turns in one process; the least of many short turns counts, so that ratios can be read on a busy machine.
Weights are zeros: speed does not depend on them. Logits for sampling are normal with a deviation of 3.
"""

import argparse
import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from pangu_ms.config.load import load_config
from pangu_ms.core import runtime
from pangu_ms.infer.cached_model import CachedModel
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.packed_model import _cells, _replace, pack_cells
from pangu_ms.infer.sampling import Sampler, SamplingConfig
from pangu_ms.models.common.layers import CacheShape, LayerNorm, RMSNorm

CAPACITY, PROMPT = 256, 64
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "top-k, top-p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "top-p, penalties": {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
}


class NoNorm(nn.Cell):
    """In place of a norm: nothing is computed."""

    def construct(self, x):
        return x

    def after_sum(self, x, residual):
        """As that of a norm."""
        return x, residual


def make_step(name: str, batch_size: int, weights: str, with_norms: bool) -> Callable[[], object]:
    """A call of one step behind PROMPT tokens, as a decoder makes it."""
    config = load_config(name, ["runtime.device=CPU", "model.compute_dtype=float32"]).model
    shape = GraphShape.fitting(config.seq_length, batch_size, CAPACITY)
    graph = CachedModel(config, CacheShape(shape.batch_size, shape.capacity))
    pack_cells(graph.model, config, weights)
    for parent, child, cell in list(_cells(graph.model)) if not with_norms else ():
        if isinstance(cell, LayerNorm | RMSNorm):
            _replace(parent, child, NoNorm())
    decoder = Decoder(graph, shape, caches=graph.caches())
    decoder.prefill([[7] * PROMPT] * batch_size)
    tokens = np.full(batch_size, 7, np.int32)

    def step() -> object:
        decoder.lengths[:] = PROMPT
        return decoder.step(tokens)

    return step


def make_sampling(vocab_size: int, batch_size: int, settings: dict[str, float]) -> Callable[[], object]:
    """A call that chooses a token for each row."""
    logits = np.random.default_rng(0).normal(0, 3, (batch_size, vocab_size)).astype(np.float32)
    config, prompt = SamplingConfig(**settings), list(range(100, 100 + PROMPT))
    samplers = [Sampler(config, prompt, row) for row in range(batch_size)]

    def choose() -> object:
        for sampler, row in zip(samplers, logits):
            del sampler.generated[PROMPT:]
            sampler.choose(row)

    return choose


def least_times(calls: dict[str, Callable[[], object]], seconds: float, turn: int = 4) -> dict[str, float]:
    """Least seconds of a call of each, in turns of some calls."""
    least = dict.fromkeys(calls, float("inf"))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, call in calls.items():
            call()
            for _ in range(turn):
                began = time.perf_counter()
                call()
                least[name] = min(least[name], time.perf_counter() - began)
    return least


def main(argv: list[str] | None = None) -> None:
    """Print two tables."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    parser.add_argument("--config", nargs="+", default=["alpha/10m", "pi/10m"], help="configurations")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8], help="sequences")
    parser.add_argument("--weights", nargs="+", default=["float32", "int8"], help="dtypes of packed weights")
    parser.add_argument("--vocab-size", nargs="+", type=int, default=[8000, 40000, 153376], help="for sampling")
    parser.add_argument("--seconds", type=float, default=10, help="of each line")
    args = parser.parse_args(argv)
    runtime.quiet()
    ms.set_context(mode=ms.GRAPH_MODE)
    print("| config | batch | weights | step, ms | without norms | share of the norms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.config:
        for batch_size in args.batch_size:
            for weights in args.weights:
                steps = {part: make_step(name, batch_size, weights, part == "all") for part in ("all", "without")}
                least = least_times(steps, args.seconds)
                cells = [name, str(batch_size), weights, *(f"{1e3 * least[part]:.2f}" for part in ("all", "without"))]
                print(f"| {' | '.join(cells)} | {1 - least['without'] / least['all']:.1%} |", flush=True)
    print(f"\n| vocabulary | {' | '.join(SETTINGS)} |\n| --- |{' --- |' * len(SETTINGS)}")
    for vocab_size in args.vocab_size:
        calls = {name: make_sampling(vocab_size, 1, settings) for name, settings in SETTINGS.items()}
        least = least_times(calls, args.seconds)
        print(f"| {vocab_size:,} | {' | '.join(f'{1e3 * least[name]:.3f} ms' for name in SETTINGS)} |", flush=True)


if __name__ == "__main__":
    main()
