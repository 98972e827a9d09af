"""Needle in a haystack: what the items are made of."""

import json

import pytest

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.eval.tasks.catalog import DEFINITIONS, find_tasks
from pangu_ms.eval.tasks.needle import grid, needle
from pangu_ms.eval.tasks.run import Settings, prepare
from pangu_ms.eval.tasks.task import read_task
from tests.eval.tasks.planted import PlantedModel, estimate, gold_texts

OPTIONS = read_task(DEFINITIONS / "needle.yaml").data.options


def test_the_sentence_stands_once_at_its_depth_in_a_text_of_the_length():
    rows = needle(**OPTIONS)
    assert len(rows) == len({row["context"] for row in rows}) == 75
    for row in rows:
        text, place = row["context"], row["question"][:2]
        told = f"{place}的暗号是{row['answer']}。"
        assert text.count("的暗号是") == text.count(told) == 1
        assert row["choices"][row["label"]] == row["answer"] and len(set(row["choices"])) == 4
        assert abs(len(text) - row["length"]) <= 25
        rest = len(text) - len(told)
        assert abs(text.index(told) - row["depth"] / 100 * rest) <= 15
    assert {row["label"] for row in rows} == {0, 1, 2, 3}


def test_items_depend_on_the_seed_alone():
    assert needle(**OPTIONS) == needle(**OPTIONS)
    assert needle(**OPTIONS)[0]["context"] != needle(**OPTIONS | {"seed": 1})[0]["context"]
    # Those of a length stay what they are when other lengths are asked for too.
    assert needle(**OPTIONS | {"lengths": [512]}) == [row for row in needle(**OPTIONS) if row["length"] == 512]


@pytest.mark.parametrize("lines", [False, True])
def test_texts_of_a_corpus(tmp_path, lines):
    text = "".join(f"第{number}句话说得很长很长，也没有什么意思。" for number in range(60)) + "西桥的暗号是苹果。"
    path = tmp_path / "needle.txt"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) if lines else text, encoding="utf-8")
    rows = needle(path, **OPTIONS)
    assert all(row["context"].count("的暗号是") == 1 and "句话说得" in row["context"] for row in rows)


@pytest.mark.parametrize(
    "content, words",
    [("太短。", "its sentences have 3 characters"), ('{"texts": 1}', "no field text"), ("{", "Expecting")],
)
def test_a_corpus_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "needle.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        needle(path, **OPTIONS)


@pytest.mark.parametrize(
    "wrong",
    [{"lengths": []}, {"lengths": "long"}, {"depths": [101]}, {"items": 0}, {"words": ["甲", "乙"]}, {"places": [1]}],
)
def test_wrong_options_are_named(wrong):
    with pytest.raises(ConfigError, match=f"data.options.{next(iter(wrong))}="):
        needle(**OPTIONS | wrong)


def test_scores_by_length_and_depth():
    records = [
        {"id": f"{length}-{depth}-{i}", "values": {"accuracy": [float(length == 256), 1.0]}}
        for length in (256, 512)
        for depth in ("0", "12.5")
        for i in range(3)
    ]
    assert grid(records) == {(256, 0): (1, 3), (256, 12.5): (1, 3), (512, 0): (0, 3), (512, 12.5): (0, 3)}


def test_a_model_that_knows_the_answers_scores_by_choice_and_by_generation():
    sections, _ = prepare(find_tasks(["needle", "needle@generation"]), Settings(), None)
    model = PlantedModel(gold_texts(sections[1]))
    # It remembers 24 characters, which some of the 75 questions share.
    assert min(estimate(model, section).mean for section in sections) > 0.9
    other = PlantedModel(["".join(row["choices"]) for row in needle(**OPTIONS)])
    assert abs(estimate(other, sections[0]).mean - 0.25) < 0.15 and estimate(other, sections[1]).mean < 0.2
