"""`python -m tests.bench.serve_http`: a load on `pangu serve`, over HTTP: a Markdown table of requests/s, tokens/s,
time to the first token and time per token.

Server and clients are processes of their own on this machine, so that the clients take part of its cores. Prompts are
random tokens; lengths are lognormal; every continuation has as many tokens as asked for. Closed loop: each client sends
its next request when it has the whole answer. Open loop: requests arrive as a Poisson process, at a share of the rate
that the closed loop with most clients reached.

`--url` loads a server that runs already, such as llama.cpp's; the other parts are left out then.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from pangu_ms.config.load import load_config
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.infer.scheduling.lengths import lognormal_lengths

MODEL = "bench"
MEDIAN, MOST = 40.0, 190
"""Tokens of a continuation."""
CHUNK = 64
"""Prompt tokens of a step, and of the longest prompt."""
HOSTILE_PER_S = 100
STEP_S = 0.008
"""About the seconds of a step with 8 slots."""


@dataclass(frozen=True)
class Ask:
    """A request."""

    prompt: list[int]
    tokens: int


@dataclass(frozen=True)
class Got:
    """An answer: seconds from the request to its first event and to its last, and its tokens."""

    first: float
    whole: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Seconds between two tokens."""
        return (self.whole - self.first) / max(1, self.tokens - 1)


def make_asks(number: int, vocab_size: int, seed: int, most: int = MOST, other: int = 0) -> list[Ask]:
    """Requests; those with another `other` have prompts that no cache holds, and the same lengths."""
    rng = np.random.default_rng(seed)
    lengths = lognormal_lengths(number, seed, min(MEDIAN, most / 2), 2.76 * min(MEDIAN, most / 2), 2, most)
    sizes, rng = rng.integers(8, CHUNK, number), np.random.default_rng([seed, other])
    return [Ask(rng.integers(300, vocab_size, n).tolist(), int(tokens)) for n, tokens in zip(sizes, lengths)]


class Client:
    """A connection that is kept: a bare HTTP/1.1 client, since a library would take the cores from the server."""

    def __init__(self, url: str, model: str):
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._model, self._streams = model, ()  # type: str, tuple

    async def ask(self, ask: Ask, stream: bool = True) -> Got:
        """Send a request and read its answer."""
        body = {"model": self._model, "prompt": ask.prompt, "max_tokens": ask.tokens, "min_tokens": ask.tokens}
        body |= {"temperature": 0, "stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})
        content = json.dumps(body).encode()
        if not self._streams:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        pieces = self._pieces(reader)
        first, last = 0.0, b""
        async for piece in pieces:
            first = first or time.perf_counter() - began
            last = (last + piece)[-4000:]
        found = re.search(rb'"completion_tokens":\s*(\d+)', last)
        if not found:
            raise RuntimeError(f"no usage in the answer: {last[-500:]!r}")
        return Got(first, time.perf_counter() - began, int(found[1]))

    async def _pieces(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            content = await reader.readexactly(int(length[1]))
            if status != 200:
                raise RuntimeError(f"{status}: {content[:500]!r}")
            yield content
            return
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readline()

    def close(self) -> None:
        """Close the connection."""
        if self._streams:
            self._streams[1].close()


async def closed_loop(url: str, model: str, asks: Sequence[Ask], clients: int, stream: bool = True) -> list[Got]:
    """Each client sends its next request when it has its answer."""
    waiting, found = iter(asks), []

    async def one() -> None:
        client = Client(url, model)
        for ask in waiting:
            found.append(await client.ask(ask, stream))
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return found


async def open_loop(url: str, model: str, asks: Sequence[Ask], rate: float) -> list[Got]:
    """Requests come `rate` times a second, whether earlier ones are answered or not."""
    rng = random.Random(0)
    end = time.perf_counter()

    async def one(ask: Ask) -> Got:
        client = Client(url, model)
        got = await client.ask(ask)
        client.close()
        return got

    tasks = []
    for ask in asks:
        end += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, end - time.perf_counter()))
        tasks.append(asyncio.create_task(one(ask)))
    return list(await asyncio.gather(*tasks))


def measured(load: Callable[[], list[Got]]) -> dict[str, float]:
    """The numbers of a load."""
    began = time.perf_counter()
    found = load()
    seconds = time.perf_counter() - began
    first = np.percentile([got.first for got in found], [50, 99])
    each = np.percentile([got.per_token for got in found if got.tokens > 1], [50, 99])
    return {
        "requests_per_s": len(found) / seconds,
        "tokens_per_s": sum(got.tokens for got in found) / seconds,
        "first_p50_ms": 1e3 * first[0],
        "first_p99_ms": 1e3 * first[1],
        "token_p50_ms": 1e3 * each[0],
        "token_p99_ms": 1e3 * each[1],
    }


