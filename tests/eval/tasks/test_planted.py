"""Every type of task from the published file to the score: a model that knows the gold texts scores above 95 %, and at
chance where the gold answers are shuffled."""

import random

import pytest

from pangu_ms.eval.tasks.catalog import find_tasks
from pangu_ms.eval.tasks.encoding import Encoder
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.prediction import Estimate
from pangu_ms.eval.tasks.run import Settings, prepare
from pangu_ms.eval.tasks.scorers import ask
from tests.eval.tasks.planted import PlantedModel
from tests.eval.tasks.published import BLANKS, FORMS

ITEMS = 510
"""A multiple of the numbers of labels and choices of most tasks, so that gold answers are spread evenly."""


def items_of(name):
    """A passage of CMRC2019 has several blanks. One generation task stands for all."""
    if name == "cmrc2019":
        return ITEMS // BLANKS + 3
    return ITEMS if FORMS[name].chance or name in ("cmrc2018", "wplc") else 60


def estimate(model, section):
    """The first metric of a task."""
    metric = METRICS[section.task.metrics[0]]
    encoder = Encoder(section.task, model.tokenizer, model.window)
    asked = list(ask(model, encoder, section.prompts))
    assert len(asked) == len(section.prompts)
    return Estimate.of(*zip(*(metric.item(one.prediction, one.prompt.gold) for one in asked)))


def gold_texts(section):
    """What a model reads where the right answer stands in its place."""
    for prompt in section.prompts:
        if section.task.type == "generation":
            yield prompt.candidates[0].context + prompt.gold.answers[0] + "\n"
        elif section.task.type == "assignment":
            choices = len(prompt.candidates) // prompt.blanks
            for blank, choice in enumerate(prompt.gold.assignment):
                right = prompt.candidates[blank * choices + choice]
                yield right.context + right.continuation
        else:
            right = prompt.candidates[max(prompt.gold.choice, 0)]
            yield right.context + right.continuation


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
