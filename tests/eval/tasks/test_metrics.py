"""The metrics of tasks against their definitions, transcribed here by brute force."""

import itertools
import math
import random
import re
import unicodedata

import numpy as np
import pytest

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks import metrics
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.prediction import Estimate, Gold, Prediction

IGNORED = [
    *(
        "-",
        ":",
        "_",
        "*",
        "^",
        "/",
        "\\",
        "~",
        "`",
        "+",
        "=",
        "，",
        "。",
        "：",
        "？",
        "！",
        "“",
        "”",
        "；",
        "’",
        "《",
        "》",
    ),
    *("……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』"),
]
"""The list of the published script."""
HALF = [unicodedata.normalize("NFKC", sign) for sign in IGNORED]


def published_segments(text, ignored):
    """The mixed segmentation of the script; other scripts are letters, digits, spaces and rows of dots here."""

    def words(text):
        return re.sub(r"\.{2,}", r" \g<0> ", text).split()

    found, other = [], ""
    for sign in text.lower().strip():
        if sign in ignored:
            continue
        if "\u4e00" <= sign <= "\u9fa5":
            found += [*words(other), sign]
            other = ""
        else:
            other += sign
    return found + words(other)


def published_f1(prediction, references, ignored=IGNORED):
    scores = []
    for reference in references:
        one, other = published_segments(prediction, ignored), published_segments(reference, ignored)
        runs = {tuple(one[i:j]) for i in range(len(one)) for j in range(i + 1, len(one) + 1)}
        runs &= {tuple(other[i:j]) for i in range(len(other)) for j in range(i + 1, len(other) + 1)}
        common = max(map(len, runs), default=0)
        precision, recall = (common / len(side) if side else 0 for side in (one, other))
        scores.append(2 * precision * recall / (precision + recall) if common else 0)
    return max(scores)


def published_em(prediction, references, ignored=IGNORED):
    def plain(text):
        return "".join(sign for sign in text.lower().strip() if sign not in ignored)

    return float(any(plain(prediction) == plain(reference) for reference in references))


def full_width(text):
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


def pairs():
    """200 pairs (prediction, references): Chinese, Latin, both, full-width, empty, punctuation only, repeated."""
    lot = random.Random(7)
    chinese, latin = "北京大学的苹果电脑在一九九八年", ["Apple", "iPhone", "7s", "1998", "usa", "x"]

    def text():
        parts = []
        for _ in range(lot.randrange(5)):
            kind = lot.randrange(4)
            if kind == 0:
                parts.append("".join(lot.choice(chinese) for _ in range(lot.randrange(1, 5))))
            elif kind == 1:
                parts.append(" ".join(lot.choice(latin) for _ in range(lot.randrange(1, 3))))
            elif kind == 2:
                parts.append(lot.choice(IGNORED))
            else:
                parts.append(full_width(lot.choice(latin)))
        return lot.choice(["", " "]).join(parts)

    fixed = [
        ("", [""]),
        ("", ["北京"]),
        ("北京", [""]),
        ("，。", ["！"]),
        ("……", ["……"]),
        ("北北北京", ["北北京京"]),
        ("1998年", ["１９９８年"]),
        ("Apple公司", ["Ａｐｐｌｅ公司"]),
        ("你好,世界", ["你好，世界"]),
        ("你好世界", ["你好，世界"]),
        ("ABAB", ["abab", "x"]),
        ("《红楼梦》", ["红楼梦"]),
    ]
    found = list(fixed)
    while len(found) < 200:
        prediction = text()
        references = [text() for _ in range(lot.randrange(1, 4))]
        if lot.randrange(3) == 0:
            references.append(prediction + lot.choice(["", "。", "的", " usa"]))
        found.append((prediction, references))
    return found


def value(name, prediction, gold):
    found, weight = METRICS[name].item(prediction, gold)
    return found


def test_cmrc_scores_equal_the_published_script():
    for prediction, references in pairs():
        said, gold = Prediction(text=prediction), Gold(answers=tuple(references))
        folded = unicodedata.normalize("NFKC", prediction), [unicodedata.normalize("NFKC", one) for one in references]
        found = [value(name, said, gold) for name in ("f1_official", "exact_match_official", "f1", "exact_match")]
        expected = [published_f1(prediction, references), published_em(prediction, references)]
        expected += [published_f1(*folded, IGNORED + HALF), published_em(*folded, IGNORED + HALF)]
        assert found == pytest.approx(expected), (prediction, references)


def test_folding_lets_an_answer_of_the_tokenizer_equal_a_full_width_text():
    said, gold = Prediction(text="你好,1998年"), Gold(answers=("你好，１９９８年",))
    assert value("exact_match", said, gold) == value("f1", said, gold) == 1
    assert value("exact_match_official", said, gold) == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("don't stop.", "do n't stop ."),
        ("3.5% of 1,000,000", "3.5 % of 1,000,000"),
        ("u.s. army (1998)", "u.s. army ( 1998 )"),
        ("he said hi. then left.", "he said hi . then left ."),
        ("dr. who's cat", "dr. who 's cat"),
        ("i cannot, you'll", "i can not , you 'll"),
        ("a...b; what?", "a ... b ; what ?"),
        ("the dogs' $5 & 'x'", "the dogs ' $ 5 & ' x '"),
        ('"yes" he said', "`` yes '' he said"),
        ("", ""),
    ],
)
def test_words_of_other_scripts(text, words):
    assert metrics.words(text) == words.split()


