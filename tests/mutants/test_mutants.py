"""Whatever a file holds, a command that reads it ends well or says in one line what is wrong: no traceback, no crash, bounded memory and time.

Where digests promise that a file is what was written, what is taken must give what the good file gives.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign
from pangu_ms.config import dump_config
from pangu_ms.data.rounds import BatchLosses
from pangu_ms.parallel.strategy_file import write_parameter_layouts
from tests.checkpoint.common import small_config
from tests.checkpoint.test_names_alpha import foreign_tensors
from tests.infer.pi_checkpoint import save_pi_checkpoint
from tests.mutants.kinds import KINDS
from tests.mutants.read import MEMORY_BYTES, SECONDS
from tests.faults.rank_tables import dump, table
from tests.parallel.test_strategy_file import OPERATORS, plan_of
from tests.run.test_status import rank, write

ROOT = Path(__file__).parents[2]
FEW, MANY = 12, 400


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, records):
    """A directory with a good input of every kind."""
    root = tmp_path_factory.mktemp("inputs")
    config = small_config()
    (root / "config.yaml").write_text(dump_config(config))
    (root / "table.json").write_bytes(dump(table(2, 2)))
    job = write(root, [rank(0), rank(1)])
    log = job.logs / "rank_0" / "output.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nTraceback (most recent call last):\n  File \"x.py\", line 1\nValueError: no\n" * 20)
    tokenizer = records / "tokenizer"
    checkpoint, _ = save_pi_checkpoint(root, tokenizer)
    convert.export_file(checkpoint.path, "huggingface", root / "hf")
    weights = foreign_tensors("official")
    foreign.write_file(root / "weights.npz", weights)
    foreign.write_file(root / "weights.ckpt", weights)
    shutil.copytree(tokenizer, root / "tokenizer")
    shutil.copytree(records, root / "records")
    losses = np.linspace(1, 2, 8, dtype=np.float32)
    BatchLosses(np.arange(32).reshape(8, 4), losses, "r" * 64, "c" * 64, "{}").save(root / "losses.npz")
    write_parameter_layouts(plan_of(dp=2, mp=2), 0, root / "strategy.ckpt")
    (root / "strategy.json").write_text(OPERATORS)
    return root


def outcomes(inputs, name, count, first=0):
    """What became of the good input, and of each damaged one."""
    command = [sys.executable, "-m", "tests.mutants.read", str(inputs), name, str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * (count + 3))
    assert done.returncode == 0, done.stderr
    good, *damaged = map(json.loads, done.stdout.splitlines())
    assert len(damaged) == count
    return good, damaged


def complaint(kind, good, outcome):
    """What is wrong with an outcome; None where it is as promised."""
    if outcome["mib"] > MEMORY_BYTES >> 20 or outcome["seconds"] > SECONDS:
        return f"took {outcome['mib']} MiB and {outcome['seconds']} s"
    if outcome["code"] == 0:
        differs = kind.exact and outcome["product"] != good["product"]
        return "was taken and gives something else" if differs else None
    if outcome["code"] not in kind.refusals:
        return f"exit code {outcome['code']}"
    said = outcome["said"].rstrip("\n").splitlines()
    if not said or "Traceback" in outcome["said"] or outcome["code"] == 2 and not said[-1].startswith(("pangu", kind.starts)):
        return "no line that says what is wrong"
    return "control characters reach the terminal" if any(not c.isprintable() for line in said for c in line if c != "\t") else None


def check(inputs, name, count):
    kind = KINDS[name]
    good, damaged = outcomes(inputs, name, count)
    assert good["code"] == 0, good["said"]
    wrong = [(text, o["number"], o["deed"], o["said"][-600:]) for o in damaged if (text := complaint(kind, good, o))]
    taken = Counter("taken" if o["code"] == 0 else "refused" for o in damaged)
    print(f"{name}: {count} damaged, {dict(taken)}, at most {max(o['mib'] for o in damaged)} MiB and {max(o['seconds'] for o in damaged)} s")
    assert not wrong, f"{len(wrong)} of {count}: " + "\n".join(map(str, wrong[:8]))


@pytest.mark.slow  # until every reader keeps the promise; several do not yet
@pytest.mark.parametrize("name", KINDS)
def test_a_few_of_every_kind(inputs, name):
    check(inputs, name, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_many_of_every_kind(inputs, name):
    check(inputs, name, MANY)
