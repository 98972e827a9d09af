"""Reads damaged files with the product's own commands, each in a forked process with limits; prints what became of them, a JSON line each.

    python -m tests.mutants.read DIRECTORY KIND FIRST COUNT
"""

import importlib
import json
import os
import resource
import shutil
import sys
import traceback
from pathlib import Path

MEMORY_BYTES, SECONDS = 2 << 30, 20
BROKE = 99


def main(directory, name, first, count):
    """Read the good file, then the damaged ones."""
    from pangu_ms import runtime
    from pangu_ms.cli import VERBS
    from tests.mutants.kinds import KINDS
    from tests.mutants.mutate import generator

    runtime.quiet()
    kind, directory = KINDS[name], Path(directory)
    for module in ("numpy", "yaml", "pangu_ms.config", VERBS[kind.command[0]][0], *kind.imports):  # once, not in each child
        importlib.import_module(module)
    scratch = directory / f"scratch-{os.getpid()}"
    target, content = copied(kind, directory, scratch)
    print(json.dumps({"number": -1, "deed": "none", **read(kind, directory, scratch)}), flush=True)
    for number in range(first, first + count):
        target, _ = copied(kind, directory, scratch)
        deed, damaged = kind.mutants(content, generator(name, number))
        target.write_bytes(damaged)
        if kind.after:
            kind.after(scratch / kind.source, kind.file)
        outcome = read(kind, directory, scratch)
        print(json.dumps({"number": number, "deed": deed, "same": damaged == content, **outcome}), flush=True)
    shutil.rmtree(scratch)


def copied(kind, directory, scratch):
    """A fresh copy of the good input; returns the file to damage and its content."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    source, copy = directory / kind.source, scratch / kind.source
    shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    target = next(path for path in sorted(copy.glob(kind.file)) if path.is_file()) if kind.file else copy
    return target, target.read_bytes()


def read(kind, directory, scratch):
    """Run the command in a child; returns exit code, what it said, its product, memory and time."""
    words = [word.format(input=scratch / kind.source, output=scratch / "output", source=directory) for word in kind.command]
    said = scratch / "stdout", scratch / "stderr"
    child = os.fork()
    if not child:
        _become(words, *said)
    _, status, usage = os.wait4(child, 0)
    out, err = (path.read_bytes().decode(errors="replace") for path in said)
    product = "".join(sorted(str(p.read_bytes()) for p in (scratch / "output").glob(kind.product))) if kind.product else out
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = {"mib": max(0, usage.ru_maxrss - base) >> 10, "seconds": round(usage.ru_utime + usage.ru_stime, 2)}
    return {"code": os.waitstatus_to_exitcode(status), "said": err or out[-2000:], "product": hash_of(product), **used}


def hash_of(text):
    """Short enough for a line."""
    import hashlib

    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _become(words, out, err):
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    code = BROKE
    try:
        from pangu_ms.cli import main as pangu

        code = pangu(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else BROKE
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
