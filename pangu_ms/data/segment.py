"""jieba's word segmentation: the same words in about half the time. jieba is imported when a segmenter is made.

Segmentation is nearly all of the time that encoding Chinese takes. jieba builds a graph of words as dicts of lists
before it looks for the best path, and keeps a path per state in its hidden Markov model; here both are one pass over
plain numbers, with the same floating-point operations in the same order and the same choice on a tie, hence the same
words. The test compares them word by word.

jieba's own cache of its dictionary, a file in the shared temporary directory that it reads whoever wrote it, is neither
read nor written: reading the dictionary itself takes 0.2 s longer, and the words then depend on the installed package
alone.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

from pangu_ms.core.errors import DataError

_NEVER = -3.14e100
"""jieba's logarithm of an impossible event."""


def make_segmenter(special_words: Iterable[str]) -> Callable[[str], Iterator[str]]:
    """A private jieba tokenizer's `cut`, which also knows `special_words`.

    Private, since `add_word` on jieba's own would change it for everything else in the process.

    Source: spec A5 (jieba.cut with cut_all=False; add_word for the specials).
    """
    jieba, model = _jieba(), hidden_markov_model()

    base: Any = jieba.Tokenizer  # jieba has no types, and a module that is only known at run time gives no base class

    class OnePass(base):
        def initialize(self, dictionary: str | None = None) -> None:
            """The dictionary of the package; never jieba's cache."""
            self.FREQ, self.total = frequencies(_dictionary())
            self.initialized = True

        def words(self, sentence: str) -> Iterator[str]:
            """Words of a run of characters; neighbours that are words by themselves are tried again with the hidden
            Markov model."""
            self.check_initialized()
            ends = best_ends(sentence, self.FREQ, log(self.total))
            start = singles = 0
            while start < len(sentence):
                end = ends[start]
                if end - start > 1:
                    yield from self.regroup(sentence[singles:start])
                    yield sentence[start:end]
                    singles = end
                start = end
            yield from self.regroup(sentence[singles:])

        def regroup(self, characters: str) -> Iterable[str]:
            """Words among characters that the dictionary leaves single."""
            if len(characters) < 2 or self.FREQ.get(characters):
                return characters
            return model(characters)

        _Tokenizer__cut_DAG = words  # the step of jieba.Tokenizer.cut that is replaced

    segmenter = OnePass()
    for word in special_words:
        segmenter.add_word(word)
    return segmenter.cut


def segmenter_version() -> dict[str, str]:
    """What the words depend on beside the text: jieba's version, and the SHA-256 of its dictionary."""
    return {"jieba": _jieba().__version__, "dictionary": _dictionary_hash()}


@cache
def _jieba() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources and old regular expressions in jieba
        import jieba
    jieba.setLogLevel(logging.CRITICAL + 1)  # it reports its dictionary on stderr
    return jieba


def _dictionary() -> bytes:
    package = _jieba().__file__
    assert package, "jieba is an ordinary package, with a file"
    return Path(package).with_name("dict.txt").read_bytes()


@cache
def _dictionary_hash() -> str:
    return hashlib.sha256(_dictionary()).hexdigest()


def frequencies(dictionary: bytes) -> tuple[dict[str, int], int]:
    """Count of each word of a dictionary, with count 0 of each proper prefix that is no word; and the sum.

    Args:
        dictionary: UTF-8, a line a word: word, count, anything more.

    Raises:
        DataError: a line of another form.
    """
    counts: dict[str, int] = {}
    total, line_number = 0, 1
    try:
        for line in dictionary.decode("utf-8").rstrip("\n").split("\n"):
            word, count = line.strip().split(" ")[:2]
            counts[word] = int(count)
            total += counts[word]
            for end in range(1, len(word)):
                counts.setdefault(word[:end], 0)
            line_number += 1
    except ValueError as error:
        raise DataError(
            f"jieba's dict.txt: line {line_number}: {error}; the installed package is damaged; install jieba again"
        ) from error
    return counts, total


def best_ends(sentence: str, frequencies: dict[str, int], log_total: float) -> list[int]:
    """For each start, the end of the word there on the most probable path to the sentence's end; the longer word on a
    tie.

    Args:
        frequencies: count of each dictionary word; a proper prefix of a word is there too, with count 0.
    """
    length, frequency = len(sentence), frequencies.get
    unknown, score, ends = log(1) - log_total, [0.0] * (length + 1), [0] * length
    for start in range(length - 1, -1, -1):
        end = start + 1
        count = frequency(sentence[start])
        best, best_end = (log(count) - log_total if count else unknown) + score[end], end
        while count is not None and end < length:  # what is not even a prefix begins no longer word
            end += 1
            count = frequency(sentence[start:end])
            if count:
                value = log(count) - log_total + score[end]
                if value >= best:
                    best, best_end = value, end
        score[start], ends[start] = best, best_end
    return ends


def hidden_markov_model() -> Callable[[str], Iterator[str]]:
    """jieba.finalseg.cut: words of characters by the Viterbi path through the states begin, middle, end and single."""
    from jieba import finalseg

    begin, middle, end, single = (finalseg.emit_P[state].get for state in "BMES")
    move, first = finalseg.trans_P, finalseg.start_P
    end_begin, single_begin, middle_middle, begin_middle = (
        move["E"]["B"],
        move["S"]["B"],
        move["M"]["M"],
        move["B"]["M"],
    )
    single_single, end_single, begin_end, middle_end = move["S"]["S"], move["E"]["S"], move["B"]["E"], move["M"]["E"]

    def path(text: str) -> list[str]:
        """State of each character."""
        c = text[0]
        b, m, e, s = (first[state] + get(c, _NEVER) for state, get in zip("BMES", (begin, middle, end, single)))
        back = []
        for c in text[1:]:
            emit = begin(c, _NEVER)
            b1, b2 = e + end_begin + emit, s + single_begin + emit
            emit = middle(c, _NEVER)
            m1, m2 = b + begin_middle + emit, m + middle_middle + emit
            emit = end(c, _NEVER)
            e1, e2 = b + begin_end + emit, m + middle_end + emit
            emit = single(c, _NEVER)
            s1, s2 = e + end_single + emit, s + single_single + emit
            # On a tie jieba takes the state whose letter comes later: S before E, M before B.
            back.append((b1 > b2, m1 > m2, e1 > e2, s1 > s2))
            b, m, e, s = max(b1, b2), max(m1, m2), max(e1, e2), max(s1, s2)
        states = ["E" if e > s else "S"]
        for from_b, from_m, from_e, from_s in reversed(back):
            state = states[-1]
            if state == "B":
                states.append("E" if from_b else "S")
            elif state == "S":
                states.append("E" if from_s else "S")
            else:
                states.append("B" if (from_m if state == "M" else from_e) else "M")
        return states[::-1]

    def words(text: str) -> Iterator[str]:
        start = 0
        for index, state in enumerate(path(text), 1):
            if state in "ES":
                yield text[start:index]
                start = index

    def cut(text: str) -> Iterator[str]:
        for run in finalseg.re_han.split(text):
            if finalseg.re_han.match(run):
                yield from words(run)
            else:
                yield from filter(None, finalseg.re_skip.split(run))

    return cut
