"""Scores from the records of a run: means with standard errors, beside what was published; tables, and differences
between models. It reads files alone, no task definitions: a run says itself what it was."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import OutputError
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.prediction import Estimate
from pangu_ms.eval.tasks.task import Task

FORMAT = 1
RUN = "run.json"
_COLUMN = {0: 0, 1: 1, "few": 2}
"""Which of three published scores belongs to a number of demonstrations."""
_TASK = {"name": str, "version": int, "title": str, "source": str, "type": str, "metrics": [str], "published": dict}
_SECTION = {
    **{"task": _TASK, "shots": (int, str), "seed": (int, None), "prompts": str, "gold": str},
    **{"items": int, "available": int},
}
_RECORD = {"index": int, "shots": int}
_LABELLED = {"values": dict}
Record = dict[str, Any]
Results = dict[str, Any]


def record_path(directory: Path, section: str) -> Path:
    """The records of a section."""
    return Path(directory) / "records" / f"{section}.jsonl"


def read_run(directory: Path) -> dict[str, Any]:
    """The content of a run.json.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    path = Path(directory) / RUN
    try:
        found = small_json.read_object(path, form={"model": {"name": str, "digest": str}, "sections": dict})
        for name, section in found["sections"].items():
            if wrong := _wrong_section(section):
                raise ValueError(f"sections.{name}: {wrong}")
    except small_json.Missing:
        raise OutputError(
            f"{directory}: has no {RUN}; name a directory that `pangu tasks run --output` wrote"
        ) from None
    except ValueError as error:
        raise OutputError(f"{path}: {error}; it is damaged; run the tasks again, with a new --output") from None
    format_version.require_known(found.get(format_version.KEY), FORMAT, path, OutputError)
    return found


def read_records(directory: Path, section: str, metrics: Sequence[str] = ()) -> list[Record] | None:
    """The records of a section, in the order of the items; None if some are missing.

    Args:
        directory: of the run.
        section: its name.
        metrics: what labelled items must have a value of.

    Raises:
        OutputError: a line is damaged.
    """
    path = record_path(directory, section)
    try:
        lines = small_json.read_bytes(path).decode().splitlines()
    except small_json.Missing:
        return None
    except ValueError as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove it, and run the task again") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(small_json.parse_object(line))
            if wrong := _wrong(records[-1], metrics):
                raise ValueError(wrong)
        except ValueError as error:
            raise OutputError(f"{path}:{number}: {error}; remove the file, and run the task again") from None
    return records


def _wrong_section(section: Any) -> str:
    """What is wrong with a section of run.json, in a few words."""
    if wrong := small_json.misfit(section, _SECTION):
        return wrong
    task = section["task"]
    for metric in task["metrics"]:
        if metric not in METRICS:
            return f"unknown metric {metric:.40}"
    for metric, sizes in task["published"].items():
        if wrong := small_json.misfit(sizes, dict, metric):
            return wrong
        for size, scores in sizes.items():
            if wrong := small_json.misfit(scores, [(float, None)], size):
                return wrong
            if len(scores) != 3:
                return f"{size} has {len(scores)} published scores"
    return ""


def _wrong(record: Record, metrics: Sequence[str]) -> str:
    """What is wrong with a record, in a few words."""
    if wrong := small_json.misfit(record, _RECORD | (_LABELLED if "values" in record else {})):
        return wrong
    for name in metrics if "values" in record else ():
        if name not in record["values"]:
            return f"has no {name}"
        pair = record["values"][name]
        if wrong := small_json.misfit(pair, [float], name):
            return wrong
        if len(pair) != 2:
            return f"{name} has no weight"
    return ""


