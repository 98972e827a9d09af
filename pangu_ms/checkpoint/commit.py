"""How a step directory enters and leaves a checkpoint root, safe against a kill at any instant. No mindspore import.

A step is committed by one rename. Whatever else is in the root has a name that says what it is: `.step-*.tmp` is
rubbish, `step-*.old` is a whole checkpoint that was about to be replaced by another one of the same step, and is still
good if that one never arrived.
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
_one_thread = threading.Lock()  # lockf excludes processes, not threads

OLD = ".old"


def temporary_name(target: Path) -> Path:
    """A new hidden name beside `target`, which `remove_leftovers` knows as rubbish."""
    return target.with_name(f".{target.name.removesuffix(OLD)}.{uuid.uuid4().hex[:8]}.tmp")


def leftovers(root: Path) -> list[Path]:
    """Temporary directories of saves or removals that did not finish (or are under way)."""
    return sorted(root.glob(".step-*.tmp"))


@contextlib.contextmanager
def only_saver(root: Path) -> Iterator[bool]:
    """Wait until nobody else saves into `root`; yields False where the file system has no locks.

    The kernel drops the lock of a process that dies, so whoever holds it knows that all temporary directories are left
    over. A lock of the `lockf` kind is not inherited by forked data workers, which may outlive their parent.
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
    """Remove what earlier saves left when they were killed; only under the lock."""
    for path in leftovers(root):
        shutil.rmtree(path, ignore_errors=True)
    for old in root.glob(f"step-*{OLD}"):
        if complete(old.with_suffix("")):
            discard(old)


def commit(temporary: Path, target: Path) -> None:
    """Give a finished, flushed directory its name; a checkpoint that has this name is replaced.

    Between the two renames the earlier one stands under `.old`, so at every instant one of the two is there.
    """
    old = target.with_name(target.name + OLD)
    if target.exists():
        if old.exists():  # then `target` is incomplete, or remove_leftovers had taken `old` away
            discard(target)
        else:
            os.rename(target, old)
    os.rename(temporary, target)
    sync_path(target.parent)
    if old.exists():
        discard(old)


def discard(path: Path) -> None:
    """Remove a step directory: first its name, so that a kill leaves rubbish and not half a checkpoint.

    Failure is only logged: what was to be saved is saved.
    """
    try:
        temporary = temporary_name(path)
        os.rename(path, temporary)
        shutil.rmtree(temporary)
    except OSError as error:
        _log.warning("%s: could not be removed (%s)", path, error)
