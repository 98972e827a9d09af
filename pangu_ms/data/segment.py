"""jieba's word segmentation, same words in about two thirds of the time. jieba is imported when a segmenter is made."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from math import log


def make_segmenter(special_words: Iterable[str]) -> Callable[[str], Iterator[str]]:
    """A private jieba tokenizer's `cut`, which also knows `special_words`.

    Private, since `add_word` on jieba's own would change it for everything else in the process. jieba keeps a cache of its dictionary in
    the temporary directory; it writes it under another name and renames, so processes that start together do not disturb each other.

    Source: spec A5 (jieba.cut with cut_all=False; add_word for the specials).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources and old regular expressions in jieba
        import jieba
    jieba.setLogLevel(logging.CRITICAL + 1)  # it reports its dictionary on stderr

    class OnePass(jieba.Tokenizer):
        """The best path through the word graph without building the graph: jieba makes a dict of lists first, then maximises over it.

        Same floating-point operations in the same order, and the longer word on a tie, hence the same words.
        """

        def get_DAG(self, sentence: str) -> None:
            self.check_initialized()

        def calc(self, sentence: str, DAG: None, route: dict) -> None:
            frequency, logtotal, length = self.FREQ.get, log(self.total), len(sentence)
            unknown, score = log(1) - logtotal, [0.0] * (length + 1)
            for start in range(length - 1, -1, -1):
                count = frequency(sentence[start])
                best = (log(count) - logtotal if count else unknown) + score[start + 1]
                last, end = start, start + 2
                # A prefix of a word is in the dictionary with count 0; what is absent begins no word.
                while count is not None and end <= length:
                    count = frequency(sentence[start:end])
                    if count:
                        value = log(count) - logtotal + score[end]
                        if value >= best:
                            best, last = value, end - 1
                    end += 1
                score[start] = best
                route[start] = (best, last)

    segmenter = OnePass()
    for word in special_words:
        segmenter.add_word(word)
    return segmenter.cut
