"""Initial values of a model's parameters. No mindspore import."""

import hashlib
from collections.abc import Iterator

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec


def initial_values(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and initial value, in its own dtype, of every parameter; a value depends only on the seed and the
    parameter's name, not on order, rank or device."""
    shapes = config.parameter_shapes()
    for name, spec in config.parameters().items():
        yield name, initial_value(spec, name, shapes[name], seed)


def initial_value(spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Initial value of one parameter, in its own dtype."""
    lines = (-1, *[1] * (len(shape) - 1))  # one mean or deviation for each index of the first dimension, or one for all
    mean, std = (np.asarray(value, np.float32).reshape(lines) for value in (spec.mean, spec.std))
    if not std.any():
        return np.array(np.broadcast_to(mean, shape), spec.dtype)
    words = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest(), np.uint32)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(words.tolist())))
    return (generator.standard_normal(shape, np.float32) * std + mean).astype(spec.dtype, copy=False)
