"""Load of the experts of a model: tokens by layer, domain and expert. No mindspore import."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint.derive import Opened
from pangu_ms.core.figure import new_figure, require_plot, write_figure
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES


def table_load(opened: Opened, token_counts: np.ndarray) -> dict[str, Any]:
    """The report on a model whose tables give each token its expert.

    Args:
        opened: the model; only its tables are read.
        token_counts: int64 [domains, V], how often each token is read in each domain.

    Returns:
        See `load_report`.
    """
    model = opened.model
    family = FAMILIES[model.family].domains
    groups = [family.experts_of(model, index) for index in range(len(model.domains))]
    tokens = dict(zip(model.domains, token_counts.sum(1).tolist()))
    loads = dict(family.expert_loads(model, opened.tables(), token_counts))
    return {"step": opened.checkpoint.step} | load_report(model, tokens, loads, groups)


def load_report(
    model: ModelConfig, tokens: dict[str, int], loads: Mapping[int, np.ndarray], spans: Sequence[range]
) -> dict[str, Any]:
    """Measure how evenly tokens come to the experts.

    Args:
        model: the configuration of the model.
        tokens: number of tokens of each domain.
        loads: for each layer with experts the tokens of each expert, int64 [domains, K].
        spans: for each domain the experts to which its tokens can go.

    Returns:
        A dict with num_experts; group_sizes; tokens by domain; and layers, each a dict with layer, name, experts
        (tokens of each expert), and domains: for each that has tokens, experts (the first and the last to which they
        can go), max_over_mean (the load of the busiest of these experts, divided by the mean) and unused (experts
        without a token).
    """
    layers = []
    for layer, of_domains in loads.items():
        domains = {}
        for name, span, load in zip(tokens, spans, of_domains, strict=True):
            own = load[span.start : span.stop]
            if own.any():
                domains[name] = {
                    "experts": [span.start, span.stop - 1],
                    "max_over_mean": float(own.max() / own.mean()),
                    "unused": int((own == 0).sum()),
                }
        name, experts = model.layer_names()[layer], of_domains.sum(0).tolist()
        layers.append({"layer": layer, "name": name, "experts": experts, "domains": domains})
    balanced = model.num_balanced_groups
    groups = model.group_sizes if balanced == 1 else (model.num_experts // balanced,) * balanced
    return {"num_experts": model.num_experts, "group_sizes": list(groups), "tokens": tokens, "layers": layers}


def plot_experts(report: dict[str, Any], path: Path) -> None:
    """Draw the load of each expert over the layers, divided by the mean of the layer.

    Args:
        report: see `load_report`.
        path: the figure to write, atomically.

    Raises:
        OutputError: the suffix is unknown, matplotlib is missing, or the path cannot be written.
    """
    require_plot(path)
    loads = np.array([layer["experts"] for layer in report["layers"]], np.float64)
    figure = new_figure(10, 2.2 + 0.4 * len(loads))
    axis = figure.subplots()
    image = axis.imshow(loads / loads.mean(1, keepdims=True).clip(1e-9), aspect="auto", vmin=0, interpolation="nearest")
    for end in np.cumsum(report["group_sizes"]):
        axis.axvline(end - 0.5, color="white", linewidth=1)
    axis.set(xlabel="expert; a line ends each group", ylabel="layer")
    axis.set_yticks(range(len(loads)), [str(layer["layer"]) for layer in report["layers"]])
    figure.colorbar(image, label="tokens / mean of the layer")
    write_figure(figure, path)
