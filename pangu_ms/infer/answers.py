"""Files of answers or scores that are written as these end, and that a later process goes on with."""

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pangu_ms.core import files, small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.generate import Generation, Prompt

log = logging.getLogger(__name__)
Itself = TypeVar("Itself", bound="ResultFile")
Key = tuple[int, ...]
"""Numbers of a result: those of a prompt and its sample, or of an item."""


class ResultFile:
    """Results, a line of JSON each; a context manager, at whose end the file is complete or waits for the next process.

    Until all are there, they are appended to PATH.part in the order in which they end; its first line says what they
    are results of. Then PATH is written as a whole, in the order of the keys. One process at a time holds PATH.part by
    a lock, which the kernel drops when the process dies.
    """

    def __init__(
        self,
        path: Path,
        wanted: Sequence[Key],
        header: dict[str, str],
        fields: Sequence[str],
        called: tuple[str, str] = ("answers", "prompts"),
    ):
        """Begin the file, or go on with it.

        Args:
            path: the file; directories above it are made.
            wanted: the keys of all results.
            header: hashes of all that they depend on.
            fields: where a line has its key.
            called: what the results are, and of what, for messages.

        Raises:
            OutputError: `path` exists or cannot be written.
            GenerationError: PATH.part has results of others or of another model, is no such file, or belongs to a
                process that runs.
        """
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self.wanted, self.lines = list(wanted), dict[Key, dict[str, Any]]()
        self._header, self._fields, self._called = header, fields, called
        self._file = self._open()
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self: Itself) -> Itself:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the whole file if all answers are there, else leave those that are for the next process. A second call
        does nothing."""
        if self._file.closed:
            return
        with self._file:
            if not self.missing:
                files.write_new(self.path, b"".join(_line(self.lines[key]) for key in self.wanted))
            if not self.missing or not self.lines:
                self.part.unlink(missing_ok=True)

    @property
    def missing(self) -> set[Key]:
        """The answers that are not there yet."""
        return set(self.wanted) - self.lines.keys()

    def add_line(self, line: dict[str, Any]) -> None:
        """Add a result; it is on the disk when this returns.

        Raises:
            OutputError: the disk is full, or it is not allowed to write there.
        """
        self._write(line)
        self.lines[self._key(line)] = line

    def _key(self, line: dict[str, Any]) -> Key:
        return tuple(line[name] for name in self._fields)

    def _open(self) -> Any:
        """PATH.part, locked."""
        files.require_new(self.path)
        if os.path.lexists(self.part) and not self.part.is_file():
            raise self._no_answers()
        with files.writing(self.path):
            self.part.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.part, "ab+", buffering=0)  # unbuffered: what a full disk refused is not tried again
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise GenerationError(
                f"{self.part}: another process writes it; wait for it or end it, or name another --output"
            ) from None
        except OSError as error:
            log.warning(
                "%s: this file system has no locks (%s); see that no second command writes it",
                self.part,
                error.strerror,
            )
        if not self.part.exists():  # the process that held it completed PATH and removed it after we had opened it
            file.close()
            return self._open()
        return file

    def _write(self, value: dict[str, Any]) -> None:
        with files.writing(self.path):
            rest = _line(value)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Take over the answers that are there, but for a line that was cut off. Without any, begin anew."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if not whole and not _line(self._header).startswith(content):
            raise self._no_answers()
        try:
            header, *lines = [small_json.parse_object(line) for line in content[:whole].splitlines()] or [self._header]
            self.lines = {self._key(line): line for line in lines}
            if not header.keys() >= self._header.keys():
                raise KeyError
        except (ValueError, KeyError, TypeError):
            raise self._no_answers() from None
        if not self.lines:
            self._file.truncate(0)
            self._write(self._header)
        elif header != self._header:
            raise GenerationError(
                f"{self.part}: has {self._called[0]} to other {self._called[1]} or settings, or of another model; give"
                " the same ones to go on, remove it, or name another --output"
            )
        else:
            self._file.truncate(whole)

    def _no_answers(self) -> GenerationError:
        return GenerationError(f"{self.part}: holds no {self._called[0]}; remove it, or name another --output")


class AnswerFile(ResultFile):
    """The answers to prompts."""

    def __init__(self, path: Path, prompts: Sequence[Prompt], model: str):
        """See ResultFile; `model` is what identifies the model and how it computes."""
        self.prompts = prompts
        wanted = [(i, sample) for i, prompt in enumerate(prompts) for sample in range(prompt.sampling.num_samples)]
        header = {"model": model, "prompts": files.sha256_json([dataclasses.asdict(prompt) for prompt in prompts])}
        super().__init__(path, wanted, header, ("index", "sample"))

    def add(self, index: int, sample: int, generation: Generation) -> None:
        """See `add_line`."""
        self.add_line(answer(index, sample, generation, self.prompts[index]))


def _line(value: dict[str, Any]) -> bytes:
    # backslashreplace: the id of a prompt may hold a lone surrogate, which JSON can write, but UTF-8 cannot.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def answer(index: int, sample: int, generation: Generation, prompt: Prompt) -> dict[str, Any]:
    """A continuation as JSON: the prompt's id and template if it has them, log-probabilities if they were asked for."""
    fields = {"index": index, "sample": sample} | dataclasses.asdict(generation)
    if not generation.logprobs:
        del fields["logprobs"]
    if prompt.template:
        fields["template"] = prompt.template
    return fields if prompt.id is None else {"id": prompt.id} | fields
