"""From a configuration to a model with values: built by family, initialised from a seed, or filled from named arrays.

What a family's model is, beside a Cell whose trainable parameters have the names and shapes of `config.parameter_shapes()`:
    Model(config, cache: CacheShape | None)
    construct(ids, positions, segments, key) -> logits [B, S, V]       whole sequences, in the compute dtype: training, evaluation
    extend(ids, positions, last, slots) -> logits float32 [B, V]        with a cache: appends tokens, see infer/cached_model.py
    hidden_states(ids, positions, segments) -> tuple of [B, S, E]       output of the embeddings and of each layer, for analyses
Parameters that are not trainable are the cache.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.config.base import ModelConfig
from pangu_ms.config.registry import FAMILIES, load_object
from pangu_ms.models.init import initial_value, initial_values
from pangu_ms.models.layers import CacheShape

__all__ = ["build_model", "fill", "initial_value", "initial_values", "initialize", "to_arrays"]


def build_model(config: ModelConfig, cache: CacheShape | None = None) -> nn.Cell:
    """The model of a configuration, all zeros; with `cache` it can `extend` token by token."""
    return load_object(FAMILIES[config.family].model)(config, cache)


def initialize(model: nn.Cell, config: ModelConfig, seed: int) -> None:
    """Give every trainable parameter its initial value."""
    parameters = {parameter.name: parameter for parameter in model.trainable_params()}
    for name, value in initial_values(config, seed):
        parameters[name].set_data(Tensor(value))


def fill(parameters: list[Parameter], tensors: dict[str, np.ndarray]) -> None:
    """Set parameters from float arrays of the same names and shapes (the caller has checked both)."""
    for parameter in parameters:
        parameter.set_data(Tensor(np.ascontiguousarray(tensors[parameter.name], np.float32)))


def to_arrays(parameters: list[Parameter]) -> dict[str, np.ndarray]:
    """Parameters as numpy arrays by name."""
    return {p.name: p.asnumpy() for p in parameters}
