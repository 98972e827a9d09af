"""Reads documents from text and JSON files.

The content of a file decides how it is read. JSON lines and a JSON array hold objects; each object is a document, with
its text in one field and optionally a `domain`. Any other file is UTF-8 text and one document. All files may be
compressed (.gz, .zst). Nothing is dropped silently: bad lines go to a quarantine file, and empty texts are counted.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pangu_ms.core.errors import DataError
from pangu_ms.data import json_texts, streams
from pangu_ms.data.json_texts import ARRAY, LINES, TEXT

_log = logging.getLogger(__name__)

UNKNOWN_DOMAIN = "unknown"
"""The domain of documents that name none."""
_SHOWN = 1000
"""Bytes of a bad line that the quarantine file keeps."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, and its domain."""

    text: str
    domain: str = UNKNOWN_DOMAIN


@dataclasses.dataclass
class Quarantine:
    """Collects the lines that are not documents.

    A bad line becomes a JSON object with its location, the reason, and its beginning. Empty texts are only counted.
    """

    path: Path | None = None
    """File to write; None only counts."""
    count: int = 0
    """Bad lines so far."""
    empty: int = 0
    """Empty texts so far."""
    first: str = ""
    """Location of the first bad line, and the reason."""

    def __post_init__(self) -> None:
        self._file = open(self.path, "w", encoding="utf-8") if self.path else None

    def add(self, where: str, reason: str, line: bytes) -> None:
        """Record one bad line."""
        self.count += 1
        self.first = self.first or f"{where}: {reason}"
        if self._file:
            shown = line[:_SHOWN].decode("utf-8", "backslashreplace").rstrip("\n") + (
                "..." if len(line) > _SHOWN else ""
            )
            record = {"where": where, "reason": reason, "line": shown}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            self._file.close()


