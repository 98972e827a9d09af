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
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY\b|APIKEY|_AK\b|_SK\b", re.IGNORECASE)
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
    """Environment variables in order; those whose name tells of a secret are masked."""
    return {name: MASK if SECRET.search(name) else variables[name] for name in sorted(variables)}


def description(identity: str) -> dict[str, Any]:
    """Who, where, with what."""
    own = {"id": identity, "time": time.time(), "command": sys.argv, "directory": os.getcwd(), "host": socket.gethostname(), "launcher_pid": os.getpid()}
    return own | {"versions": versions(), "environment": environment()}
