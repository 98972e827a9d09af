"""Runs lm-eval's evaluator in this process with a model of ours. Needs the extra [eval].

Tasks of choices get one more measure, `acc_tokens`: the accuracy by the mean log-likelihood of a token, by which the
paper of PanGu-alpha compares candidates; lm-eval's `acc` takes the sum, and `acc_norm` divides it by characters. Tasks
with a loss get `token_perplexity`.
"""

import dataclasses
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.metrics import mean, weighted_perplexity
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError, DataError, UserError
from pangu_ms.eval.harness import Chat, HarnessModel, LogLikelihood
from pangu_ms.eval.harness_export import TOKEN_ACCURACY, TOKEN_PERPLEXITY
from pangu_ms.eval.tasks.model import EvaluatedModel


@dataclass(frozen=True)
class Settings:
    """What lm-eval is asked for: arguments of its `simple_evaluate`."""

    num_fewshot: int | None = None
    limit: float | None = None
    gen_kwargs: str | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    log_samples: bool = False
    use_cache: str | None = None
    cache_requests: bool = False
    seed: int = 1234
    bootstrap_iters: int = 1000
    confirm_run_unsafe_code: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and (self.limit <= 0 or self.limit > 1 and self.limit % 1):
            raise ConfigError(f"--limit {self.limit:g}: must be a whole number of items, or a share between 0 and 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"--num-fewshot {self.num_fewshot}: must not be negative; 0 shows no demonstrations")


@dataclass(frozen=True)
class Found:
    """What lm-eval found.

    Attributes:
        results: what lm-eval writes, as plain values, without the samples.
        samples: by task, each item with the model's answers; empty unless `log_samples` asked for them.
        cut_contexts: contexts that the window had no room for.
        cut_tokens: tokens that were cut off them.
    """

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    cut_contexts: int
    cut_tokens: int

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(task, demonstrations, measure, value, standard error) for people, each measure in a row."""
        rows = []
        for task, measures in self.results["results"].items():
            shots = str(self.results.get("n-shot", {}).get(task, ""))
            for key, value in measures.items():
                measure, _, rule = key.partition(",")
                if not rule or measure.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                error = measures.get(f"{measure}_stderr,{rule}")
                shown = f"{error:.4f}" if isinstance(error, (int, float)) else "-"
                rows.append((task, shots, measure if rule == "none" else f"{measure} ({rule})", f"{value:.4f}", shown))
        return rows

    def with_other_shots(self, number: int | None) -> list[str]:
        """Tasks that were asked with another number of demonstrations than this: lm-eval leaves a task at 0 whose file
        says 0."""
        shots = self.results.get("n-shot", {})
        return [] if number is None else [task for task, found in shots.items() if found != number]

    def write(self, directory: Path) -> None:
        """Write results.json, and samples_TASK.jsonl of each task with samples, into a new directory.

        Raises:
            OutputError: the directory has content, or cannot be written.
        """
        with files.new_directory(directory) as temporary:
            (temporary / "results.json").write_text(files.json_text(self.results), encoding="utf-8")
            for task, samples in self.samples.items():
                lines = (json.dumps(one, ensure_ascii=False, default=handle_non_serializable) + "\n" for one in samples)
                text = "".join(lines)
                (temporary / f"samples_{task}.jsonl").write_bytes(text.encode(errors="backslashreplace"))


class Tasks(TaskManager):
    """lm-eval's tasks, which say in one line what cannot be loaded, and have measures by tokens.

    Attributes:
        target_delimiter: what stands between context and answer, in place of what the tasks say; None leaves that.
    """

    target_delimiter: str | None = None

    def load(self, task_list: Any) -> Any:
        """See TaskManager."""
        items: list[Any] = []
        for name in [task_list] if isinstance(task_list, str) else task_list:
            loaded = self._loaded(name)
            items += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
        try:
            loaded = super().load(items)
        except ValueError as error:  # a task that is named twice
            raise ConfigError(f"--tasks: {error}; name it once") from None
        for task in loaded["tasks"].values():
            _add_measure(task)
            if self.target_delimiter is not None and isinstance(task, ConfigurableTask):
                task.set_config("target_delimiter", self.target_delimiter)
                task.fewshot_cfg.target_delimiter = self.target_delimiter
        for group in loaded["groups"].values():
            _add_group_measure(group)
        return loaded

    def _loaded(self, name: str) -> Any:
        try:
            return super().load(name)
        except UserError:
            raise
        except Exception as error:  # whatever a task's own code, a loader of data or the network raises
            reason = " ".join(str(error).split()) or "no reason given"
            raise DataError(
                f"{name}: its data cannot be loaded: {type(error).__name__}: {reason[:300]}; lm-eval downloads data"
                " from the Hugging Face hub: load it once where there is a network and copy $HF_HOME"
                " (~/.cache/huggingface) here, or correct dataset_path and data_files of a file of your own"
            ) from None


def task_manager(names: Sequence[str], include_path: Path | None = None, defaults: bool = True) -> Tasks:
    """A manager that knows the named tasks.

    Args:
        names: of tasks, groups and tags.
        include_path: directory with task files of the user.
        defaults: whether there are lm-eval's own tasks, too. Their thousands of files are read only if a task is not in
            `include_path`.

    Raises:
        DataError: there is no such task or directory.
    """
    if not names:
        raise ConfigError("--tasks: names no task; `lm-eval ls tasks` lists those of lm-eval")
    if include_path and not include_path.is_dir():
        raise DataError(f"--include-path {include_path}: no such directory; name the one with the task files")
    path = str(include_path.resolve()) if include_path else None
    found = Tasks(include_path=path, include_defaults=False)
    if defaults and not set(names) <= set(found.all_tasks):
        found = Tasks(include_path=path)
    for name in names:
        if name not in found.all_tasks:
            near = difflib.get_close_matches(name, found.all_tasks, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them"
            raise DataError(f"--tasks {name}: lm-eval has no such task; {hint}")
    return found


def run(
    model: EvaluatedModel,
    names: Sequence[str],
    manager: Tasks,
    settings: Settings,
    chat: Chat | None = None,
    progress: bool = True,
) -> Found:
    """Score a model on tasks of lm-eval.

    Args:
        model: whose answers count.
        names: of tasks, groups and tags.
        manager: knows them.
        settings: how they are asked.
        chat: puts the prompts into a template of chats.
        progress: show bars.

    Raises:
        DataError: the data of a task cannot be loaded, or the tokenizer makes no token of a continuation.
        GenerationError: an item cannot be scored or continued.
        ConfigError: a task runs code of the model, which must be confirmed, or options do not go together.
    """
    if settings.fewshot_as_multiturn and not chat:
        raise ConfigError("--fewshot-as-multiturn: needs --apply-chat-template, whose turns the demonstrations are")
    lm = HarnessModel(model, chat, settings.seed, progress)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    arguments = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    arguments |= dict.fromkeys(seeds, arguments.pop("seed"))
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each attempt to connect
    with _environment(), redirect_stdout(sys.stderr):  # lm-eval and tasks print
        try:
            found = simple_evaluate(
                lm,
                tasks=list(names),
                task_manager=manager,
                apply_chat_template=chat is not None,
                **arguments,
            )
        except ValueError as error:
            if lm.asked or isinstance(error, UserError):
                raise
            raise ConfigError(f"lm-eval: {' '.join(str(error).split())}{_hint(str(error))}") from None
    samples = found.pop("samples", {}) or {}
    results = json.loads(json.dumps(found, default=handle_non_serializable, ensure_ascii=False))
    return Found(results, samples, lm.cut_contexts, lm.cut_tokens)


def _hint(message: str) -> str:
    return "; add --confirm-run-unsafe-code if you want that" if "unsafe" in message else ""


_ENVIRONMENT = {
    "DISABLE_MULTIPROC": "1",  # lm-eval resamples in forked processes, in which MindSpore's threads are missing
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",  # it would say that there is no torch
}


@contextmanager
def _environment() -> Iterator[None]:
    """Settings of lm-eval and its packages that are variables of the environment."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ |= _ENVIRONMENT
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _add_measure(task: Any) -> None:
    """Add the measure by tokens to a task."""
    of_item: Callable[[Any, Any, list[Any]], Any]
    if not isinstance(task, ConfigurableTask) or TOKEN_ACCURACY in task.aggregation():
        return
    if task.OUTPUT_TYPE == "multiple_choice":
        name, aggregation, of_item = TOKEN_ACCURACY, mean, _is_right
    elif task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling"):
        name, aggregation, of_item = TOKEN_PERPLEXITY, weighted_perplexity, _loss
    else:
        return
    process, aggregations, directions = task.process_results, task.aggregation, task.higher_is_better

    def process_results(doc: Any, results: Any) -> dict[str, Any]:
        results = list(results)
        value = of_item(task, doc, results)
        return process(doc, results) | ({} if value is None else {name: value})

    task.process_results = process_results
    task.aggregation = lambda: aggregations() | {name: aggregation}
    task.higher_is_better = lambda: directions() | {name: name == TOKEN_ACCURACY}


def _add_group_measure(group: Any) -> None:
    """A group that has a mean of `acc` gets that of the accuracy by tokens, too."""
    measures = group.aggregate_metric_list or []
    if any(one.metric == TOKEN_ACCURACY for one in measures):
        return
    group.aggregate_metric_list = [
        *measures,
        *(dataclasses.replace(one, metric=TOKEN_ACCURACY) for one in measures if one.metric == "acc"),
    ]


def _is_right(task: Any, doc: Any, results: list[Any]) -> float | None:
    """Whether the candidate with the highest mean log-likelihood of a token is right; None for what a filter made."""
    choices = task.doc_to_choice(doc)
    values = [answer[0] for answer in results[: len(choices)]]
    if not all(isinstance(value, LogLikelihood) for value in values):
        return None
    best = int(np.argmax([value / value.num_tokens for value in values]))
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    return float(best in gold if isinstance(gold, list) else best == gold)


def _loss(task: Any, doc: Any, results: list[Any]) -> tuple[float, int] | None:
    value = results[0][0] if isinstance(results[0], tuple) else results[0]
    return (float(value), value.num_tokens) if isinstance(value, LogLikelihood) else None
