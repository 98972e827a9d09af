"""Initial values of a model's parameters. No mindspore import."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.stacks import COLLECTIONS, member_name

Slices = tuple[slice, ...]


def initial_values(
    config: ModelConfig, seed: int, token_counts: np.ndarray | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and initial value, in its own dtype, of every parameter; a value depends only on the seed and the
    parameter's name, not on order, rank or device. For `token_counts` see `ModelConfig.initial_tables`."""
    shapes, tables = config.parameter_shapes(), config.initial_tables(token_counts)
    for name, spec in config.parameters().items():
        yield name, tables[name] if name in tables else initial_value(spec, name, shapes[name], seed)


def initial_value(
    spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int, part: Slices | None = None
) -> np.ndarray:
    """Initial value of one parameter, or of a part of it, in its own dtype. Of a stack (see stacks.py) only the members
    in the part are made."""
    part = part or tuple(slice(0, size) for size in shape)
    if spec.axes[0] in COLLECTIONS:
        one = dataclasses.replace(spec, axes=spec.axes[1:], lazy=False)
        indices = range(*part[0].indices(shape[0]))
        return np.stack([initial_value(one, member_name(name, i), shape[1:], seed, part[1:]) for i in indices])
    return _values(spec, name, shape, seed)[part]


def _values(spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    lines = (-1, *[1] * (len(shape) - 1))  # one mean or deviation for each index of the first dimension, or one for all
    mean, std = (np.asarray(value, np.float32).reshape(lines) for value in (spec.mean, spec.std))
    if not std.any():
        return np.array(np.broadcast_to(mean, shape), spec.dtype)
    words = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest(), np.uint32)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(words.tolist())))
    return (generator.standard_normal(shape, np.float32) * std + mean).astype(spec.dtype, copy=False)
