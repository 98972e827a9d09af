"""`python -m tests.bench.decode`: a step of decoding, from checkpoints and packages, beside PyTorch and llama.cpp.

    python -m tests.bench.decode --llama DIR --torch PYTHON --directory DIR

DIR of --llama holds llama.cpp's prebuilt libraries (npm package @node-llama-cpp/linux-x64), PYTHON is an interpreter
that has torch; a peer that is not named is left out. What is measured with each other - one model, batch size and
precision - runs in turns, a process each, so that other work on the machine slows all alike; a reader of memory takes
turns with them. A step appends one token to every sequence behind 64 to about 100 others and computes its logits;
sampling is not in it. The checkpoints, packages, GGUF files and compiled graphs are kept in --directory, and so a
second run with it begins sooner; measured groups are kept in --rows and are not measured again.

llama.cpp has neither alpha's query layer nor pi's series activation and augmented shortcuts: its peers are a GPT-2 and
a LLaMA of the same sizes. The command first compares the logits of a pi without these parts with llama.cpp's.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config.load import load_config
from pangu_ms.core import runtime
from pangu_ms.models.common.config import ModelConfig
from tests.bench.turns import PROMPT, TOKEN, WARM_UP, Worker, in_turns, serve

CONFIGS = ("alpha/10m", "alpha/350m", "pi/10m", "pi/350m")
WEIGHTS = ("float32", "bfloat16", "int8")
SOURCES = ("checkpoint", "package", "torch", "llama.cpp")
PLAIN = ("model.siaf_terms=1", "model.aug_shortcut_branches=0")
"""Make a PanGu-pi a LLaMA."""
CAPACITY = 256
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "q8_0": 34 / 32}
"""Of a matrix's element as it is read."""
CACHE_BYTES = {"checkpoint": 4, "package": 4, "llama.cpp": 2}
"""Of a cached key's element; that of PyTorch is the weights'."""


def offered(source: str, weights: str, with_package: bool) -> bool:
    """Whether there is such a candidate."""
    return with_package if source == "package" else source != "torch" or weights != "int8"


