"""Foreign parameter names: what every family's table is made of, and its use in both directions. No mindspore import.

A family's weights.py has a table of rules for each foreign format.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.core.dtypes import widened
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.strict import check_names_and_shapes

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One of our names, its foreign name, and whether the foreign matrix is [in, out] where ours are [out, in]."""

    ours: str
    foreign: str
    transpose: bool = False


def linear(ours: str, foreign: str, transpose: bool = False) -> list[Rule]:
    """Rules for the weight and bias of a dense layer."""
    return [Rule(f"{ours}.weight", f"{foreign}.weight", transpose), Rule(f"{ours}.bias", f"{foreign}.bias")]


def norm(ours: str, foreign: str, leaves: tuple[str, str] = ("weight", "bias")) -> list[Rule]:
    """Rules for the scale and shift of a LayerNorm."""
    return [Rule(f"{ours}.weight", f"{foreign}.{leaves[0]}"), Rule(f"{ours}.bias", f"{foreign}.{leaves[1]}")]


def under(ours: str, foreign: str, rules: list[Rule]) -> list[Rule]:
    """The same rules inside a layer."""
    return [Rule(f"{ours}.{rule.ours}", f"{foreign}.{rule.foreign}", rule.transpose) for rule in rules]


@dataclass(frozen=True)
class Format:
    """A foreign format: a bijection between our parameters and its own, and what else its files may hold."""

    rules: Callable[[ModelConfig], list[Rule]]
    """One rule for each parameter of a model."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(pattern of a whole name, the canonical name it stands for), accepted when reading."""
    ignored: tuple[str, ...] = ()
    """Patterns of whole names that are no weights."""
    copies: Callable[[ModelConfig], dict[str, str]] = lambda config: {}
    """Tied parameter -> the one it must equal: optional when read."""
    writes_copies: bool = True
    """Whether files of the format hold the tied parameters too."""
    model_types: tuple[str, ...] = ()
    """What a config.json of the format calls its models; none if the format has no config.json."""
    read_config: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    """Fields of our configuration from the format's config.json (its path, its content); None if the format has
    none."""
    write_config: Callable[[Any], dict[str, Any]] | None = None
    """The inverse."""

    def to_ours(self, where: str, tensors: Tensors, config: ModelConfig) -> Tensors:
        """Rename and turn the tensors of a foreign file.

        Args:
            where: begins each message: the file.
            tensors: arrays by foreign name.
            config: says which parameters there are.

        Returns:
            Arrays by our names in the model's order; transposed ones are views.

        Raises:
            CheckpointError: missing, unexpected, doubled or misshaped parameters, or a tied copy that differs.
        """
        tensors = self._canonical(where, tensors)
        for copy, original in self.copies(config).items():
            if (
                copy in tensors
                and original in tensors
                and not np.array_equal(widened(tensors[copy]), widened(tensors[original]))
            ):
                raise CheckpointError(
                    f"{where}: {copy} differs from {original}; they are one tied parameter in PanGu; untied weights"
                    " cannot be converted"
                )
            if original in tensors:
                tensors.pop(copy, None)
        rules = self._checked_rules(config)
        check_names_and_shapes(where, tensors, {rule.foreign: _turned(shape, rule) for shape, rule in rules})
        return {rule.ours: tensors[rule.foreign].T if rule.transpose else tensors[rule.foreign] for _, rule in rules}

    def to_foreign(self, where: str, tensors: Tensors, config: ModelConfig) -> Tensors:
        """The inverse of `to_ours`, tied copies included where the format writes them; transposed arrays are views.

        Raises:
            CheckpointError: `tensors` are not exactly the parameters of `config`.
        """
        check_names_and_shapes(where, tensors, config.parameter_shapes())
        foreign = {
            rule.foreign: tensors[rule.ours].T if rule.transpose else tensors[rule.ours]
            for _, rule in self._checked_rules(config)
        }
        return (
            foreign
            if not self.writes_copies
            else foreign | {copy: foreign[original] for copy, original in self.copies(config).items()}
        )

    def _checked_rules(self, config: ModelConfig) -> list[tuple[tuple[int, ...], Rule]]:
        """(our shape, rule) in the model's order."""
        rules = self.rules(config)
        by_name = {rule.ours: rule for rule in rules}
        shapes = config.parameter_shapes()
        assert by_name.keys() == shapes.keys() and len(rules) == len(by_name) == len(
            {rule.foreign for rule in rules}
        ), "table and model disagree"
        return [(shape, by_name[name]) for name, shape in shapes.items()]

    def _canonical(self, where: str, tensors: Tensors) -> Tensors:
        canonical: Tensors = {}
        for name, array in tensors.items():
            if any(re.fullmatch(pattern, name) for pattern in self.ignored):
                continue
            for pattern, replacement in self.aliases:
                name = re.sub(rf"\A(?:{pattern})\Z", replacement, name)
            if name in canonical:
                raise CheckpointError(
                    f"{where}: {name} stands there twice, under two spellings; one is meant; remove the other from the"
                    " file"
                )
            canonical[name] = array
        return canonical


def _turned(shape: tuple[int, ...], rule: Rule) -> tuple[int, ...]:
    return shape[::-1] if rule.transpose else shape


# What `pangu_ms.mindformers` trains keeps our names. MindFormers adds its optimizer's state and counters to the same
# files.
MINDFORMERS = Format(
    lambda config: [Rule(name, name) for name in config.parameter_shapes()],
    ignored=(
        r"(adam_[mv]|moments?)\..+",
        r"epoch_num|step_num|global_step|global_batch_size|loss_scale|scale_sense|current_iterator_step|last_overflow_iterator_step",
    ),
)
