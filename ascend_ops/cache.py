"""The user's cache directory, for files that can be made again, some of which are executed. No mindspore here."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from ascend_ops.errors import OperatorError


def user_cache() -> Path:
    """The user's cache directory, for files that can be made again: $XDG_CACHE_HOME/pangu_ms or ~/.cache/pangu_ms.

    A user without an account (as in a container that runs with a user number) or with a home directory that cannot be
    written gets a private directory in the temporary directory instead.

    Raises:
        OperatorError: the directory in the temporary directory belongs to another user, who could put files there that
            are then executed.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "pangu_ms"
    with contextlib.suppress(RuntimeError):  # neither HOME nor an account
        found = Path.home() / ".cache" / "pangu_ms"
        existing = next(path for path in (found, *found.parents) if path.exists())
        if os.environ.get("HOME", "/")[:1] == "/" and os.access(existing, os.W_OK):
            return found
    private = Path(tempfile.gettempdir()) / f"pangu_ms-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or others_write:
        raise OperatorError(
            f"{private}: others can write there; a cache is the user's own; set XDG_CACHE_HOME to a directory that is"
        )
    return private
