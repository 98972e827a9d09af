"""`python -m tests.bench.generate`: speed of cached decoding from a checkpoint and from its MindIR package, beside the
memory's read bandwidth.

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


def time_decoder(decoder, steps: int) -> dict[str, float]:
    """Seconds of a prefill of one chunk and of a step (medians)."""
    rows = decoder.shape.batch_size
    prompts, tokens = [list(range(1, decoder.shape.chunk)) for _ in range(rows)], np.full(rows, 7, np.int32)
    decoder.prefill(prompts)
    began = time.perf_counter()
    decoder.prefill(prompts)
    prefill = time.perf_counter() - began
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        decoder.step(tokens)
        seconds.append(time.perf_counter() - began)
    return {"prefill_ms": 1e3 * prefill, "step_ms": 1e3 * statistics.median(seconds[2:])}


def measure(name: str, batch_size: int, max_length: int, steps: int, directory: Path) -> list[dict]:
    """Both ways for one configuration and batch size."""
    from pangu_ms.checkpoint import store
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.default_corpus import standard_library_files
    from pangu_ms.data.tokenizer import train_tokenizer
    from pangu_ms.export.package import Package
    from pangu_ms.export.write import export_package
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import load_decoder
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
    rows = []
    began = time.perf_counter()
    decoder = load_decoder(checkpoint, shape)
    start = time.perf_counter() - began
    rows.append({"from": "checkpoint", "start_s": start} | time_decoder(decoder, steps))
    manifest = export_package(checkpoint, directory / "package", shape)
    del decoder
    package = Package.open(directory / "package")
    began = time.perf_counter()
    decoder = package.decoder()
    start = time.perf_counter() - began
    rows.append({"from": "MindIR", "start_s": start} | time_decoder(decoder, steps))
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
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args()
    runtime.quiet()
    bandwidth, rows = read_bandwidth(), []
    for name in args.config:
        for batch_size in args.batch_size:
            with tempfile.TemporaryDirectory() as directory:
                rows += measure(name, batch_size, args.max_length, args.steps, Path(directory))
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
