"""Writes tasks of ours as tasks of lm-eval: a YAML file, and the items as lm-eval gives them to a model, in JSON lines.

The items hold whole texts: demonstrations, template and candidates are filled in already. lm-eval adds nothing to them
(`target_delimiter: ""`), so that both ways score the same texts. The fields of a YAML file name columns of the items,
never templates: lm-eval would take a text of digits that a template makes for an index.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.tasks.encoding import Encoder
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.prediction import Gold, Prediction
from pangu_ms.eval.tasks.prompts import Prompt
from pangu_ms.eval.tasks.run import Section

TOKEN_ACCURACY = "acc_tokens"
"""The accuracy by mean log-likelihoods of tokens, which `pangu harness run` adds to lm-eval's measures."""
TOKEN_PERPLEXITY = "token_perplexity"
"""Likewise e to the mean loss of a token."""
TAG = "pangu_tasks"
"""Names all exported tasks of a directory for lm-eval."""
_RESULTS = """\
from pangu_ms.eval.harness_export import results_of


def process_results(doc, results):
    return results_of(doc, results, {metrics})
"""


@dataclass(frozen=True)
class ExportedTask:
    """A task of lm-eval.

    Attributes:
        name: by which lm-eval knows it.
        config: fields of its YAML file, without those of the data.
        rows: its items.
        score: the measure of lm-eval that is the task's score.
        left_out: unlabelled items, which lm-eval cannot have.
        function: source of the file that the YAML file takes its functions from; "" if it has none.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    score: str
    left_out: int
    function: str = ""

    def write(self, directory: Path) -> None:
        """Write the files. The YAML file names the data by its whole path, which lm-eval wants: a directory that moves
        must be written anew.

        Raises:
            OutputError: one of them exists or cannot be written.
        """
        data = directory.resolve() / f"{self.name}.jsonl"
        config = {
            "task": self.name,
            "tag": TAG,
            "dataset_path": "json",  # a loader of the package datasets
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            **self.config,
        }
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
        if self.function:
            text += f"process_results: !function {self.name}.process_results\n"
            files.write_new(data.with_suffix(".py"), self.function)
        files.write_new(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
        files.write_new(data.with_suffix(".yaml"), text)


def export_sections(
    sections: Sequence[Section], fit: tuple[Tokenizer, int] | None = None
) -> tuple[list[ExportedTask], list[str]]:
    """Sections as tasks of lm-eval, and notes for people: why others cannot be, and what is left out.

    Args:
        sections: see `run.prepare`.
        fit: tokenizer and window of a model, for which demonstrations without room are left out, and items that would
            have to be cut all the same.
    """
    exported, notes = list[ExportedTask](), list[str]()
    for section in sections:
        if fit:
            fitting = _fitting(section, *fit)
            if left_out := len(section.prompts) - len(fitting):
                notes.append(f"{section.name}: {left_out:,} items are left out, for which {fit[1]} tokens have no room")
            section = dataclasses.replace(section, prompts=fitting)
        try:
            exported.append(export_section(section))
        except ConfigError as error:
            notes.append(str(error))
    return exported, notes


def _fitting(section: Section, tokenizer: Tokenizer, window: int) -> list[Prompt]:
    """Prompts as a model of this window reads them."""
    encoder, found = Encoder(section.task, tokenizer, window, section.seed or 0), []
    for prompt in section.prompts:
        encoded = encoder.encode(prompt)
        if not encoded.cut_tokens:
            found.append(dataclasses.replace(prompt, demonstrations=prompt.demonstrations[: encoded.shots]))
    return found


def export_section(section: Section) -> ExportedTask:
    """A section as a task of lm-eval.

    Raises:
        ConfigError: lm-eval has no form for it, or no item has a gold label.
        DataError: an item holds a lone surrogate.
    """
    task = section.task
    labelled = [prompt for prompt in section.prompts if prompt.gold is not None]
    if not labelled:
        raise ConfigError(
            f"{task.name}: no item with a gold label is left; lm-eval scores no others; name another split"
        )
    form = _FORMS[task.type](section, labelled)
    for prompt, row in zip(labelled, form.rows):
        _require_unicode(prompt, row)
    config = form.config | {
        "target_delimiter": "",
        "fewshot_delimiter": "",
        "num_fewshot": 0,
        "metadata": {"version": float(task.version), "source": task.source, "score": form.score},
    }
    name = "pangu_" + re.sub(r"\W", "_", section.name)
    return ExportedTask(name, config, form.rows, form.score, len(section.prompts) - len(labelled), form.function)


@dataclass(frozen=True)
class _Form:
    """What differs with the type of a task: see ExportedTask."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]
    score: str
    function: str = ""


