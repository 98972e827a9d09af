"""What is written down of a job when it starts: who started what, where, with which versions and variables."""

import importlib.metadata
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

PACKAGES = ("pangu-ms", "mindspore", "mindformers", "numpy")
SECRET = re.compile(r"PASS|PWD|AUTH|SECRET|TOKEN|CREDENTIAL|KEY|(?:^|_)[AS]K(?:_|$)", re.IGNORECASE)
DEPENDED_ON = re.compile(
    r"(PANGU|MS|MINDSPORE|GLOG|HCCL|HCCN|ASCEND|ACL|CANN|RANK|DEVICE|SLURM|VC|MA|OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|MALLOC|CONDA|LC|XDG)_\w*"
    r"|PYTHON\w+|(\w+_)?(PATH|HOME|PRELOAD)|VIRTUAL_ENV|TMPDIR|LANG|TZ|USER|HOSTNAME|(no|https?)_proxy",
    re.IGNORECASE,
)
"""Names that a run can depend on: of what it is made of, of the scheduler that started it, of places. Others may be
anybody's, and are not written down."""
LOGIN = re.compile(r"//[^/\s]*@")
"""USER:PASSWORD@ in an address; up to the last @, since a password may have one, too."""
MASK = "(not written down)"


def versions() -> dict[str, str | None]:
    """Of Python, the system and the packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that a run can depend on, in order; values whose name tells of a secret are masked, and
    logins in addresses."""
    names = sorted(name for name in variables if DEPENDED_ON.fullmatch(name))
    return {_text(name): MASK if SECRET.search(name) else _public(variables[name]) for name in names}


def _public(words: str) -> str:
    return LOGIN.sub("//***@", _text(words))


def _text(words: str) -> str:
    return words.encode(
        errors="replace"
    ).decode()  # a variable or a word may hold bytes that are no UTF-8, which JSON cannot


def description(identity: str) -> dict[str, Any]:
    """Who, where, with what."""
    own = {"id": identity, "time": time.time(), "host": socket.gethostname(), "launcher_pid": os.getpid()}
    own |= {"command": [_public(word) for word in sys.argv], "directory": _text(os.getcwd())}
    return own | {"versions": versions(), "environment": environment()}