class Reader:
    """Reads an array larger than every cache, in several ways in turn; the best counts."""

    SIZE = 1 << 28

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.threads = len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(self.threads)
        array = np.ones(self.SIZE // 4, np.float32)
        ways: list[tuple[Callable[[np.ndarray], Any], np.ndarray]] = [
            (np.max, array.view(np.int64)),
            (np.max, array),
            (lambda part: np.dot(part, part), array),
            (np.bitwise_or.reduce, array.view(np.uint64)),
        ]
        self.ways, self.number = [(call, np.split(whole, self.threads)) for call, whole in ways], 0

    def reset(self) -> None:
        """See Candidate."""

    def step(self) -> None:
        """Read the whole array."""
        call, parts = self.ways[self.number % len(self.ways)]
        list(self.pool.map(call, parts))
        self.number += 1


class Ours:
    """A decoder of a checkpoint or a package."""

    def __init__(self, told: dict[str, Any]):
        from pangu_ms.export.package import Package
        from pangu_ms.infer.decoder import GraphShape
        from pangu_ms.infer.load import load_decoder

        if told["source"] == "package":
            self.decoder = Package.open(told["package"]).decoder(allow_kernels=True)
        else:
            checkpoint = store.open_checkpoint(Path(told["checkpoint"]), digests=False)
            model = checkpoint.config().model
            shape = GraphShape.fitting(model.seq_length, told["batch_size"], CAPACITY)
            self.decoder = load_decoder(checkpoint, shape, weights=told["weights"])
        self.tokens = np.full(told["batch_size"], TOKEN, np.int32)
        self.decoder.prefill([list(PROMPT)] * told["batch_size"])
        self.logits = self.step()[0].tolist()

    def reset(self) -> None:
        """See Candidate."""
        self.decoder.lengths[:] = len(PROMPT)

    def step(self) -> np.ndarray:
        """Append a token to each sequence."""
        return self.decoder.step(self.tokens)


class LlamaPeer:
    """llama.cpp with a file of gguf_peer."""

    def __init__(self, told: dict[str, Any]):
        from tests.bench.llama_cpp import LlamaCpp

        threads = len(os.sched_getaffinity(0))
        self.llama = LlamaCpp(
            Path(told["llama"]), Path(told["gguf"]), told["batch_size"], CAPACITY, threads, told["exact"]
        )
        self.tokens = [TOKEN] * told["batch_size"]
        for token in PROMPT:
            self.llama.append([token] * told["batch_size"])
        self.logits = self.step()[0][: self.llama.vocab_size]

    def reset(self) -> None:
        """See Candidate."""
        self.llama.cut(len(PROMPT))

    def step(self) -> list[Any]:
        """Append a token to each sequence."""
        return self.llama.append(self.tokens)


def serve_candidate(told: dict[str, Any]) -> None:
    """The life of a process that is measured."""
    if told["source"] == "read":
        serve(Reader(), {})
        return
    if told["source"] == "llama.cpp":
        peer = LlamaPeer(told)
        serve(peer, {"version": peer.llama.version(), "logits": peer.logits})
        return
    ours = Ours(told)
    serve(ours, {"logits": ours.logits})


@dataclasses.dataclass
class Files:
    """What is made of one configuration, in a folder."""

    name: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def model(self) -> ModelConfig:
        """Its shapes."""
        return load_config(self.name, ["runtime.device=CPU", "model.compute_dtype=float32", *self.overrides]).model

    def checkpoint(self) -> Path:
        """Random weights, made in a process of its own as the parent does without MindSpore."""
        if not (self.folder / "checkpoints").exists():
            self._in_a_process(make_checkpoint)
        return store.step_path(self.folder / "checkpoints", 0)

    def gguf(self, dtype: str) -> Path:
        """llama.cpp's peer with matrices of a dtype."""
        path = self.folder / f"{dtype}.gguf"
        if not path.exists():
            self.checkpoint()
            self._in_a_process(make_gguf, dtype)
        return path

    def package(self, batch_size: int, weights: str) -> Path:
        """Exported from the checkpoint, with kernels."""
        path = self.folder / f"package-{batch_size}-{weights}"
        if not path.exists():
            self.checkpoint()
            self._in_a_process(make_package, path, batch_size, weights)
        return path

    def _in_a_process(self, function: Callable[..., None], *arguments: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        process = get_context("spawn").Process(target=function, args=(self, *arguments))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{function.__name__}: exit code {process.exitcode}")


def make_checkpoint(files: Files) -> None:
    """See Files."""
    from pangu_ms.models.build import initial_values

    config = load_config(files.name, ["runtime.device=CPU", "model.compute_dtype=float32", *files.overrides])
    new = files.folder / "new"
    store.save(new, 0, {"model": dict(initial_values(config.model, 0))}, {}, config)
    new.rename(files.folder / "checkpoints")


def make_gguf(files: Files, dtype: str) -> None:
    """See Files."""
    from tests.bench import gguf_peer

    tensors = store.open_checkpoint(files.checkpoint(), digests=False).tensors()
    new = files.folder / "new.gguf"
    gguf_peer.write(new, files.model, tensors, dtype)  # type: ignore[arg-type]
    new.rename(files.folder / f"{dtype}.gguf")


def make_package(files: Files, path: Path, batch_size: int, weights: str) -> None:
    """See Files."""
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.default_corpus import standard_library_files
    from pangu_ms.data.tokenizer import train_tokenizer
    from pangu_ms.export.write import export_package
    from pangu_ms.infer.decoder import GraphShape

    model, tokenizer = files.model, files.folder.parent / f"tokenizer-{files.model.vocab_size}"
    if not tokenizer.exists():
        texts = (document.text for document in Corpus(standard_library_files()))
        train_tokenizer(texts, model.vocab_size, "none").save(tokenizer)
    checkpoint = store.open_checkpoint(files.checkpoint(), digests=False)
    shape = GraphShape.fitting(model.seq_length, batch_size, CAPACITY)
    export_package(checkpoint, path, shape, tokenizer=tokenizer, weights=weights)


def step_bytes(model: ModelConfig, source: str, weights: str, batch_size: int, positions: int) -> int:
    """Bytes that a step must read: the weights as they are stored, without tables of which it takes single rows, and
    what the caches hold of the sequences."""
    if source == "llama.cpp":
        weights = weights.replace("int8", "q8_0")
        parts: dict[str, Any] = {"siaf_terms": 1, "aug_shortcut_branches": 0}
        model = dataclasses.replace(model, **parts) if model.family == "pi" else model
    shapes, sizes = model.parameter_shapes(), model.axis_sizes()
    tables = {name for name in shapes if "_embedding." in name}
    tables -= set() if "head.weight" in shapes else {"word_embedding.weight"}
    matrices = {name for name in shapes.keys() - tables if len(shapes[name]) == 2 and ".siaf." not in name}
    total = sum(math.prod(shapes[name]) for name in matrices) * ELEMENT_BYTES[weights]
    total += 4 * sum(math.prod(shape) for name, shape in shapes.items() if name not in matrices | tables)
    cached = 2 * model.num_layers * sizes.get("kv_heads", sizes["heads"]) * positions * batch_size
    return int(total + cached * CACHE_BYTES.get(source, ELEMENT_BYTES[weights]))


@dataclasses.dataclass
class Bench:
    """The options of a run."""

    directory: Path
    llama: Path | None
    torch: str | None
    rounds: int
    turn_seconds: float
    notes: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def files(self, name: str, overrides: tuple[str, ...] = ()) -> Files:
        """Where the files of a configuration are."""
        folder = name.replace("/", "-") + ("-plain" if overrides else "")
        return Files(name, overrides, self.directory / folder)

    def note(self, text: str) -> None:
        """Say it now and below the table."""
        print(text, file=sys.stderr, flush=True)
        self.notes.append(text)

    def told(self, source: str, files: Files, batch_size: int, weights: str, exact: bool) -> dict[str, Any]:
        """What a candidate's process is told; the files of it are made."""
        told: dict[str, Any] = {"source": source, "weights": weights, "batch_size": batch_size, "capacity": CAPACITY}
        if source == "llama.cpp":
            dtype = weights.replace("int8", "q8_0")
            return told | {"llama": str(self.llama), "exact": exact, "gguf": str(files.gguf(dtype))}
        if source == "package":
            return told | {"package": str(files.package(batch_size, weights))}
        return told | {"checkpoint": str(files.checkpoint()), "model": dataclasses.asdict(files.model)}

    def start(self, told: dict[str, Any]) -> Worker:
        """Start the process of a candidate."""
        log = self.directory / f"{told['source']}.log"
        if told["source"] == "torch":
            cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.directory / "inductor")}
            return Worker([str(self.torch), "-m", "tests.bench.torch_decode", json.dumps(told)], log, cache)
        return Worker([sys.executable, "-m", "tests.bench.decode", "--serve", json.dumps(told)], log, {})

    @contextlib.contextmanager
    def workers(
        self, sources: list[str], files: Files, batch_size: int, weights: str, exact: bool = False
    ) -> Iterator[tuple[dict[str, Worker], dict[str, list[float]]]]:
        """Processes that are ready, and the logits of each behind the same tokens. Those that fail are noted."""
        started: dict[str, Worker] = {}
        logits: dict[str, list[float]] = {}
        all_told = [self.told(source, files, batch_size, weights, exact) for source in sources]
        try:
            for told in all_told:
                started[told["source"]] = self.start(told)
            for source, worker in list(started.items()):
                try:
                    answer = worker.told()
                    logits[source] = answer["logits"]
                    self.versions |= {source: answer["version"]} if "version" in answer else {}
                except RuntimeError as error:
                    self.note(f"{files.name}, batch {batch_size}, {weights}, {source} failed: {error}")
                    started.pop(source).close()
            yield started, logits
        finally:
            for worker in started.values():
                worker.close()

    def group(self, sources: list[str], files: Files, batch_size: int, weights: str, reader: Worker) -> list[dict]:
        """Rows of one model, batch size and precision."""
        with self.workers(sources, files, batch_size, weights) as (workers, logits):
            same = {"package", "torch"} & set(logits) if weights == "float32" and "checkpoint" in logits else set()
            for source in sorted(same):
                difference = float(np.abs(np.subtract(logits[source], logits["checkpoint"])).max())
                if not difference < 1e-3:
                    self.note(f"{files.name}, batch {batch_size}: logits of {source} differ by {difference:.2g}")
            slowest = max((worker.measure(2)[-1] for worker in workers.values()), default=1)
            steps = min(max(round(self.turn_seconds / slowest), 4), 40)
            seconds = in_turns(workers | {"read": reader}, self.rounds, steps)
        bandwidth = Reader.SIZE / min(map(min, seconds.pop("read")))
        rows = []
        for source, turns in seconds.items():
            read = step_bytes(files.model, source, weights, batch_size, len(PROMPT) + WARM_UP + steps // 2)
            row = {"config": files.name, "batch": batch_size, "weights": weights, "from": source, "bytes": read}
            row |= {"min_ms": 1e3 * min(map(min, turns)), "median_ms": 1e3 * statistics.median(sum(turns, []))}
            row["bandwidth"] = bandwidth
            if "llama.cpp" in seconds:
                pairs = zip(turns, seconds["llama.cpp"], strict=True)
                row["ratio"] = statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)
                row["ratio_of_min"] = min(map(min, turns)) / min(map(min, seconds["llama.cpp"]))
            rows.append(row)
        return rows

    def compare_with_llama(self) -> None:
        """Note how far the logits of a pi without its own parts are from llama.cpp's."""
        with self.workers(["checkpoint", "llama.cpp"], self.files("pi/10m", PLAIN), 1, "float32", exact=True) as (
            _,
            logits,
        ):
            if len(logits) == 2:
                difference = np.abs(np.subtract(logits["checkpoint"], logits["llama.cpp"])).max()
                self.note(
                    "pi/10m without series activation and augmented shortcuts, float32: logits and llama.cpp's (told to"
                    f" compute attention in float32, too) differ by {difference:.2g}"
                )


