"""Asks a model the prompts of a task, and makes predictions of what it says. numpy only, apart from the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.eval.tasks.encoding import Encoded, Encoder
from pangu_ms.eval.tasks.metrics import assign
from pangu_ms.eval.tasks.model import Answer, EvaluatedModel
from pangu_ms.eval.tasks.prediction import Prediction
from pangu_ms.eval.tasks.prompts import Prompt
from pangu_ms.eval.tasks.task import Task
from pangu_ms.infer.scoring import ContinuationScore


@dataclass(frozen=True)
class Asked:
    """What a model said to one prompt.

    Attributes:
        prompt: that one.
        encoded: as it read it.
        prediction: what that means; None if something went wrong.
        said: the same for records: log-probabilities of all candidates, or the reason why an answer ended.
        error: what went wrong, "" if nothing.
    """

    prompt: Prompt
    encoded: Encoded
    prediction: Prediction | None
    said: dict[str, Any]
    error: str = ""


def ask(
    model: EvaluatedModel, encoder: Encoder, prompts: Sequence[Prompt], on_asked: Callable[[], None] = lambda: None
) -> Iterator[Asked]:
    """Ask prompts of one task; yields in any order, as soon as one is done.

    Args:
        model: answers.
        encoder: of the task, for this model.
        prompts: what to ask.
        on_asked: called behind each.

    Raises:
        DataError: a prompt cannot be encoded; nothing was asked then.
        GenerationError: a prompt cannot be scored or continued; nothing was asked then.
    """
    task, encoded = encoder.task, [encoder.encode(prompt) for prompt in prompts]
    if task.type == "generation":
        requests = [one.request for one in encoded if one.request]
        for index, answer in model.generate(requests):
            yield Asked(prompts[index], encoded[index], *_generated(answer))
            on_asked()
        return
    items = [one.item for one in encoded if one.item]
    for index, scores in model.score(items):
        yield Asked(prompts[index], encoded[index], *_scored(task, prompts[index], scores))
        on_asked()


def _generated(answer: Answer) -> tuple[Prediction | None, dict[str, Any], str]:
    said = {"tokens": answer.num_tokens, "finish_reason": answer.finish_reason}
    return (None if answer.error else Prediction(text=answer.text)), said, answer.error


def _scored(
    task: Task, prompt: Prompt, scores: Sequence[ContinuationScore]
) -> tuple[Prediction | None, dict[str, Any], str]:
    for number, score in enumerate(scores, 1):
        if score.error:
            return None, {}, f"candidate {number}: {score.error}"
    said = {"logprobs": [score.total for score in scores], "tokens": [len(score.logprobs) for score in scores]}
    return predict(task, prompt, scores), said, ""


def predict(task: Task, prompt: Prompt, scores: Sequence[ContinuationScore]) -> Prediction:
    """The prediction of a task with a loss.

    Args:
        task: says how candidates compare.
        prompt: the item.
        scores: one for each of its candidates.

    Raises:
        DataError: there are fewer candidates than blanks.
    """
    if task.type == "perplexity":
        return Prediction(nats=-scores[0].total, num_tokens=len(scores[0].logprobs))
    mean = task.normalization == "mean"
    values = np.array([score.total / len(score.logprobs) if mean else score.total for score in scores])
    if task.type == "choice":
        best = int(values.argmax())
        return Prediction(choice=best, label=prompt.candidates[best].label)
    return Prediction(assignment=assign((-values.reshape(prompt.blanks, -1)).tolist()))
