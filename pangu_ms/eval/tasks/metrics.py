"""The metrics of tasks, for one item each; `prediction.Estimate` makes their mean and its standard error. numpy only,
apart from the assignment.

Source: for `exact_match_official` and `f1_official`, cmrc2018_evaluate.py of CMRC 2018, v5; for the words of other
scripts, the conventions of the Penn Treebank (Marcus, Santorini, Marcinkiewicz 1993) as NLTK applies them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks.prediction import Gold, Metric, Prediction, perplexity_of

# --- texts ------------------------------------------------------------------------------------------------------------

PUNCTUATION = frozenset(
    "-:_*^/\\~`+="
    "\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u00b7\u3001\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"
)
"""What CMRC's measure ignores: of the Chinese signs the comma, full stop, colon, question and exclamation mark,
quotation marks, semicolon, apostrophe, book title marks, middle dot, enumeration comma, brackets, hyphen, tilde and
corner brackets. It also lists the two characters of an ellipsis as one, which no single character is."""
FOLDED_PUNCTUATION = PUNCTUATION | {unicodedata.normalize("NFKC", sign) for sign in PUNCTUATION}
"""The same with its half-width forms: folding makes a full-width comma a half-width one, which is not in the list."""
_CHINESE = re.compile("[\u4e00-\u9fa5]")


def folded(text: str) -> str:
    """A text in the form that PanGu's tokenizer gives it (NFKC: full-width letters, digits and signs become half-width
    ones), so that an answer can equal a gold text at all."""
    return unicodedata.normalize("NFKC", text)


def without_space(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def segments(text: str, punctuation: frozenset[str] = PUNCTUATION) -> list[str]:
    """CMRC's mixed segmentation: each Chinese character is a segment, other scripts are cut into words; case and
    `punctuation` are ignored."""
    found: list[str] = []
    other = ""
    for character in text.lower().strip():
        if character in punctuation:
            continue
        if _CHINESE.match(character):
            found += words(other)
            found.append(character)
            other = ""
        else:
            other += character
    return found + words(other)


_SENTENCE_END = re.compile(r"(\S+)(?<!\.)\.[\])}>\"'\u00bb]*\s+")
_ABBREVIATIONS = frozenset("co corp dr inc jr ltd mr mrs ms no prof sr st vs".split())
_SIGNS = (  # (pattern, replacement), in this order
    (re.compile(r"([\u00ab\u2018\u201e])"), r" \1 "),
    (re.compile(r"^\""), r"`` "),
    (re.compile(r"([ (\[{<])(?:\"|'')"), r"\1 `` "),
    (re.compile(r"'(?!re|ve|ll|m|t|s|d|n)(\w)\b"), r"' \1"),
    (re.compile(r"([^.])\.([\])}>\"'\u00bb ]*)\s*$"), r"\1 . \2 "),
    (re.compile(r",(?=\D)|,$"), " , "),
    (re.compile(r"(\.{2,}|[;@#$%&?!*\]\[(){}<>\u00bb])"), r" \1 "),
    (re.compile(r"([^'])' "), r"\1 ' "),
    (re.compile(r"''|\""), " '' "),
)
_CLITIC = re.compile(r"([^' ])('(?:s|m|d|ll|re|ve)?|n't)(?=\s)")
_CONTRACTION = re.compile(
    r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(d)('ye)\b|\b(more)('n)\b"
    r"|(?<=\s)('t)(is|was)\b"
)


def words(text: str) -> list[str]:
    """Words, numbers and signs of a lower-case text in a script with spaces, as the Penn Treebank cuts them: "don't"
    is "do" and "n't", "3.5%" is "3.5" and "%". A full stop is a word of its own at the end of a sentence only."""
    found: list[str] = []
    for sentence in _sentences(text):
        for pattern, replacement in _SIGNS:
            sentence = pattern.sub(replacement, sentence)
        divided = _CLITIC.sub(r"\1 \2", f" {sentence} ")
        found += _CONTRACTION.sub(lambda match: f" {' '.join(filter(None, match.groups()))} ", divided).split()
    return found


def _sentences(text: str) -> list[str]:
    """The sentences of a text. NLTK asks a trained model where they end; here a full stop before white space is an end
    unless it follows an initial, an abbreviation with inner full stops, or one of the usual titles."""
    found, begin = [], 0
    for match in _SENTENCE_END.finditer(text):
        word = match[1].lower()
        if len(word) > 1 and "." not in word and word not in _ABBREVIATIONS:
            found.append(text[begin : match.end()])
            begin = match.end()
    return [*found, text[begin:]]


def longest_common_substring(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest run of elements that both sequences contain."""
    first, second = _numbered(one, other)
    lengths, longest = np.zeros(len(second) + 1, np.int64), 0
    for element in first:
        lengths[1:] = np.where(second == element, lengths[:-1] + 1, 0)
        longest = max(longest, int(lengths.max()))
    return longest


