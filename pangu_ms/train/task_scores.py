"""Scores of benchmark tasks while a model is trained (`train.eval_tasks`), to see its progress: without demonstrations,
on the first items of each task, and by log-probabilities only, which the model that is trained can compute as it is.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.core.errors import ConfigError, DataError, GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.tasks.catalog import find_tasks, read_rows, require_metrics
from pangu_ms.eval.tasks.encoding import Encoder, require_spelling
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.model import Answer, OnScored
from pangu_ms.eval.tasks.prediction import Estimate
from pangu_ms.eval.tasks.prompts import Prompt, make_prompts
from pangu_ms.eval.tasks.scorers import ask
from pangu_ms.eval.tasks.task import Task, read_task
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.load import domains_of
from pangu_ms.infer.scoring import ContinuationScore, Item
from pangu_ms.infer.window_scorer import WindowScorer

if TYPE_CHECKING:
    from mindspore import nn

log = logging.getLogger(__name__)
SHORTEST = 64
"""Tokens of the rows of a graph, at least."""


@dataclass(frozen=True)
class _Asked:
    """A task with its items."""

    task: Task
    encoder: Encoder
    prompts: list[Prompt]


class TaskScores:
    """Scores the model of a run on the tasks of its configuration.

    Attributes:
        tasks: names of the tasks.
    """

    def __init__(self, config: RunConfig, tokenizer: Path | None):
        """Read and encode the items; no model is needed yet.

        Args:
            config: names the tasks and their data.
            tokenizer: of the run's records.

        Raises:
            ConfigError: there is no such task, or it is one of generation.
            DataError: a file of a task is missing or wrong, or the records have no tokenizer.
        """
        train, window = config.train, config.model.seq_length
        if tokenizer is None:
            raise DataError(
                "train.eval_tasks: the records have no tokenizer, which texts need; use records of `pangu data"
                " prepare`, or train.eval_tasks=[]"
            )
        self.config, self.tokenizer = config, Tokenizer.load(tokenizer)
        self._asked = []
        for task in _tasks(train.eval_tasks):
            if task.type == "generation":
                raise ConfigError(
                    f"train.eval_tasks: {task.name} is a task of generation; a run scores tasks of log-probabilities"
                    " only; remove it, and score checkpoints on it"
                )
            require_metrics(task)
            require_spelling(task, self.tokenizer)
            read = read_rows(task, Path(train.eval_tasks_data) if train.eval_tasks_data else None)
            for note in read.notes:
                log.warning("train.eval_tasks: %s", note)
            number = min(len(read.rows), train.eval_tasks_items or len(read.rows))
            prompts = [one for one in make_prompts(task, read.rows, indices=range(number)) if one.gold]
            if not prompts:
                raise DataError(f"train.eval_tasks: {task.name}: the first {number} items have no gold label")
            self._asked.append(_Asked(task, Encoder(task, self.tokenizer, window), prompts))
        self.tasks = [one.task.name for one in self._asked]
        longest = max(one.longest() for one in self._items())
        self.length = min(max(SHORTEST, 1 << (longest - 1).bit_length()), window)
        self._scorer: WindowScorer | None = None

    def score(self, model: "nn.Cell") -> dict[str, float]:
        """Scores by the names that they have in metrics.jsonl: `task/NAME/METRIC`.

        Args:
            model: of `build_model`; the same one in each call, since its graph is compiled in the first.

        Raises:
            GenerationError: a log-probability is no number.
        """
        if self._scorer is None:
            self._scorer = self._compiled(model)
        scored, found = _Scored(self._scorer, self.tokenizer), dict[str, float]()
        for one in self._asked:
            predictions = []
            for asked in ask(scored, one.encoder, one.prompts):
                if asked.prediction is None or asked.prompt.gold is None:
                    raise GenerationError(f"{asked.prompt.place}: {asked.error}")
                predictions.append((asked.prediction, asked.prompt.gold))
            for name in one.task.metrics:
                factor = 100.0 if METRICS[name].percent else 1.0
                values = [METRICS[name].item(*pair) for pair in predictions]
                mean = Estimate.of([value for value, _ in values], [weight for _, weight in values]).mean
                found[f"task/{one.task.name}/{name}"] = METRICS[name].finish(mean) * factor
        return found

    def _items(self) -> Iterator[Item]:
        for one in self._asked:
            for prompt in one.prompts:
                if item := one.encoder.encode(prompt).item:
                    yield item

    def _compiled(self, model: "nn.Cell") -> WindowScorer:
        from pangu_ms.models.common.loss import TokenLogprobs

        config = self.config
        identity = {
            "graph": "score tasks of a run",
            "model": config_to_dict(config)["model"],
            "length": self.length,
            "device": config.runtime.device,
        }
        return WindowScorer(
            TokenLogprobs(model),  # without dropout; it is compiled in the first call, and never again
            self.tokenizer,
            self.length,
            domains_of(config.model),
            lambda *sizes: cached_compile(config.runtime.compile_cache, identity | {"sizes": sizes}),
        )


def _tasks(named: Sequence[str]) -> list[Task]:
    """Tasks by their names, or of files of the user."""
    own = {name: Path(name) for name in named if name.endswith((".yaml", ".yml"))}
    return find_tasks([read_task(own[name]).name if name in own else name for name in named], own.values())


@dataclass(frozen=True)
class _Scored:
    """The model of a run as an EvaluatedModel, which only scores."""

    scorer: WindowScorer
    tokenizer: Tokenizer
    name: str = "the model of the run"
    digest: str = ""

    @property
    def window(self) -> int:
        """See EvaluatedModel."""
        return self.scorer.window

    def score(
        self, items: Sequence[Item], on_scored: OnScored = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """See EvaluatedModel."""
        return self.scorer.score_all(items, on_scored)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See EvaluatedModel."""
        raise GenerationError("the model of a run does not generate")
