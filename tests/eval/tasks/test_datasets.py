"""Readers of published files: what they make of them, and what they say of damaged ones."""

import json
import random

import pytest

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks.catalog import find_tasks, read_rows, task_files
from pangu_ms.eval.tasks.datasets import READERS, joined_words
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.task import read_task
from tests.eval.tasks.published import FORMS

NAMES = (
    "cmrc2018 drcd dureader webqa pd cft cmrc2017 cmrc2019 chid wplc cmnli ocnli tnews iflytek afqmc csl cluewsc c3"
    " eprstmt bustm needle"
).split()
BOM = b"\xef\xbb\xbf"


def written(tmp_path, name, number=3):
    """(file, items, golds) of a published form."""
    form = FORMS[name]
    items, golds = form.make(random.Random(1), number)
    path = tmp_path / form.file
    form.write(path, items, golds)
    return path, items, golds


def reader_of(name):
    return READERS[find_tasks([name])[0].data.reader]


def as_file(tmp_path, content, name="dev.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def tasks():
    """All tasks that are shipped, by their names."""
    return {name: read_task(path) for name, path in task_files().items()}


def test_every_task_file_is_right_and_named_as_its_task(tasks):
    assert {*NAMES} <= tasks.keys()
    for name, task in tasks.items():
        assert task.name == name and task.title and task.source
        assert task.data.reader in READERS and {*task.metrics, *task.published} <= METRICS.keys()
        assert task.shots.few == 0 or task.shots.split in task.data.splits
        assert task.data.published or name == "needle"
        assert not (task.source.startswith("ours") and task.published)
        for variant in task.variants.values():
            assert {*variant.get("metrics", ())} <= METRICS.keys()


def test_published_scores_are_those_of_the_paper(tasks):
    scores = {name: task.published for name, task in tasks.items()}
    assert scores["csl"]["accuracy"]["13B"] == (49.3, 50.2, 55.7)
    assert scores["cmrc2018"]["f1"]["2.6B"] == (16.65, 18.57, 23.22)
    assert scores["wplc"]["perplexity"]["13B"] == (19.18, None, None)
    assert not scores["cluewsc"] and not scores["bustm"] and not scores["eprstmt"] and not scores["needle"]
    assert not find_tasks(["chid@fewclue"])[0].published


@pytest.mark.parametrize("name", ["tnews", "ocnli", "csl"])
@pytest.mark.parametrize("form", ["lines", "mark", "array", "no end of line"])
def test_lines_of_clue(tmp_path, name, form):
    path, items, golds = written(tmp_path, name)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if form == "mark":
        path.write_bytes(BOM + path.read_bytes())
    elif form == "array":
        path.write_text(json.dumps(rows))
    elif form == "no end of line":
        path.write_bytes(path.read_bytes().rstrip())
    assert reader_of(name)(path) == rows
    assert [row["label"] for row in rows] == golds


def test_items_on_which_annotators_did_not_agree_are_left_out(tmp_path):
    path = as_file(tmp_path, '{"label": "-"}\n{"label": "neutral"}\n')
    assert [row["label"] for row in READERS["clue"](path)] == ["neutral"]


def test_pronouns_of_cluewsc(tmp_path):
    path, items, golds = written(tmp_path, "cluewsc")
    for row, item, gold in zip(reader_of("cluewsc")(path), items, golds):
        assert row["before"] + row["pronoun"] + row["after"] == item["text"] and row["pronoun"] == "他"
        assert row["noun"] == item["target"]["span1_text"] and row["label"] == gold


def test_questions_of_squad_and_of_cmrc2018s_own_form(tmp_path):
    path, items, golds = written(tmp_path, "cmrc2018")
    rows = reader_of("cmrc2018")(path)
    assert [(row["context"], row["question"]) for row in rows] == items
    assert [row["answers"] for row in rows] == [[gold] for gold in golds]
    own = {"context_text": "文", "qas": [{"query_id": "T0", "query_text": "问", "answers": ["甲", 7.5, "甲"]}]}
    path = as_file(tmp_path, json.dumps([own]))
    wanted = {"id": "T0", "title": "", "context": "文", "question": "问", "answers": ["甲", "7.5"]}
    assert READERS["squad"](path) == [wanted]


def test_an_item_without_an_answer_has_none(tmp_path):
    paragraph = {"context": "文", "qas": [{"id": "1", "question": "问"}]}
    assert READERS["squad"](as_file(tmp_path, json.dumps({"data": [paragraph]})))[0]["answers"] is None
    entry = [["文"], [{"question": "问", "choice": ["甲", "乙"]}], "1"]
    assert READERS["c3"](as_file(tmp_path, json.dumps([entry])))[0]["label"] is None
    passage = {"content": "文#idiom#", "candidates": ["甲", "乙"]}
    assert READERS["chid"](as_file(tmp_path, json.dumps(passage)))[0]["label"] is None
    story = {"data": [{"context": "文[BLANK1]", "choices": ["甲"], "answers": []}]}
    assert READERS["cmrc2019"](as_file(tmp_path, json.dumps(story)))[0]["answers"] is None
    assert (
        READERS["cmrc2017"](as_file(tmp_path, "1 ||| 文\n<qid_0> ||| 问 XXXXX\n", "a.doc_query"))[0]["answer"] is None
    )


def test_dialogues_of_c3(tmp_path):
    path, items, golds = written(tmp_path, "c3")
    for row, (lines, question), gold in zip(reader_of("c3")(path), items, golds):
        assert row["context"] == "\n".join(lines) and row["choices"] == question["choice"] and row["label"] == gold


def test_the_three_forms_of_chid(tmp_path):
    several = {
        "content": "一#idiom#二#idiom#三",
        "groundTruth": ["乙", "丁"],
        "candidates": [["甲", "乙"], ["丙", "丁"]],
    }
    rows = READERS["chid"](as_file(tmp_path, json.dumps(several)))
    assert [(row["before"], row["after"], row["label"]) for row in rows] == [("一", "二三", 1), ("一二", "三", 1)]
    passages = {"content": ["一#idiom000378#", "二#idiom000379#"], "candidates": ["甲", "乙", "丙"]}
    path = as_file(tmp_path, json.dumps(passages))
    as_file(tmp_path, json.dumps({"#idiom000378#": 2, "#idiom000379#": 0}), "dev_answer.json")
    rows = READERS["chid"](path)
    assert [(row["id"], row["label"]) for row in rows] == [("#idiom000378#", 2), ("#idiom000379#", 0)]
    assert len(rows[0]["candidates"]) == 3


def test_stories_with_a_missing_word(tmp_path):
    for name in ("cft", "cmrc2017"):
        path, items, golds = written(tmp_path, name)
        for row, (sentences, query), gold in zip(reader_of(name)(path), items, golds):
            assert row["rest"] == "".join(sentences).replace(" ", "") and row["answer"] == gold
            assert row["story"] == row["rest"] + query.replace(" ", "")
            assert row["before"] + "XXXXX" + row["after"] == query.replace(" ", "")


def test_a_query_without_a_missing_word_is_left_out_and_told(tmp_path, caplog):
    path = as_file(tmp_path, "1 ||| 文\n2 ||| 问 ||| 答\n1 ||| 文\n2 ||| 问 XXXXX ||| 答\n", "pd.test")
    assert [row["id"] for row in READERS["cloze"](path)] == [1]
    assert "1 queries have no XXXXX" in caplog.text


@pytest.mark.parametrize(
    "text, joined",
    [
        ("小 猫 。", "小猫。"),
        ("用 Windows 7 吧", "用Windows 7吧"),
        (" iPhone 7s ， 好 ", "iPhone 7s，好"),
        ("a b", "a b"),
    ],
)
def test_spaces_between_chinese_words_are_removed(text, joined):
    assert joined_words(text) == joined


def test_blanks_of_cmrc2019(tmp_path):
    path, items, golds = written(tmp_path, "cmrc2019")
    for row, item, gold in zip(reader_of("cmrc2019")(path), items, golds):
        plain = item["context"]
        for number in range(1, 5):
            plain = plain.replace(f"[BLANK{number}]", "")
        assert [blank["left"] + blank["right"] for blank in row["blanks"]] == [plain] * 4
        assert row["answers"] == gold
    near = READERS["cmrc2019"](path, left_chars=2, right_chars=1)[0]["blanks"]
    assert {(len(blank["left"]), len(blank["right"])) for blank in near} == {(2, 1)}
    assert not any(blank["left"] for blank in READERS["cmrc2019"](path, left_chars=0)[0]["blanks"])


def test_other_forms(tmp_path):
    path, items, golds = written(tmp_path, "webqa")
    rows = reader_of("webqa")(path)
    assert [(row["evidence"], row["question"]) for row in rows] == items
    assert [row["answers"] for row in rows] == [[gold] for gold in golds]
    path, items, golds = written(tmp_path, "dureader")
    assert [(row["context"], row["question"]) for row in reader_of("dureader")(path)] == items
    path, items, golds = written(tmp_path, "wplc")
    assert [(row["context"], row["word"]) for row in reader_of("wplc")(path)] == list(zip(items, golds))


@pytest.mark.parametrize(
    "reader, content, words",
    [
        ("clue", '{"id": 1}\n{"id": 2', "dev.json:2: not JSON.*cut off"),
        ("clue", '{"id": 1}\n{"id": 2,}\n{"id": 3}\n', "dev.json:2: not JSON"),
        ("clue", '{"id": 1}\n[1]\n', "dev.json:2: found list; must be an object"),
        ("clue", b'{"id": "\xff"}\n', "dev.json:1: not UTF-8"),
        ("clue", '[{"id": 1}, 2]', "entry 1: found int"),
        ("cluewsc", '{"text": "abc", "target": {"span2_index": 0, "span2_text": "b"}}', "there is 'a' in the text"),
        ("cluewsc", '{"text": "abc"}', "dev.json:1: no target; there are text"),
        ("squad", '{"data": [{"paragraphs": [{"context"', "dev.json: not JSON.*cut off"),
        ("squad", '{"version": 1}', "no data; there are version"),
        ("squad", '{"data": [{"paragraphs": [{"context": "a"}]}]}', r"data\[0\].paragraphs\[0\]: no qas"),
        ("squad", '{"data": [{"context": "a", "qas": [{"id": 1}]}]}', r"data\[0\].qas\[0\]: no question"),
        ("squad", '"text"', "found str; the published file is another"),
        ("c3", "[[[], []]]", "entry 0: must be a list of a document"),
        ("c3", '[[["a"], [{"question": "q", "choice": ["x"], "answer": "y"}], "1"]]', "'y' is none of the choices"),
        ("chid", '{"content": "a", "candidates": ["x"]}', "dev.json:1: the passage has no #idiom#"),
        ("chid", '{"content": "#idiom#", "candidates": ["x"], "answer": 1}', "none of the candidates"),
        ("chid", '{"content": "#idiom#", "candidates": [["x"], ["y"]]}', "candidates for 2 of 1 blanks"),
        ("cloze", "1 ||| a\n2 a\n", "dev.json:2: must be number"),
        ("cloze", "1 ||| a\n", "the last story has no query"),
        ("cloze", b"1 ||| \xff\n", "dev.json:1: byte 7 of the line is not UTF-8"),
        (
            "cmrc2019",
            '{"data": [{"context": "[BLANK1]", "choices": ["x"], "answers": [0, 1]}]}',
            "2 answers for 1 blanks",
        ),
        ("wplc", '{"masked_text": "a<mask>b"}', "must end with <mask>"),
        ("dureader", '{"question": "q", "documents": [1]}', "dev.json:1: documents: found int"),
        ("dureader", '{"question": "q", "answers": [1]}', "answers holds"),
        ("webqa", '{"Q1": {"evidences": {"a": {"answer": 1}}}}', "answer is '1'; must be a list"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path, reader, content, words):
    with pytest.raises(DataError, match=words):
        READERS[reader](as_file(tmp_path, content))


def test_a_missing_file_says_where_the_set_is_published(tmp_path, tasks):
    for name, task in tasks.items():
        if name == "needle":
            continue
        first = task.data.splits[task.data.evaluate].files[0]
        with pytest.raises(DataError, match="get it from") as error:
            read_rows(task, tmp_path)
        assert first in str(error.value) and task.data.published in str(error.value)


def test_another_number_of_items_is_told(tmp_path):
    written(tmp_path, "tnews")
    assert "has 3 items, the published dev set has 10,000" in read_rows(find_tasks(["tnews"])[0], tmp_path).notes[0]