def make_checkpoint(name: str, directory: Path) -> Path:
    """A checkpoint with random weights, and a tokenizer trained on this package's own source."""
    from pangu_ms.checkpoint import store
    from pangu_ms.data.tokenizer import train_tokenizer

    config = load_config(name, ["runtime.device=CPU", "model.compute_dtype=float32"])
    root = Path(__file__).parents[2]
    texts = (path.read_text("utf-8") for path in sorted([*root.rglob("*.py"), *root.glob("docs/*.md")]))
    train_tokenizer(texts, config.model.vocab_size, "none", sample_bytes=4_000_000).save(directory / "tokenizer")
    rng = np.random.default_rng(0)
    shapes = config.model.parameter_shapes().items()
    weights = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes}
    store.save(directory / "run", 0, {"model": weights}, {}, config, directory / "tokenizer")
    return directory / "run"


@contextlib.contextmanager
def child(command: list[str]) -> Iterator[subprocess.Popen]:
    """A process that ends with the block; what it prints is read from its stdout."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=python_environment(), text=True, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def server(checkpoint: Path, slots: int) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a server that is ready."""
    words = ["serve", str(checkpoint), "--name", MODEL, "--port", "0", "--slots", str(slots), "--queue", "2000"]
    with child(python_command("pangu_ms", *words, "--queue-timeout", "600")) as process:
        assert process.stdout
        line = process.stdout.readline()
        url = re.search(r"http://[\d.]+:\d+", line)
        if not url:
            raise RuntimeError(f"the server did not start: {line!r}")
        yield url[0], process.pid


class EngineAlone:
    """The engine without HTTP, in a process of its own; it takes the pieces of text as a server does."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self._read()  # it is ready

    def _read(self) -> dict:
        return json.loads(self._process.stdout.readline())  # type: ignore[union-attr]

    def tokens_per_s(self, number: int, clients: int, seed: int) -> float:
        """Of a closed loop."""
        self._process.stdin.write(json.dumps([number, clients, seed]) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._read()["tokens_per_s"]


def engine_child(checkpoint: Path, slots: int) -> None:
    """The process of `EngineAlone`: for each line of stdin a closed loop."""
    from pangu_ms.core import runtime
    from pangu_ms.infer.continuation import Request
    from pangu_ms.infer.sampling import SamplingConfig
    from pangu_ms.serve.open import open_model

    runtime.quiet()
    model = open_model(MODEL, checkpoint, slots, CHUNK, 0, [], "", None, "auto")
    engine = model.engine()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        number, clients, seed = json.loads(line)
        asks = make_asks(number, model.tokenizer.vocab_size, seed)
        began, waiting = time.perf_counter(), iter(asks)

        def submit() -> bool:
            ask = next(waiting, None)  # noqa: B023
            if ask:
                sampling = SamplingConfig(ask.tokens, temperature=0.0, min_new_tokens=ask.tokens)
                engine.submit(Request(tuple(ask.prompt), sampling), lambda one: one.take())
            return ask is not None

        for _ in range(clients):
            submit()
        for _ in engine.run():
            submit()
        tokens = sum(ask.tokens for ask in asks)
        print(json.dumps({"tokens_per_s": tokens / (time.perf_counter() - began)}), flush=True)


ALONE, BESIDE = "engine alone", "engine alone, beside as much work as the clients'"
STREAMS, WHOLE = "HTTP, streams", "HTTP, whole answers"


@dataclass
class Turn:
    """One measurement of `http_cost`: tokens/s, and milliseconds of processor time per token."""

    rate: float
    http: float
    engine: float
    clients: float


@contextlib.contextmanager
def working(share: float) -> Iterator[None]:
    """A thread that takes this share of one processor, in turns of a step's length, as clients do."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            begun, end = time.perf_counter(), time.thread_time() + share * STEP_S
            while time.thread_time() < end:
                pass
            ended.wait(max(0.0, STEP_S - (time.perf_counter() - begun)))

    thread = threading.Thread(target=work)
    if share:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if share:
            thread.join()


