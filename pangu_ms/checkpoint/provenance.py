"""Who wrote a checkpoint: versions, git revision, time. No mindspore import."""

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import pangu_ms


def provenance() -> dict[str, Any]:
    """JSON values: time of now (UTC), versions of what is installed, git revision of a checkout or None."""
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_revision": git_revision(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "pangu_ms": pangu_ms.__version__}
    for name in ("mindspore", "numpy", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


@functools.cache
def git_revision() -> str | None:
    """Commit of the checkout that the package lies in, with "-dirty" if files differ; None for an installed package."""
    checkout = Path(pangu_ms.__file__).resolve().parents[1]
    if not (
        checkout / ".git"
    ).exists():  # without this, git would find the user's own repository around a virtual environment
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
