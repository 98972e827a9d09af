"""Load of the experts of a model whose tokens are routed by tables: tokens by layer, domain and expert. No mindspore
import."""

from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint.derive import Opened
from pangu_ms.core.figure import new_figure, require_plot, write_figure
from pangu_ms.models.registry import FAMILIES


def expert_load(opened: Opened, token_counts: np.ndarray) -> dict[str, Any]:
    """Count the tokens that come to each expert.

    Args:
        opened: the model; only its tables are read.
        token_counts: int64 [domains, V], how often each token is read in each domain.

    Returns:
        A dict with step; num_experts; tokens by domain; and layers, each a dict with layer, name, experts (tokens of
        each expert), and domains: for each that has tokens, experts (the numbers of those of its group, first and
        last), max_over_mean (the load of the busiest expert of the group, divided by the mean) and unused (experts of
        the group without a token).
    """
    model, tables, layers = opened.model, opened.tables(), []
    family = FAMILIES[model.family].domains
    for layer, loads in family.expert_loads(model, tables, token_counts):
        domains = {}
        for index, name in enumerate(model.domains):
            group = family.experts_of(model, index)
            own = loads[index, group.start : group.stop]
            if own.any():
                domains[name] = {
                    "experts": [group.start, group.stop - 1],
                    "max_over_mean": float(own.max() / own.mean()),
                    "unused": int((own == 0).sum()),
                }
        layers.append(
            {
                "layer": layer,
                "name": model.layer_names()[layer],
                "experts": loads.sum(0).tolist(),
                "domains": domains,
            }
        )
    tokens = dict(zip(model.domains, token_counts.sum(1).tolist()))
    return {"step": opened.checkpoint.step, "num_experts": model.num_experts, "tokens": tokens, "layers": layers}


def plot_experts(report: dict[str, Any], path: Path) -> None:
    """Draw the load of each expert over the layers, divided by the mean of the layer.

    Args:
        report: what `expert_load` returned.
        path: the figure to write, atomically.

    Raises:
        OutputError: the suffix is unknown, matplotlib is missing, or the path cannot be written.
    """
    require_plot(path)
    loads = np.array([layer["experts"] for layer in report["layers"]], np.float64)
    figure = new_figure(10, 2.2 + 0.4 * len(loads))
    axis = figure.subplots()
    image = axis.imshow(loads / loads.mean(1, keepdims=True).clip(1e-9), aspect="auto", vmin=0, interpolation="nearest")
    for span in report["layers"][0]["domains"].values():
        axis.axvline(span["experts"][1] + 0.5, color="white", linewidth=1)
    axis.set(xlabel="expert; a line ends each group", ylabel="layer")
    axis.set_yticks(range(len(loads)), [str(layer["layer"]) for layer in report["layers"]])
    figure.colorbar(image, label="tokens / mean of the layer")
    write_figure(figure, path)
