"""Shows the results of an ablation as a table."""

from typing import Any

from pangu_ms.core.table import table_lines
from pangu_ms.research.study.ablation import REFERENCES
from pangu_ms.research.study.compare import ERRORS

MARK = "~"


def ablation_table(results: dict[str, Any]) -> str:
    """A row for each variant, and notes on what the numbers mean and how certain they are."""
    variants, seeds = results["variants"], results["seeds"]
    references = [name for name in REFERENCES if name in variants]
    head = [
        "variant",
        "parameters",
        "held-out loss",
        *(f"to {name}" for name in references),
        "d(0.8)",
        "tokens/s",
        "ms/token",
        "ratio",
        "quartiles",
    ]
    rows = [_row(name, variant, references) for name, variant in variants.items()]
    lines = table_lines(head, rows, "<" + ">" * (len(head) - 1))
    return "\n".join([*lines, "", *_notes(results, len(seeds))])


def _row(name: str, variant: dict[str, Any], references: list[str]) -> list[str]:
    loss, ratio, speed = variant["loss"], variant["latency_ratio"], variant["tokens_per_second"]
    differences = [_difference(variant["difference"].get(reference)) for reference in references]
    timing = [
        f"{speed:,.0f}" if speed else "-",
        f"{variant['ms_per_token']:.3f}",
        f"{ratio['median']:.3f}",
        "{:.3f} - {:.3f}".format(*ratio["quartiles"]),
    ]
    dimension = with_error(
        f"{variant['effective_dimension']['mean']:.1f}", variant["effective_dimension"]["standard_deviation"], ".1f"
    )
    return [
        name,
        f"{variant['parameters']:,}",
        with_error(f"{loss['mean']:.4f}", loss["standard_deviation"]),
        *differences,
        dimension,
        *timing,
    ]


def _difference(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    within_noise = difference["distinguishable"] is False
    return (
        f"{MARK if within_noise else ''}{with_error(format(difference['mean'], '+.4f'), difference['standard_error'])}"
    )


def with_error(text: str, error: float | None, digits: str = ".4f") -> str:
    """A number with its error: "text +- error". With one seed there is no error."""
    return text if error is None else f"{text} +- {error:{digits}}"


def _notes(results: dict[str, Any], num_seeds: int) -> list[str]:
    notes = [
        "held-out loss: nats per token, all held-out records; ratio: ms/token to vanilla's in the same round, batch 1"
        " (median, quartiles)"
    ]
    notes.append(
        "d(0.8): principal components that carry 80 % of the variance of a layer's features, mean of the layers (`pangu"
        " analyze collapse`)"
    )
    if num_seeds == 1:
        return [*notes, "one seed: nothing tells the differences from noise; use more --seeds"]
    covered = f"{ERRORS:g} s.e. of {num_seeds} seeds: {results['confidence']:.0%} confidence"
    notes += [
        f"+- behind a loss: standard deviation over {num_seeds} seeds; behind a difference: standard error (s.e.),"
        " paired by seed"
    ]
    return [
        *notes,
        f"{MARK} not distinguishable: |difference| < {ERRORS:g} s.e. ({covered}; use more --seeds for more)",
    ]
