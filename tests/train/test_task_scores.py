"""Scores on benchmark tasks while a model is trained."""

import json
import math

import numpy as np
import pytest
import yaml

from pangu_ms.checkpoint.store import open_checkpoint, step_path
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.train import run as run_module
from pangu_ms.train.loop import train
from tests.reference import alpha_numpy

pytestmark = pytest.mark.usefixtures("compiled_models")
DATA = {"reader": "clue", "evaluate": "dev", "splits": {"dev": {"files": ["dev.json"]}}}
TASKS = {
    "texts": {"type": "perplexity", "context": "def ", "continuation": "{sentence}", "metrics": ["perplexity"]},
    "names": {
        "type": "choice",
        "context": "{sentence}\n",
        "continuation": "{choice}",
        "choices": {"labels": {0: "alpha", 1: "beta"}},
        "metrics": ["accuracy"],
    },
    "guesses": {"type": "perplexity", "context": "a", "continuation": "{sentence}", "metrics": ["accuracy"]},
    "answers": {"type": "generation", "context": "{sentence}", "gold": "sentence", "metrics": ["f1"]},
}
ROWS = [{"id": i, "sentence": f"alpha_{i}(beta)", "label": i % 2} for i in range(5)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    (directory / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, fields in TASKS.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "data": DATA} | fields))
    return directory


def config_with(files, tiny_overrides, *names, items=4, data=None):
    tasks = ",".join(str(files / f"{name}.yaml") for name in names)
    fields = [f"eval_tasks=[{tasks}]", "eval_tasks_every=6", f"eval_tasks_items={items}"]
    fields += [f"eval_tasks_data={data or files}"]
    return load_config("alpha/tiny", [*tiny_overrides, *(f"train.{field}" for field in fields)])


def expected_perplexity(checkpoint, tokenizer):
    """In float64, from whole sequences."""
    config, weights = checkpoint.config().model, checkpoint.tensors("model")
    nats, count = 0.0, 0
    for row in ROWS[:4]:
        begin, whole = tokenizer.encode("def "), tokenizer.encode("def " + row["sentence"])
        logits = alpha_numpy.forward(config, weights, np.array([whole[:-1]]), None)[0]
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        first = next((i for i, pair in enumerate(zip(begin, whole)) if pair[0] != pair[1]), len(begin))
        nats -= sum(logprobs[i - 1, whole[i]] for i in range(first, len(whole)))
        count += len(whole) - first
    return math.exp(nats / count)


def test_scores_are_metrics_of_the_run(records, files, tiny_overrides, tmp_path):
    # Dropout, which a step switches on, must not be on while the model is scored.
    config = config_with(files, [*tiny_overrides, "model.dropout=0.2", "train.keep_checkpoints=0"], "texts", "names")
    result = train(config, records, tmp_path / "run", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "task/texts/perplexity" in line]
    assert [line["step"] for line in scored] == [5, 11]
    assert all(line["task/names/accuracy"] in (0.0, 25.0, 50.0, 75.0, 100.0) for line in scored)
    assert result.task_scores == {name: value for name, value in scored[-1].items() if name != "step"}
    tokenizer = Tokenizer.load(records.parent / "tokenizer")
    for line in scored:
        checkpoint = open_checkpoint(step_path(tmp_path / "run/checkpoints", line["step"] + 1))
        assert line["task/texts/perplexity"] == pytest.approx(expected_perplexity(checkpoint, tokenizer), rel=1e-4)


@pytest.mark.parametrize(
    ("names", "fields", "error", "message"),
    [
        (["texts"], {"data": "/nowhere"}, DataError, "/nowhere: no such directory"),
        (["answers"], {}, ConfigError, "train.eval_tasks: answers is a task of generation"),
        (["guesses"], {}, ConfigError, "metric accuracy: is for type choice, the task is of type perplexity"),
        (["absent"], {}, ConfigError, "absent.yaml"),
    ],
)
def test_what_cannot_be_scored_is_told_before_the_model_is_built(
    records, files, tiny_overrides, tmp_path, monkeypatch, names, fields, error, message
):
    monkeypatch.setattr(run_module, "build_distributed_model", lambda *_: pytest.fail("the model is built"))
    with pytest.raises(error, match=message):
        train(config_with(files, tiny_overrides, *names, **fields), records, tmp_path / "run", progress=False)


def test_a_run_without_the_whole_model_has_no_tasks(tiny_overrides):
    plan = ["runtime.device=Ascend", "parallel.model_parallel=2", "train.eval_tasks=[c3]"]
    with pytest.raises(ConfigError, match="train.eval_tasks=.*no process of this run has the whole model"):
        load_config("alpha/tiny", [*tiny_overrides, *plan])
