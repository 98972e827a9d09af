"""Commits and removes step directories so that a kill at any instant leaves whole checkpoints. No mindspore import.

A step is committed by one rename. Everything else in the root has a name that says what it is:

* `.step-*.tmp`: an unfinished save or removal, of no use.
* `step-*.old`: a whole checkpoint that another one of the same step was about to replace. It is still valid if the
  other one was never committed.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pangu_ms.core.files import sync_path

_log = logging.getLogger(__name__)
_one_thread = threading.Lock()
"""Held in addition to the file lock: lockf excludes other processes, but not other threads of this one."""

OLD = ".old"


def temporary_name(target: Path) -> Path:
    """A new hidden name beside `target`. `remove_leftovers` finds a directory of this name if the save is killed."""
    return target.with_name(f".{target.name.removesuffix(OLD)}.{uuid.uuid4().hex[:8]}.tmp")


def leftovers(root: Path) -> list[Path]:
    """Temporary directories of saves or removals that did not finish (or are under way)."""
    return sorted(root.glob(".step-*.tmp"))


@contextlib.contextmanager
def only_saver(root: Path) -> Iterator[bool]:
    """Wait until no other process saves into `root`; yields False where the file system has no locks.

    The kernel drops the lock of a process that dies. So the process that holds the lock knows that no temporary
    directory is in use. `lockf` is used and not `flock`, since its locks are not inherited by forked data workers,
    which may outlive their parent.
    """
    with _one_thread, open(root / ".lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            _log.warning(
                "%s: this file system has no locks (%s); directories named .step-*.tmp are left for you to remove",
                root,
                error.strerror,
            )
            locked = False
        yield locked


def remove_leftovers(root: Path, complete: Callable[[Path], bool]) -> None:
    """Remove the directories that killed saves left behind. The caller must hold the lock."""
    for path in leftovers(root):
        shutil.rmtree(path, ignore_errors=True)
    for old in root.glob(f"step-*{OLD}"):
        if complete(old.with_suffix("")):
            discard(old)


def commit(temporary: Path, target: Path) -> None:
    """Rename a finished and flushed directory to `target`, replacing any checkpoint of that name.

    Between the two renames the earlier checkpoint is named `.old`, so that one of the two exists at every instant.
    """
    old = target.with_name(target.name + OLD)
    if target.exists():
        if old.exists():  # then `target` is incomplete: otherwise remove_leftovers would have removed `old`
            discard(target)
        else:
            os.rename(target, old)
    os.rename(temporary, target)
    sync_path(target.parent)
    if old.exists():
        discard(old)


def discard(path: Path) -> None:
    """Remove a step directory. It gets a temporary name first, so that a kill leaves no half-removed checkpoint.

    A failure is only logged, since the new step is already saved.
    """
    try:
        temporary = temporary_name(path)
        os.rename(path, temporary)
        shutil.rmtree(temporary)
    except OSError as error:
        _log.warning("%s: could not be removed (%s)", path, error)
