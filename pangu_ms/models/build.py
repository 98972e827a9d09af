"""From a configuration to a model with values: built by family, initialised from a seed, or filled from named arrays.

What a family's model is, beside a Cell whose trainable parameters have the names and shapes of `config.parameter_shapes()`:
    Model(config, cache: CacheShape | None)
    construct(ids, positions, segments, key) -> logits [B, S, V]       whole sequences, in the compute dtype: training, evaluation
    extend(ids, positions, last, slots) -> logits float32 [B, V]        with a cache: appends tokens, see infer/cached_model.py
    hidden_states(ids, positions, segments) -> tuple of [B, S, E]       output of the embeddings and of each layer, for analyses
Parameters that are not trainable are the cache.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.config.base import ModelConfig, ParameterSpec
from pangu_ms.config.registry import FAMILIES, load_object
from pangu_ms.models.layers import CacheShape


def build_model(config: ModelConfig, cache: CacheShape | None = None) -> nn.Cell:
    """The model of a configuration, all zeros; with `cache` it can `extend` token by token."""
    return load_object(FAMILIES[config.family].model)(config, cache)


def initial_values(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and initial float32 value of every parameter; a value depends on the seed and its name alone, not on order, rank or device."""
    shapes = config.parameter_shapes()
    for name, spec in config.parameters().items():
        yield name, initial_value(spec, name, shapes[name], seed)


def initial_value(spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Initial float32 value of one parameter."""
    lines = (-1, *[1] * (len(shape) - 1))  # a mean or deviation for each line of the first dimension, or one for all
    mean, std = (np.asarray(value, np.float32).reshape(lines) for value in (spec.mean, spec.std))
    if not std.any():
        return np.array(np.broadcast_to(mean, shape))
    words = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest(), np.uint32)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(words.tolist())))
    return generator.standard_normal(shape, np.float32) * std + mean


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
