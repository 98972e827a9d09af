"""Word segmentation with the same result as jieba, in about half the time. jieba is imported when a segmenter is made.

Encoding Chinese spends nearly all its time on segmentation. jieba builds a graph of words as dicts of lists before it
searches for the best path, and its hidden Markov model keeps a path for each state. Here each of these two steps is one
pass over plain numbers, with the same floating-point operations in the same order and the same choice on a tie. So the
words are the same; a test compares them one by one.

jieba caches its dictionary in the shared temporary directory, and reads that file no matter who wrote it. This module
neither reads nor writes the cache. Reading the dictionary itself takes 0.2 s longer, but then the words depend on
nothing but the installed package.
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
"""The number that jieba uses for the logarithm of 0."""


def make_segmenter(special_words: Iterable[str]) -> Callable[[str], Iterator[str]]:
    """The `cut` method of a jieba tokenizer that also knows `special_words`.

    The tokenizer is a new instance: `add_word` on jieba's global tokenizer would change it for all code in the process.

    Source: spec A5 (jieba.cut with cut_all=False; add_word for the specials).
    """
    jieba, model = _jieba(), hidden_markov_model()

    base: Any = jieba.Tokenizer  # jieba has no types, and a module that is only known at run time gives no base class

    class OnePass(base):
        def initialize(self, dictionary: str | None = None) -> None:
            """Load the dictionary of the installed package; jieba's own method would read the cache."""
            self.FREQ, self.total = frequencies(_dictionary())
            self.initialized = True

        def words(self, sentence: str) -> Iterator[str]:
            """Words of a run of characters. Adjacent words of one character are joined and segmented again by the
            hidden Markov model."""
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
            """Words in a run of characters that the dictionary knows only as words of one character."""
            if len(characters) < 2 or self.FREQ.get(characters):
                return characters
            return model(characters)

        _Tokenizer__cut_DAG = words  # replaces the private step of jieba.Tokenizer.cut that searches for the path

    segmenter = OnePass()
    for word in special_words:
        segmenter.add_word(word)
    return segmenter.cut


def segmenter_version() -> dict[str, str]:
    """What the segmentation depends on besides the text: jieba's version, and the SHA-256 of its dictionary."""
    return {"jieba": _jieba().__version__, "dictionary": _dictionary_hash()}


@cache
def _jieba() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba imports the deprecated pkg_resources and has outdated regex syntax
        import jieba
    jieba.setLogLevel(logging.CRITICAL + 1)  # otherwise jieba reports on stderr that it loads its dictionary
    return jieba


def _dictionary() -> bytes:
    package = _jieba().__file__
    assert package, "jieba is an ordinary package, with a file"
    return Path(package).with_name("dict.txt").read_bytes()


@cache
def _dictionary_hash() -> str:
    return hashlib.sha256(_dictionary()).hexdigest()


def frequencies(dictionary: bytes) -> tuple[dict[str, int], int]:
    """Counts of the words of a dictionary, and their sum. Each proper prefix of a word that is not itself a word has
    count 0.

    Args:
        dictionary: UTF-8; each line holds a word, its count, and optionally more, which is ignored.

    Raises:
        DataError: a line has another form.
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
    """Find the most probable segmentation from every start: ends[i] is the end of the word that starts at character i
    on the best path from there to the end of the sentence. On a tie the longer word is taken.

    Args:
        frequencies: counts of the words and their prefixes, as the function `frequencies` returns them.
        log_total: logarithm of the sum of the counts.
    """
    length, frequency = len(sentence), frequencies.get
    unknown, score, ends = log(1) - log_total, [0.0] * (length + 1), [0] * length
    for start in range(length - 1, -1, -1):
        end = start + 1
        count = frequency(sentence[start])
        best, best_end = (log(count) - log_total if count else unknown) + score[end], end
        while count is not None and end < length:  # None: no word begins with these characters
            end += 1
            count = frequency(sentence[start:end])
            if count:
                value = log(count) - log_total + score[end]
                if value >= best:
                    best, best_end = value, end
        score[start], ends[start] = best, best_end
    return ends


def hidden_markov_model() -> Callable[[str], Iterator[str]]:
    """Return an equivalent of jieba.finalseg.cut. It finds words by the Viterbi path through the states B, M, E and S
    of the characters (the first, a middle or the last character of a word, or a word of one character)."""
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
