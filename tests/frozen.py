"""A model with weights that training leaves as they are, for the time of a `with frozen():`, in any process.

Its family is alpha with one frozen matrix and an int32 table [vocab_size], a permutation that the ids go through before
they are embedded.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.alpha.model import PanguAlpha
from pangu_ms.models.common.config import ParameterSpec
from pangu_ms.planner import slices

MATRIX, TABLE = "blocks.0.ffn.up.weight", "token_map.rows"


class TokenMap(nn.Cell):
    """ids -> rows[ids], int32."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.rows, self.gather = (
            Parameter(Tensor(np.zeros(vocab_size, np.int32)), name="rows", requires_grad=False),
            ops.Gather(),
        )

    def construct(self, ids):
        return self.gather(self.rows, ids, 0)


class MappedAlpha(PanguAlpha):
    """PanguAlpha over mapped ids."""

    def __init__(self, config, cache=None):
        super().__init__(config, cache)
        self.token_map = TokenMap(config.vocab_size)

    def embed(self, ids_BS, positions_BS, key, domain_B):
        return super().embed(self.token_map(ids_BS), positions_BS, key, domain_B)


def permutation(vocab_size: int) -> np.ndarray:
    """What the table begins with: int32."""
    return np.random.default_rng(5).permutation(vocab_size).astype(np.int32)


ORIGINAL = {
    name: getattr(AlphaConfig, name) for name in ("layer_parameters", "outer_parameters", "outer_parameter_layers")
}


@contextlib.contextmanager
def unfrozen() -> Iterator[None]:
    """Alpha as it is, inside of `frozen()`."""
    with mock.patch.multiple(AlphaConfig, **ORIGINAL):
        _forget()
        yield
    _forget()


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Alpha with the frozen matrix and the int32 table."""
    layer, outer, layers = (
        AlphaConfig.layer_parameters,
        AlphaConfig.outer_parameters,
        AlphaConfig.outer_parameter_layers,
    )

    def layer_parameters(self, number):
        specs = layer(self, number)
        return specs | (
            {"ffn.up.weight": dataclasses.replace(specs["ffn.up.weight"], trainable=False)} if number == 0 else {}
        )

    def outer_parameters(self):
        before, behind = outer(self)
        return before, behind | {
            TABLE: ParameterSpec(
                ("vocab",), mean=tuple(permutation(self.vocab_size).tolist()), trainable=False, dtype="int32"
            )
        }

    def outer_parameter_layers(self):
        with mock.patch.object(AlphaConfig, "outer_parameters", outer):
            return layers(self) | {TABLE: (0,)}

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(AlphaConfig, "layer_parameters", layer_parameters))
        patches.enter_context(mock.patch.object(AlphaConfig, "outer_parameters", outer_parameters))
        patches.enter_context(mock.patch.object(AlphaConfig, "outer_parameter_layers", outer_parameter_layers))
        patches.enter_context(mock.patch("pangu_ms.models.alpha.model.MODEL", MappedAlpha))
        _forget()
        yield
    _forget()


def _forget() -> None:
    """What was kept of a configuration with other weights."""
    for kept in (slices.layer_kinds, slices.layer_counts, slices.outer_kinds):
        kept.cache_clear()