def http_cost(checkpoint: Path, url: str, process: int, vocab_size: int, args: argparse.Namespace) -> list[str]:
    """The engine alone and behind HTTP, in turns, at as many clients as slots."""
    number, slots = args.requests, args.slots
    turns: dict[str, list[Turn]] = {ALONE: [], BESIDE: [], STREAMS: [], WHOLE: []}
    with child(python_command("tests.bench.serve_http", "--engine", str(checkpoint), str(slots))) as alone:
        engine, share = EngineAlone(alone), 0.0

        def measured_turn(name: str, seed: int) -> Turn:
            asks = make_asks(number, vocab_size, seed, other=list(turns).index(name))
            tokens, asked = sum(ask.tokens for ask in asks), process if name in (STREAMS, WHOLE) else alone.pid
            before, own, began = processor_seconds(asked), time.process_time(), time.perf_counter()
            if asked == process:
                asyncio.run(closed_loop(url, MODEL, asks, slots, stream=name == STREAMS))
            else:
                with working(share if name == BESIDE else 0.0):
                    engine.tokens_per_s(number, slots, seed)
            seconds, own = time.perf_counter() - began, time.process_time() - own
            thread, whole = (after - one for after, one in zip(processor_seconds(asked), before))
            thread *= asked == process
            return Turn(tokens / seconds, *(1e3 * part / tokens for part in (thread, whole - thread, own)))

        for turn in range(-1, args.rounds):
            for name in (STREAMS, ALONE, BESIDE, WHOLE):
                found = measured_turn(name, 100 + turn)
                if name == STREAMS:
                    share = 1e-3 * found.clients * found.rate
                if turn >= 0:  # the first warms up
                    turns[name].append(found)
    lines = [
        f"| {slots} clients, in turns | tokens/s | part of the engine's | processor ms/token: HTTP's thread | engine |"
        " clients |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in turns.items():
        part = statistics.median(one.rate / other.rate for one, other in zip(values, turns[ALONE]))
        cells = [statistics.median(vars(one)[key] for one in values) for key in ("http", "engine", "clients")]
        shown = " | ".join(f"{cell:.3f}" for cell in cells)
        lines.append(f"| {name} | {statistics.median(one.rate for one in values):.0f} | {part:.3f} | {shown} |")
    return lines


def processor_seconds(process: int) -> tuple[float, float]:
    """Of the server's first thread, which is HTTP's, and of all its threads: whatever else the machine does."""
    found = []
    for place in (f"/proc/{process}/task/{process}/stat", f"/proc/{process}/stat"):
        fields = Path(place).read_text().rpartition(")")[2].split()
        found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found[0], found[1]


def memory_growth(number: int, first: int = 1000) -> list[str]:
    """Resident memory of a server of a tiny model after `first` and after `number` requests."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint("alpha/tiny", Path(directory))
        with server(checkpoint, 8) as (url, process):
            asks = make_asks(number, load_config("alpha/tiny").model.vocab_size, 7, most=12)
            marks = []
            for part in (asks[:first], asks[first:]):
                asyncio.run(closed_loop(url, MODEL, part, 8, stream=True))
                marks.append(resident_mib(process))
    growth = 100 * (marks[1] / marks[0] - 1)
    rows = [(str(first), f"{marks[0]:.1f}", ""), (str(number), f"{marks[1]:.1f}", f"{growth:+.2f} %")]
    return ["| requests | resident MiB | growth |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]


def resident_mib(process: int) -> float:
    """VmRSS of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


async def attack(url: str) -> None:
    """Until the process is ended: damaged requests, clients that leave, clients that do not read; a fixed number a
    second."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    body = json.dumps({"model": MODEL, "prompt": [400] * 20, "max_tokens": 1, "n": -1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    kinds = [
        head % len(body) + body,
        head % 100 + b"{" * 100,
        head % 1000 + b'{"model":',
        b"POST /v1/comp",
        head % 2_000_000 + b"x" * 2_000_000,
        b"\x16\x03\x01\x02\x00\x01" * 50,
    ]
    rng = random.Random(0)

    async def one() -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(rng.choice(kinds))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(100), rng.random())
            writer.close()

    tasks = set()
    while True:
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(1 / HOSTILE_PER_S)


def under_attack(url: str, vocab_size: int, number: int, rounds: int) -> list[str]:
    """A client that behaves, alone and beside those that do not, in turns."""
    rates: dict[str, list[dict]] = {"alone": [], "beside them": []}
    for turn in range(rounds):
        for other, (name, found) in enumerate(rates.items()):
            asks = make_asks(number, vocab_size, 200 + turn, other=other)
            with contextlib.ExitStack() as stack:
                if name != "alone":
                    stack.enter_context(child(python_command("tests.bench.serve_http", "--attack", url)))
                    time.sleep(2)  # it has begun
                found.append(measured(lambda: asyncio.run(closed_loop(url, MODEL, asks, 1))))  # noqa: B023
    heads = {
        "first_p50_ms": "first token p50, ms",
        "token_p50_ms": "per token p50, ms",
        "token_p99_ms": "per token p99, ms",
    }
    lines = [f"| one client | {' | '.join(heads.values())} |", "| --- | --- | --- | --- |"]
    medians = {
        name: {key: statistics.median(one[key] for one in found) for key in heads} for name, found in rates.items()
    }
    lines += [f"| {name} | {' | '.join(f'{row[key]:.2f}' for key in heads)} |" for name, row in medians.items()]
    ratios = (medians["beside them"][key] / medians["alone"][key] for key in heads)
    return [*lines, f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"]


COLUMNS = ("requests_per_s", "tokens_per_s", "first_p50_ms", "first_p99_ms", "token_p50_ms", "token_p99_ms")


def row(name: str, numbers: dict[str, float]) -> str:
    """A line of the table of loads."""
    return f"| {name} | {' | '.join(f'{numbers[column]:.1f}' for column in COLUMNS)} |"


def loads(
    url: str, model: str, vocab_size: int, clients: Sequence[int], requests: int, shares: Sequence[float]
) -> Iterator[str]:
    """Lines of the table of loads, each as soon as it is known."""
    rate = 0.0
    for number in clients:
        asks = make_asks(max(requests, 2 * number) if number > 1 else max(8, requests // 4), vocab_size, number)
        numbers = measured(lambda: asyncio.run(closed_loop(url, model, asks, number)))  # noqa: B023
        rate = max(rate, numbers["requests_per_s"])
        yield row(f"closed, {number} clients", numbers)
    for share in shares:
        asks = make_asks(requests, vocab_size, 1000)
        numbers = measured(lambda: asyncio.run(open_loop(url, model, asks, share * rate)))  # noqa: B023
        yield row(f"open, {share * rate:.1f} requests/s ({100 * share:.0f} %)", numbers)


HEAD = [
    "| load | requests/s | tokens/s | first token p50, ms | p99 | per token p50, ms | p99 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


PARTS = ("loads", "http", "attack", "memory")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="alpha/10m", help="configuration")
    parser.add_argument("--slots", type=int, default=8, help="continuations at a time")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256], help="of the closed loops")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.8], help="of the open loops")
    parser.add_argument("--requests", type=int, default=96, help="of each loop; at least two for each client")
    parser.add_argument("--rounds", type=int, default=5, help="turns of what is compared in turns")
    parser.add_argument("--memory-requests", type=int, default=10_000, help="0 leaves the growth of memory out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--url", help="of a server that runs: only its loads are measured")
    parser.add_argument("--model", default=MODEL, help="name of the model at --url")
    parser.add_argument("--vocab-size", type=int, default=8000, help="of the model at --url")
    parser.add_argument("--engine", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        engine_child(Path(args.engine[0]), int(args.engine[1]))
    elif args.attack:
        asyncio.run(attack(args.attack))
    elif args.url:
        asyncio.run(closed_loop(args.url, args.model, make_asks(4, args.vocab_size, 0), 1))
        show(HEAD)
        for line in loads(args.url, args.model, args.vocab_size, args.clients, args.requests, args.shares):
            show([line])
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """The chosen parts, of servers that are started here."""
    if set(args.parts) - {"memory"}:
        with tempfile.TemporaryDirectory() as directory:
            measure_speed(args, make_checkpoint(args.config, Path(directory)))
    if "memory" in args.parts and args.memory_requests:
        show(["", *memory_growth(args.memory_requests)])


def measure_speed(args: argparse.Namespace, checkpoint: Path) -> None:
    """All parts but the memory."""
    vocab_size = load_config(args.config).model.vocab_size
    with server(checkpoint, args.slots) as (url, process):
        asyncio.run(closed_loop(url, MODEL, make_asks(2 * args.slots, vocab_size, 0), args.slots))  # warm-up
        if "loads" in args.parts:
            show(HEAD)
            for line in loads(url, MODEL, vocab_size, args.clients, args.requests, args.shares):
                show([line])
        if "http" in args.parts:
            show(["", *http_cost(checkpoint, url, process, vocab_size, args)])
        if "attack" in args.parts:
            show(["", *under_attack(url, vocab_size, max(8, args.requests // 4), args.rounds)])
    if "loads" in args.parts:
        with server(checkpoint, 1) as (url, _):
            asks = make_asks(max(8, args.requests // 2), vocab_size, 8)
            asyncio.run(closed_loop(url, MODEL, asks[:2], 1))
            numbers = measured(lambda: asyncio.run(closed_loop(url, MODEL, asks, 8)))
            show(["", *HEAD, row("one at a time (--slots 1), 8 clients", numbers)])


def show(lines: Sequence[str]) -> None:
    """Print lines at once."""
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