class Corpus:
    """The documents of some files, in order; can be iterated more than once.

    Attributes:
        files: the files; patterns are expanded.
        forms: the form of each file: JSON lines, a JSON array or plain text.
        domains: the domain of each file's documents; None where each document names its own.
        size: bytes of all files on disk.
        position: bytes on disk read so far by the latest iteration.
    """

    def __init__(
        self,
        names: list[str],
        split_paragraphs: bool = False,
        quarantine: Quarantine | None = None,
        text_field: str | None = None,
        plain_text: bool = False,
        domains: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Find the files and look at the beginning of each, so that a wrong name or field is reported before the work
        begins.

        Args:
            names: files, or patterns that the shell has not expanded.
            split_paragraphs: make every paragraph (text between blank lines) a document, as the official builder does
                (spec A6).
            quarantine: where bad lines go; by default they are only counted.
            text_field: the field of a JSON object that holds its text, `a.b` for b inside a. The field is a string or a
                conversation, which is a list of messages with role and content; each message becomes a line `role:
                content`. By default the field is `text`, or else `messages`.
            plain_text: read every file as plain text, even JSON.
            domains: pairs of a domain and the files (a file, pattern or directory) whose documents belong to it,
                whatever domain they name themselves.

        Raises:
            DataError: there is no file; or a file is missing, is a directory, is unreadable, or holds JSON objects
                without the field; or `domains` gives a file two domains, or names no file of the corpus.
        """
        self.files = [path for name in names for path in _expand(str(name))]
        if not self.files:
            raise DataError("corpus: no file was named; name .txt or .jsonl files (.gz and .zst too)")
        for path in self.files:
            streams.require_readable(path)
        self.domains = _domains_of(self.files, domains)
        self._split_paragraphs, self._text_field = split_paragraphs, text_field
        self.forms = [TEXT if plain_text else self._form(path) for path in self.files]
        if not plain_text:
            _warn_of_surprises(zip(self.files, self.forms))
        self.size = sum(path.stat().st_size for path in self.files)
        self.position = 0
        self.quarantine = quarantine or Quarantine()

    def taken(self) -> dict[str, int]:
        """Number of files by form."""
        return dict(collections.Counter(self.forms))

    def _form(self, path: Path) -> str:
        """The form of a file: JSON lines, a JSON array or plain text.

        Raises:
            DataError: the file holds JSON objects, and none of those at its beginning has the field.
        """
        with open(path, "rb") as raw, _reading(path):
            form, records = json_texts.form_of(streams.content(path, raw), _inner_suffix(path))
        if records and not any(json_texts.has_field(record, self._text_field) for record in records):
            raise DataError(
                f"{path}: its JSON objects have no field {self._text_field or 'text'}; there are"
                f" {json_texts.shown_names(records[0])}; name one with --text-field (`pangu data prepare` and"
                " `tokenizer train` have it), or take the file as it is with --plain-text"
            )
        return form

    def __iter__(self) -> Iterator[Document]:
        """Yield every document with text.

        Raises:
            DataError: a text file is not UTF-8, or a file is damaged or a decompression bomb.
        """
        finished = 0
        for path, form, domain in zip(self.files, self.forms, self.domains):
            with open(path, "rb") as raw:
                for document in self._documents(path, form, raw):
                    self.position = finished + raw.tell()
                    yield from self._parts(dataclasses.replace(document, domain=domain) if domain else document)
            finished += path.stat().st_size
            self.position = finished

    def _documents(self, path: Path, form: str, raw: BinaryIO) -> Iterator[Document]:
        read = {LINES: self._lines, ARRAY: self._array, TEXT: self._plain}[form]
        with _reading(path):
            yield from read(path, streams.content(path, raw))

    def _lines(self, path: Path, stream: BinaryIO) -> Iterator[Document]:
        for number, (line, whole) in enumerate(streams.lines(stream), 1):
            if not line.removeprefix(json_texts.BOM).strip():
                self.quarantine.empty += 1
                continue
            try:
                if not whole:
                    raise ValueError(f"longer than {streams.LONGEST:,} bytes")
                yield self._document(json_texts.parse(line))
            except ValueError as error:
                self.quarantine.add(f"{path}:{number}", str(error), line)

    def _array(self, path: Path, stream: BinaryIO) -> Iterator[Document]:
        """The documents of a JSON array. An element that is no document is quarantined; broken JSON is an error."""
        values = enumerate(json_texts.elements(stream), 1)
        while True:
            try:
                number, value = next(values)
            except StopIteration:
                return
            except DataError:  # DataError is a ValueError too, but it comes from the stream, not from the JSON
                raise
            except ValueError as error:
                raise DataError(
                    f"{path}: {error}; it begins as a JSON array and must be one; mend it, or take it as it is with"
                    " --plain-text"
                ) from error
            try:
                yield self._document(value)
            except ValueError as error:
                self.quarantine.add(f"{path}[{number}]", str(error), json.dumps(value).encode())

    def _document(self, record: Any) -> Document:
        return Document(*json_texts.text_and_domain(record, self._text_field, UNKNOWN_DOMAIN))

    def _plain(self, path: Path, stream: BinaryIO) -> Iterator[Document]:
        start = 0
        for piece in streams.pieces(stream):
            try:
                yield Document((piece.removeprefix(json_texts.BOM) if not start else piece).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: byte {start + error.start} is not UTF-8; text must be UTF-8; convert it (iconv -f GB18030"
                    " -t UTF-8)"
                ) from error
            start += len(piece)

    def _parts(self, document: Document) -> Iterator[Document]:
        for text in document.text.split("\n\n") if self._split_paragraphs else [document.text]:
            if text.strip():
                yield dataclasses.replace(document, text=text)
            else:
                self.quarantine.empty += 1


def _warn_of_surprises(files: Iterable[tuple[Path, str]]) -> None:
    """Log one line per suffix and form, for the files whose content has another form than their name suggests."""
    surprises: dict[tuple[str, str], list[Path]] = {}
    for path, form in files:
        suffix = _inner_suffix(path)
        if form != (LINES if suffix in json_texts.LINE_SUFFIXES else TEXT) or suffix == ".json":
            surprises.setdefault((suffix, form), []).append(path)
    for (suffix, form), paths in surprises.items():
        named = f"named {suffix}" if suffix else "without a suffix"
        _warn_once(
            f"corpus: {len(paths)} {'file' if len(paths) == 1 else 'files'} {named}: taken as {form} by content (first:"
            f" {paths[0]})"
        )


@functools.cache  # a process may open the same corpus several times; each line is logged once
def _warn_once(line: str) -> None:
    _log.warning(line)


def _domains_of(paths: Sequence[Path], claims: Sequence[tuple[str, str]]) -> list[str | None]:
    """The domain of each file; see `Corpus`."""
    found: list[str | None] = [None] * len(paths)
    absolute = [Path(os.path.abspath(path)) for path in paths]
    for domain, name in claims:
        claim = f"--domain {domain}={name}"
        if not domain or domain == UNKNOWN_DOMAIN:
            raise DataError(
                f"{claim}: {UNKNOWN_DOMAIN if domain else 'no name'} before the =; a domain has a name of its own, such"
                " as --domain code='src/*.py'"
            )
        if "," in domain:
            raise DataError(
                f"{claim}: a comma in the name {domain}: a file has one domain; give each domain a --domain of its own"
            )
        named = {Path(os.path.abspath(path)) for path in _expand(name)}
        members = [i for i, path in enumerate(absolute) if path in named or not named.isdisjoint(path.parents)]
        if not members:
            raise DataError(
                f"{claim}: none of the {len(paths)} files of --corpus (first: {paths[0]}); it names files, a pattern or"
                " a directory of the corpus; name the files in --corpus, too"
            )
        for i in members:
            if found[i] not in (None, domain):
                raise DataError(
                    f"{claim}: {paths[i]} has the domain {found[i]} already; a file has one; mend one of them"
                )
            found[i] = domain
    return found


def _expand(name: str) -> list[Path]:
    matches = [] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    return [Path(match) for match in matches or [name]]


def _inner_suffix(path: Path) -> str:
    """The suffix of a file name before that of its compression: .jsonl for a.jsonl.gz."""
    return path.with_suffix("").suffix if path.suffix in streams.COMPRESSED else path.suffix


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except streams.damage() as error:
        raise DataError(
            f"{path}: cannot be read to its end ({error}); the file is damaged or cut off; fetch it again"
        ) from error
