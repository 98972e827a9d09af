"""`pangu tasks` with a checkpoint: what its actions print and write."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.eval.tasks.catalog import DEFINITIONS
from pangu_ms.eval.tasks.encoding import encode_parts
from pangu_ms.eval.tasks.task import Task
from tests.eval.tasks.common import task_of, write_lines
from tests.fences import fenced
from tests.reference.alpha_numpy import forward

ROOT = Path(__file__).parents[3]
NAMES = ["alpha", "beta", "gamma", "delta"]
FUNCTION = {
    "name": "function",
    "type": "choice",
    "title": "Which argument a function has",
    "data": {"reader": "clue", "splits": {"dev": {"files": "dev.jsonl"}, "train": {"files": "train.jsonl"}}},
    "context": "def {name}(",
    "continuation": "{choice}):",
    "choices": {"labels": {name: name for name in NAMES}},
    "metrics": ["accuracy"],
    "shots": {"few": 2},
    "published": {"accuracy": {"2.6B": [12.5, None, None]}},
}
BODY = {
    "name": "body",
    "type": "generation",
    "data": {"reader": "clue", "splits": {"dev": {"files": "dev.jsonl"}}},
    "context": "def {name}({label}):",
    "gold": "body",
    "metrics": ["text_match"],
    "decoding": {"max_new_tokens": 6, "stop": []},
}
ROWS = [
    {"id": i, "name": f"{a}_{i}", "label": b, "body": f"\n    return {b}"}
    for i, (a, b) in enumerate(zip(NAMES * 2, (NAMES[1:] + NAMES[:1]) * 2))
]


@pytest.fixture
def data(tmp_path):
    """Options that name two tasks of the language of the checkpoint, and their data."""
    write_lines(tmp_path / "data" / "dev.jsonl", ROWS[:5])
    write_lines(tmp_path / "data" / "train.jsonl", ROWS[5:])
    for tree in (FUNCTION, BODY):
        task_of(tmp_path, tree)
    files = [word for name in ("function", "body") for word in ("--task-file", str(tmp_path / f"{name}.yaml"))]
    return [*files, "--task-data", str(tmp_path / "data")]


def test_list(data, capsys):
    """All that are shipped, and those of the user."""
    assert main(["tasks", "list", *data[:4]]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines[1:]}
    assert {"function", "body", *(path.stem for path in DEFINITIONS.glob("*.yaml"))} <= listed
    assert main(["tasks", "list", "--json"]) == 0
    assert {"cmnli", "c3"} <= {task["name"] for task in json.loads(capsys.readouterr().out)}


def test_show(data, capsys):
    assert main(["tasks", "show", "function", *data, "--items", "1", "--shots", "0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "function (version 1): Which argument a function has"
    begin = lines.index("--- function: item 1, 0-shot")
    assert lines[begin + 1 : begin + 3] == ["[alpha] def alpha_0(-->alpha):", "[beta *] def alpha_0(-->beta):"]
    begin = lines.index("--- function: item 1, 1-shot")
    assert lines[begin + 1].startswith("def ") and lines[begin + 1].endswith("):")
    assert main(["tasks", "show", "body", *data, "--items", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["task"]["name"] == "body" and len(shown["prompts"]) == 2
    assert shown["prompts"][0]["candidates"] == [["def alpha_0(beta):", ""]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "fuction"], "pangu tasks: fuction: no such task; did you mean function?"),
        (["--tasks", "function@x"], "function has no variant x; it has none"),
        (["--tasks", "function", "--shots", "two"], "--shots two: must be numbers up to 1,000 or few, such as 0,1,few"),
        (["--tasks", "function", "--seeds", "-1"], "--seeds -1: must be whole numbers separated by commas"),
        (["--tasks", "function", "--limit", "-1"], "--limit -1: must not be negative; 0 asks all items"),
        (["--tasks", "c3"], "c3/c3-d-dev.json: missing; c3 reads its dev set there"),
    ],
)
def test_mistakes_are_told_before_the_checkpoint_is_opened(data, tmp_path, capsys, words, message):
    assert main(["tasks", "run", "nowhere", *data, "--output", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("mindspore_cpu")
def test_a_checkpoint_is_asked(trained_run, data, tmp_path, capsys):
    """Its log-probabilities are those of the model in float64; the second run asks nothing."""
    output = tmp_path / "out"
    command = ["tasks", "run", str(trained_run), "--tasks", "function,body", *data, "--output", str(output)]
    command += ["--shots", "0,few"]
    assert main(command) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:4] == ["task", "shots", "items", "metric"] and lines[-1] == f"{output}/results.json"
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["function", "0", "5", "accuracy"],
        ["function", "few", "5", "accuracy"],
        ["body", "0", "5", "text_match"],
    ]
    assert "2.6B: 12.5" in lines[1] and "15 items in " in printed.err
    assert "pangu tasks: body: has no demonstrations; it is asked without\n" in printed.err
    results = (output / "results.json").read_bytes()
    checkpoint = store.open_checkpoint(trained_run)
    assert json.loads(results)["model"]["step"] == checkpoint.step
    tokenizer, parameters = checkpoint.tokenizer(), checkpoint.tensors()
    records = [json.loads(line) for line in (output / "records" / "function_0-shot.jsonl").read_text().splitlines()]
    for row, record in zip(ROWS[:2], records):
        for name, total in zip(NAMES, record["logprobs"]):
            context, ids, _ = encode_parts(tokenizer, f"def {row['name']}(", f"{name}):")
            logits = forward(checkpoint.config().model, parameters, np.array([[*context, *ids]])[:, :-1], None)[0]
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = logprobs[range(len(context) - 1, len(context) - 1 + len(ids)), ids].sum()
            assert total == pytest.approx(expected, abs=1e-3)
    answers = [json.loads(line) for line in (output / "records" / "body_0-shot.jsonl").read_text().splitlines()]
    assert all(answer["tokens"] <= 6 for answer in answers)
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(results) and " items in " not in printed.err
    assert (output / "results.json").read_bytes() == results


@pytest.mark.slow
@pytest.mark.usefixtures("mindspore_cpu")
def test_the_batch_changes_no_answer(trained_run, tmp_path):
    """Neither greedy nor sampled ones, of one prompt at a time or of three."""
    from pangu_ms.eval.tasks.model import LocalModel
    from pangu_ms.infer.continuation import Request
    from pangu_ms.infer.sampling import SamplingConfig

    checkpoint = store.open_checkpoint(trained_run)
    found = []
    for batch_size in (1, 3):
        model = LocalModel(checkpoint, batch_size=batch_size)
        requests = [
            Request(
                tuple(model.tokenizer.encode_prompt(f"def {name}(")), SamplingConfig(8, temperature=heat, seed=5), i
            )
            for i, (name, heat) in enumerate((name, heat) for name in NAMES for heat in (0.0, 1.0))
        ]
        found.append([answer for _, answer in sorted(model.generate(requests), key=lambda one: one[0])])
        assert [model.window, model.digest] == [32, LocalModel(checkpoint).digest]
    assert found[0] == found[1] and len({answer.text for answer in found[0]}) > 4


def made_results(tmp_path, name, step, right):
    """A directory of results without a model."""
    from pangu_ms.eval.tasks.task import task_to_dict

    directory = tmp_path / name
    task = task_to_dict(task_of(tmp_path, FUNCTION))
    section = {"task": task, "shots": 0, "seed": None, "items": len(right), "available": 9, "prompts": "p", "gold": "g"}
    model = {"name": name, "digest": name, "window": 32, "step": step}
    directory.mkdir()
    run = {"format_version": 1, "model": model, "sections": {"function_0-shot": section}}
    (directory / "run.json").write_text(json.dumps(run))
    records = [{"index": i, "id": i, "shots": 0, "values": {"accuracy": [one, 1.0]}} for i, one in enumerate(right)]
    write_lines(directory / "records" / "function_0-shot.jsonl", records)
    return str(directory)


def test_the_task_of_the_documentation(tmp_path, capsys):
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (yaml,) = (block for _, language, block in fenced(page) if language == "yaml")
    (tmp_path / "reviews.yaml").write_text(yaml, encoding="utf-8")
    row = json.loads(re.search(r"A line of `reviews/dev.jsonl` is `(.*)`", page)[1])
    for name in ("dev", "train"):
        write_lines(tmp_path / "reviews" / f"{name}.jsonl", [row | {"id": i} for i in range(5)])
    for name in ("reviews", "reviews@plain"):
        words = ["--task-file", str(tmp_path / "reviews.yaml"), "--task-data", str(tmp_path), "--shots", "few"]
        assert main(["tasks", "show", name, *words, "--items", "1"]) == 0
    printed = capsys.readouterr().out
    assert "评论：很好用\n这条评论是正面的。\n\n" in printed and "[Positive *] 很好用总之，我-->喜欢。" in printed
    known = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)*", page, re.MULTILINE))
    fields = {name for names in known for name in names} | {"name", "title", "source", "notes", "version", "id"}
    assert {field.name for field in dataclasses.fields(Task)} <= fields | {"continuation", "blanks"}


def test_tables_of_results(tmp_path, capsys):
    one = made_results(tmp_path, "one", 10, [1.0, 0.0, 0.0, 1.0])
    other = made_results(tmp_path, "other", 20, [1.0, 1.0, 0.0, 1.0])
    assert main(["tasks", "table", one, "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| task | shots | items |") and lines[1].startswith("| --- |")
    assert lines[2] == "| function | 0 | 4 | accuracy | 50.00 | 28.87 | - | 2.6B: 12.5 | ours |"
    assert main(["tasks", "table", one, other, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"task,shots,metric,{one},{other}",
        "function,0,accuracy,50.00 +- 28.87,75.00 +- 25.00",
    ]
    plot = tmp_path / "scores.svg"
    assert main(["tasks", "table", other, one, "--plot", str(plot), "--json"]) == 0
    assert [each["model"]["step"] for each in json.loads(capsys.readouterr().out)] == [20, 10]
    assert "<svg" in plot.read_text()
    assert main(["tasks", "compare", one, other]) == 0
    words = capsys.readouterr().out.splitlines()[1].split()
    assert words == ["function_0-shot", "accuracy", "4", "50.00", "75.00", "+25.00", "points", "25.00", "+1.0"]
    assert main(["tasks", "table", str(tmp_path)]) == 2
    assert "has no run.json; name a directory that `pangu tasks run --output` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("records/function_0-shot.jsonl", "}}", "", "function_0-shot.jsonl:1: not JSON"),
        ("records/function_0-shot.jsonl", "[1.0, 1.0]", "[1.0]", "function_0-shot.jsonl:1: accuracy has no weight"),
        ("records/function_0-shot.jsonl", '"accuracy"', '"other"', "function_0-shot.jsonl:1: has no accuracy"),
        ("records/function_0-shot.jsonl", '"shots"', '"shoot"', "function_0-shot.jsonl:1: shots is None"),
        ("run.json", '"version": 1,', "", "run.json: sections.function_0-shot: task.version is None; it is damaged"),
        ("run.json", '["accuracy"]', '["luck"]', "run.json: sections.function_0-shot: unknown metric luck"),
        ("run.json", '"format_version": 1', '"format_version": 9', "was written by a newer version of pangu-ms"),
    ],
)
def test_damaged_results_are_told(tmp_path, capsys, file, old, new, message):
    one = made_results(tmp_path, "one", 10, [1.0, 0.0])
    path = tmp_path / "one" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    for words in (["table", one], ["compare", one, one]):
        assert main(["tasks", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
