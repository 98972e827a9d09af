"""Whatever a file holds, a command that reads it ends well or says in one line what is wrong: no traceback, no crash,
bounded memory and time.

Where digests promise that a file is what was written, what is taken must give what the good file gives. The same
content in other words must be taken, so that refusing everything is no way to pass.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import inputs, mutate
from tests.mutants.kinds import KINDS
from tests.mutants.read import MEMORY_BYTES, SECONDS

ROOT = Path(__file__).parents[2]
FEW, MANY = 1, 400
SOME = 1
"""Of the odd files, so many stand in place of each kind in the default tier."""
NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture(scope="module")
def reader(tmp_path_factory, records, text_file):
    """Gives what became of the good input of a kind, and of odd and damaged ones; one process for all kinds, which
    imports what they need once."""
    directory = inputs.make(tmp_path_factory.mktemp("inputs"), records, text_file)
    command = [sys.executable, "-m", "tests.mutants.read", str(directory)]
    with open(directory / "reader.txt", "w+") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        )

        def outcomes(name, count, odd):
            process.stdin.write(json.dumps({"name": name, "count": count, "odd": odd}) + "\n")
            process.stdin.flush()
            found = []
            while not found or found[-1]["deed"] != "end":
                line = process.stdout.readline()
                assert line, (directory / "reader.txt").read_text()
                found.append(json.loads(line))
            return found[:-1]

        yield outcomes
        process.stdin.close()
        process.wait()


def complaint(kind, good, outcome):
    """What is wrong with an outcome; None where it is as promised."""
    if outcome["mib"] > MEMORY_BYTES >> 20 or outcome["seconds"] > SECONDS:
        return f"took {outcome['mib']} MiB and {outcome['seconds']} s"
    if outcome["code"] == 0:
        differs = (kind.exact or kind.steady and outcome["deed"] == "reformatted") and outcome["product"] != good[
            "product"
        ]
        if outcome["deed"] == "no file" and kind.optional:
            return None
        if not kind.forgiving and outcome["deed"].partition(": ")[2] in mutate.NEVER.get(kind.form, ()):
            return "must never be taken"
        return "was taken and gives something else" if differs else None
    if outcome["deed"] == "reformatted":
        return "is the same in other words, and was refused"
    if outcome["code"] not in kind.refusals:
        return f"exit code {outcome['code']}"
    said = outcome["said"].rstrip("\n").splitlines()
    if (
        not said
        or "Traceback" in outcome["said"]
        or outcome["code"] == 2
        and not said[-1].startswith(("pangu", kind.starts))
    ):
        return "no line that says what is wrong"
    return (
        "control characters reach the terminal"
        if any(not c.isprintable() for line in said for c in line if c != "\t")
        else None
    )


def check(reader, name, count, odd):
    kind = KINDS[name]
    good, *damaged = reader(name, count, odd)
    assert good["code"] == 0, good["said"]
    assert good["product"] != NOTHING, "the command says and writes nothing, so that nothing can be compared"
    wrong = [(text, o["deed"], o["code"], o["said"][-600:]) for o in damaged if (text := complaint(kind, good, o))]
    taken = Counter("taken" if o["code"] == 0 else "refused" for o in damaged)
    most = f"at most {max(o['mib'] for o in damaged)} MiB and {max(o['seconds'] for o in damaged)} s"
    print(f"{name}: {len(damaged)} damaged, {dict(taken)}, {len(wrong)} wrong, {most}")
    assert not wrong, f"{len(wrong)} of {len(damaged)}: " + "\n".join(map(str, wrong[:8]))
    return taken["taken"] / len(damaged)


@pytest.mark.parametrize("name", KINDS)
def test_a_few_of_every_kind(reader, name):
    check(reader, name, FEW, SOME)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_many_of_every_kind(reader, name):
    assert check(reader, name, MANY, len(mutate.ODD_FILES)) >= KINDS[name].share
