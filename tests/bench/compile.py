"""`python -m tests.bench.compile`: seconds until the first training step is done, by number of layers, without and with
the compiled graph in the cache."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pangu_ms.config.load import load_config


def first_step(config: str, layers: int, records: Path, cache: Path, output: Path) -> dict:
    """Train one step in a fresh process; its result."""
    command = [
        sys.executable,
        "-m",
        "pangu_ms",
        "train",
        "--config",
        config,
        f"model.num_layers={layers}",
        "train.steps=1",
        "optimizer.warmup_steps=0",
    ]
    command += ["data.held_out=0", "--data", str(records), "--output", str(output), "--json"]
    done = subprocess.run(
        command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", default="alpha/tiny", help="configuration")
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 8, 16, 32], help="numbers of layers")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    args = parser.parse_args()
    from pangu_ms.data.default_corpus import build_records, standard_library_files

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        build_records(load_config(args.config), standard_library_files()[:60], base, progress=False)
        for layers in args.layers:
            results = [
                first_step(args.config, layers, base / "records", base / "cache", base / f"run-{layers}-{n}")
                for n in range(2)
            ]
            assert [r["cache_hit"] for r in results] == [False, True]
            rows.append(
                {"layers": layers, "cold_s": results[0]["compile_seconds"], "warm_s": results[1]["compile_seconds"]}
            )
    slopes = {k: (rows[-1][k] - rows[0][k]) / (rows[-1]["layers"] - rows[0]["layers"]) for k in ("cold_s", "warm_s")}
    if args.json:
        print(json.dumps({"rows": rows, "seconds_per_layer": slopes}))
        return
    print(f"{'layers':>6}{'cold s':>9}{'warm s':>9}")
    for row in rows:
        print(f"{row['layers']:>6}{row['cold_s']:>9.1f}{row['warm_s']:>9.1f}")
    print(f"seconds per layer: {slopes['cold_s']:.2f} cold, {slopes['warm_s']:.2f} warm")


if __name__ == "__main__":
    main()
