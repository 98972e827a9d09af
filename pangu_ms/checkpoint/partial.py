"""A new checkpoint whose writing can be interrupted: files that are finished are kept, and the same command goes on
with the others. No mindspore import.

    OUTPUT/.partial/lock            held by the process that writes
    OUTPUT/.partial/journal.json    what the files are made of, and the manifest's entry of each finished one
    OUTPUT/.partial/step/           the files

Until the last file is written there is no manifest and no step directory, so nothing here can be taken for a
checkpoint. Then the directory of the files is renamed to the step's.
"""

import contextlib
import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import commit, store
from pangu_ms.checkpoint.step_directory import MANIFEST, Contents, write_file, write_step
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import OutputError, UserError

_log = logging.getLogger(__name__)


@dataclass
class Partial:
    """The finished files of a checkpoint that is being written; see the module."""

    root: Path
    key: str
    """Hash of all that the files depend on."""
    finished: dict[str, dict[str, Any]]
    """Entries of the finished files, by name."""

    @property
    def path(self) -> Path:
        """The directory of the journal."""
        return self.root / store.PARTIAL

    @property
    def nbytes(self) -> int:
        """Bytes of the finished files."""
        return sum(entry["bytes"] for entry in self.finished.values())

    def once(self, name: str, identity: Any, work: Callable[[], None]) -> None:
        """Do some work on the input, unless an interrupted run with the same key has done it; `identity` is the JSON
        value of what it depends on beside the files."""
        marker, done = self.path / f"{name}.json", {"key": self.key, "work": files.sha256_json(identity)}
        with contextlib.suppress(ValueError):
            if small_json.read_object(marker) == done:
                return
        work()
        files.write_json(marker, done)

    def write(
        self, step: int, contents: Contents, groups: dict[str, int], allowed: store.Check = lambda root: None
    ) -> Path:
        """As `store.write`. Files that are finished are left as they are; their pieces are not iterated over."""
        target, made = store.step_path(self.root, step), self.path / "step"
        with files.writing(target):
            for name, pieces in contents.items():
                if name not in self.finished:
                    self._write_file(made, name, pieces)
            (made / MANIFEST).unlink(missing_ok=True)
            write_step(made, {}, step, groups, written={name: self.finished[name] for name in contents})
            with commit.only_saver(self.root):
                allowed(self.root)
                commit.commit(made, target)
        return target

    def _write_file(self, made: Path, name: str, pieces: Any) -> None:
        path = made / name
        path.unlink(missing_ok=True)
        try:
            self.finished[name] = write_file(path, pieces)
        except BaseException:
            path.unlink(missing_ok=True)  # a full disk has room again for the other files' journal
            raise
        files.write_json(self.path / "journal.json", {"key": self.key, "finished": self.finished})


@contextlib.contextmanager
def open_partial(root: Path, identity: Any) -> Iterator[Partial]:
    """Open a checkpoint that is being written, or begin one. When the block ends without an error, or with an error of
    its input, what is left of it is removed; after a full disk, a kill or an interrupt it stays.

    Args:
        root: directory of the new checkpoint.
        identity: JSON value of all that the files depend on.

    Raises:
        OutputError: another process writes there, or what is there was made of something else.
    """
    root, key = Path(root), files.sha256_json(identity)
    work, existed = root / store.PARTIAL, root.exists()
    with files.writing(root):
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{root}: another process is writing a checkpoint there; one at a time; wait for it or name another"
                    " --output"
                ) from error
            partial = Partial(root, key, _finished(work, key))
            keep = False
            try:
                yield partial
            except BaseException as error:
                # Another disk or another day may finish it; another input is another checkpoint.
                keep = bool(partial.finished) and (isinstance(error, OutputError) or not isinstance(error, UserError))
                raise
            finally:
                if not keep:
                    shutil.rmtree(work, ignore_errors=True)
                    if not existed:
                        with contextlib.suppress(OSError):  # it is not empty: the checkpoint is in it
                            root.rmdir()


def _finished(work: Path, key: str) -> dict[str, dict[str, Any]]:
    """The finished files of an earlier run with the same key."""
    try:
        journal = small_json.read_object(work / "journal.json", form={"key": str, "finished": dict})
    except ValueError as error:
        if not isinstance(error, small_json.Missing):
            _log.warning(
                "%s: its journal is damaged (%s), as a crash may leave it; all files are made anew", work, error
            )
        shutil.rmtree(work / "step", ignore_errors=True)
        return {}
    if journal["key"] != key:
        raise OutputError(
            f"{work}: holds an interrupted conversion of other files or with other options; it can only be finished"
            " with the same; repeat that command, remove the directory or name another --output"
        )
    found = {}
    for name, entry in journal["finished"].items():
        path = work / "step" / name
        if not small_json.misfit(entry, {"bytes": int, "sha256": str}) and path.is_file():
            if path.stat().st_size == entry["bytes"]:
                found[name] = entry
    return found