def table(rows: list[dict]) -> list[str]:
    """Markdown."""
    best = max(row["bandwidth"] for row in rows)
    cells = []
    for row in rows:
        name = {"torch": "PyTorch"}.get(row["from"], row["from"])
        weights = "q8_0" if row["weights"] == "int8" and name == "llama.cpp" else row["weights"]
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("ratio_of_min", "ratio")]
        times = [f"{row[key]:.2f}" if row[key] < 10 else f"{row[key]:.1f}" for key in ("min_ms", "median_ms")]
        rate = row["bytes"] / row["min_ms"] * 1e3
        read = [f"{row['bytes'] / 1e6:.0f}", f"{rate / 1e9:.1f}", f"{rate / best:.0%}"]
        cells.append([row["config"], str(row["batch"]), weights, name, *times, *ratios, *read])
    head = ("config", "batch", "weights", "from", "ms, min", "median", "x llama.cpp, min", "median")
    lines = [[*head, "MB a step", "GB/s", "share"], ["---"] * 11, *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(argv: list[str] | None = None) -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="configurations (default: all four)")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8, 16], help="sequences (default: 1 8 16)")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, help="precisions (default: all)")
    parser.add_argument("--from", nargs="+", choices=SOURCES, default=SOURCES, dest="sources", help="default: all")
    parser.add_argument(
        "--package-batch-size", nargs="+", type=int, default=[1], help="of these also from a package (default: 1)"
    )
    parser.add_argument("--llama", type=Path, metavar="DIR", help="llama.cpp's libraries")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with torch")
    parser.add_argument("--directory", type=Path, help="keep what is made, for the next run (default: temporary)")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="JSON lines: goes on behind the groups in it")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--turn", type=float, default=0.3, metavar="SECONDS", help="of the slowest (default: 0.3)")
    parser.add_argument("--quick", action="store_true", help="the 10m models, 2 short turns")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    runtime.quiet()  # also for the processes that this one starts
    if args.serve:
        serve_candidate(json.loads(args.serve))
        return
    if args.quick:
        args.rounds, args.turn = 2, 0.1
        args.config = [name for name in args.config if name.endswith("10m")]
    with contextlib.ExitStack() as stack:
        directory = args.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        bench = Bench(directory, args.llama, args.torch, args.rounds, args.turn)
        missing = {source for source in ("torch", "llama.cpp") if not getattr(args, source.removesuffix(".cpp"))}
        for source in sorted(missing & set(args.sources)):
            bench.note(f"{source} is left out: --{source.removesuffix('.cpp')} is not given")
        rows = run(bench, args, [source for source in args.sources if source not in missing])
    if args.json:
        print(json.dumps({"rows": rows, "notes": bench.notes, "versions": bench.versions}))
        return
    best = max(row["bandwidth"] for row in rows) / 1e9
    versions = {"MindSpore": metadata.version("mindspore")} | bench.versions
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{os.cpu_count()} cores, {platform.machine()}; reading memory: {best:.1f} GB/s; {named}\n")
    print("\n".join(table(rows)), *(f"* {note}" for note in bench.notes), sep="\n")


