"""Reads damaged files with the product's own commands, each in a forked process with limits; tells what became of them,
a JSON line each.

python -m tests.mutants.read DIRECTORY     then, line by line on standard input: {"name": KIND, "count": N, "odd": N}
"""

import contextlib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

from tests.mutants import mutate, readers
from tests.mutants.kinds import FIRST_WITH_MINDSPORE, KINDS

MEMORY_BYTES, SECONDS = 2 << 30, 20
WAITS = 4 * SECONDS  # on a busy machine; whoever waits for a pipe or a lock waits longer
BROKE = 99


def main(directory):
    """Serve requests until standard input ends."""
    from pangu_ms.core import runtime

    runtime.quiet()
    out = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        for outcome in outcomes(Path(directory), **request):
            print(json.dumps(outcome), file=out, flush=True)


def outcomes(directory, name, count, odd):
    """What becomes of the good file, of the same in other words, of `odd` kinds of odd files in its place, other ones
    for the next kind, and of `count` damaged ones."""
    kind = KINDS[name]
    importlib.import_module("pangu_ms.cli.main")
    if name == FIRST_WITH_MINDSPORE:  # else the command's process and then this one import it
        importlib.import_module("mindspore")
    scratch = directory / f"scratch-{os.getpid()}"
    target, content = copied(kind, directory, scratch)
    yield {"deed": "none", **read(kind, directory, scratch)}
    load(scratch)
    again = mutate.reformatted(content, kind.form)
    if again is not None:
        yield {"deed": "reformatted", **damaged(kind, directory, scratch, again)}
    first, files = odd * list(KINDS).index(name), [*mutate.ODD_FILES.items()]
    for deed, put in (files[number % len(files)] for number in range(first, first + odd)):
        if not (deed == "4 GiB" and kind.endless or deed == "a pipe" and kind.waits):
            yield {"deed": deed, **damaged(kind, directory, scratch, put)}
    for number in range(count):
        deed, changed = kind.mutants(content, mutate.generator(name, number))
        yield {"deed": f"{number}: {deed}", **damaged(kind, directory, scratch, changed)}
    shutil.rmtree(scratch)
    yield {"deed": "end"}


def load(scratch):
    """Import what the command imported once, not in each process."""
    for name in (scratch / "modules").read_text().split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def copied(kind, directory, scratch):
    """A fresh copy of the good input; returns the file to damage and its content."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    source, copy = directory / kind.source, scratch / kind.source
    shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    target = next(path for path in sorted(copy.glob(kind.file)) if path.is_file()) if kind.file else copy
    return target, target.read_bytes()


def damaged(kind, directory, scratch, change):
    """Read a copy whose file has other bytes, or is what `change` makes in its place."""
    target, _ = copied(kind, directory, scratch)
    if callable(change):
        target.unlink()
        change(target)
    else:
        target.write_bytes(change)
    if kind.after:
        kind.after(scratch / kind.source, kind.file)
    return read(kind, directory, scratch)


def read(kind, directory, scratch):
    """Run the command in a child; returns exit code, what it said, its product, memory and time."""
    words = [
        word.format(input=scratch / kind.source, output=scratch / "output", source=directory) for word in kind.command
    ]
    said = scratch / "stdout", scratch / "stderr"
    child = os.fork()
    if not child:
        _become(words, *said, scratch / "modules")
    _, status, usage = os.wait4(child, 0)
    out, err = (path.read_bytes().decode(errors="replace") for path in said)
    product = (
        "".join(sorted(str(p.read_bytes()) for p in (scratch / "output").glob(kind.product))) if kind.product else out
    )
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = {"mib": max(0, usage.ru_maxrss - base) >> 10, "seconds": round(usage.ru_utime + usage.ru_stime, 2)}
    digest = hashlib.sha256(product.encode(errors="replace")).hexdigest()
    return {"code": os.waitstatus_to_exitcode(status), "said": err or out[-2000:], "product": digest, **used}


def _become(words, out, err, modules):
    known = set(sys.modules)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(WAITS)  # nobody catches it: the process ends
    code = BROKE
    try:
        from pangu_ms.cli.main import main as pangu
        from pangu_ms.core.console import guarded

        code = (
            guarded("pangu", lambda: getattr(readers, words[0][1:])(*words[1:])) if words[0][0] == ":" else pangu(words)
        )
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else BROKE
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    modules.write_text("\n".join(name for name in sys.modules if name not in known and name != "__main__"))
    os._exit(code or 0)


if __name__ == "__main__":
    main(sys.argv[1])
