"""The classes that stand in for each other on a CPU and on Ascend are what the loop takes them for: a type checker
reads what no CPU executes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [
    "train",
    "parallel/device_ranks.py",
    "parallel/replicas.py",
    "parallel/rendezvous.py",
]


def checked(cache, root):
    options = [
        "--python-executable",
        sys.executable,
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--cache-dir",
        str(cache),
    ]
    command = [sys.executable, "-m", "mypy", *options, *(str(root / "pangu_ms" / module) for module in MODULES)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


def test_steps_ranks_and_placements_have_the_interfaces_that_the_loop_uses(built_files):
    """What mypy knows of unchanged files stays from one run of the tests to the next."""
    done = checked(built_files / "mypy", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
