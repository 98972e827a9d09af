"""`python -m tests.bench.generate`: speed of cached decoding from a checkpoint and from its MindIR package, with
and without kernels, beside the memory's read bandwidth. The three take turns.

Weights are random: speed does not depend on their values. A step must read all weights and the whole static cache once;
the share is that many bytes per second against what two threads read from an array in this process.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pangu_ms.config.load import load_config
from pangu_ms.core import runtime

TURN = 8
"""Steps."""


def read_bandwidth(threads: int = 2, size_bytes: int = 1 << 29, rounds: int = 5) -> float:
    """Bytes per second that `threads` threads read from memory, the best of some rounds."""
    parts = np.split(np.ones(size_bytes // 8, np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, size_bytes / (time.perf_counter() - began))
    return best


def step_bytes(model, shape) -> int:
    """Bytes that one decoding step reads: every weight but the tables of which it takes single rows, and the cache."""
    shapes, sizes = model.parameter_shapes(), model.axis_sizes()
    tables = {name for name in shapes if "_embedding." in name} - (
        set() if "head.weight" in shapes else {"word_embedding.weight"}
    )
    weights = sum(math.prod(shape) for name, shape in shapes.items() if name not in tables)
    cache = 2 * model.num_layers * shape.batch_size * shape.capacity * sizes.get("kv_heads", sizes["heads"])
    return 4 * (weights + cache)


def time_in_turns(decoders: dict, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a prefill of one chunk and of a step (medians) of each; every TURN steps it is another's turn."""
    shape = next(iter(decoders.values())).shape
    prompts = [list(range(1, shape.chunk)) for _ in range(shape.batch_size)]
    tokens = np.full(shape.batch_size, 7, np.int32)
    prefills, seconds = {}, {name: [] for name in decoders}
    for name, decoder in decoders.items():
        decoder.prefill(prompts)
        began = time.perf_counter()
        decoder.prefill(prompts)
        prefills[name] = time.perf_counter() - began
    for _ in range(max(1, steps // TURN)):
        for name, decoder in decoders.items():
            decoder.step(tokens)  # reads its weights into the processor's caches again
            for _ in range(TURN):
                began = time.perf_counter()
                decoder.step(tokens)
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {"prefill_ms": 1e3 * prefills[name], "step_ms": 1e3 * statistics.median(seconds[name])}
        for name in decoders
    }


def measure(name: str, batch_size: int, max_length: int, steps: int, directory: Path, weights: str = "") -> list[dict]:
    """All ways for one configuration and batch size."""
    from pangu_ms.checkpoint import store
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.default_corpus import standard_library_files
    from pangu_ms.data.tokenizer import train_tokenizer
    from pangu_ms.export.package import Package
    from pangu_ms.export.write import export_package
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import STORED, load_decoder
    from pangu_ms.models.build import initial_values

    config = load_config(name, ["runtime.device=CPU", "model.compute_dtype=float32"])
    tensors = dict(initial_values(config.model, 0))
    texts = (document.text for document in Corpus(standard_library_files()))
    train_tokenizer(texts, config.model.vocab_size, "none").save(directory / "tokenizer")
    checkpoint = store.open_checkpoint(
        store.save(directory / "checkpoints", 0, {"model": tensors}, {}, config, directory / "tokenizer")
    )
    del tensors
    shape = GraphShape.fitting(config.model.seq_length, batch_size, max_length)
    read = step_bytes(config.model, shape)
    manifest = export_package(checkpoint, directory / "package", shape, weights=weights)
    package = Package.open(directory / "package")
    loads = {
        "checkpoint": lambda: load_decoder(checkpoint, shape, weights=weights or STORED),
        "MindIR": package.decoder,
        "+ kernels": package.decoder_with_kernels,
    }
    starts, decoders = {}, {}
    for way, load in loads.items():
        began = time.perf_counter()
        decoders[way] = load()
        starts[way] = time.perf_counter() - began
    times = time_in_turns(decoders, steps)
    rows = [{"from": way, "start_s": starts[way]} | times[way] for way in loads]
    common = {
        "config": name,
        "batch_size": batch_size,
        "cache_positions": shape.capacity,
        "max_difference": manifest["verified"]["max_difference"],
    }
    return [
        common | row | {"tokens_per_s": 1e3 * batch_size / row["step_ms"], "read_gb_per_s": read / row["step_ms"] / 1e6}
        for row in rows
    ]


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["alpha/10m", "alpha/350m"], help="configurations")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8], help="sequences at once")
    parser.add_argument("--max-length", type=int, default=256, help="room of the cache in tokens")
    parser.add_argument("--steps", type=int, default=32, help="decoding steps timed")
    parser.add_argument("--weights", default="", help="packed weights: float32, bfloat16 or int8")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args()
    runtime.quiet()
    bandwidth, rows = read_bandwidth(), []
    for name in args.config:
        for batch_size in args.batch_size:
            with tempfile.TemporaryDirectory() as directory:
                rows += measure(name, batch_size, args.max_length, args.steps, Path(directory), args.weights)
    rows = [row | {"share_of_bandwidth": row["read_gb_per_s"] * 1e9 / bandwidth} for row in rows]
    if args.json:
        print(json.dumps({"read_bandwidth_gb_per_s": bandwidth / 1e9, "rows": rows}))
        return
    print(f"memory read bandwidth, 2 threads: {bandwidth / 1e9:.1f} GB/s\n")
    print(
        f"{'config':<26}{'batch':>6} "
        f" {'from':<11}{'start s':>8}{'prefill ms':>12}{'step ms':>9}{'tokens/s':>10}{'read GB/s':>11}{'share':>7} "
        " difference"
    )
    for row in rows:
        numbers = f"{row['start_s']:>8.1f}{row['prefill_ms']:>12.1f}{row['step_ms']:>9.1f}"
        numbers += f"{row['tokens_per_s']:>10.1f}{row['read_gb_per_s']:>11.1f}"
        print(
            f"{row['config']:<26}{row['batch_size']:>6}  {row['from']:<11}{numbers}{row['share_of_bandwidth']:>7.0%} "
            f" {row['max_difference']:.2g}"
        )


if __name__ == "__main__":
    main()
