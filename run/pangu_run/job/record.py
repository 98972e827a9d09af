"""What job.json records of a start: who started what, where, with which versions and environment variables."""

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
"""Names of variables that a run can depend on: those of its libraries, of the scheduler that started it, and those that
hold paths. Others may hold anything, and are not recorded."""
LOGIN = re.compile(r"//[^/\s]*@")
"""USER:PASSWORD@ in an address, up to the last @, since a password may hold one, too."""
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
    """Environment variables that a run can depend on, sorted. Values of names that suggest a secret are masked, and so
    are logins in addresses."""
    names = sorted(name for name in variables if DEPENDED_ON.fullmatch(name))
    return {_text(name): MASK if SECRET.search(name) else _without_login(variables[name]) for name in names}


def _without_login(text: str) -> str:
    return LOGIN.sub("//***@", _text(text))


def _text(text: str) -> str:
    """The text with ? for bytes that are not UTF-8, which a variable or argument may hold and JSON cannot."""
    return text.encode(errors="replace").decode()


def description(identity: str) -> dict[str, Any]:
    """The facts; `identity` is the id of this launch."""
    own = {"id": identity, "time": time.time(), "host": socket.gethostname(), "launcher_pid": os.getpid()}
    own |= {"command": [_without_login(argument) for argument in sys.argv], "directory": _text(os.getcwd())}
    return own | {"versions": versions(), "environment": environment()}
