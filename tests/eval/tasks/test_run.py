"""A run over tasks: what it writes, that it goes on where it was interrupted, and what it tells."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.core.errors import ConfigError, DataError, GenerationError, OutputError
from pangu_ms.eval.tasks import datasets
from pangu_ms.eval.tasks.results import compare, read_records, rows_of, summarize
from pangu_ms.eval.tasks.run import Settings, prepare
from tests.eval.tasks.common import (
    CHOICE,
    DEV,
    GENERATION,
    SETTINGS,
    TRAIN,
    Characters,
    HashModel,
    read_lines,
    run,
    task_of,
    with_fields,
    write_lines,
)

ROOT = Path(__file__).parents[3]
ASK = with_fields(GENERATION, decoding={"temperature": 1}, data={"splits": {"dev": {"files": "ask.jsonl"}}})
ASK["shots"] = {"few": 0}
QUESTIONS = [{"question": f"how {i}", "answers": [f"{i / 10:.1f}"]} for i in range(4)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The directory of the data files, whose reader is `lines`."""
    monkeypatch.setitem(datasets.READERS, "lines", read_lines)
    write_lines(tmp_path / "data" / "colour" / "dev.jsonl", DEV)
    write_lines(tmp_path / "data" / "colour_train.jsonl", TRAIN)
    write_lines(tmp_path / "data" / "ask.jsonl", QUESTIONS)
    return tmp_path / "data"


@pytest.fixture
def tasks(tmp_path):
    return [task_of(tmp_path, CHOICE), task_of(tmp_path, ASK)]


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_scores_and_records(tmp_path, data, tasks):
    results = run(tmp_path / "out", tasks, data)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert results["model"] == {"name": "hash", "digest": "0123", "window": 64, "step": 7}
    zero, few, ask = results["scores"]
    assert [(one["task"], one["shots"], one["seeds"]) for one in results["scores"]] == [
        ("colour", 0, []),
        ("colour", "few", [0, 1, 2]),
        ("ask", 0, [0, 1, 2]),
    ]
    records = read_records(tmp_path / "out", "colour_0-shot")
    assert [record["index"] for record in records] == list(range(6)) and records[1]["id"] == "d1"
    right = []
    for row, record in zip(DEV, records):
        means = [total / tokens for total, tokens in zip(record["logprobs"], record["tokens"])]
        assert record["labels"] == ["0", "1"] and record["prediction"] == str(int(np.argmax(means)))
        right.append(float(record["prediction"] == str(row["label"])))
        assert record["values"] == {"accuracy": [right[-1], 1.0]} and record["gold"] == str(row["label"])
    accuracy = zero["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(100 * np.mean(right)) and zero["items"] == 6
    assert accuracy["standard_error"] == pytest.approx(100 * np.std(right, ddof=1) / 6**0.5)
    assert accuracy["published"] == {"2.6B": 50.5} and accuracy["seed_spread"] is None
    of_seeds = [read_records(tmp_path / "out", f"colour_few-shot_seed{seed}") for seed in range(3)]
    right = np.array([[record["values"]["accuracy"][0] for record in own] for own in of_seeds])
    accuracy = few["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(100 * right.mean()) and accuracy["published"] == {"2.6B": 60.25}
    assert accuracy["seed_spread"] == pytest.approx(100 * np.std(right.mean(1), ddof=1))
    assert accuracy["standard_error"] == pytest.approx(100 * np.std(right.mean(0), ddof=1) / 6**0.5), (
        "items, not answers"
    )
    assert ask["metrics"]["exact_match"]["published"] == {} and few["mean_shots"] <= 3


def test_a_run_that_was_killed_goes_on(tmp_path, data, tasks):
    """At any item, with the file of records cut anywhere in a line: the files become the same, and no item is asked
    again whose answer was there."""
    run(tmp_path / "whole", tasks, data)
    expected, number = files_of(tmp_path / "whole"), 6 * 4 + 4 * 3

    class Killed(Exception):
        pass

    class Dying(HashModel):
        def __init__(self, items):
            super().__init__()
            self.left = items

        def score(self, items, on_scored=lambda number: None):
            for found in super().score(items):
                yield self._count(found)

        def generate(self, requests):
            for found in super().generate(requests):
                yield self._count(found)

        def _count(self, found):
            if not self.left:
                raise Killed
            self.left -= 1
            return found

    for items in (0, 6, 20, number - 1):
        directory, resumed = tmp_path / f"killed{items}", HashModel()
        with pytest.raises(Killed):
            run(directory, tasks, data, model=Dying(items))
        for part in directory.rglob("*.part"):
            part.write_bytes(part.read_bytes()[:-3])
        cut = sum(1 for _ in directory.rglob("*.part"))
        run(directory, tasks, data, model=resumed)
        assert files_of(directory) == expected
        assert number - items <= resumed.asked <= number - items + cut
    again = HashModel()
    run(tmp_path / "whole", tasks, data, model=again)
    assert again.asked == 0 and files_of(tmp_path / "whole") == expected


KILLED = """
import os, sys
from pathlib import Path
from pangu_ms.eval.tasks import datasets
from tests.eval.tasks.common import CHOICE, SETTINGS, HashModel, read_lines, run, task_of

class Killed(HashModel):
    def score(self, items, on_scored=lambda number: None):
        for index, found in super().score(items):
            if self.asked == 8:
                os.kill(os.getpid(), 9)
            yield index, found

datasets.READERS["lines"] = read_lines
base = Path(sys.argv[1])
run(base / "killed", [task_of(base, CHOICE)], base / "data", model=Killed())
"""


def test_a_process_that_was_killed_leaves_what_it_had(tmp_path, data, tasks):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "killed" / "results.json").exists()
    model = HashModel()
    run(tmp_path / "killed", tasks[:1], data, model=model)
    run(tmp_path / "whole", tasks[:1], data)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole") and model.asked == 24 - 7


def test_other_tasks_join_a_run(tmp_path, data, tasks):
    run(tmp_path / "out", tasks[:1], data, Settings((0,)))
    results = run(tmp_path / "out", tasks[1:], data, Settings((0,), limit=3))
    assert [score["task"] for score in results["scores"]] == ["colour", "ask"]
    assert [(score["items"], score["available"]) for score in results["scores"]] == [(6, 6), (3, 4)]


def test_what_does_not_belong_to_a_run(tmp_path, data, tasks):
    run(tmp_path / "out", tasks[:1], data, Settings((0,)))
    before = files_of(tmp_path / "out")
    model = HashModel()
    model.digest = "other"
    with pytest.raises(GenerationError, match="run.json: has answers of another model .hash.; name a new --output"):
        run(tmp_path / "out", tasks[:1], data, Settings((0,)), model)
    with pytest.raises(GenerationError, match="colour_0-shot is there with other items, prompts, gold; give the same"):
        run(tmp_path / "out", tasks[:1], data, Settings((0,), limit=2))
    run(tmp_path / "seeds", tasks[:1], data, Settings((1,), seeds=(0,)))
    with pytest.raises(GenerationError, match="1-shot_seed0 has other items than colour_1-shot_seed1.*same data and"):
        run(tmp_path / "seeds", tasks[:1], data, Settings((1,), seeds=(1,), limit=2))
    changed = task_of(tmp_path, with_fields(CHOICE, normalization="sum"))
    with pytest.raises(GenerationError, match="colour_0-shot is there with other task; give the same"):
        run(tmp_path / "out", [changed], data, Settings((0,)))
    assert files_of(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "mine" / ".lock").touch()  # a run's directory has one
    with pytest.raises(OutputError, match="exists with other content .file.; nothing is overwritten"):
        run(tmp_path / "mine", tasks[:1], data)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"file", ".lock"}


