"""Foreign parameter names: the rules that every family's table consists of, and conversion by them in both directions.
No mindspore import.

A family's weights.py has a table of rules for each foreign format.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from pangu_ms.core.dtypes import widened
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.stacks import join, member_name, members
from pangu_ms.models.common.strict import check_names_and_shapes


class ArrayLike(Protocol):
    """What `Format` needs to know of a tensor: an array, or one that is still on the disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def T(self) -> Any:
        """Its transpose."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


Tensor = TypeVar("Tensor", bound=ArrayLike)


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, bfloat16 or not."""
    return np.array_equal(widened(one), widened(other))


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


def foreign_name(name: str, patterns: dict[str, str]) -> str:
    """The foreign name of one of our parameters by a table like `NAMES`."""
    for pattern, replacement in patterns.items():
        if re.match(pattern, name):
            return re.sub(rf"\A{pattern}", replacement, name)
    raise AssertionError(f"{name} has no foreign name")


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
    npy_files: tuple[tuple[str, str], ...] = ()
    """(end of a file's name, canonical foreign name) of tensors that are published as .npy files of their own."""
    tensor_parallel: bool = False
    """Whether its directories hold tensor-parallel parts, which checkpoint/megatron.py reads and writes."""
    model_types: tuple[str, ...] = ()
    """Values of model_type in a config.json of the format; empty if the format has no config.json."""
    read_config: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    """Fields of our configuration from the format's config.json (its path, its content); None if the format has
    none."""
    write_config: Callable[[Any], dict[str, Any]] | None = None
    """The inverse of `read_config`."""

    earlier: "tuple[str, Format] | None" = None
    """The format that the same programs had before, and the beginning of names that only it has."""

    def of_names(self, names: Iterable[str]) -> "Format":
        """The format of a file with these names: this one or the earlier one."""
        prefix, earlier = self.earlier or ("", self)
        return earlier if any(name.startswith(prefix) for name in names) else self

    def to_ours(
        self,
        where: str,
        tensors: Mapping[str, Tensor],
        config: ModelConfig,
        stack: Callable[[list[Any]], Any] = np.stack,
        equal: Callable[[Any, Any], bool] = same_values,
    ) -> dict[str, Tensor]:
        """Rename and transpose the tensors of a foreign file.

        Args:
            where: the file, for messages.
            tensors: arrays by foreign name, or what is like arrays.
            config: determines the parameters and their shapes.
            stack: stacks tensors along a new first dimension.
            equal: whether two tensors hold the same numbers.

        Returns:
            Arrays by our names in the model's order; transposed ones are views, stacks of members copies.

        Raises:
            CheckpointError: parameters are missing, unexpected, duplicate or of a wrong shape, or a tied copy differs.
        """
        tensors = {name: tensors[found] for name, found in self.canonical_names(where, tensors).items()}
        for copy, original in self.copies(config).items():
            if copy not in tensors or original not in tensors:
                continue
            if not equal(tensors.pop(copy), tensors[original]):
                raise CheckpointError(
                    f"{where}: {copy} differs from {original}; they are one tied parameter in PanGu; untied weights"
                    " cannot be converted"
                )
        rules = self._checked_rules(config)
        check_names_and_shapes(where, tensors, self.foreign_shapes(config))
        ours = {rule.ours: tensors.pop(rule.foreign) for _, rule in rules}
        ours |= {rule.ours: ours[rule.ours].T for _, rule in rules if rule.transpose}
        return join(ours, config.parameter_shapes(), stack)

    def to_foreign(self, where: str, tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """The inverse of `to_ours`, tied copies included where the format writes them; transposed arrays are views.

        Raises:
            CheckpointError: `tensors` are not exactly the parameters of `config`.
        """
        check_names_and_shapes(where, tensors, config.parameter_shapes())
        tensors = dict(tensors) | dict(members(tensors))
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

    def foreign_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes in a file of the format, without tied copies."""
        return {rule.foreign: _transposed_shape(shape, rule) for shape, rule in self._checked_rules(config)}

    def canonical_names(self, where: str, names: Iterable[str]) -> dict[str, str]:
        """The names of a file without those that are not weights: the canonical name -> the file's own spelling.

        Raises:
            CheckpointError: one parameter stands there under two spellings.
        """
        canonical: dict[str, str] = {}
        for found in names:
            if any(re.fullmatch(pattern, found) for pattern in self.ignored):
                continue
            name = found
            for pattern, replacement in self.aliases:
                name = re.sub(rf"\A(?:{pattern})\Z", replacement, name)
            if name in canonical:
                raise CheckpointError(
                    f"{where}: {name} stands there twice, under two spellings; one is meant; remove the other from the"
                    " file"
                )
            canonical[name] = found
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
