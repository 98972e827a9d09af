"""Every type of task from the published file to the score: a model that knows the gold texts scores above 95 %, and at
chance where the gold answers are shuffled."""

import random

import pytest

from pangu_ms.eval.tasks.catalog import find_tasks
from pangu_ms.eval.tasks.prompts import make_prompts
from pangu_ms.eval.tasks.run import Settings, prepare
from tests.eval.tasks.planted import PlantedModel, estimate, gold_texts
from tests.eval.tasks.published import BLANKS, FORMS

ITEMS = 510
"""A multiple of the numbers of labels and choices of most tasks, so that gold answers are spread evenly."""


def items_of(name):
    """A passage of CMRC2019 has several blanks. One generation task stands for all."""
    if name == "cmrc2019":
        return ITEMS // BLANKS + 3
    return ITEMS if FORMS[name].chance or name in ("cmrc2018", "wplc") else 60


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """A function from the name of a task to it with gold answers and with shuffled ones."""

    def both(name):
        form, task = FORMS[name], find_tasks([name])[0]
        lot = random.Random(name)
        items, golds = form.make(lot, items_of(name))
        shuffled = list(golds)
        lot.shuffle(shuffled)
        found = []
        for answers in (golds, shuffled):
            directory = tmp_path_factory.mktemp("data")
            form.write(directory / form.file, items, answers)
            ((section,), notes) = prepare([task], Settings(), directory)
            found.append(section)
        return found

    return both


SLOW = ("iflytek", "afqmc", "eprstmt")
"""Of these types there is another task."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FORMS if name != "wplc"],
)
def test_a_planted_model_is_right_with_gold_and_at_chance_without(sections, name):
    gold, shuffled = sections(name)
    model = PlantedModel(gold_texts(gold))
    assert len(gold.prompts) == items_of(name)
    assert estimate(model, gold).mean > 0.95
    found, chance = estimate(model, shuffled), FORMS[name].chance
    if gold.task.type == "generation":
        assert found.mean < (0.2 if gold.task.metrics[0] == "rouge_1" else 0.02)
    else:
        assert abs(found.mean - chance) <= 2 * found.standard_error


def test_the_perplexity_of_last_words_is_the_models_own(sections):
    gold, shuffled = sections("wplc")
    model = PlantedModel(gold_texts(gold))
    losses = []
    for section in (gold, shuffled):
        own = []
        for prompt in section.prompts:
            text, word = prompt.candidates[0].context, prompt.candidates[0].continuation
            own += [model.logprob((text + word[:i])[-24:], sign) for i, sign in enumerate(word)]
        losses.append(estimate(model, section).mean)
        assert losses[-1] == pytest.approx(-sum(own) / len(own))
    assert losses[0] < 0.05 and losses[1] > 5


@pytest.mark.parametrize(
    "name, row, right",
    [
        ("ocnli", {"sentence1": "甲", "sentence2": "乙", "label": "entailment"}, "甲?对，-乙"),
        ("cmnli", {"sentence1": "甲", "sentence2": "乙", "label": "neutral"}, "甲?或许，-乙"),
        ("ocnli", {"sentence1": "甲", "sentence2": "乙", "label": "contradiction"}, "甲?错，-乙"),
        ("afqmc", {"sentence1": "甲", "sentence2": "乙", "label": "0"}, "下面两个句子语义不同：-甲。乙"),
        ("bustm", {"sentence1": "甲", "sentence2": "乙", "label": 1}, "下面两个句子语义相同：-甲。乙"),
        ("csl", {"abst": "甲", "keyword": ["乙", "丙"], "label": "1"}, "-摘要：甲，关键词：乙,丙是真实关键词"),
        ("csl", {"abst": "甲", "keyword": ["乙"], "label": "0"}, "-摘要：甲，关键词：乙不是真实关键词"),
        ("eprstmt", {"sentence": "甲", "label": "Negative"}, "这是一条差评：-甲"),
        ("tnews", {"sentence": "甲", "label": 110}, "这是关于军事的文章：-甲"),
        ("iflytek", {"sentence": "甲", "label": "99"}, "这是关于银行的应用程序：-甲"),
        ("cluewsc", {"before": "甲", "noun": "乙", "pronoun": "他", "after": "。", "label": "true"}, "甲乙-。"),
        ("cluewsc", {"before": "甲", "noun": "乙", "pronoun": "他", "after": "。", "label": "false"}, "甲他-。"),
        ("chid", {"before": "甲", "after": "乙", "candidates": ["一", "二"], "label": 1}, "甲-二乙"),
        (
            "c3",
            {"context": "甲", "question": "乙", "choices": ["一", "二"], "label": 0},
            "问: 乙\n答:一\n该答案来自对话: -甲",
        ),
    ],
)
def test_the_right_candidate_of_each_label(name, row, right):
    """Its context and, behind a hyphen, what is scored."""
    (prompt,) = make_prompts(find_tasks([name])[0], [row])
    found = prompt.candidates[prompt.gold.choice]
    assert f"{found.context}-{found.continuation}" == right