def _choice(section: Section, prompts: Sequence[Prompt]) -> _Form:
    contexts = [[_context(prompt, one.context) for one in prompt.candidates] for prompt in prompts]
    texts = [[one.continuation for one in prompt.candidates] for prompt in prompts]
    config: dict[str, Any] = {"output_type": "multiple_choice", "metric_list": [_metric("acc"), _metric("acc_norm")]}
    if all(_are_one(one) for one in contexts):
        config |= {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"}
        columns = [{"context": of[0], "choices": own} for of, own in zip(contexts, texts)]
    elif all(_are_one(one) for one in texts):
        # The form of several inputs: doc_to_text is the index of the right context, doc_to_target what they share.
        config |= {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        columns = [{"contexts": of, "continuation": own[0]} for of, own in zip(contexts, texts)]
    else:
        raise ConfigError(
            f"{section.task.name}: candidates differ in their contexts and in their continuations; lm-eval's multiple"
            " choice takes candidates that share one of them; run this task with `pangu tasks`"
        )
    rows = [_row(prompt) | own | {"gold": prompt.gold.choice} for prompt, own in zip(prompts, columns) if prompt.gold]
    return _Form(config, rows, TOKEN_ACCURACY if section.task.normalization == "mean" else "acc")


def _perplexity(section: Section, prompts: Sequence[Prompt]) -> _Form:
    # What lm-eval calls perplexity counts a continuation once, however many tokens it has.
    metrics = section.task.metrics
    once = [_metric("perplexity", "perplexity", False)] if "word_perplexity" in metrics else []
    config = {
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": "continuation",
        "metric_list": [*once, _metric("acc")],
    }
    rows = []
    for prompt in prompts:
        (one,) = prompt.candidates
        rows.append(_row(prompt) | {"context": _context(prompt, one.context), "continuation": one.continuation})
    return _Form(config, rows, "perplexity" if metrics[0] == "word_perplexity" else TOKEN_PERPLEXITY)


def _generation(section: Section, prompts: Sequence[Prompt]) -> _Form:
    decoding, names = section.task.decoding, list(section.task.metrics)
    if not isinstance(decoding.max_new_tokens, int):
        raise ConfigError(
            f"{section.task.name}: an answer may be as long as the right one (max_new_tokens: answer); lm-eval has one"
            " length for all items; run this task with `pangu tasks`"
        )
    settings: dict[str, Any] = {"until": list(decoding.stop), "max_gen_toks": decoding.max_new_tokens}
    if decoding.temperature:
        settings |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
        settings |= {"top_k": decoding.top_k, "seed": section.seed or 0}
    else:
        settings |= {"do_sample": False, "temperature": 0.0}
    config = {
        "output_type": "generate_until",
        "doc_to_text": "context",
        "doc_to_target": "answers",
        "generation_kwargs": settings,
        "metric_list": [_metric(name, "mean", not METRICS[name].lower_is_better) for name in names],
    }
    rows = []
    for prompt in prompts:
        answers = list(prompt.gold.answers) if prompt.gold else []
        rows.append(_row(prompt) | {"context": _context(prompt, prompt.candidates[0].context), "answers": answers})
    return _Form(config, rows, names[0], _RESULTS.format(metrics=names))


def _assignment(section: Section, prompts: Sequence[Prompt]) -> _Form:
    raise ConfigError(
        f"{section.task.name}: all blanks of an item are filled at once, each with another candidate; lm-eval has no"
        " such task; run it with `pangu tasks`"
    )


_FORMS = {"choice": _choice, "perplexity": _perplexity, "generation": _generation, "assignment": _assignment}


def results_of(doc: dict[str, Any], results: Sequence[Any], metrics: Sequence[str]) -> dict[str, float]:
    """The measures of a generated answer, in which every item has the same weight: what an exported task calls.

    Args:
        doc: an item.
        results: the answer.
        metrics: names of measures.
    """
    (text,) = results
    prediction, gold = Prediction(text=str(text)), Gold(answers=tuple(doc["answers"]))
    return {name: METRICS[name].item(prediction, gold)[0] for name in metrics}


def _row(prompt: Prompt) -> dict[str, Any]:
    return {"id": str(prompt.id)}


def _require_unicode(prompt: Prompt, row: dict[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{prompt.place}: has a lone surrogate, which UTF-8 cannot hold; repair the data file"
        ) from None


def _context(prompt: Prompt, context: str) -> str:
    return "".join(prompt.demonstrations) + context


def _are_one(texts: Sequence[str]) -> bool:
    return len(set(texts)) == 1


def _metric(name: str, aggregation: str = "mean", higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}
