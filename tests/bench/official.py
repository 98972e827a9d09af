"""Import of a synthetic release beside MindSpore's transform_checkpoints: equal bits, seconds and peak memory.

    python -m tests.bench.official --hidden 2560 --layers 2                      # the widths of PanGu-alpha 2.6B
    python -m tests.bench.official --hidden 512 --layers 32 --vocab 1024 --strategy pangu_alpha_2.6B_ckpt_strategy.ckpt

The release has 512 parts, cut as the released strategy files cut them (64 x 8), or as --strategy says. The memory is
the peak of a process of its own above what it has after its imports. MindSpore's tool makes one .ckpt of official names
out of the parts; ours makes a checkpoint of this package, with transposes, digests and the embeddings from .npy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.mindspore_shards import SourcePlan
from pangu_ms.config import load_config
from pangu_ms.core.size_text import size_text
from tests.checkpoint.releases import (
    TABLES,
    layout_of,
    official_name,
    old_name,
    to_official,
    write_release,
    write_strategy,
)

PEAK = r"""
import re, sys, time, json
from pathlib import Path

def peak_kib():  # not ru_maxrss, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""
OURS = (
    PEAK
    + r"""
from pangu_ms.checkpoint.convert import Parts, import_file
from pangu_ms.config import load_config
root, words = Path(sys.argv[1]), json.loads(sys.argv[2])
config = load_config("alpha/tiny", words)
before, start = peak_kib(), time.monotonic()
import_file(root / "parts", "official", config, root / "ours", parts=Parts([Path(sys.argv[3])], root / "npy"))
print(json.dumps({"seconds": time.monotonic() - start, "bytes": (peak_kib() - before) << 10}))
"""
)
THEIRS = (
    PEAK
    + r"""
import mindspore as ms
root = Path(sys.argv[1])
before, start = peak_kib(), time.monotonic()
ms.transform_checkpoints(str(root / "ranks"), str(root / "theirs"), "m", sys.argv[3])
print(json.dumps({"seconds": time.monotonic() - start, "bytes": (peak_kib() - before) << 10}))
"""
)


def prepare(root: Path, words: list[str], strategy: Path | None) -> Path:
    """Write a release of random weights; returns its strategy file."""
    random = np.random.default_rng(0)
    shapes = load_config("alpha/tiny", words).model.parameter_shapes()
    ours = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    np.savez(root / "weights.npz", **ours)
    tensors = to_official(ours)
    if strategy:
        (stage,) = SourcePlan.read([strategy]).stages.values()
        layouts = {name: stage[old_name(name)].whole(array.shape) for name, array in tensors.items()}
    else:
        strategy = root / "strategy.ckpt"
        layouts = {name: layout_of(name, array.shape, 64, 8) for name, array in tensors.items()}
        write_strategy(strategy, {old_name(name): layout for name, layout in layouts.items()})
    # The word table of 2.6B has 391 MiB: the published archives are too small to hold it 512 times.
    for part in write_release(root, tensors, layouts, tuple(TABLES.values())).iterdir():
        rank = root / f"ranks/rank_{part.stem.removeprefix('filerted_')}"
        rank.mkdir(parents=True)
        os.link(part, rank / part.name)
    return strategy


def run(code: str, root: Path, words: list[str], strategy: Path) -> dict[str, float]:
    """Run one of the two in a process of its own."""
    command = [sys.executable, "-c", code, str(root), json.dumps(words), str(strategy)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def differences(root: Path) -> list[str]:
    """Names of parameters that differ between the three: what was written, ours, MindSpore's."""
    import mindspore as ms

    written, theirs = np.load(root / "weights.npz"), ms.load_checkpoint(str(root / "theirs/rank_0/m0.ckpt"))
    wrong = []
    for name, tensor in store.open_checkpoint(root / "ours").stored().items():
        array, official = tensor.array(), official_name(name)
        same = [np.array_equal(written[name].view(np.uint32), array.view(np.uint32))]
        if official not in TABLES.values():  # MindSpore's tool knows nothing of the .npy files
            their = theirs[old_name(official)].asnumpy()
            same.append(np.array_equal(to_official({name: array})[official].view(np.uint32), their.view(np.uint32)))
        if not all(same):
            wrong.append(name)
    return wrong


def measure(root: Path, words: list[str], strategy: Path | None, beside: bool = True) -> dict:
    """Prepare a release, import it, and compare."""
    strategy = prepare(root, words, strategy)
    sizes = {
        name: 4 * int(np.prod(shape))
        for name, shape in load_config("alpha/tiny", words).model.parameter_shapes().items()
    }
    result = {"model_bytes": sum(sizes.values()), "largest_bytes": max(sizes.values())}
    result["ours"] = run(OURS, root, words, strategy)
    if beside:
        result["transform_checkpoints"] = run(THEIRS, root, words, strategy)
        result["differences"] = differences(root)
    return result


def main() -> None:
    """Entry of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=40000)
    parser.add_argument("--strategy", type=Path)
    parser.add_argument("--directory", type=Path, help="where the release goes (default: a temporary one)")
    args = parser.parse_args()
    sizes = {"vocab_size": args.vocab, "hidden_size": args.hidden, "num_heads": 32, "seq_length": 1024}
    words = [f"model.{key}={value}" for key, value in (sizes | {"num_layers": args.layers}).items()]
    words.append(f"model.ffn_hidden_size={4 * args.hidden}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.directory) as root:
        result = measure(Path(root), words, args.strategy)
    print(f"model {size_text(result['model_bytes'])}, largest tensor {size_text(result['largest_bytes'])}")
    for name in ("ours", "transform_checkpoints"):
        ratio = result[name]["bytes"] / result["largest_bytes"]
        print(
            f"{name}: {result[name]['seconds']:.1f} s, {size_text(result[name]['bytes'])} = {ratio:.2f} largest tensors"
        )
    print(f"different tensors: {result['differences'] or 'none'}; all together {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