def longest_common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest sequence that both sequences contain in this order, with gaps."""
    first, second = _numbered(one, other)
    lengths = np.zeros(len(second) + 1, np.int64)
    for element in first:
        longer = np.where(second == element, lengths[:-1] + 1, lengths[1:])
        lengths[1:] = np.maximum.accumulate(np.maximum(longer, lengths[1:]))
    return int(lengths.max())


def _numbered(one: Sequence[Hashable], other: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    numbers: dict[Hashable, int] = {}
    first, second = ([numbers.setdefault(element, len(numbers)) for element in side] for side in (one, other))
    return np.array(first, np.int64), np.array(second, np.int64)


Share = tuple[float, float]
"""Value and weight of an item."""


def _best(of_pair: Callable[[str, str], float]) -> Callable[[Prediction, Gold], Share]:
    """The largest value over the references of an item."""

    def of_item(prediction: Prediction, gold: Gold) -> Share:
        return max(of_pair(prediction.text, reference) for reference in gold.answers), 1.0

    return of_item


def cmrc_exact_match(prediction: str, reference: str) -> float:
    """1 if both texts are the same but for case, outer white space and punctuation."""
    first, second = (_without(text.lower().strip(), PUNCTUATION) for text in (prediction, reference))
    return float(first == second)


def cmrc_f1(prediction: str, reference: str) -> float:
    """F1 of the longest common substring of segments; 0 if there is none."""
    return _substring_f1(segments(prediction), segments(reference))


def exact_match(prediction: str, reference: str) -> float:
    """`cmrc_exact_match` with both texts folded."""
    first, second = (_without(folded(text).lower().strip(), FOLDED_PUNCTUATION) for text in (prediction, reference))
    return float(first == second)


def f1(prediction: str, reference: str) -> float:
    """`cmrc_f1` with both texts folded."""
    first, second = (segments(folded(text), FOLDED_PUNCTUATION) for text in (prediction, reference))
    return _substring_f1(first, second)


def _without(text: str, signs: frozenset[str]) -> str:
    return "".join(character for character in text if character not in signs)


def _substring_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_substring(prediction, reference)
    return 2 * common / (len(prediction) + len(reference)) if common else 0.0


def rouge_1(prediction: str, reference: str) -> float:
    """F1 of the characters that both texts have, each as often as the text that has it less often."""
    first, second = (without_space(folded(text)) for text in (prediction, reference))
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / (len(first) + len(second)) if common else 0.0


ROUGE_L_BETA = 1.2
"""Weight of the recall, as in DuReader's own measure (coco-caption)."""


def rouge_l(prediction: str, reference: str) -> float:
    """F of the longest common subsequence of characters, with recall weighted ROUGE_L_BETA times."""
    first, second = (without_space(folded(text)) for text in (prediction, reference))
    common = longest_common_subsequence(first, second)
    if not common:
        return 0.0
    precision, recall, beta = common / len(first), common / len(second), ROUGE_L_BETA**2
    return (1 + beta) * precision * recall / (recall + beta * precision)


def prefix_match(prediction: str, reference: str) -> float:
    """1 if the text begins with the reference; punctuation and white space are ignored (CMRC2017)."""
    first, second = (_letters(folded(text)) for text in (prediction, reference))
    return float(bool(second) and first.startswith(second))


def _letters(text: str) -> str:
    """A text without white space, punctuation and other signs."""
    return "".join(sign for sign in text.lower() if unicodedata.category(sign)[0] not in "PZCS")


def text_match(prediction: str, reference: str) -> float:
    """1 if the texts are the same but for white space and width (PD and CFT: as many tokens are generated as the
    reference has)."""
    return float(without_space(folded(prediction)) == without_space(folded(reference)))


# --- choices, assignments, probabilities ------------------------------------------------------------------------------


def _right(prediction: Prediction, gold: Gold) -> Share:
    return float(prediction.choice == gold.choice), 1.0


def _right_blanks(prediction: Prediction, gold: Gold) -> Share:
    """Share of right answers among the blanks of a passage. CMRC2019's own measure subtracts one for each blank without
    an answer; an assignment has none."""
    right = sum(a == b for a, b in zip(prediction.assignment, gold.assignment))
    return right / len(gold.assignment), float(len(gold.assignment))


def _right_passage(prediction: Prediction, gold: Gold) -> Share:
    return float(prediction.assignment == gold.assignment), 1.0


def _loss_of_tokens(prediction: Prediction, gold: Gold) -> Share:
    return prediction.nats / prediction.num_tokens, float(prediction.num_tokens)


def _loss_of_word(prediction: Prediction, gold: Gold) -> Share:
    return prediction.nats, 1.0


def assign(losses: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The choice for each blank, each choice used once at most, with the smallest sum of losses.

    Args:
        losses: of each blank with each choice, [blanks, choices]; at least as many choices as blanks.

    Raises:
        DataError: there are fewer choices than blanks, or a loss is no number.
    """
    from scipy.optimize import linear_sum_assignment  # MindSpore installs it

    matrix = np.array(losses, np.float64).reshape(len(losses), -1)
    if matrix.shape[1] < len(matrix):
        raise DataError(
            f"{len(matrix)} blanks for {matrix.shape[1]} choices; a choice fills one blank at most; get the file again"
        )
    if not np.isfinite(matrix).all():
        raise DataError("a loss of an assignment is no number; the weights are damaged or overflow; use float32")
    return tuple(int(choice) for choice in linear_sum_assignment(matrix)[1])


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_right, "choice"),
    "exact_match": Metric(_best(exact_match), "generation"),
    "f1": Metric(_best(f1), "generation"),
    "exact_match_official": Metric(_best(cmrc_exact_match), "generation"),
    "f1_official": Metric(_best(cmrc_f1), "generation"),
    "rouge_1": Metric(_best(rouge_1), "generation"),
    "rouge_l": Metric(_best(rouge_l), "generation"),
    "prefix_match": Metric(_best(prefix_match), "generation"),
    "text_match": Metric(_best(text_match), "generation"),
    "question_accuracy": Metric(_right_blanks, "assignment"),
    "passage_accuracy": Metric(_right_passage, "assignment"),
    "perplexity": Metric(_loss_of_tokens, "perplexity", perplexity_of, percent=False, lower_is_better=True),
    "word_perplexity": Metric(_loss_of_word, "perplexity", perplexity_of, percent=False, lower_is_better=True),
}
"""All metrics, by the names that task files call them by. QAC and PAC of CMRC2019 are question_accuracy and
passage_accuracy; word_perplexity counts a continuation once, however many tokens it has."""
