"""Finds model shapes with the same number of parameters, to compare depth against width at equal size.

Source: specification E2.2 (pi Pro compared about 30 such shapes: depth helps, the expansion of the feed-forward network
hardly matters) and E1.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pangu_ms.config.load import config_to_dict, find_config, load_config, presets
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.files import new_directory, write_text
from pangu_ms.models.common.config import ModelConfig

SHAPE_FIELDS = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_hidden_size")
AnyModel = TypeVar("AnyModel", bound=ModelConfig)
TABLE_AXES = ("vocab", "position")  # tables are read row by row; every other matrix is multiplied
FLOPS_FORMULA = (
    "2 * (matrices of the layers + vocab_size * hidden_size) + 4 * num_layers * seq_length * num_heads * head_dim"
)


@dataclass(frozen=True)
class Search:
    """What a search looks for, the same for all its shapes."""

    target: int
    """Parameters that every shape should have."""
    head_dim: int
    """Size of one attention head; hidden sizes are multiples of it."""
    multiple: int = 8
    """Feed-forward widths are multiples of it."""
    tolerance: float = 0.01
    """Largest difference from the target, as a share of it."""


@dataclass(frozen=True)
class Shape:
    """A model, measured against the target of its search."""

    model: ModelConfig
    num_parameters: int
    difference: float
    """num_parameters / target - 1."""
    within_tolerance: bool
    table_share: float
    """Share of the parameters in embeddings (words and positions) and head; below 0.2 is recommended (spec E2.1)."""
    flops_per_token: int
    """Forward pass over a full context, a multiply-add as two operations: FLOPS_FORMULA. Norms, biases and activations
    are left out."""

    @classmethod
    def of(cls, model: ModelConfig, search: Search) -> "Shape":
        """Measure a model."""
        sizes, shapes = model.axis_sizes(), model.parameter_shapes()
        total, tables, matrices = model.num_parameters(), 0, 0
        for name, spec in model.parameters().items():
            if spec.axes[0] in TABLE_AXES:
                tables += math.prod(shapes[name])
            elif spec.decay:  # true of matrices only; activation scales have two axes as well, but no decay
                matrices += math.prod(shapes[name])
        attention = 4 * model.num_layers * model.seq_length * sizes["heads"]
        flops = (
            2 * (matrices + model.vocab_size * model.hidden_size) + attention
        )  # the logits are a matrix product whether or not the head is tied to the word table
        difference = total / search.target - 1
        return cls(model, total, difference, abs(difference) <= search.tolerance, tables / total, flops)

    def row(self) -> dict[str, Any]:
        """The shape's fields as plain values. A family without num_kv_heads shows none."""
        shown = [name for name in SHAPE_FIELDS if name == "head_dim" or name in self.model.field_names()]
        fields = {name: getattr(self.model, name) for name in shown}
        return fields | {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "model"
        }


def default_depths(depth: int) -> list[int]:
    """From a quarter to twice the given number of layers."""
    return sorted({max(2, round(depth * quarters / 4)) for quarters in (1, 2, 3, 5, 6, 8)} | {depth})


def find_shapes(model: ModelConfig, search: Search, depths: list[int], expansions: list[float]) -> list[Shape]:
    """For each depth and expansion (ffn_hidden_size / hidden_size) the hidden size that comes closest to the target.

    Where that misses the tolerance, ffn_hidden_size is moved to the multiple that comes closest. The ratios of
    attention width to hidden size and of key/value heads to heads stay the model's. A shape that still misses the
    tolerance is returned as well.

    Raises:
        ConfigError: a depth or head size that the family refuses, or a target below the smallest shape at every depth.
    """
    by_depth = {depth: reshape(model, num_layers=depth) for depth in depths}
    smallest = min(
        _size_counter(deep)(reshape(next(_widths(deep, 1.0, search)), ffn_hidden_size=search.multiple))
        for deep in by_depth.values()
    )
    if smallest > search.target * (1 + search.tolerance):
        raise ConfigError(
            f"--parameters={search.target}: the smallest shape at these depths has {smallest:,}, {model.vocab_size:,}"
            " rows of the word table included; raise --parameters, or lower --depths, --head-dim or model.vocab_size"
        )
    return [_closest(by_depth[depth], expansion, search) for depth in depths for expansion in expansions]


def _closest(model: ModelConfig, expansion: float, search: Search) -> Shape:
    count, widths = _size_counter(model), _widths(model, expansion, search)
    best = next(widths)
    for wider in itertools.chain([best], widths):
        if abs(count(wider) - search.target) < abs(count(best) - search.target):
            best = wider
        if count(wider) >= search.target:
            break
    shape = Shape.of(best, search)
    assert shape.num_parameters == count(best)
    return shape if shape.within_tolerance else Shape.of(_tuned(best, count, search), search)


