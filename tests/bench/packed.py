"""Times of packed weights (float32, bfloat16, int8) beside `linear`: few-row dot products, oneDNN from 49 rows on.

The kernels are called as MindSpore calls them, without a graph. All take turns over copies of the weight that no cache
holds together; the least of many short calls counts, so that the table can be read on a busy machine. "read" adds up
the bytes of the float32 weight and does nothing else: 100 % of `packed float32` is what the memory gives.

    .venv/bin/python -m tests.bench.packed
    .venv/bin/python -m tests.bench.packed --rows 1 8 --shapes 4096x1024 --seconds 3
"""

import argparse
import ctypes
import time

import numpy as np

from ascend_ops import library
from ascend_ops.packing import INPUTS, pack
from tests.ascend_ops.kernel_calls import Call

SHAPES = ("2048x512", "4096x1024", "1024x4096", "40000x1024")
ROWS = (1, 4, 8, 16, 64, 72)
CACHES = 128 << 20  # bytes of copies: more than the caches of a laptop or of a server's share


def copies(array: np.ndarray) -> list[np.ndarray]:
    """The array and copies of it, together too large for a cache."""
    return [array, *(array.copy() for _ in range(CACHES // array.nbytes))]


def calls_of(kernels: ctypes.CDLL, weight: np.ndarray, rows: int) -> dict[str, list[Call]]:
    """Name -> the same call for each copy of the weight."""
    outputs, inputs = weight.shape
    x = np.random.default_rng(1).standard_normal((rows, inputs), dtype=np.float32)
    y, none, one = np.empty((rows, outputs), np.float32), np.zeros(1, np.float32), np.empty(1, np.float32)
    plain = copies(weight)
    calls = {
        "linear": [Call(kernels.Linear, x, copy, none, y) for copy in plain],
        "read": [Call(kernels.SquaredNorm, copy, one) for copy in plain],
    }
    for dtype in INPUTS:
        packed = pack(weight, dtype)
        attribute = np.full(1, -1, np.float32)
        calls[dtype] = [
            Call(kernels.PackedLinear, x, copy, packed.scale, none, attribute, y) for copy in copies(packed.data)
        ]
    return calls


def least_times(calls: dict[str, list[Call]], seconds: float) -> dict[str, float]:
    """Least seconds of each, taking turns."""
    least = dict.fromkeys(calls, float("inf"))
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end or turn < 3:
        for position, (name, each) in enumerate(calls.items()):
            # Not the copy that another has just read.
            call = each[(turn + position * len(each) // len(calls)) % len(each)]
            began = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - began)
        turn += 1
    return least


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN", help="shapes of the weight")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of x")
    parser.add_argument("--seconds", type=float, default=5, help="of each line of the table")
    args = parser.parse_args(argv)
    import mindspore  # noqa: F401 - loads the oneDNN that the library looks up

    kernels = ctypes.CDLL(str(library.build()))
    print(f"{library.cpu_level()}; microseconds, GB/s of the weight's bytes, times faster than linear")
    print(f"{'out x in':<12}{'rows':>5}{'read':>15}{'linear':>15}" + "".join(f"{dtype:>22}" for dtype in INPUTS))
    for shape in args.shapes:
        outputs, inputs = map(int, shape.split("x"))
        weight = np.random.default_rng(0).standard_normal((outputs, inputs), dtype=np.float32) / np.float32(inputs**0.5)
        for rows in args.rows:
            least = least_times(calls_of(kernels, weight, rows), args.seconds)
            line = f"{shape:<12}{rows:>5}"
            for name in ("read", "linear", *INPUTS):
                size = outputs * inputs * 4 / INPUTS.get(name, 1)
                line += f"{1e6 * least[name]:9.0f}{size / least[name] / 1e9:6.1f}"
                line += f"{least['linear'] / least[name]:6.2f}x" if name in INPUTS else ""
            print(line, flush=True)


if __name__ == "__main__":
    main()
