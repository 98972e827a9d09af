"""A file of answers that is written as continuations end, and that a later process goes on with."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_ms.core import files, small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.generate import Generation, Prompt

Key = tuple[int, int]
"""Index of a prompt, and number of its sample."""


class AnswerFile:
    """The answers to prompts, a line of JSON each.

    Until all are there, they are appended to PATH.part in the order in which they end; its first line says what they
    are answers to. Then PATH is written as a whole, in the order of the prompts.
    """

    def __init__(self, path: Path, prompts: Sequence[Prompt], model: str):
        """Begin the file, or go on with it.

        Args:
            path: the file.
            prompts: what is answered.
            model: what identifies the model.

        Raises:
            OutputError: `path` exists or cannot be written.
            GenerationError: PATH.part has answers to other prompts or of another model, or is no such file.
        """
        files.require_new(path)
        self.prompts = prompts
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self.wanted = [(i, sample) for i, prompt in enumerate(prompts) for sample in range(prompt.sampling.num_samples)]
        self.lines: dict[Key, dict[str, Any]] = {}
        described = [dataclasses.asdict(prompt) for prompt in prompts]
        self._header = {"model": model, "prompts": files.sha256_json(described)}
        if os.path.lexists(self.part):
            self._read()
        with files.writing(self.path):
            self._file = open(self.part, "ab")
            if not self._file.tell():
                self._write(self._header)

    @property
    def missing(self) -> set[Key]:
        """The answers that are not there yet."""
        return set(self.wanted) - self.lines.keys()

    def add(self, index: int, sample: int, generation: Generation) -> None:
        """Add an answer; it is on the disk when this returns.

        Raises:
            OutputError: the disk is full, or it is not allowed to write there.
        """
        line = answer(index, sample, generation, self.prompts[index])
        self.lines[index, sample] = line
        with files.writing(self.path):
            self._write(line)

    def close(self) -> None:
        """Write the whole file if all answers are there, else leave those that are for the next process."""
        self._file.close()
        if not self.missing:
            lines = [json.dumps(self.lines[key], ensure_ascii=False) + "\n" for key in self.wanted]
            files.write_text(self.path, "".join(lines))
            self.part.unlink()

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Take over the answers that are there, but for a line that was cut off."""
        with files.open_ordinary(self.part) as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        try:
            header, *lines = [small_json.parse_object(line) for line in content[:whole].splitlines()] or [self._header]
            found = {(line["index"], line["sample"]): line for line in lines}
        except (ValueError, KeyError, TypeError):
            raise GenerationError(f"{self.part}: holds no answers; remove it, or name another --output") from None
        if header != self._header:
            raise GenerationError(
                f"{self.part}: has answers to other prompts or settings, or of another model; give the same ones to go"
                " on, remove it, or name another --output"
            )
        self.lines = {key: line for key, line in found.items() if key in set(self.wanted)}
        if whole < len(content):
            with files.writing(self.path):
                os.truncate(self.part, whole)


def answer(index: int, sample: int, generation: Generation, prompt: Prompt) -> dict[str, Any]:
    """A continuation as JSON: the prompt's id if it has one, log-probabilities if they were asked for."""
    fields = {"index": index, "sample": sample} | dataclasses.asdict(generation)
    if not generation.logprobs:
        del fields["logprobs"]
    return fields if prompt.id is None else {"id": prompt.id} | fields
