"""Figures of the studies."""

from pathlib import Path
from typing import Any

from pangu_ms.core.figure import new_figure, write_figure


def plot_ablation(results: dict[str, Any], path: Path) -> None:
    """Draw the results of `run_ablation`: losses, with a point for each seed and a line at their mean, and latency
    ratios, with median and quartiles."""
    names, variants = list(results["variants"]), list(results["variants"].values())
    figure = new_figure(9, 4)
    losses, latency = figure.subplots(1, 2)
    for x, variant in enumerate(variants):
        losses.plot(
            [x] * len(variant["losses"]),
            variant["losses"].values(),
            "o",
            color="C0",
            alpha=0.7,
            label="a seed" if x == 0 else None,
        )
        losses.hlines(
            variant["loss"]["mean"], x - 0.3, x + 0.3, color="C1", linewidth=3, label="mean" if x == 0 else None
        )
        low, high = variant["latency_ratio"]["quartiles"]
        middle = variant["latency_ratio"]["median"]
        latency.errorbar(x, middle, [[middle - low], [high - middle]], fmt="o", color="C0", capsize=6)
    losses.set_ylabel("held-out loss (nats per token)")
    losses.legend()
    latency.axhline(1.0, color="0.6", linewidth=1)
    latency.set_ylabel("ms per token / vanilla's (median, quartiles)")
    for axes in (losses, latency):
        axes.set_xticks(
            range(len(names)),
            [f"{name}\n{variant['parameters'] / 1e6:.3g} M" for name, variant in zip(names, variants)],
        )
    figure.suptitle(f"{results['config']}: {results['steps']} steps, seeds {', '.join(map(str, results['seeds']))}")
    write_figure(figure, path)


def plot_chain(results: dict[str, Any], path: Path) -> None:
    """Draw the results of `run_pi_pro`: the bits per byte of each step, with a line for each seed and a thick one for
    their mean. Lower is better."""
    chain = results["chain"]
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for seed in results["seeds"]:
        axes.plot(
            range(len(chain)), [row["bits_per_byte"][seed] for row in chain.values()], "o-", color="C0", alpha=0.4
        )
    axes.plot(
        range(len(chain)),
        [row["mean"] for row in chain.values()],
        "-",
        color="C1",
        linewidth=3,
        label="mean of the seeds",
    )
    axes.axhline(
        results["teacher"]["bits_per_byte"],
        color="0.6",
        linewidth=1,
        label=f"teacher, {results['teacher']['parameters'] / 1e6:.3g} M",
    )
    axes.set_xticks(
        range(len(chain)), [f"{step.replace('_', ' ')}\n{row['parameters'] / 1e6:.3g} M" for step, row in chain.items()]
    )
    axes.set_ylabel("held-out bits per byte")
    axes.legend()
    write_figure(figure, path)