@pytest.mark.slow  # importing NLTK takes seconds
def test_words_equal_those_of_nltk():
    nltk = pytest.importorskip("nltk.tokenize.destructive")
    reference, lot = nltk.NLTKWordTokenizer(), random.Random(3)
    parts = ["don't", "can't", "cannot", "it's", "(x)", "[1]", "3.5%", "1,000", "a,b", "$5", "e.g.", "u.s.", "hi!", "?"]
    parts += [
        '"so"',
        "'tis",
        "gonna",
        "dogs'",
        "they'll",
        "x@y.z",
        "#1",
        "a&b",
        "...",
        "end",
        "{",
        "}",
        "<b>",
        "«",
        "»",
    ]
    for _ in range(400):
        text = lot.choice(["", " "]).join(lot.choice(parts) for _ in range(lot.randrange(1, 6)))
        if len(metrics._sentences(text)) == 1:  # the published script cuts texts into sentences before
            assert metrics.words(text) == reference.tokenize(text), text


def test_rouge_equals_brute_force():
    lot = random.Random(5)
    for _ in range(150):
        one, other = ("".join(lot.choice("甲乙丙a1，") for _ in range(lot.randrange(9))) for _ in range(2))
        said, gold = Prediction(text=one), Gold(answers=(other,))
        one, other = (unicodedata.normalize("NFKC", text) for text in (one, other))
        left = list(other)
        common = sum(1 for sign in one if sign in left and left.remove(sign) is None)
        expected = 2 * common / (len(one) + len(other)) if common else 0
        assert value("rouge_1", said, gold) == pytest.approx(expected)
        taken = [set(itertools.chain(*(itertools.combinations(t, n) for n in range(len(t) + 1)))) for t in (one, other)]
        longest = max(map(len, taken[0] & taken[1]))
        expected = 0.0
        if longest:
            precision, recall = longest / len(one), longest / len(other)
            expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
        assert value("rouge_l", said, gold) == pytest.approx(expected)


def test_the_best_reference_counts():
    said, gold = Prediction(text="甲乙丙"), Gold(answers=("丁", "甲乙", "甲"))
    assert value("rouge_1", said, gold) == pytest.approx(0.8)
    assert value("f1", said, gold) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "name, text, answer, expected",
    [
        ("prefix_match", "“老虎”说：", "老虎", 1),
        ("prefix_match", " 小老虎", "老虎", 0),
        ("prefix_match", "", "老虎", 0),
        ("prefix_match", "ＡＢ公司", "AB", 1),
        ("prefix_match", "甲", "，", 0),
        ("text_match", "老 虎\n", "老虎", 1),
        ("text_match", "老虎说", "老虎", 0),
        ("text_match", "７", "7", 1),
    ],
)
def test_matches(name, text, answer, expected):
    assert value(name, Prediction(text=text), Gold(answers=(answer,))) == expected


def test_assignments_have_the_smallest_sum_of_all():
    lot = np.random.default_rng(0)
    for blanks, choices in [(1, 1), (2, 3), (4, 4), (4, 6), (5, 5)]:
        losses = lot.normal(size=(blanks, choices))
        found = metrics.assign(losses.tolist())
        sums = {p: losses[range(blanks), p].sum() for p in itertools.permutations(range(choices), blanks)}
        assert found == min(sums, key=sums.get)


@pytest.mark.parametrize("losses, words", [([[1.0], [2.0]], "2 blanks for 1 choices"), ([[math.nan]], "no number")])
def test_assignments_that_cannot_be_are_told(losses, words):
    with pytest.raises(DataError, match=words):
        metrics.assign(losses)


def test_blanks_and_passages_of_cmrc2019():
    items = [((0, 1, 2), (0, 2, 1)), ((1, 0), (1, 0))]
    for name, expected in [("question_accuracy", 3 / 5), ("passage_accuracy", 1 / 2)]:
        shares = [METRICS[name].item(Prediction(assignment=a), Gold(assignment=b)) for a, b in items]
        assert Estimate.of(*zip(*shares)).mean == pytest.approx(expected)


def test_perplexities_of_tokens_and_of_words():
    said = [Prediction(nats=6.0, num_tokens=3), Prediction(nats=1.0, num_tokens=1)]
    for name, expected in [("perplexity", math.exp(7 / 4)), ("word_perplexity", math.exp(7 / 2))]:
        shares = [METRICS[name].item(one, Gold()) for one in said]
        assert METRICS[name].finish(Estimate.of(*zip(*shares)).mean) == pytest.approx(expected)