def _tuned(model: ModelConfig, count: Callable[[ModelConfig], int], search: Search) -> ModelConfig:
    """The model with the feed-forward width that brings it closest to the target: its size is linear in that width."""
    slope = count(reshape(model, ffn_hidden_size=model.ffn_hidden_size + search.multiple)) - count(model)
    steps = round((search.target - count(model)) / slope)
    return reshape(model, ffn_hidden_size=max(search.multiple, model.ffn_hidden_size + steps * search.multiple))


def _widths(model: ModelConfig, expansion: float, search: Search) -> Iterator[ModelConfig]:
    """The model at every hidden size that its family accepts, from the narrowest up."""
    attention_share = Fraction(model.axis_sizes()["heads"], model.hidden_size)
    kv_share = Fraction(model.num_kv_heads, model.num_heads)
    limit, reason, found = max(search.target // model.vocab_size, 8 * model.hidden_size), "", False
    for hidden in range(search.head_dim, limit + 1, search.head_dim):
        heads = hidden * attention_share / search.head_dim
        if heads.denominator > 1 or (heads * kv_share).denominator > 1:
            continue
        fields = {
            "hidden_size": hidden,
            "num_heads": int(heads),
            "num_kv_heads": int(heads * kv_share),
            "head_dim": search.head_dim,
        }
        ffn = max(1, round(hidden * expansion / search.multiple)) * search.multiple
        try:
            yield reshape(model, **fields, ffn_hidden_size=ffn)
            found = True
        except ConfigError as error:
            reason = f": {error}"
    if not found:
        raise ConfigError(
            f"--head-dim={search.head_dim}: no multiple of it up to {limit:,} can be the hidden size{reason}; name"
            " another --head-dim"
        )


def reshape(model: AnyModel, **fields: int) -> AnyModel:
    """A copy with the fields that its family has changed.

    Raises:
        ConfigError: the family refuses them.
    """
    known: dict[str, Any] = {name: value for name, value in fields.items() if name in model.field_names()}
    try:
        return dataclasses.replace(model, **known)
    except ValidationError as error:
        raise ConfigError(f"model.{error.errors()[0]['ctx']['error']}") from None


def _size_counter(model: ModelConfig) -> Callable[[ModelConfig], int]:
    """A function that computes num_parameters() of models that differ from `model` only in their widths, without
    listing every layer again."""
    axes = Counter(spec.axes for spec in model.parameters().values())

    def count(other: ModelConfig) -> int:
        sizes = other.axis_sizes()
        return sum(number * math.prod(sizes[axis] for axis in names) for names, number in axes.items())

    return count


def write_shapes(directory: Path, name: str, config: RunConfig, shapes: list[Shape]) -> list[str]:
    """Write a YAML per shape within the tolerance: `base:` the config `name`, and what differs from it; returns the
    file names.

    Raises:
        ConfigError: no shape is within the tolerance.
        OutputError: the directory has other content or cannot be written.
    """
    chosen = {
        f"layers{s.model.num_layers}_hidden{s.model.hidden_size}_ffn{s.model.ffn_hidden_size}.yaml": s
        for s in shapes
        if s.within_tolerance
    }
    if not chosen:
        raise ConfigError("--write: no shape is within the tolerance; raise --tolerance or lower --multiple")
    with new_directory(directory) as temporary:
        for file_name, shape in chosen.items():
            run = dataclasses.replace(config, model=shape.model)
            text = yaml.safe_dump(
                {"base": _base_name(name)} | differences(load_config(name), run), sort_keys=False, allow_unicode=True
            )
            write_text(
                temporary / file_name,
                f"# {shape.num_parameters:,} parameters, {shape.difference:+.2%} from the target of `pangu config"
                f" iso`.\n{text}",
            )
            assert load_config(str(temporary / file_name)) == run
    return list(chosen)


def _base_name(name: str) -> str:
    """The value of `base:` that names a config from any directory: its shipped name, or an absolute path."""
    path = find_config(name).resolve()
    return next((shipped for shipped, file in presets().items() if file.resolve() == path), str(path))


def differences(base: RunConfig, run: RunConfig) -> dict[str, dict[str, Any]]:
    """The fields of `run` that differ from `base`, by section, and all of SHAPE_FIELDS, since the base may compute some
    of those from others."""
    old, new = config_to_dict(base), config_to_dict(run)
    kept = {section: [key for key in new[section] if new[section][key] != old[section].get(key)] for section in new}
    kept["model"] = [key for key in new["model"] if key in kept["model"] or key in SHAPE_FIELDS]
    return {section: {key: new[section][key] for key in keys} for section, keys in kept.items() if keys}
