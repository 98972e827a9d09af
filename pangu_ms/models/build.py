"""From a configuration to a model with values: built by family, initialised from a seed, or filled from named arrays.

What a family's model is, beside a Cell whose trainable parameters have the names and shapes of `config.parameter_shapes()`:
    Model(config, cache: CacheShape | None)
    construct(ids, positions, segments, key) -> logits [B, S, V]       whole sequences, in the compute dtype: training, evaluation
    extend(ids, positions, last, slots) -> logits float32 [B, V]        with a cache: appends tokens, see infer/cached_model.py
Parameters that are not trainable are the cache.
"""

import hashlib
import math

import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.config.base import ModelConfig
from pangu_ms.config.registry import FAMILIES, load_object
from pangu_ms.models.layers import CacheShape

# Matrices that write to the residual stream; their initial deviation shrinks with depth (spec A1.7).
RESIDUAL_OUTPUTS = ("attention.output.weight", "ffn.down.weight")


def build_model(config: ModelConfig, cache: CacheShape | None = None) -> nn.Cell:
    """The model of a configuration, all zeros; with `cache` it can `extend` token by token."""
    return load_object(FAMILIES[config.family].model)(config, cache)


def initial_value(config: ModelConfig, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Initial float32 value of one parameter; depends on the seed and its name alone, not on order, rank or device."""
    if len(shape) == 1:
        return np.full(shape, 1.0 if name.endswith("norm.weight") else 0.0, np.float32)
    deviation = config.init_std
    if config.init_depth_scaled and name.endswith(RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_layers)
    words = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest(), np.uint32)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(words.tolist())))
    return generator.standard_normal(shape, np.float32) * np.float32(deviation)


def initialize(model: nn.Cell, config: ModelConfig, seed: int) -> None:
    """Give every trainable parameter its initial value."""
    for parameter in model.trainable_params():
        parameter.set_data(Tensor(initial_value(config, parameter.name, parameter.shape, seed)))


def fill(parameters: list[Parameter], tensors: dict[str, np.ndarray]) -> None:
    """Set parameters from float arrays of the same names and shapes (the caller has checked both)."""
    for parameter in parameters:
        parameter.set_data(Tensor(np.ascontiguousarray(tensors[parameter.name], np.float32)))


def to_arrays(parameters: list[Parameter]) -> dict[str, np.ndarray]:
    """Parameters as numpy arrays by name."""
    return {p.name: p.asnumpy() for p in parameters}