def test_order_changes_no_prediction(tmp_path, data):
    """Neither that of the items nor that of the candidates."""

    def predictions(name, rows, tree=CHOICE):
        write_lines(data / "colour" / "dev.jsonl", rows)
        run(tmp_path / name, [task_of(tmp_path, tree)], data, Settings((0, 2)))
        files = ("colour_0-shot", "colour_2-shot_seed0")
        return [{one["id"]: one["prediction"] for one in read_records(tmp_path / name, file)} for file in files]

    expected = predictions("a", DEV)
    turned = with_fields(CHOICE)
    turned["choices"] = {"labels": {1: "blue", 0: "red"}}
    assert predictions("b", DEV[::-1]) == expected == predictions("c", DEV, turned)
    assert {label for own in expected for label in own.values()} == {"0", "1"}


def test_unlabelled_items_make_a_submission(tmp_path, data, tasks):
    rows = [{key: row[key] for key in row if key != "label"} for row in DEV[:2]] + DEV[2:]
    write_lines(data / "colour" / "dev.jsonl", rows)
    write_lines(data / "ask.jsonl", [{"question": "why", "id": "q1"}])
    results = run(tmp_path / "out", tasks, data, Settings((0,)))
    assert [score["unlabelled"] for score in results["scores"]] == [2, 1]
    lines = (tmp_path / "out" / "submissions" / "colour_0-shot.jsonl").read_text().splitlines()
    records = read_records(tmp_path / "out", "colour_0-shot")
    assert [json.loads(line) for line in lines] == [{"id": one["id"], "label": one["prediction"]} for one in records]
    assert "gold" not in records[0] and "values" not in records[0] and "values" in records[2]
    accuracy = results["scores"][0]["metrics"]["accuracy"]["value"]
    assert accuracy == pytest.approx(100 * np.mean([record["values"]["accuracy"][0] for record in records[2:]]))
    assert results["scores"][1]["metrics"]["exact_match"]["value"] is None
    answers = json.loads((tmp_path / "out" / "submissions" / "ask_0-shot_seed0.json").read_text())
    assert answers == {"q1": read_records(tmp_path / "out", "ask_0-shot_seed0")[0]["prediction"]}


