"""`python -m tests.bench.golden_losses record FILE`, `... compare FILE`: that a change of the code changes no loss by a
single bit.

Losses depend on the machine (its vector units, the kernels' compiler), so none are stored with the project: record them
at one commit, compare at another, on one machine. Everything goes through the command line, which both commits have.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIGS = ("alpha/tiny", "pi/tiny")
STEPS = 40


def losses(config: str, directory: Path) -> dict[str, Any]:
    """Train a few steps; the losses as exact hexadecimal numbers, and the SHA-256 of the weights after them."""
    output = directory / config.replace("/", "_")
    overrides = [f"train.steps={STEPS}", "train.save_every=20", "optimizer.warmup_steps=10"]
    command = [sys.executable, "-m", "pangu_ms", "train", "--config", config, *overrides, "--output", str(output)]
    subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    weights = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.glob("checkpoints/*/*.safetensors"))
    }
    return {"losses": [row["loss"].hex() for row in rows if "loss" in row], "weights": weights}


def main() -> int:
    """Record or compare; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = {config: losses(config, Path(directory)) for config in CONFIGS}
    if args.action == "record":
        args.file.write_text(json.dumps(found, indent=1))
        return 0
    expected, code = json.loads(args.file.read_text()), 0
    for config, was in expected.items():
        same = found[config] == was
        print(
            f"{config}: {len(was['losses'])} losses, {len(was['weights'])} files of weights: {'same' if same else 'DIFFERENT'}"
        )
        code |= not same
    return code


if __name__ == "__main__":
    sys.exit(main())