def summarize(directory: Path) -> Results:
    """The scores of the complete sections of a run.

    Returns:
        `model` as in run.json, and `scores`: an object for each task and number of demonstrations with `task`,
        `version`, `source`, `type`, `shots`, `seeds`, `items`, `available` (items of the data file), `unlabelled`,
        `prompts` (a hash of each seed's texts), what was cut, and `metrics`: for each `value`, `standard_error` (null
        for fewer than two items), `seed_spread` (standard deviation of the seeds' scores; null for one seed) and
        `published`, by size of model.

    Raises:
        OutputError: a file is missing or damaged.
    """
    run, groups = read_run(directory), dict[tuple[str, Any], list[tuple[dict[str, Any], list[Record]]]]()
    for name, section in run["sections"].items():
        records = read_records(directory, name, section["task"]["metrics"])
        if records is not None:
            groups.setdefault((section["task"]["name"], section["shots"]), []).append((section, records))
    return {
        format_version.KEY: FORMAT,
        "model": run["model"],
        "scores": [_score(sections) for sections in groups.values()],
    }


def _score(sections: Sequence[tuple[dict[str, Any], list[Record]]]) -> dict[str, Any]:
    """The scores of one task and number of demonstrations, from the sections of all seeds."""
    first, records = sections[0]
    task, shots, every = first["task"], first["shots"], [record for _, own in sections for record in own]
    metrics = {}
    for name in task["metrics"]:
        of_seeds = [_estimate(own, name) for _, own in sections]
        metrics[name] = _measure(name, _estimate_of_all([own for _, own in sections], name), of_seeds)
        sizes = task["published"].get(name, {})
        column = _COLUMN.get(shots)
        metrics[name]["published"] = {
            size: scores[column] for size, scores in sizes.items() if column is not None and scores[column] is not None
        }
    return {
        "task": task["name"],
        "version": task["version"],
        "title": task["title"],
        "source": task["source"],
        "type": task["type"],
        "shots": shots,
        "seeds": [section["seed"] for section, _ in sections if section["seed"] is not None],
        "items": len(records),
        "available": first["available"],
        "unlabelled": sum("values" not in record for record in records),
        "mean_shots": math.fsum(record["shots"] for record in every) / max(1, len(every)),
        "dropped_shots": sum(record.get("dropped_shots", 0) for record in every),
        "cut_items": sum("cut_tokens" in record for record in every),
        "cut_tokens": sum(record.get("cut_tokens", 0) for record in every),
        "joined": sum("joined" in record for record in every),
        "prompts": [section["prompts"] for section, _ in sections],
        "metrics": metrics,
    }


def _estimate(records: Sequence[Record], metric: str) -> Estimate:
    pairs = [record["values"][metric] for record in records if "values" in record]
    return Estimate.of([value for value, _ in pairs], [weight for _, weight in pairs])


def _estimate_of_all(of_seeds: Sequence[Sequence[Record]], metric: str) -> Estimate:
    """The mean over all seeds. The items are the sample, not the answers: of an item that was asked with several seeds
    the mean counts."""
    values, weights = [], []
    for same in zip(*of_seeds):
        pairs = [record["values"][metric] for record in same if "values" in record]
        if pairs:
            weights.append(sum(weight for _, weight in pairs))
            values.append(sum(value * weight for value, weight in pairs) / weights[-1] if weights[-1] else 0.0)
    return Estimate.of(values, weights)


def _measure(name: str, estimate: Estimate, of_seeds: Sequence[Estimate]) -> dict[str, Any]:
    metric = METRICS[name]
    factor = 100.0 if metric.percent else 1.0
    value = metric.finish(estimate.mean) * factor if estimate.items else math.nan
    # The slope of `finish`, which is e**x itself or nothing: the error of a perplexity is its error in nats times it.
    slope = factor * (1.0 if metric.percent else value)
    spread = math.nan
    if len(of_seeds) > 1:
        scores = [metric.finish(one.mean) * factor for one in of_seeds]
        mean = math.fsum(scores) / len(scores)
        spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    found = {"value": value, "standard_error": estimate.standard_error * slope, "seed_spread": spread}
    return {key: None if math.isnan(number) else number for key, number in found.items()}


