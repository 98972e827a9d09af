"""Writes files atomically: to a temporary name, flushed to disk, renamed. No mindspore import."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pangu_ms.core.errors import NoRoom, OutputError

# EFBIG: the file would be larger than the file system or `ulimit -f` allows.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEFT_BY_SAVES = re.compile(r"\.lock|\.step-.*\.tmp", re.DOTALL)
"""Names of what a killed save leaves in a directory of checkpoints."""
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return sha256_open(file)


def sha256_open(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file from its current position to its end."""
    digest = hashlib.sha256()
    while block := file.read(1 << 22):
        digest.update(block)
    return digest.hexdigest()


def open_ordinary(path: Path) -> BinaryIO:
    """Open a regular file for reading. Other files are refused: a device may be endless, and a pipe without a writer
    would block for ever.

    Raises:
        ValueError: it is not a regular file.
        OSError: it cannot be opened.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("is not an ordinary file")
    return file


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    # surrogatepass: a JSON text may hold a lone surrogate, such as "\ud800", which UTF-8 cannot encode.
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    ).hexdigest()


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache() -> Path:
    """The user's cache directory, for files that can be made again; see `ascend_ops.cache.user_cache`.

    Raises:
        OutputError: another user could put files there that this program would then run.
    """
    from ascend_ops import cache, errors  # imported here, because a MindIR package runs without ascend_ops

    try:
        return cache.user_cache()
    except errors.OperatorError as error:
        raise OutputError(str(error)) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while writing `path` into one line for the user.

    Raises:
        NoRoom: the disk is full.
        OutputError: it is not allowed to write there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoom(path, str(error.strerror)) from error
        if error.errno in _NOT_ALLOWED or isinstance(error, NotADirectoryError):
            raise OutputError(f"{path}: cannot be written ({error.strerror}); name another --output") from error
        raise


def write_bytes(path: Path, content: bytes, durable: bool = True, private: bool = False) -> None:
    """Replace `path` by `content` in one step: a reader sees the old file or the new one, never a part.

    Args:
        path: the file; directories above it are made.
        content: all of it.
        durable: flush the file to disk. Without this a power cut may lose or empty it, which is acceptable for files
            that are written again every second.
        private: only the file's owner can ever read it (mode 0600, from its creation on).
    """
    path = Path(path)
    # In the same directory: a rename replaces a file in one step only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb", opener=_private if private else None) as file:
                file.write(content)
                # Before the rename: otherwise a power cut may leave the new name with an empty file.
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            # The new name is an entry of the directory, which is flushed separately.
            if durable:
                sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a writer that opens its file itself. When the block ends without an
    error, the file is flushed to disk and renamed to `path`, which it replaces.

    Raises:
        OutputError: the disk is full or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync_path(temporary)
            os.replace(temporary, path)
            sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_text(path: Path, content: str, private: bool = False) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode(), private=private)


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """`write_bytes` of indented JSON."""
    write_text(path, json_text(value), private)


def json_text(value: Any) -> str:
    """Indented JSON with a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_new(path: Path, content: bytes | str, private: bool = False) -> None:
    """Write a file that a user named, atomically and never over an existing file. `write_bytes` is for the program's
    own files.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    require_new(path)
    write_bytes(path, content.encode() if isinstance(content, str) else content, private=private)


def require_new(path: Path, option: str = "--output") -> None:
    """Raise OutputError if a file that a user named exists (a run may depend on it) or could not be created."""
    path = Path(path)
    if os.path.lexists(path):
        what = (
            "is a directory; the output is a file; name a file in it"
            if path.is_dir()
            else f"exists; nothing is overwritten; name a new {option} or remove it"
        )
        raise OutputError(f"{path}: {what}")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise OutputError(f"{path}: {above} is no directory; a file goes into one; name another {option}")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{path}: {above} cannot be written; name another {option}")


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `target`. When the block ends without an error it is flushed to disk and
    renamed to `target`.

    Raises:
        OutputError: `target` exists and is not an empty directory, or the disk is full.
    """
    target = Path(target)
    require_free(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            # All content must be on the disk before the rename makes it visible.
            for path in sorted(temporary.rglob("*")) + [temporary]:
                sync_path(path)
            if target.is_dir():
                target.rmdir()
            os.rename(temporary, target)
            sync_path(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_free(target: Path, option: str = "--output", of_saves: bool = False) -> None:
    """Raise OutputError unless `target` does not exist yet or is an empty directory. If it is to hold a checkpoint
    (`of_saves`), what a killed save left there does not count: the next save removes it."""
    target = Path(target)
    if target.is_dir():
        if any(not (of_saves and LEFT_BY_SAVES.fullmatch(path.name)) for path in target.iterdir()):
            raise OutputError(
                f"{target}: exists with other content; nothing is overwritten; name a new {option} or remove it"
            )
    elif target.exists():
        raise OutputError(
            f"{target}: exists and is a file; nothing is overwritten; {option} names a directory; name another one"
        )
