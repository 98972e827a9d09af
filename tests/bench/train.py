"""`python -m tests.bench.train --peer torch`: training steps of one model, on the same tokens, in ours and in PyTorch,
in turns.

PyTorch runs eagerly, as most users have it; compiled (torch.compile); and compiled with float32 products by oneDNN
instead of MKL, which is slow on AMD (under autocast to bfloat16 it takes oneDNN anyway). The ratio that counts is that
to the fastest of them. `--config pi/10m` is a PanGu-pi in the size of alpha/10m. All start from the same weights and
their first losses must agree. AdamW, clipping at 1, no dropout; PyTorch has its fused AdamW. With --dtype bfloat16
PyTorch computes under autocast and ours with model.compute_dtype=bfloat16. Each has a process of its own and waits
while the other computes; peak memory is the growth of its resident size since before its model was built.

The rows of the README's table, each in float32 and, with `--dtype bfloat16`, in bfloat16; nothing else may run, and the
100 M row takes some 10 GB for all four:

    python -m tests.bench.train --steps 20
    python -m tests.bench.train --steps 20 model.hidden_size=512 model.num_layers=6
    python -m tests.bench.train --steps 10 --batch-size 4 model.hidden_size=768 model.num_layers=13 model.num_heads=12
    python -m tests.bench.train --steps 20 --config pi/10m

They have 10.1, 23.3, 98.7 and 10.1 million parameters with the vocabulary of 8,000 that these configurations have.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pkgutil import resolve_name

import numpy as np

from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime

# What PyTorch would not compute is off; gelu is an activation that it has as one operator.
OVERRIDES = ("data.eod_reset=false", "runtime.compile_cache=false")
FAMILY_OVERRIDES = {"alpha": ("model.hidden_act=gelu", "model.dropout=0.0"), "pi": ()}
MODELS = {"alpha": "tests.bench.alpha_torch:AlphaTorch", "pi": "tests.bench.pi_torch:PiTorch"}
PEERS = {"float32": ("eager", "compiled", "onednn"), "bfloat16": ("eager", "compiled")}


def tokens(config: RunConfig, steps: int) -> np.ndarray:
    """Zipf-distributed ids int32 [steps, B, S + 1]: speed depends on their number alone."""
    draws = np.random.RandomState(0).zipf(1.2, (steps, config.train.batch_size, config.model.seq_length + 1))
    return (draws % config.model.vocab_size).astype(np.int32)


def weights(config: RunConfig) -> dict[str, np.ndarray]:
    """The initial parameters by name."""
    from pangu_ms.models.build import initial_values

    return dict(initial_values(config.model, 1))


def ours(config: RunConfig) -> Callable[[np.ndarray], float]:
    """A function that trains one step and returns the loss."""
    runtime.start("CPU")
    from pangu_ms.models.build import build_model, fill
    from pangu_ms.models.common.batch import Batch
    from pangu_ms.train.steps.train_step import TrainStep

    model = build_model(config.model)
    fill(model.trainable_params(), weights(config))
    step = TrainStep(model, config)

    def run(ids: np.ndarray) -> float:
        shape = (ids.shape[0], ids.shape[1] - 1)
        positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
        return step(
            Batch(ids, positions, np.zeros(shape, np.int32), np.ones(shape, np.float32)), 0, config.optimizer.lr
        ).loss

    return run


def peer(name: str, config: RunConfig, dtype: str) -> Callable[[np.ndarray], float]:
    """The same in PyTorch: one of PEERS."""
    import torch

    from tests.bench import onednn_torch

    if name == "onednn":
        onednn_torch.install()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = resolve_name(MODELS[config.model.family])(config.model)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(config).items()})
    specs = config.model.parameters()
    groups = [[p for n, p in model.named_parameters() if specs[n].decay == decayed] for decayed in (True, False)]
    o = config.optimizer
    settings = [{"params": g, "weight_decay": d} for g, d in zip(groups, (o.weight_decay, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(settings, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)
    compute = model if name == "eager" else torch.compile(model)

    def run(ids: np.ndarray) -> float:
        batch = torch.from_numpy(ids.astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = compute(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def serve(name: str, config: RunConfig, dtype: str, steps: int) -> None:
    """Worker: a step for each line on stdin, its loss and seconds as a line on stdout; at the end the growth of the
    peak resident size."""
    if name != "ours":
        import mindspore  # noqa: F401 - for the initial weights
        import torch  # noqa: F401
    else:
        runtime.start("CPU")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = ours(config) if name == "ours" else peer(name, config, dtype)
    for batch, _ in zip(tokens(config, steps), sys.stdin, strict=False):
        began = time.perf_counter()
        loss = run(batch)
        print(json.dumps([loss, time.perf_counter() - began]), flush=True)
    print(json.dumps(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)), flush=True)


class Worker:
    """A process that trains on command. Two in one process would disturb each other: MindSpore binds the threads that
    PyTorch then shares."""

    def __init__(self, name: str, arguments: list[str], cache: str):
        command = [sys.executable, "-m", "tests.bench.train", *arguments, "--only", name]
        # torch.compile's own cache, in the temporary directory, keeps what a killed run left half written.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, name)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> tuple[float, float]:
        """(loss, seconds) of the next step."""
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def peak_bytes(self) -> int:
        """End it; what its peak resident size grew by since before its model was built."""
        size = self.process.stdout.readline()  # before its input closes: MindSpore prints when it ends
        self.process.communicate()
        return json.loads(size)


def compare(config: RunConfig, dtype: str, arguments: list[str], steps: int) -> dict:
    """Steps in turns, after two of each that compile and warm up."""
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        workers = {name: Worker(name, arguments, cache) for name in ("ours", *PEERS[dtype])}
        return _compare(workers, config, dtype, steps)


def _compare(workers: dict[str, Worker], config: RunConfig, dtype: str, steps: int) -> dict:
    first = {name: worker.step() for name, worker in workers.items()}
    seconds = {name: [] for name in workers}
    losses = {name: [loss] for name, (loss, _) in first.items()}
    for number in range(steps + 1):
        for name, worker in workers.items():
            loss, duration = worker.step()
            losses[name].append(loss)
            if number:
                seconds[name].append(duration)
    off = max(abs(losses["ours"][0] / losses[name][0] - 1) for name in PEERS[dtype])
    if off > (1e-5 if dtype == "float32" else 1e-3):
        raise SystemExit(f"first losses differ by {off:.1e}: not the same model")
    count = config.train.batch_size * config.model.seq_length
    ratios = {name: [t / o for o, t in zip(seconds["ours"], seconds[name], strict=True)] for name in PEERS[dtype]}
    best = min(PEERS[dtype], key=lambda name: statistics.median(seconds[name]))
    return {
        "num_parameters": config.model.num_parameters(),
        "losses": losses,
        "tokens_per_second": {name: count / statistics.median(values) for name, values in seconds.items()},
        "best": best,
        "ratio_to_best": statistics.median(ratios[best]),
        "ratio_to_eager": statistics.median(ratios["eager"]),
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_quartiles": {name: list(np.percentile(values, (25, 75))) for name, values in ratios.items()},
        "first_step_seconds": first["ours"][1],
        "peak_bytes": {name: worker.peak_bytes() for name, worker in workers.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peer", choices=["torch"], default="torch", help="what to compare with")
    parser.add_argument("--config", default="alpha/10m", help="configuration")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each")
    parser.add_argument("--only", choices=["ours", *PEERS["float32"]], help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="override a field of the configuration"
    )
    arguments = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(arguments)
    runtime.quiet()
    overrides = [
        f"model.compute_dtype={args.dtype}",
        f"train.batch_size={args.batch_size}",
        "train.accumulation_steps=1",
        *OVERRIDES,
    ]
    overrides += FAMILY_OVERRIDES[load_config(args.config).model.family]
    config = load_config(args.config, [*overrides, *args.overrides])
    if args.only:
        serve(args.only, config, args.dtype, args.steps + 2)
        return
    result = compare(config, args.dtype, arguments, args.steps)
    if args.json:
        print(json.dumps(result))
        return
    speed, losses, peak = result["tokens_per_second"], result["losses"], result["peak_bytes"]
    print(
        f"{args.config} {args.dtype}, {result['num_parameters'] / 1e6:.1f} M parameters, batch {args.batch_size} x"
        f" {config.model.seq_length}"
    )
    print("first loss      " + "   ".join(f"{name} {values[0]:.5f}" for name, values in losses.items()))
    print("tokens/s        " + "   ".join(f"{name} {value:,.0f}" for name, value in speed.items()))
    for name, (low, high) in result["ratio_quartiles"].items():
        print(
            f"ours / {name:8} {result['ratio'][name]:.2f} (median of {args.steps} pairs; quartiles"
            f" {low:.2f}-{high:.2f})"
        )
    print(
        f"ratio           {result['ratio_to_best']:.2f} to the best of PyTorch ({result['best']}),"
        f" {result['ratio_to_eager']:.2f} to eager"
    )
    print("peak memory     " + "   ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in peak.items()))
    print(f"first step of ours, compilation included: {result['first_step_seconds']:.1f} s")


if __name__ == "__main__":
    main()
