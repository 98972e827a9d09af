"""Reads text files as streams of bytes in bounded memory: decompresses them and cuts them into lines.

The suffix tells whether a file is compressed (.gz, .zst), but only reading shows what it holds, which may be a line of
any length, or gigabytes of zeros in a few kilobytes. So no line longer than LONGEST is held in memory, and content that
decompresses to more than LARGEST_RATIO times its size is refused.
"""

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pangu_ms.core.errors import DataError

LONGEST = 1 << 25
"""Bytes of the longest line, JSON record or document: 32 MiB, about 10 million tokens, which take 1 GB to encode."""
LARGEST_RATIO, _FREE = 200, 1 << 26
"""Largest ratio of decompressed to compressed bytes, and the decompressed size (64 MiB) up to which any ratio is
allowed. Text shrinks to a fifth and logs to a hundredth; on zeros gzip reaches a ratio of 1,030, and Zstandard
16,000."""
_SHOWN = 1000
"""How many bytes of a line that is too long are kept."""
_ZSTD_INPUT = 1 << 11
"""Compressed bytes per call of the decompressor. They expand to at most 64 MiB, since a block of 128 KiB takes at least
4 compressed bytes."""
COMPRESSED = (".gz", ".zst")


def require_readable(path: Path) -> None:
    """Raise DataError unless the path is a regular file that can be opened.

    A device or a pipe is refused: it has no size and may have no end, and a corpus is read more than once.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a directory; a corpus is a list of files; name them, e.g. {path}/*.jsonl")
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; every corpus file must be readable; correct the name or its permissions"
        ) from error
    if not regular:
        raise DataError(f"{path}: is no regular file; a corpus is read more than once; write the text into a file")


def content(path: Path, raw: BinaryIO) -> BinaryIO:
    """The decompressed content of an open file."""
    if path.suffix == ".gz":
        return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=raw), path, raw), 1 << 16)
    if path.suffix == ".zst":
        return io.BufferedReader(_Bounded(_frames(path, raw), path, raw), 1 << 16)
    return raw


def damage() -> tuple[type[Exception], ...]:
    """The exceptions that reading damaged content raises."""
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        import zstandard
    except ImportError:
        return errors
    return (*errors, zstandard.ZstdError)


def lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield each line, and whether it is complete: of a line longer than LONGEST only the beginning is kept."""
    while line := stream.readline(LONGEST + 1):
        whole = len(line) <= LONGEST or line.endswith(b"\n")
        if not whole:
            line = line[:_SHOWN]
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        yield line, whole


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content in parts of at most LONGEST bytes.

    A part ends after an empty line if its second half has one, else after a line, else between two characters.
    """
    rest = b""
    while part := stream.read(LONGEST - len(rest)):
        whole = rest + part
        end = len(whole) if len(whole) < LONGEST else _last_cut(whole)
        yield whole[:end]
        rest = whole[end:]
    if rest:
        yield rest


def _last_cut(text: bytes) -> int:
    """Where to end a part of a text that continues."""
    for mark in (b"\n\n", b"\n"):
        if (at := text.rfind(mark)) > len(text) // 2:
            return at + len(mark)
    end = len(text)
    while end > len(text) - 4 and text[end - 1] & 0xC0 == 0x80:  # continuation bytes of UTF-8
        end -= 1
    return end - 1 if text[end - 1] >= 0xC0 else len(text)


class _Bounded(io.RawIOBase):
    """A decompressing stream that refuses content far larger than the file."""

    def __init__(self, stream: "gzip.GzipFile | _Frames", path: Path, raw: BinaryIO) -> None:
        self._stream, self._path, self._raw, self._size = stream, path, raw, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._stream.readinto(buffer)
        self._size += size
        if self._size > _FREE and self._size > LARGEST_RATIO * self._raw.tell():
            raise DataError(
                f"{self._path}: {self._raw.tell():,} bytes hold over {self._size:,}; text does not shrink to a"
                f" {LARGEST_RATIO}th; look at its content; if it is what you want, decompress it and name the plain"
                " file"
            )
        return size


def _frames(path: Path, raw: BinaryIO) -> "_Frames":
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            f'{path}: reading .zst needs the package zstandard, which is not installed; pip install "pangu-ms[data]"'
        ) from error
    return _Frames(raw, zstandard.ZstdDecompressor())


class _Frames(io.RawIOBase):
    """The content of Zstandard frames.

    The stream reader of the zstandard package is not used, since it does not notice that a file is truncated.
    """

    def __init__(self, raw: BinaryIO, decompressor: Any) -> None:
        self._raw, self._decompressor = raw, decompressor
        self._frame: Any = None  # zstandard's decompressobj of the frame that is being read
        self._input, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content and self._advance():
            pass
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def _advance(self) -> bool:
        """Decompress a part of the input; False at its end."""
        self._input = self._input or self._raw.read(_ZSTD_INPUT)
        if not self._input:
            if self._frame:
                raise EOFError("it ends inside a Zstandard frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._content, self._input = memoryview(self._frame.decompress(self._input)), b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return True
