"""Documents out of text and JSON-lines files. Nothing is dropped in silence: bad lines go to a quarantine, empty texts are counted.

A `.jsonl` line is an object with `text` and optionally `domain`; any other file is UTF-8 text and one document. Both may be compressed,
`.gz` or `.zst`.
"""

import dataclasses
import glob
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pangu_ms.errors import DataError

UNKNOWN_DOMAIN = "unknown"
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Document:
    """One text and the domain it is counted under."""

    text: str
    domain: str = UNKNOWN_DOMAIN


@dataclasses.dataclass
class Quarantine:
    """What was not taken: bad lines, written as JSON lines with where, reason and the line itself, and the number of empty texts."""

    path: Path | None = None
    """File to write; None only counts."""
    count: int = 0
    empty: int = 0
    first: str = ""
    """Where and why of the first bad line."""

    def __post_init__(self) -> None:
        self._file = open(self.path, "w", encoding="utf-8") if self.path else None

    def add(self, where: str, reason: str, line: bytes) -> None:
        """Record one bad line."""
        self.count += 1
        self.first = self.first or f"{where}: {reason}"
        if self._file:
            record = {"where": where, "reason": reason, "line": line.decode("utf-8", "backslashreplace").rstrip("\n")}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            self._file.close()


class Corpus:
    """The documents of some files, in order; can be iterated more than once.

    Attributes:
        files: the files, patterns expanded.
        size: their bytes on disk.
        position: bytes on disk read so far by the latest iteration.
    """

    def __init__(self, names: list[str], split_paragraphs: bool = False, quarantine: Quarantine | None = None) -> None:
        """Name the files; each must be a readable file now, so that a wrong name costs no time.

        Args:
            names: files or patterns; the shell usually expands them before.
            split_paragraphs: every paragraph (blank line between) is a document of its own, as the official builder does (spec A6).
            quarantine: where bad lines go; by default they are only counted.

        Raises:
            DataError: no file, or one that is missing, a directory or unreadable.
        """
        self.files = [path for name in names for path in _expand(str(name))]
        if not self.files:
            raise DataError("corpus: no file was named; name .txt or .jsonl files (.gz and .zst too)")
        for path in self.files:
            _require_readable(path)
        self.size = sum(path.stat().st_size for path in self.files)
        self.position = 0
        self.quarantine = quarantine or Quarantine()
        self._split_paragraphs = split_paragraphs

    def __iter__(self) -> Iterator[Document]:
        """Yield every document with text.

        Raises:
            DataError: a text file that is not UTF-8, or a compressed file that is damaged.
        """
        finished = 0
        for path in self.files:
            with open(path, "rb") as raw:
                for document in self._documents(path, raw):
                    self.position = finished + raw.tell()
                    yield from self._parts(document)
            finished += path.stat().st_size
            self.position = finished

    def _documents(self, path: Path, raw: BinaryIO) -> Iterator[Document]:
        stream, suffix = _decompressed(path, raw)
        try:
            yield from self._lines(path, stream) if suffix == ".jsonl" else _whole(stream)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-8; text must be UTF-8; convert it (iconv -f GB18030 -t UTF-8)") from error
        except (OSError, EOFError, *_damage()) as error:
            raise DataError(f"{path}: cannot be read to its end ({error}); the file is damaged or cut off; fetch it again") from error

    def _lines(self, path: Path, stream: BinaryIO) -> Iterator[Document]:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if not line.strip():
                self.quarantine.empty += 1
                continue
            try:
                yield _parse(line)
            except ValueError as error:
                self.quarantine.add(f"{path}:{number}", str(error), line)

    def _parts(self, document: Document) -> Iterator[Document]:
        for text in document.text.split("\n\n") if self._split_paragraphs else [document.text]:
            if text.strip():
                yield dataclasses.replace(document, text=text)
            else:
                self.quarantine.empty += 1


def _expand(name: str) -> list[Path]:
    matches = [] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    return [Path(match) for match in matches or [name]]


def _require_readable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory; a corpus is a list of files; name them, e.g. {path}/*.jsonl")
    try:
        open(path, "rb").close()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; every corpus file must be readable; correct the name or its permissions") from error


def _decompressed(path: Path, raw: BinaryIO) -> tuple[BinaryIO, str]:
    """Stream of the content, and the suffix that tells its form."""
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw), path.with_suffix("").suffix
    if path.suffix == ".zst":
        return _zstandard_stream(path, raw), path.with_suffix("").suffix
    return raw, path.suffix


def _zstandard_stream(path: Path, raw: BinaryIO) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f'{path}: reading .zst needs the package zstandard, which is not installed; pip install "pangu-ms[data]"') from error
    return io.BufferedReader(_Frames(raw, zstandard.ZstdDecompressor()))


class _Frames(io.RawIOBase):
    """Content of Zstandard frames. The package's own stream takes a file that was cut off for a whole one."""

    def __init__(self, raw: BinaryIO, decompressor) -> None:
        self._raw, self._decompressor = raw, decompressor
        self._frame, self._input, self._content = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._content and self._advance():
            pass
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def _advance(self) -> bool:
        """Decompress a bit more; False at the end."""
        self._input = self._input or self._raw.read(1 << 16)
        if not self._input:
            if self._frame:
                raise EOFError("it ends inside a Zstandard frame")
            return False
        self._frame = self._frame or self._decompressor.decompressobj()
        self._content, self._input = memoryview(self._frame.decompress(self._input)), b""
        if self._frame.eof:
            self._input, self._frame = self._frame.unused_data, None
        return True


def _damage() -> tuple[type[Exception], ...]:
    """What decompressors raise on damaged input beside OSError and EOFError."""
    import zlib

    try:
        import zstandard
    except ImportError:
        return (zlib.error,)
    return (zlib.error, zstandard.ZstdError)


def _whole(stream: BinaryIO) -> Iterator[Document]:
    yield Document(stream.read().removeprefix(_BOM).decode("utf-8"))


def _parse(line: bytes) -> Document:
    """The document of one JSON line; ValueError with the reason if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError("no field text")
    text, domain = record["text"], record.get("domain") or UNKNOWN_DOMAIN
    for field, value in (("text", text), ("domain", domain)):
        if not isinstance(value, str):
            raise ValueError(f"{field} is {type(value).__name__}, not a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{field} has a lone surrogate") from None
    return Document(text, domain)
