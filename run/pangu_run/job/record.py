"""The facts that job.json records at the start of a job: command, host, versions and environment variables."""

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
"""Names of environment variables that a run can depend on: those of its libraries, of the scheduler that started it,
and those that contain paths. Other variables may contain anything and are not recorded."""
LOGIN = re.compile(r"//[^/\s]*@")
"""USER:PASSWORD@ in an address, up to the last @, since a password may contain @, too."""
MASK = "(not written down)"


def versions() -> dict[str, str | None]:
    """Versions of Python, the system and the packages; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables that a run can depend on, sorted. The value is masked if the name suggests a secret;
    logins in addresses are masked, too."""
    names = sorted(name for name in variables if DEPENDED_ON.fullmatch(name))
    return {_text(name): MASK if SECRET.search(name) else _without_login(variables[name]) for name in names}


def _without_login(text: str) -> str:
    return LOGIN.sub("//***@", _text(text))


def _text(text: str) -> str:
    """The text with bytes that are not UTF-8 replaced by ?: variables and arguments may contain such bytes, JSON
    cannot."""
    return text.encode(errors="replace").decode()


def description(identity: str) -> dict[str, Any]:
    """The facts to record; `identity` is the id of this launch."""
    own = {"id": identity, "time": time.time(), "host": socket.gethostname(), "launcher_pid": os.getpid()}
    own |= {"command": [_without_login(argument) for argument in sys.argv], "directory": _text(os.getcwd())}
    return own | {"versions": versions(), "environment": environment()}
