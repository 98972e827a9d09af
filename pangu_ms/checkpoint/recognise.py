"""Recognises a model by the names and shapes of its weights: its sizes, and the shipped configuration that has them.
Used for error messages alone: weights are never converted by a guess. No mindspore import."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pangu_ms.config.load import load_config, presets
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.derived import single_parameters
from pangu_ms.models.common.weights import Format
from pangu_ms.models.registry import FAMILIES

Shapes = Mapping[str, tuple[int, ...]]
_FIELDS = {
    "embed": "hidden_size",
    "vocab": "vocab_size",
    "ffn": "ffn_hidden_size",
    "position": "seq_length",
    "expert_ffn": "moe_intermediate_size",
    "router": "num_experts",
}
"""Logical axes whose length is a field of the configuration. (That of "heads" is num_heads * head_dim, and no shape
tells the two apart.)"""
_LEAST_SHARE = 0.5
"""Share of common names, of those that the file or the format has, below which a file is not recognised."""


@dataclass(frozen=True)
class Recognised:
    """What names and shapes tell about a model."""

    format: str
    """The format whose names they are."""
    family: str
    sizes: dict[str, int]
    """Fields of the configuration."""
    config: str | None
    """The shipped configuration with exactly these names and shapes, if there is one."""

    def __str__(self) -> str:
        sizes = ", ".join(f"{field}={size}" for field, size in self.sizes.items())
        return f"{self.config} ({sizes})" if self.config else f"family {self.family} with {sizes}"


def recognise(format: str, shapes: Shapes) -> Recognised | None:
    """Recognise the weights of a file.

    Args:
        format: the format that the user named; other formats are tried only if the names are none of its own.
        shapes: shapes by the names in the file.

    Returns:
        What they are, or None if no family has such names in any format.
    """
    for only in (True, False):
        best, match = None, (_LEAST_SHARE, 0.0)
        for family, name, naming in _formats(shapes):
            if (name == format) != only:
                continue
            for candidate in _candidates(family, naming, shapes):
                if candidate.match > match:
                    best, match = (family, name, naming, candidate), candidate.match
        if best:
            return _described(*best)
    return None


@dataclass(frozen=True)
class _Candidate:
    """A model with the names of a file, but not with its shapes."""

    model: ModelConfig
    names: frozenset[str]
    """The file's canonical names, without tied copies."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the file by name; of the members of a stack, one."""
    axes: dict[str, tuple[str, ...]]
    """Logical axes of the foreign tensors of `model`, by the same names."""

    @property
    def match(self) -> tuple[float, float]:
        """Share of common names without their numbers, which tells families apart, and with them."""
        found, own = ({re.sub(r"\d+", "", name) for name in names} for names in (self.shapes, self.axes))
        return _share(found, own), _share(set(self.shapes), set(self.axes))

    def axis_sizes(self) -> dict[str, int]:
        """The length of each axis in most of the file's tensors that have it."""
        found: dict[str, collections.Counter[int]] = {}
        for name in self.shapes.keys() & self.axes.keys():
            if len(self.shapes[name]) == len(self.axes[name]):
                for axis, size in zip(self.axes[name], self.shapes[name]):
                    found.setdefault(axis, collections.Counter())[size] += 1
        return {axis: counts.most_common(1)[0][0] for axis, counts in found.items()}


def _share(some: set[str], others: set[str]) -> float:
    return len(some & others) / len(some | others)


def _formats(names: Iterable[str]) -> Iterator[tuple[str, str, Format]]:
    for family, parts in FAMILIES.items():
        for name, naming in parts.formats.items():
            yield family, name, naming.of_names(names)


def _candidates(family: str, naming: Format, shapes: Shapes) -> Iterator[_Candidate]:
    """Models of a family with as many layers as the names may mean."""
    try:
        canonical = naming.canonical_names("", shapes)
    except CheckpointError:  # one parameter under two spellings
        return
    numbers = {int(match[1]) for name in canonical if (match := re.search(r"\.(\d{1,6})\.", name))}
    last = max(numbers, default=0)
    last = last if last < 2 * len(numbers) else len(numbers) - 1  # a stray number
    if f"{family}/tiny" not in presets():
        return
    small = load_config(f"{family}/tiny").model
    # The last layer is numbered like the others, or has another name.
    for num_layers in (last + 1, last + 2):
        try:
            model = _with_layers(small, num_layers)
        except ValueError:
            continue
        copies = naming.copies(model)
        names = frozenset(canonical) - copies.keys()
        own = {_first_member(name): shapes[canonical[name]] for name in names}
        yield _Candidate(model, names, own, _foreign_axes(naming, model))


def _with_layers(model: ModelConfig, num_layers: int) -> ModelConfig:
    return dataclasses.replace(model, num_layers=num_layers, **model.fields_for_num_layers(num_layers))


def _foreign_axes(naming: Format, model: ModelConfig) -> dict[str, tuple[str, ...]]:
    axes = {name: spec.axes for name, spec in model.parameters().items()}
    axes |= {name: spec.axes for name, _, _, spec in single_parameters(model)}
    foreign = {}
    for rule in naming.rules(model):
        foreign[_first_member(rule.foreign)] = axes[rule.ours][::-1] if rule.transpose else axes[rule.ours]
    return foreign


def _first_member(name: str) -> str:
    """The name with every number behind the first, that of the layer, replaced by 0."""
    first = re.match(r".*?\.\d+\.", name)
    return name if first is None else first[0] + re.sub(r"\b\d+(?=\.)", "0", name[first.end() :])


def _described(family: str, name: str, naming: Format, candidate: _Candidate) -> Recognised:
    found = candidate.axis_sizes()
    sizes = {field: found[axis] for axis, field in _FIELDS.items() if axis in found}
    sizes = {"hidden_size": sizes.pop("hidden_size", 0), "num_layers": candidate.model.num_layers} | sizes
    return Recognised(name, family, sizes, _fitting(family, naming, candidate, found))


def _fitting(family: str, naming: Format, candidate: _Candidate, found: dict[str, int]) -> str | None:
    """The shipped configuration with these sizes and names; of several, such as those for different hardware, the one
    with the shortest name."""
    for name in sorted(
        (name for name in presets() if name.startswith(f"{family}/")), key=lambda name: (len(name), name)
    ):
        model = load_config(name).model
        sizes = model.axis_sizes()
        if model.num_layers == candidate.model.num_layers and all(sizes.get(axis) == found[axis] for axis in found):
            if {rule.foreign for rule in naming.rules(model)} == candidate.names:
                return name
    return None


def fitting(format: str, shapes: Shapes) -> str:
    """A part of an error message: what a file's weights are, if they are recognised; else the empty text."""
    found = recognise(format, shapes)
    if found is None:
        return ""
    return f"{found}" if found.format == format else f"--from {found.format}, and {found}"
