"""`python -m tests.bench.ops`: the operators at the shapes of a 350M model: ours, composed MindSpore, PyTorch, and the
time that its bytes take.

Times are medians of calls that take turns, in milliseconds: `fwd`, and `both` for forward and backward together. Ours
and composed are compiled graphs, whose launch is included (its time is printed); the ratio leaves it out, as a model is
launched once. The bandwidth time is of the bytes that must be read and written once, at the rate of numpy's a + b over
arrays too large for any cache, on all threads.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pangu_ms.core import runtime

T, E, F, V, H, S = 2048, 1024, 4096, 40000, 16, 1024
"""Tokens, hidden and feed-forward sizes, vocabulary, heads of 350m, and its sequence length (two sequences)."""
EXPERTS = 16


@dataclass(frozen=True)
class Case:
    """One operator at one shape."""

    name: str
    inputs: tuple[np.ndarray, ...]
    ours: Callable
    """ascend_ops on MindSpore tensors."""
    torch: Callable
    """The same on PyTorch tensors, as its users write it."""
    forward_bytes: int
    backward_bytes: int = 0
    """0: no backward pass is measured."""
    differentiable: tuple[int, ...] = field(default=(0,))


def stream_bandwidth(threads: int, size: int = 1 << 25, rounds: int = 7) -> float:
    """Bytes per second of a + b -> c in float32, the best of some rounds."""
    a, b, c = (np.ones(size, np.float32) for _ in range(3))
    cuts = [slice(size * i // threads, size * (i + 1) // threads) for i in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            began = time.perf_counter()
            list(pool.map(lambda cut: np.add(a[cut], b[cut], out=c[cut]), cuts))
            best = max(best, 3 * a.nbytes / (time.perf_counter() - began))
    return best


def draw(*shape: int) -> np.ndarray:
    return np.random.RandomState(len(shape)).standard_normal(shape).astype(np.float32)


def draw_table() -> np.ndarray:
    return np.random.RandomState(1).randint(0, EXPERTS, (4, V)).astype(np.int32)


def attention_torch(q, k, v):
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    ).transpose(1, 2)


def rms_norm_torch(x, weight):
    from torch.nn.functional import rms_norm

    return rms_norm(x, (E,), weight, 1e-6)


def series_torch(x, scale, shift):
    from torch.nn.functional import gelu

    return sum(gelu(scale[i] * x + shift[i], approximate="tanh") for i in range(2))


def rotary_torch(x, cos_sin):
    import torch

    x1, x2 = x.view(*x.shape[:2], H, -1).chunk(2, -1)
    cos, sin = cos_sin[:, :, None].chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).view_as(x)


def dispatch_torch(x, expert):
    order = expert.argsort(stable=True)
    return x[order]


def grouped_torch(x, weight, counts, bias=None):
    import torch
    from torch.nn.functional import linear

    parts = x.split(counts.tolist())
    biases = [None] * len(parts) if bias is None else bias
    return torch.cat([linear(*part) for part in zip(parts, weight, biases, strict=True)])


def cases() -> list[Case]:
    """The operators, forward and backward where they have one."""
    from torch.nn import functional

    import ascend_ops
    from tests.bench import ops_calls as calls

    activation, norm = draw(T, F), draw(T, E)
    one, row = activation.nbytes, norm.nbytes
    logits, labels, mask = draw(T // 2, V), np.arange(T // 2, dtype=np.int32) % V, np.ones(T // 2, np.float32)
    qkv = tuple(draw(T // S, S, H, E // H) for _ in range(3))
    expert = np.random.RandomState(0).randint(0, EXPERTS, T).astype(np.int32)
    counts, order = (
        np.bincount(expert, minlength=EXPERTS).astype(np.int32),
        np.argsort(expert, kind="stable").astype(np.int32),
    )
    experts = draw(EXPERTS, E, E)
    sequences, angles = draw(T // S, S, E), np.tile(ascend_ops.rotary_table(S, E // H, 1e4), (T // S, 1, 1))
    plain = [
        Case(name, (activation,), getattr(ascend_ops, name), torch_call, 2 * one, 3 * one)
        for name, torch_call in (
            ("gelu", lambda x: functional.gelu(x, approximate="tanh")),
            ("gelu_erf", functional.gelu),
            ("fast_gelu", lambda x: x * (1.702 * x).sigmoid()),
            ("silu", functional.silu),
        )
    ]
    return [
        *plain,
        Case(
            "gelu + bias",
            (activation, draw(F)),
            ascend_ops.gelu,
            lambda x, b: functional.gelu(x + b, approximate="tanh"),
            2 * one,
            3 * one,
            (0, 1),
        ),
        Case(
            "series_activation",
            (activation, draw(2, F), draw(2, F)),
            ascend_ops.series_activation,
            series_torch,
            2 * one,
            3 * one,
            (0, 1, 2),
        ),
        Case(
            "swiglu",
            (activation, activation),
            ascend_ops.swiglu,
            lambda g, u: functional.silu(g) * u,
            3 * one,
            5 * one,
            (0, 1),
        ),
        Case(
            "layer_norm",
            (norm, draw(E), draw(E)),
            ascend_ops.layer_norm,
            lambda x, w, b: functional.layer_norm(x, (E,), w, b),
            2 * row,
            3 * row,
            (0, 1, 2),
        ),
        Case("rms_norm", (norm, draw(E)), ascend_ops.rms_norm, rms_norm_torch, 2 * row, 3 * row, (0, 1)),
        Case(
            "softmax_cross_entropy",
            (logits, labels, mask),
            ascend_ops.softmax_cross_entropy,
            lambda x, y, m: functional.cross_entropy(x, y.long(), reduction="none"),
            logits.nbytes,
            2 * logits.nbytes,
        ),
        Case(
            "causal_attention",
            qkv,
            ascend_ops.causal_attention,
            attention_torch,
            4 * qkv[0].nbytes,
            8 * qkv[0].nbytes,
            (0, 1, 2),
        ),
        Case(
            "dropout",
            (activation, np.array([7], np.int32)),
            calls.dropout,
            lambda x, s: functional.dropout(x, 0.1),
            2 * one,
            2 * one,
        ),
        Case(
            "rotary_embedding",
            (sequences, angles),
            ascend_ops.rotary_embedding,
            rotary_torch,
            2 * row + angles.nbytes,
            2 * row + angles.nbytes,
        ),
        Case(
            "linear",
            (norm, draw(F, E), draw(F)),
            ascend_ops.linear,
            functional.linear,
            row + one + 4 * E * F,
            2 * (row + one) + 8 * E * F,
            (0, 1, 2),
        ),
        Case("linear, 1 token", (draw(1, E), draw(F, E), draw(F)), ascend_ops.linear, functional.linear, 4 * E * F),
        Case("moe_dispatch", (norm, expert), calls.dispatch, dispatch_torch, 2 * row, 2 * row),
        Case(
            "moe_combine",
            (norm, order),
            ascend_ops.moe_combine,
            lambda r, o: r.new_empty(r.shape).index_copy(0, o.long(), r),
            2 * row,
            2 * row,
        ),
        Case(
            "grouped_matmul",
            (norm, experts, counts),
            ascend_ops.grouped_matmul,
            grouped_torch,
            2 * row + experts.nbytes,
            4 * row + 2 * experts.nbytes,
            (0, 1),
        ),
        Case(
            "grouped, 1 token",
            (draw(1, E), experts, np.eye(1, EXPERTS, 5, np.int32)[0], draw(EXPERTS, E)),
            ascend_ops.grouped_matmul,
            grouped_torch,
            4 * E * E,
        ),
        Case("add", (norm, norm), ascend_ops.add, lambda x, y: x + y, 3 * row),
        Case(
            "rre_route",
            (expert % 4, expert, draw_table()),
            ascend_ops.rre_route,
            lambda d, i, t: t[d.long(), i.long()],
            12 * T,
        ),
        Case("squared_norm", (activation,), ascend_ops.squared_norm, lambda x: x.square().sum(), one),
        Case(
            "squared_norms",
            (experts,),
            ascend_ops.squared_norms,
            lambda x: x.square().flatten(1).sum(1),
            experts.nbytes,
        ),
    ]


def compiled(case: Case, backend: str) -> dict[str, Callable[[], None]]:
    """Functions that run `fwd` and `both` once; a graph on a CPU is done when its call returns."""
    from mindspore import Tensor, ops

    import ascend_ops
    from tests.bench.ops_calls import Both, First, Forward

    tensors = [Tensor(a) for a in case.inputs]
    with ascend_ops.use(backend):
        forward = Forward(case.ours)
        forward(*tensors)  # compiles, which fixes the backend
        cotangent = ops.ones_like(First(case.ours)(*tensors))
        runs = {"fwd": lambda: forward(*tensors)}
        if case.backward_bytes:
            both = Both(case.ours, case.differentiable)
            both(cotangent, *tensors)
            runs["both"] = lambda: both(cotangent, *tensors)

    return runs


def eager(case: Case) -> dict[str, Callable[[], None]]:
    """The same in PyTorch."""
    import torch

    tensors = [torch.from_numpy(a) for a in case.inputs]
    leaves = [tensors[i].requires_grad_() for i in case.differentiable] if case.backward_bytes else []
    with torch.no_grad():
        cotangent = torch.ones_like(case.torch(*tensors))

    def forward() -> None:
        with torch.no_grad():
            case.torch(*tensors)

    def both() -> None:
        torch.autograd.grad(case.torch(*tensors), leaves, cotangent)

    return {"fwd": forward} | ({"both": both} if case.backward_bytes else {})


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns; each is called once more before it is timed, as threads and caches are
    then its own."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def launch_time(rounds: int) -> float:
    """Milliseconds of a graph that computes sixteen numbers: what every time of ours includes."""
    import ascend_ops

    return medians(compiled(Case("launch", (draw(1, 16),), ascend_ops.silu, ascend_ops.silu, 0), "cpu"), rounds)["fwd"]


def measure(case: Case, bandwidth: float, launch: float, rounds: int, backends: list[str]) -> dict:
    """All times of a case, and ours, less the launch of the graph, over the larger of PyTorch's and the bandwidth's."""
    runs = {f"{backend} {which}": run for backend in backends for which, run in compiled(case, backend).items()}
    runs |= {f"torch {which}": run for which, run in eager(case).items()}
    row = {"operator": case.name} | medians(runs, rounds)
    for which, size in (
        ("fwd", case.forward_bytes),
        ("both", (case.forward_bytes + case.backward_bytes) if case.backward_bytes else 0),
    ):
        if size:
            row[f"bytes {which}"] = 1e3 * size / bandwidth
            row[f"ratio {which}"] = (row[f"cpu {which}"] - launch) / max(row[f"torch {which}"], row[f"bytes {which}"])
    return row


def main(argv: list[str] | None = None) -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="operators whose name contains one of these"
    )
    parser.add_argument("--no-composed", action="store_true", help="leave out composed MindSpore")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args(argv)
    runtime.quiet()
    runtime.start("CPU")
    import torch

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    bandwidth = stream_bandwidth(threads)
    backends = ["cpu"] if args.no_composed else ["cpu", "composed"]
    rows, launch = [], launch_time(args.rounds)
    if not args.json:
        print(
            f"{threads} threads, {bandwidth / 1e9:.1f} GB/s, {launch:.2f} ms to launch a"
            f" graph\n{'milliseconds':<22}{'fwd: ours':>10}{'bytes':>8}{'torch':>8}{'composed':>10}{'ratio':>7}",
            end="",
        )
        print(f"{'both: ours':>12}{'bytes':>8}{'torch':>8}{'composed':>10}{'ratio':>7}")
    for case in cases():
        if args.only and not any(part in case.name for part in args.only):
            continue
        rows.append(row := measure(case, bandwidth, launch, args.rounds, backends))
        if not args.json:
            print(
                f"{case.name:<22}" + "".join(line(row, which, 10 + 2 * i) for i, which in enumerate(("fwd", "both"))),
                flush=True,
            )
    if args.json:
        print(json.dumps({"bandwidth": bandwidth, "launch_ms": launch, "threads": threads, "rows": rows}))


def line(row: dict, which: str, width: int) -> str:
    """One operator's numbers for forward or for both."""
    if f"cpu {which}" not in row:
        return ""
    composed = row.get(f"composed {which}")
    numbers = f"{row[f'cpu {which}']:>{width}.2f}{row[f'bytes {which}']:>8.2f}{row[f'torch {which}']:>8.2f}"
    return numbers + (f"{composed:>10.2f}" if composed else f"{'-':>10}") + f"{row[f'ratio {which}']:>7.2f}"


if __name__ == "__main__":
    main()