def test_what_is_told_before_a_model_is_loaded(tmp_path, data, tasks):
    colour = tasks[0]
    assert prepare([colour], Settings((0,)), data)[1] == []
    write_lines(data / "colour" / "dev.jsonl", DEV[:4])
    (note,) = prepare([colour], Settings((0,)), data)[1]
    assert "dev.jsonl: has 4 items, the published dev set has 6" in note
    (sections, notes) = prepare(tasks, Settings((0, 1), limit=2), data)
    assert "ask: has no demonstrations; it is asked without" in notes
    assert [(one.name, len(one.prompts)) for one in sections] == [
        ("colour_0-shot", 2),
        ("colour_1-shot_seed0", 2),
        ("ask_0-shot_seed0", 2),
    ]
    write_lines(data / "colour_train.jsonl", TRAIN[:2])
    assert any("2 demonstrations instead of 3" in note for note in prepare([colour], Settings(("few",)), data)[1])
    (data / "colour_train.jsonl").unlink()
    with pytest.raises(DataError, match="colour_train.jsonl: missing; colour reads its train set there"):
        prepare([colour], Settings((0, 1)), data)
    sections, notes = prepare([colour], Settings((0, 1)), data, tolerant=True)
    assert [one.name for one in sections] == ["colour_0-shot"]
    assert any(note.startswith("colour: left out with demonstrations: ") for note in notes)
    (data / "colour" / "dev.jsonl").unlink()
    with pytest.raises(DataError) as error:
        prepare(tasks, Settings((0,)), data)
    assert str(error.value) == (
        f"{data}/colour/dev.jsonl: missing; colour reads its dev set there (or colour.jsonl); get it from"
        " https://example.org/colours, and give it this name"
    )
    sections, notes = prepare(tasks, Settings((0,)), data, tolerant=True)
    assert [one.task.name for one in sections] == ["ask"] and notes[0].startswith("left out: ")
    with pytest.raises(ConfigError, match="nothing is left to ask"):
        prepare([colour], Settings((0,)), data, tolerant=True)
    with pytest.raises(DataError, match="colour: needs colour/dev.jsonl; name the directory with --task-data"):
        prepare([colour], Settings((0,)), None)
    with pytest.raises(DataError, match="--task-data .*nowhere: no such directory; name the one that holds colour/dev"):
        prepare([colour], Settings((0,)), tmp_path / "nowhere")
    (data / "colour.jsonl").write_text("")
    with pytest.raises(DataError, match="colour.jsonl: holds no item; get the file anew from https://example.org"):
        prepare([colour], Settings((0,)), data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["acuracy"]}, "colour: metric acuracy: unknown; known: "),
        (
            {"metrics": ["f1"]},
            "colour: metric f1: is for type generation, the task is of type choice; known for it: acc",
        ),
        ({"data": {"reader": "line"}}, "colour: data.reader=line: no such reader; did you mean lines?"),
        (
            {"data": {"options": {"x": 1}}},
            "colour: data.options: .* unexpected keyword argument 'x'; mend the task file",
        ),
        (
            {"data": {"splits": {"dev": {}, "train": {}}}},
            "colour: data.splits.dev.files: reader lines reads a file; name",
        ),
        ({"shots": {"split": "test"}}, "colour: has no split test; it has dev, train; mend the task file"),
    ],
)
def test_names_that_a_task_file_must_know(tmp_path, data, monkeypatch, change, message):
    monkeypatch.setitem(datasets.READERS, "lines", lambda path: read_lines(path))
    with pytest.raises(ConfigError, match=message):
        prepare([task_of(tmp_path, with_fields(CHOICE, **change))], SETTINGS, data)


