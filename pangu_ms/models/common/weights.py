"""Foreign parameter names: the rules that every family's table consists of, and conversion by them in both directions.
No mindspore import.

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
from pangu_ms.models.common.stacks import join, member_name, members
from pangu_ms.models.common.strict import check_names_and_shapes

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One of our parameter names and its foreign name. `transpose` is True if the foreign matrix is [in, out]; ours are
    [out, in]."""

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
    """A foreign format: a one-to-one mapping between our parameters and its own, and what else its files may
    contain."""

    rules: Callable[[ModelConfig], list[Rule]]
    """One rule for each parameter of a model, or for each member of a stack (see stacks.py)."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(pattern of a whole name, canonical name that replaces it) for other spellings that are accepted when reading."""
    ignored: tuple[str, ...] = ()
    """Patterns of whole names that are not weights and are skipped."""
    copies: Callable[[ModelConfig], dict[str, str]] = lambda config: {}
    """Maps a tied parameter to the one that it must equal. Files may leave it out."""
    writes_copies: bool = True
    """Whether written files also contain the tied parameters."""
    model_types: tuple[str, ...] = ()
    """Values of model_type in a config.json of the format; empty if the format has no config.json."""
    read_config: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    """Fields of our configuration from the format's config.json (its path, its content); None if the format has
    none."""
    write_config: Callable[[Any], dict[str, Any]] | None = None
    """The inverse of `read_config`."""

    def to_ours(self, where: str, tensors: Tensors, config: ModelConfig) -> Tensors:
        """Rename and transpose the tensors of a foreign file.

        Args:
            where: the file, for messages.
            tensors: arrays by foreign name.
            config: determines the parameters and their shapes.

        Returns:
            Arrays by our names in the model's order; transposed ones are views, stacks of members copies.

        Raises:
            CheckpointError: parameters are missing, unexpected, duplicate or of a wrong shape, or a tied copy differs.
        """
        tensors = self._canonical(where, tensors)
        for copy, original in self.copies(config).items():
            if copy not in tensors or original not in tensors:
                continue
            if not np.array_equal(widened(tensors.pop(copy)), widened(tensors[original])):
                raise CheckpointError(
                    f"{where}: {copy} differs from {original}; they are one tied parameter in PanGu; untied weights"
                    " cannot be converted"
                )
        rules = self._checked_rules(config)
        check_names_and_shapes(where, tensors, {rule.foreign: _transposed_shape(shape, rule) for shape, rule in rules})
        ours = {rule.ours: tensors.pop(rule.foreign) for _, rule in rules}
        ours |= {rule.ours: ours[rule.ours].T for _, rule in rules if rule.transpose}
        return join(ours, config.parameter_shapes())

    def to_foreign(self, where: str, tensors: Tensors, config: ModelConfig) -> Tensors:
        """The inverse of `to_ours`, tied copies included where the format writes them; transposed arrays are views.

        Raises:
            CheckpointError: `tensors` are not exactly the parameters of `config`.
        """
        check_names_and_shapes(where, tensors, config.parameter_shapes())
        tensors = tensors | dict(members(tensors))
        foreign = {}
        for _, rule in self._checked_rules(config):
            foreign[rule.foreign] = tensors[rule.ours].T if rule.transpose else tensors[rule.ours]
        if self.writes_copies:
            foreign |= {copy: foreign[original] for copy, original in self.copies(config).items()}
        return foreign

    def _checked_rules(self, config: ModelConfig) -> list[tuple[tuple[int, ...], Rule]]:
        """(our shape, rule) in the model's order."""
        rules = self.rules(config)
        by_name = {rule.ours: rule for rule in rules}
        checked = []
        for name, shape in config.parameter_shapes().items():
            if name in by_name:
                checked.append((shape, by_name[name]))
            else:
                checked += [(shape[1:], by_name[member_name(name, i)]) for i in range(shape[0])]
        assert len(checked) == len(rules) == len({rule.foreign for rule in rules}), "table and model disagree"
        return checked

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


def _transposed_shape(shape: tuple[int, ...], rule: Rule) -> tuple[int, ...]:
    return shape[::-1] if rule.transpose else shape


# Models that `pangu_ms.mindformers` trains keep our names. MindFormers adds its optimizer's state and counters to the
# same files.
MINDFORMERS = Format(
    lambda config: [Rule(name, name) for name in config.parameter_shapes()],
    ignored=(
        r"(adam_[mv]|moments?)\..+",
        r"epoch_num|step_num|global_step|global_batch_size|loss_scale|scale_sense|current_iterator_step|last_overflow_iterator_step",
    ),
)
