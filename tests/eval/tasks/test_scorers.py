"""What the scores of candidates predict."""

import numpy as np
import pytest

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks.metrics import assign
from pangu_ms.eval.tasks.prompts import Candidate, Prompt
from pangu_ms.eval.tasks.scorers import predict
from pangu_ms.infer.scoring import ContinuationScore
from tests.eval.tasks.common import ASSIGNMENT, CHOICE, task_of, with_fields


def score(*logprobs):
    return ContinuationScore(logprobs, (False,) * len(logprobs))


def prompt_of(number, blanks=0):
    return Prompt(0, 0, "item", (), tuple(Candidate("", "x", f"label {i}") for i in range(number)), None, blanks)


def test_mean_and_sum_prefer_other_candidates(tmp_path):
    """A long continuation has a lower sum, though each of its tokens is likelier."""
    scores = [score(-1.0), score(-0.6, -0.6, -0.6)]
    for normalization, best in (("mean", 1), ("sum", 0)):
        task = task_of(tmp_path, with_fields(CHOICE, normalization=normalization))
        found = predict(task, prompt_of(2), scores)
        assert (found.choice, found.label) == (best, f"label {best}")


def test_an_assignment_gives_each_blank_another_candidate(tmp_path):
    """Both blanks like candidate 1 best; together they do better."""
    values = [[-5.0, -1.0, -2.0], [-9.0, -1.1, -8.0]]
    scores = [score(value) for row in values for value in row]
    task = task_of(tmp_path, ASSIGNMENT)
    assert predict(task, prompt_of(6, blanks=2), scores).assignment == (2, 1)
    long = [score(value / 2, value / 2) for row in values for value in row]
    assert predict(task, prompt_of(6, blanks=2), long).assignment == (2, 1)


def test_a_perplexity_is_of_all_tokens(tmp_path):
    tree = {key: CHOICE[key] for key in ("name", "data", "metrics")} | {"type": "perplexity"}
    task = task_of(tmp_path, tree | {"context": "a", "continuation": "b"})
    found = predict(task, prompt_of(1), [score(-1.5, -2.0)])
    assert found.nats == pytest.approx(3.5) and found.num_tokens == 2


def test_the_first_of_equal_candidates_is_taken(tmp_path):
    assert predict(task_of(tmp_path, CHOICE), prompt_of(3), [score(-2.0), score(-1.0), score(-1.0)]).choice == 1


def test_fewer_candidates_than_blanks():
    with pytest.raises(DataError, match="2 blanks for 1 choices"):
        assign(np.zeros((2, 1)).tolist())