def test_a_tokenizer_that_cannot_spell_is_found_before_anything_is_asked(tmp_path, data, tasks):
    model = HashModel(tokenizer=Characters(unknown="Q"))
    with pytest.raises(DataError, match="ask: the tokenizer cannot spell 'Q'"):
        run(tmp_path / "out", tasks, data, model=model)
    assert model.asked == 0


def test_an_answer_that_failed_is_told_behind_the_others(tmp_path, data, tasks):
    class Failing(HashModel):
        def score(self, items, on_scored=lambda number: None):
            for index, found in super().score(items):
                yield index, [type(one)((), (), 0, "the weights are damaged") if index == 2 else one for one in found]

    with pytest.raises(GenerationError, match="colour: item 3: candidate 1: the weights are damaged"):
        run(tmp_path / "out", tasks[:1], data, Settings((0,)), Failing())
    mended = HashModel()
    run(tmp_path / "out", tasks[:1], data, Settings((0,)), mended)
    assert mended.asked == 1, "the others were kept"


def test_one_process_writes_a_directory(tmp_path, data, tasks):
    run(tmp_path / "out", tasks[:1], data, Settings((0,)))
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "out" / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(GenerationError, match="another process writes it; wait for it or end it"):
            run(tmp_path / "out", tasks[:1], data, Settings((0,)))
    finally:
        other.communicate(b"\n")
    run(tmp_path / "out", tasks[:1], data, Settings((0,)))


def test_paired_differences(tmp_path, data, tasks):
    one, other = tmp_path / "one", tmp_path / "other"
    second = HashModel(salt="b")
    second.digest = "4567"
    run(one, tasks, data)
    run(other, tasks, data, model=second)
    found = {(row["section"], row["metric"]): row for row in compare(one, other)}
    row = found["colour_few-shot_seed1", "accuracy"]
    values = [
        np.array([record["values"]["accuracy"][0] for record in read_records(directory, "colour_few-shot_seed1")])
        for directory in (one, other)
    ]
    difference = 100 * (values[1] - values[0])
    assert row["values"] == [pytest.approx(100 * own.mean()) for own in values] and row["items"] == 6
    assert row["difference"] == pytest.approx(difference.mean()) and row["unit"] == "points"
    assert row["standard_error"] == pytest.approx(difference.std(ddof=1) / 6**0.5)
    same = compare(one, one)
    assert all(row["difference"] == 0 and row["standard_error"] == 0 for row in same)
    run(tmp_path / "fewer", tasks[:1], data, Settings((0,), limit=3))
    assert compare(one, tmp_path / "fewer") == [
        {"section": "colour_0-shot", "metric": "accuracy", "reason": "other items or prompts"}
    ]
    run(tmp_path / "ask", tasks[1:], data)
    with pytest.raises(OutputError, match="have no task in common"):
        compare(tmp_path / "fewer", tmp_path / "ask")
    with pytest.raises(OutputError, match="has no run.json; name a directory that `pangu tasks run"):
        compare(one, tmp_path / "nowhere")


def test_perplexities(tmp_path, data):
    tree = {
        "name": "last",
        "type": "perplexity",
        "data": {"reader": "lines", "splits": {"dev": {"files": "last.jsonl"}}},
        "context": "{text} ",
        "continuation": "{word}",
        "metrics": ["perplexity", "word_perplexity"],
    }
    write_lines(data / "last.jsonl", [{"text": f"a {i}", "word": "x" * (i + 1)} for i in range(5)])
    results = run(tmp_path / "out", [task_of(tmp_path, tree)], data)
    records = read_records(tmp_path / "out", "last_0-shot")
    nats, tokens = [record["prediction"] for record in records], [record["tokens"][0] for record in records]
    assert tokens == [1, 2, 3, 4, 5]
    metrics = results["scores"][0]["metrics"]
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(sum(nats) / 15))
    assert metrics["word_perplexity"]["value"] == pytest.approx(math.exp(sum(nats) / 5))
    error = np.std(nats, ddof=1) / 5**0.5 * metrics["word_perplexity"]["value"]
    assert metrics["word_perplexity"]["standard_error"] == pytest.approx(error)
    row = compare(tmp_path / "out", tmp_path / "out")[0]
    assert row["unit"] == "nats" and row["values"][0] == pytest.approx(metrics["perplexity"]["value"])


def test_rows_of_a_table(tmp_path, data, tasks):
    run(tmp_path / "out", tasks, data, Settings((0,)))
    rows = list(rows_of(summarize(tmp_path / "out")))
    assert rows[0][:4] == ("colour", "0", "6", "accuracy") and rows[0][-2:] == ("2.6B: 50.5", "ours")
    assert rows[1][:4] == ("ask", "0", "4", "exact_match") and rows[1][-2] == "-"
