"""Compiles a model's step for a virtual rank with series activations by our kernels; prints the report as JSON, and in
it the kinds of recomputed operators and their numbers.

argv: config, rank, overrides. The CPU kernels stand for Ascend's, whose primitives cannot be made without CANN; layouts
are attached to both alike. They are made before the process becomes virtual, since their constructor looks for CANN
afterwards.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import ascend_ops
from ascend_ops import backend, custom
from pangu_ms.config.load import config_to_dict, load_config
from pangu_ms.rehearsal import rehearse_child

NODE = re.compile(r"= (?:\w+(?:::\w+)*::)?(?:PrimFunc_)?(\w+)\(")
KERNELS = ("SeriesActivation", "SeriesActivationGrad", "SeriesGlu", "SeriesGluGrad")
BY_KERNELS = ("swiglu", "series_activation", "fast_gelu")


def main() -> None:
    config, rank, *overrides = sys.argv[1:]
    pools = {name: [custom._made(name, "CPU") for _ in range(4)] for name in KERNELS}
    patches = [
        mock.patch.object(custom, "device", lambda: "CPU"),
        mock.patch.object(custom, "_made", lambda name, target: pools[name].pop()),
        mock.patch.object(
            ascend_ops.backend,
            "choose",
            lambda name, dtype: backend.Choice("cpu" if name in BY_KERNELS else "composed", "test"),
        ),
        mock.patch.object(ascend_ops, "use", lambda name: mock.MagicMock()),  # it would force them all
    ]
    request = {
        "config": config_to_dict(load_config(config, overrides)),
        "rank": int(rank),
        "soc": "",
        "output": "",
        "where": "test",
    }
    with TemporaryDirectory() as graphs:
        rehearse_child.prepare(Path(graphs))
        for patch in patches:
            patch.start()
        report = rehearse_child.rehearse_rank(request, Path(graphs))
        again = (line for line in rehearse_child._validated(Path(graphs)) if "duplicated: Bool(1)" in line)
        report["recomputed"] = Counter(match[1] for line in again if (match := NODE.search(line)))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
