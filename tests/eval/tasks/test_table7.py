"""The prompts of the paper's tasks are, byte for byte, those of its Table 7, which table7.txt holds: $Name stands for
what an item fills in, a/b for labels of which each candidate has one."""

import itertools
from pathlib import Path

import pytest

from pangu_ms.eval.tasks.catalog import find_tasks
from pangu_ms.eval.tasks.prompts import make_prompts

TABLE = dict(
    line.split("\t") for line in Path(__file__).with_name("table7.txt").read_text(encoding="utf-8").splitlines()
)
ROWS = {
    **dict.fromkeys(("cmrc2018", "drcd", "dureader"), {"context": "$Document", "question": "$Question"}),
    "webqa": {"question": "$Question"},
    "c3": {"question": "$Question", "context": "$Passage", "choices": ["$Choice"]},
    **dict.fromkeys(("cmnli", "ocnli", "afqmc"), {"sentence1": "$S1", "sentence2": "$S2"}),
    **dict.fromkeys(("tnews", "iflytek"), {"sentence": "$passage"}),
    "csl": {"abst": "$passage", "keyword": ["$keyword"]},
}
"""What the readers make of an item whose values are the names of the table."""
LABELS = {"cmnli": "对/或许/错", "ocnli": "对/或许/错", "afqmc": "相同/不同", "csl": "是/不是"}


@pytest.mark.parametrize("name", TABLE)
def test_prompts_are_those_of_table_7(name):
    (task,) = find_tasks([name])
    (prompt,) = make_prompts(task, [ROWS[name]])
    template = TABLE[name].replace("\\n", "\n")
    labels = LABELS.get(name)
    if labels:
        expected = [template.replace(labels, label) for label in labels.split("/")]
    elif "$label" in template:
        expected = [template.replace("$label", text) for text in task.choices.labels.values()]
        assert len(expected) == {"tnews": 15, "iflytek": 119}[name]
    else:
        expected = [template]
    found = [candidate.context + candidate.continuation for candidate in prompt.candidates]
    assert sorted(found) == sorted(expected) and "Table 7" in task.source


def test_figure_10_is_a_variant():
    (task,) = find_tasks(["cmnli@figure10"])
    (prompt,) = make_prompts(task, [ROWS["cmnli"]])
    assert {one.context + one.continuation for one in prompt.candidates} == {
        f"$S1, {label}?$S2" for label in ("对", "或许", "错")
    }


def test_demonstrations_of_cmrc_are_whole_blocks():
    """Figure 9 of the paper: passage, question and answer each time."""
    (task,) = find_tasks(["cmrc2018"])
    rows = [{"context": f"文{i}", "question": f"题{i}", "answers": [f"答案{i}"]} for i in range(3)]
    (prompt,) = make_prompts(task, rows[:1], 2, 0, rows)
    shown = {f"阅读文章：文{i}\n问：题{i}\n答：答案{i}\n" for i in range(3)}
    assert len({*prompt.demonstrations}) == 2 and {*prompt.demonstrations} <= shown


def test_what_is_scored():
    """The text behind the label, as the official repository has it; of CSL the whole text."""
    scored = {}
    for name in ("tnews", "iflytek", "afqmc", "cmnli", "ocnli", "c3", "csl"):
        (task,) = find_tasks([name])
        scored[name] = {one.continuation for one in make_prompts(task, [ROWS[name]])[0].candidates}
    csl = scored.pop("csl")
    assert csl == {f"摘要：$passage，关键词：$keyword{label}真实关键词" for label in ("是", "不是")}
    assert scored == {
        "tnews": {"$passage"},
        "iflytek": {"$passage"},
        "afqmc": {"$S1。$S2"},
        "cmnli": {"$S2"},
        "ocnli": {"$S2"},
        "c3": {"$Passage"},
    }


def test_sizes_of_few():
    """Of Table 10."""
    few = {
        name: find_tasks([name])[0].shots.few
        for name in ("tnews", "iflytek", "afqmc", "csl", "c3", "webqa", "dureader")
    }
    assert few == {"tnews": 6, "iflytek": 3, "afqmc": 4, "csl": 10, "c3": 3, "webqa": 8, "dureader": 6}
    assert find_tasks(["cmrc2018"])[0].shots.few == find_tasks(["drcd"])[0].shots.few == "dynamic"


def test_published_scores_are_those_of_table_10():
    """A sample of it, of each kind."""
    for name, metric, size, expected in (
        ("cmrc2018", "f1", "2.6B", (16.65, 18.57, 23.22)),
        ("tnews", "accuracy", "13B", (60.26, 63.83, 65.17)),
        ("csl", "accuracy", "13B", (49.30, 50.20, 55.70)),
        ("wplc", "perplexity", "2.6B", (16.70, None, None)),
        ("pd", "text_match", "2.6B", (38.47, 38.8, 39.07)),
    ):
        assert find_tasks([name])[0].published[metric][size] == expected


def test_labels_of_every_variant_differ():
    """Two candidates with one text could not be told apart."""
    for task in itertools.chain(find_tasks(["all"])):
        texts = list(task.choices.labels.values()) if task.choices else []
        assert len(texts) == len(set(texts)), task.name
