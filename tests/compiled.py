"""Shared libraries that tests compile, kept from one run to the next under a digest of what they are made of.

`pytest --cache-clear` removes them.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path


@functools.cache
def compiler_digest() -> str:
    """Eight digits that tell this C++ compiler from others; "none" where there is none."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    if path is None:
        return "none"
    version = subprocess.run([path, "--version"], capture_output=True, check=False).stdout
    return hashlib.sha256(version).hexdigest()[:8]


def digest_of(*texts: str, files: Iterable[Path] = ()) -> str:
    """Sixteen digits of the compiler, texts, and the names and bytes of files."""
    whole = hashlib.sha256(compiler_digest().encode())
    for part in (*(text.encode() for text in texts), *(b"%s\0%s" % (p.name.encode(), p.read_bytes()) for p in files)):
        whole.update(b"%d\0%s" % (len(part), part))
    return whole.hexdigest()[:16]


def compiled_once(path: Path, compile_to: Callable[[Path], None]) -> Path:
    """`path`, which `compile_to` has filled, now or in an earlier run. Its name holds the digest of its content.

    Several processes may ask at once: one compiles, the others wait for it. A file has its name only when it is whole.
    """
    with path.with_suffix(".lock").open("w") as lock:  # closing it ends the lock
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
            try:
                compile_to(unfinished)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    return path