def compare(one: Path, other: Path) -> list[dict[str, Any]]:
    """Differences between two models on the same items, paired: how much higher `other`'s scores are than `one`'s; of a
    perplexity, how many nats.

    Returns:
        An object for each section that both have and each metric: `section`, `metric`, `items`, the two values,
        `difference` and its `standard_error`; or `reason`, why they do not compare.

    Raises:
        OutputError: a file is missing or damaged, or they have no section in common.
    """
    runs, found = [read_run(one), read_run(other)], []
    for name, section in runs[0]["sections"].items():
        if name not in runs[1]["sections"]:
            continue
        same = runs[1]["sections"][name]
        metrics = [metric for metric in section["task"]["metrics"] if metric in same["task"]["metrics"]]
        records = [read_records(directory, name, metrics) for directory in (one, other)]
        reason = ""
        if any(section[key] != same[key] for key in ("prompts", "gold")):
            reason = "other items or prompts"
        elif None in records:
            reason = "incomplete"
        for metric in metrics:
            row = {"section": name, "metric": metric}
            found.append(row | ({"reason": reason} if reason else _paired(metric, *records)))
    if not found:
        raise OutputError(f"{one} and {other}: have no task in common; run the same tasks with both models")
    return found


def _paired(name: str, ones: list[Record] | None, others: list[Record] | None) -> dict[str, Any]:
    """The paired difference of a metric."""
    assert ones is not None and others is not None
    metric, labelled = METRICS[name], [(a, b) for a, b in zip(ones, others) if "values" in a and "values" in b]
    pairs = [(a["values"][name], b["values"][name]) for a, b in labelled]
    if not pairs:
        return {"reason": "no right answers"}
    if any(a[1] != b[1] for a, b in pairs):
        return {"reason": "the tokens of both differ"}
    weights = [a[1] for a, _ in pairs]
    means = [Estimate.of([pair[i][0] for pair in pairs], weights).mean for i in (0, 1)]
    estimate = Estimate.of([b[0] - a[0] for a, b in pairs], weights)
    factor = 100.0 if metric.percent else 1.0
    return {
        "items": estimate.items,
        "values": [metric.finish(mean) * factor for mean in means],
        "difference": estimate.mean * factor,
        "standard_error": None if math.isnan(estimate.standard_error) else estimate.standard_error * factor,
        "unit": "points" if metric.percent else "nats",
    }


def write_submission(directory: Path, section: str, task: Task) -> None:
    """Write the predictions of a section in the form in which benchmarks take them: generated texts as one object
    {id: text}, as CMRC and SQuAD do; else an object {"id": ..., "label": ...} a line, as CLUE does."""
    records = read_records(directory, section) or []
    folder = Path(directory) / "submissions"
    if task.type == "generation":
        answers = {str(record["id"]): record["prediction"] for record in records}
        files.write_json(folder / f"{section}.json", answers)
        return
    lines = [{"id": record["id"], "label": record["prediction"]} for record in records]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.write_bytes(folder / f"{section}.jsonl", text.encode(errors="backslashreplace"))


HEAD = ("task", "shots", "items", "metric", "score", "+-", "seeds", "published", "source")


def rows_of(results: Results) -> Iterator[tuple[str, ...]]:
    """A line of text cells for each metric, as HEAD names them."""
    for score in results["scores"]:
        for name, metric in score["metrics"].items():
            published = ", ".join(f"{size}: {value:g}" for size, value in metric["published"].items())
            yield (
                score["task"],
                str(score["shots"]),
                f"{score['items']:,}",
                name,
                shown(metric["value"]),
                shown(metric["standard_error"]),
                shown(metric["seed_spread"]),
                published or "-",
                score["source"],
            )


def shown(value: float | None) -> str:
    """A score for people."""
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.4g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue().rstrip("\n")