def run(bench: Bench, args: argparse.Namespace, sources: list[str]) -> list[dict]:
    """The rows of all groups."""
    rows: list[dict] = []
    if args.rows and args.rows.exists():
        rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    done = {(row["config"], row["batch"], row["weights"]) for row in rows}
    if "llama.cpp" in sources and "checkpoint" in sources:
        bench.compare_with_llama()
    reader = bench.start({"source": "read"})
    reader.told()
    try:
        for name in args.config:
            for batch_size in args.batch_size:
                for weights in args.weights:
                    if (name, batch_size, weights) in done:
                        continue
                    began = time.monotonic()
                    with_package = batch_size in args.package_batch_size
                    those = [source for source in sources if offered(source, weights, with_package)]
                    try:
                        new = bench.group(those, bench.files(name), batch_size, weights, reader)
                    except RuntimeError as error:
                        bench.note(f"{name}, batch {batch_size}, {weights} is left out: {error}")
                        continue
                    times = ", ".join(f"{row['from']} {row['min_ms']:.2f} ms" for row in new)
                    seconds = time.monotonic() - began
                    print(f"{name} x {batch_size} {weights}: {times} ({seconds:.0f} s)", file=sys.stderr, flush=True)
                    rows += new
                    if args.rows:
                        with args.rows.open("a") as file:
                            file.writelines(json.dumps(row) + "\n" for row in new)
    finally:
        reader.close()
    return rows


if __name__ == "__main__":
    main()
