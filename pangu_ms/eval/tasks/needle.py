"""Needle in a haystack: does a model find a sentence in a long text? The items are made, not published.

In a text of some length, a sentence "the password of PLACE is WORD" stands at some depth, and the model is asked for
the word. Each item has other places, words and filler, all of which depend on the seed alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data import json_texts
from pangu_ms.eval.tasks.template import Template

_CANDIDATES = 4
_ENDS = "\u3002\uff01\uff1f!?\n"
"""What ends a sentence: the Chinese full stop, exclamation mark and question mark, and their half-width forms."""


def needle(
    path: Path | None = None,
    *,
    sentence: str,
    question: str,
    places: Sequence[str],
    words: Sequence[str],
    filler: Sequence[Sequence[str]],
    lengths: Sequence[int],
    depths: Sequence[float],
    items: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Items of each length and depth.

    Args:
        path: a text, or JSON lines with a field `text`, of which sentences the texts are made; None: of `filler`.
        sentence: what is hidden, with {place} and {word}.
        question: what is asked, with {place}.
        places: drawn for {place}.
        words: drawn for {word}; four of them are the choices of an item.
        filler: a sentence of the text is a draw from each of these lists.
        lengths: characters of a text, about: it is made of whole sentences.
        depths: percent of the text before the sentence.
        items: so many of each length and depth.
        seed: of all that is drawn.

    Returns:
        Rows with id, context (the text with the sentence), question, `choices`, `label`, `answer`, `length` and
        `depth`.

    Raises:
        ConfigError: an option is no such number or list.
        DataError: the file cannot be read or has too few sentences.
    """
    _require_numbers(lengths=(lengths, 1, 1 << 20), depths=(depths, 0, 100))
    _require_texts(places=(places, 1), words=(words, _CANDIDATES), filler=([part for of in filler for part in of], 1))
    if type(items) is not int or items < 1:
        raise ConfigError(f"data.options.items={items!r}: must be a whole number from 1 on")
    hidden = (Template(sentence), Template(question))
    own = None if path is None else _sentences_of(path, int(max(lengths)), max(hidden[0].literals, key=len))
    rows = []
    for length in lengths:
        for depth in depths:
            for number in range(items):
                name = f"{length}-{depth:g}-{number}"
                lot = _Lot(f"{seed}/{name}")
                place, choices = lot.some(places, 1)[0], lot.some(words, _CANDIDATES)
                label = lot.below(_CANDIDATES)
                told = hidden[0].filled({"place": place, "word": choices[label]})
                text = list(_filler(length - len(told), lot, own, filler))
                rows.append(
                    {
                        "id": name,
                        "context": _with(told, text, depth),
                        "question": hidden[1].filled({"place": place}),
                        "choices": choices,
                        "label": label,
                        "answer": choices[label],
                        "length": length,
                        "depth": depth,
                    }
                )
    return rows


def grid(records: Iterable[Mapping[str, Any]]) -> dict[tuple[int, float], tuple[float, int]]:
    """(share of right answers, items) of each (length, depth), from the records of a run: the lines of its
    records/needle_0-shot.jsonl."""
    right: dict[tuple[int, float], list[float]] = {}
    for record in records:
        length, depth, _ = record["id"].split("-")
        (value, _), *_ = record["values"].values()
        right.setdefault((int(length), float(depth)), []).append(value)
    return {cell: (sum(values) / len(values), len(values)) for cell, values in right.items()}


def _require_numbers(**options: tuple[Sequence[float], float, float]) -> None:
    for name, (values, least, most) in options.items():
        numbers = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
        if not numbers or not values or not all(least <= value <= most for value in values):
            raise ConfigError(f"data.options.{name}={values!r:.60}: must be a list of numbers from {least} to {most}")


def _require_texts(**options: tuple[Sequence[str], int]) -> None:
    for name, (values, least) in options.items():
        texts = isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)
        if not texts or len(set(values)) < max(least, len(values)):
            raise ConfigError(f"data.options.{name}={values!r:.60}: must be a list of at least {least} different texts")


def _with(told: str, text: list[str], depth: float) -> str:
    """The text with a sentence between two others, as near as can be to the depth."""
    ends = [0]
    for sentence in text:
        ends.append(ends[-1] + len(sentence))
    at = min(range(len(ends)), key=lambda i: abs(ends[i] - depth / 100 * ends[-1]))
    return "".join([*text[:at], told, *text[at:]])


class _Lot:
    """Draws that depend on a text alone, on every machine and in every version of numpy."""

    def __init__(self, seed: str):
        self._seed, self._number = seed, 0

    def below(self, most: int) -> int:
        """A number from 0 to most - 1."""
        self._number += 1
        drawn = hashlib.sha256(f"{self._seed}/{self._number}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") % most

    def some(self, values: Sequence[str], number: int) -> list[str]:
        """So many different values."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(number)]


def _filler(length: int, lot: _Lot, own: list[str] | None, filler: Sequence[Sequence[str]]) -> Iterator[str]:
    """Sentences of so many characters in all, about, and at least one; those of a file in their order, from some place
    on."""
    at, begin = 0, lot.below(len(own)) if own else 0
    while length > 0 or not at:
        if own:
            sentence = own[(begin + at) % len(own)]
        else:
            sentence = "".join(part[lot.below(len(part))] for part in filler)
        yield sentence
        at, length = at + 1, length - len(sentence)


def _sentences_of(path: Path, length: int, hidden: str) -> list[str]:
    """Sentences of a file with at least so many characters in all, without those that say what is hidden."""
    try:
        lines = path.read_bytes().splitlines()
        texts = [_text(line) for line in lines if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a text file, or JSON lines with a field text") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; name a text file, or JSON lines with a field text") from None
    found: list[str] = []
    for text in texts:
        begin = 0
        for at, sign in enumerate(text):
            if sign in _ENDS:
                found.append(text[begin : at + 1])
                begin = at + 1
        if begin < len(text):
            found.append(text[begin:] + "\n")
    found = [sentence for sentence in found if sentence.strip() and hidden not in sentence]
    characters = sum(map(len, found))
    if characters < length:
        raise DataError(
            f"{path}: its sentences have {characters} characters; a text of {length} needs as many; name a longer file"
        )
    return found


def _text(line: bytes) -> str:
    if not line.removeprefix(json_texts.BOM).lstrip().startswith(b"{"):
        return line.decode()
    value = json.loads(line.removeprefix(json_texts.BOM))
    if not isinstance(value.get("text"), str):
        raise ValueError("a line has no field text")
    return str(value["text"])
