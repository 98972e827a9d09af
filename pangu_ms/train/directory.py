"""The lock of a run directory, and what the directory may contain before a run begins in it. No mindspore import."""

import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

from pangu_ms.config.load import load_config
from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError, OutputError
from pangu_ms.core.run_directory import JOB
from pangu_ms.train.trackers import DIRECTORIES

_log = logging.getLogger(__name__)

CONFIG, LOCK = "config.yaml", ".lock"
OWN_DATA = "data"  # records that `pangu train` prepared itself
BEFORE_A_RUN = {OWN_DATA, JOB, LOCK}
OWN_NAMES = BEFORE_A_RUN | DIRECTORIES | {CONFIG, "metrics.jsonl", "checkpoints"}


class RunLock:
    """The lock of a run directory, so that only one run uses it. A run's rank 0 holds it from before it looks for
    checkpoints until it ends.

    The kernel drops the lock of a process that dies, so nothing is left to clean up; a `lockf` lock is not inherited by
    children, which may outlive it. It works across hosts if the shared file system supports locks (NFS 4, Lustre with
    -o flock).
    """

    def __init__(self, output: Path):
        """Nothing is created or locked yet."""
        self._output, self._path = output, output / LOCK
        self._file: IO[str] | None = None
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Take the lock; the directory is created if it does not exist.

        Raises:
            OutputError: another run holds the lock, or the directory cannot be written.
        """
        if self._output.is_file():  # not what is no directory: another run may make it between two questions
            files.require_free(self._output)
        with files.writing(self._output):
            self._made = [path for path in (self._path, self._output) if not path.exists()]
            self._output.mkdir(parents=True, exist_ok=True)
            file = open(self._path, "a+", errors="replace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(100).strip() or "another process"
            file.close()
            raise OutputError(
                f"{self._output}: {holder} trains in it; one at a time; wait for it or end it, or name a new --output"
            ) from None
        except OSError as error:
            _log.warning(
                "%s: this file system has no locks (%s); see that no second run is started in it",
                self._output,
                error.strerror,
            )
        if not self._path.exists():  # another run removed the file (see `release`) after this one had opened it
            file.close()
            return self.acquire()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file

    def close(self) -> None:
        """As `release`."""
        self.release()

    def release(self) -> None:
        """Release the lock. If no run began, what `acquire` created is removed."""
        if self._file is None:
            return
        if not (self._output / CONFIG).exists():
            if self._path in self._made:
                self._path.unlink()
            if self._output in self._made and not os.listdir(self._output):
                self._output.rmdir()
        self._file.close()
        self._file = None


def require_own(output: Path, resume: bool = False) -> None:
    """Raise OutputError unless `output` is new or empty, or contains only records that `pangu train` prepared and a
    launcher's job; with `resume` also the files of a run.

    Raises:
        ConfigError: with `resume`, a config.yaml that no run wrote.
    """
    allowed = OWN_NAMES if resume else BEFORE_A_RUN
    if not output.is_dir() or {path.name for path in output.iterdir()} - allowed:
        if not resume and _began_a_run(output):
            raise OutputError(
                f"{output}: holds a run without a checkpoint; add --resume to begin it again, or name a new --output"
            )
        files.require_free(output)
    if resume and (output / CONFIG).exists():
        try:
            load_config(str(output / CONFIG))  # the file is about to be replaced, so it must be one that a run wrote
        except ConfigError as error:
            advice = (
                "if a crash or a slip of the hand left it so, remove it and run the same command again, which writes it"
                " anew"
            )
            raise ConfigError(f"{error}; --resume replaces no file but a run's; {advice}") from error


def _began_a_run(output: Path) -> bool:
    """Whether the directory contains only a run that has not saved anything yet, which `--resume` would begin again."""
    if (
        not (output / CONFIG).is_file()
        or {path.name for path in output.iterdir()} - OWN_NAMES
        or any(output.glob("checkpoints/[!.]*"))  # a lock, or a save that did not finish, is no checkpoint
    ):
        return False
    try:
        load_config(str(output / CONFIG))
    except ConfigError:
        return False
    return True
