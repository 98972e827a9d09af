"""Run an operator on a backend, forward and backward, and differentiate a float64 reference numerically."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import ascend_ops

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Relative to max(1, |reference|): 1e-5 by the house rule; for the others two roundings of their type (half an ulp is
2**-11, 2**-8)."""


class _Weighted(nn.Cell):
    """sum over outputs of <output, cotangent> in float32, whose gradients are the operator's, and the outputs. The
    cotangents are the last inputs."""

    def __init__(self, call: Callable, num_cotangents: int):
        super().__init__()
        self.call, self.num_cotangents = call, num_cotangents

    def construct(self, *inputs):
        cotangents = inputs[-self.num_cotangents :]
        outputs = self.call(*inputs[: -self.num_cotangents])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = (ops.cast(outputs[0], ms.float32) * cotangents[0]).sum()
        for i in range(1, self.num_cotangents):
            total = total + (ops.cast(outputs[i], ms.float32) * cotangents[i]).sum()
        return total, outputs


class _Plain(nn.Cell):
    def __init__(self, call: Callable):
        super().__init__()
        self.call = call

    def construct(self, *inputs):
        return self.call(*inputs)


def to_tensor(array: np.ndarray, dtype: str = "float32") -> Tensor:
    """A tensor of `dtype` if the array is of floats, else of its own integer type."""
    return Tensor(array.astype(np.float32)).astype(getattr(ms, dtype)) if array.dtype.kind == "f" else Tensor(array)


def to_float64(tensor: Tensor) -> np.ndarray:
    """A tensor's values; integers stay integers."""
    return (
        tensor.asnumpy()
        if tensor.dtype in (ms.int32, ms.int64, ms.bool_)
        else tensor.astype(ms.float32).asnumpy().astype(np.float64)
    )


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values of an array after it was rounded to `dtype`: what the operator really sees."""
    return to_float64(to_tensor(array, dtype))


def forward(call: Callable, inputs: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Outputs in graph mode. `call` is a function in a file, as graph mode needs its source."""
    return compiled(call)(inputs)


def compiled(call: Callable) -> Callable[[Sequence[Tensor]], tuple[np.ndarray, ...]]:
    """A function from inputs to outputs, whose graph is compiled once for all inputs of the same shapes: nearly all of
    the time of a small test is the compiler's."""
    cell = _Plain(call)

    def run(inputs: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
        outputs = cell(*inputs)
        return tuple(to_float64(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def forward_and_gradients(
    call: Callable, inputs: Sequence[Tensor], cotangents: Sequence[np.ndarray], positions: Sequence[int]
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Outputs, and gradients of sum <output_i, cotangent_i> for the inputs at `positions`, of one graph. Outputs past
    the cotangents are left out of the sum."""
    return differentiated(call, positions, len(cotangents))(inputs, cotangents)


def differentiated(call: Callable, positions: Sequence[int], num_cotangents: int = 1) -> Callable:
    """A function from inputs and cotangents to outputs and gradients, whose graph is compiled once as that of
    `compiled`."""
    graph = ms.value_and_grad(_Weighted(call, num_cotangents), tuple(positions), has_aux=True)

    def run(
        inputs: Sequence[Tensor], cotangents: Sequence[np.ndarray]
    ) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        (_, outputs), found = graph(*inputs, *(Tensor(c.astype(np.float32)) for c in cotangents))
        return tuple(map(to_float64, outputs)), tuple(map(to_float64, found if isinstance(found, tuple) else (found,)))

    return run


def gradients(
    call: Callable, inputs: Sequence[Tensor], cotangents: Sequence[np.ndarray], positions: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """The gradients alone."""
    return forward_and_gradients(call, inputs, cotangents, positions)[1]


def numeric_gradients(
    reference: Callable,
    inputs: Sequence[np.ndarray],
    cotangents: Sequence[np.ndarray],
    positions: Sequence[int],
    h: float = 1e-6,
) -> tuple[np.ndarray, ...]:
    """Central differences of sum <output_i, cotangent_i> of a float64 `reference`, one coordinate at a time: for small
    inputs."""

    def value(arrays: list[np.ndarray]) -> float:
        outputs = reference(*arrays)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return float(sum((o * c).sum() for o, c in zip(outputs, cotangents, strict=False)))

    arrays = [np.array(a, np.float64) if a.dtype.kind == "f" else a for a in inputs]
    result = []
    for position in positions:
        target = arrays[position]
        gradient = np.empty_like(target)
        for i in np.ndindex(target.shape):
            kept = target[i]
            target[i] = kept + h
            above = value(arrays)
            target[i] = kept - h
            gradient[i] = (above - value(arrays)) / (2 * h)
            target[i] = kept
        result.append(gradient)
    return tuple(result)


def assert_close(found: np.ndarray, wanted: np.ndarray, dtype: str = "float32", factor: float = 1.0) -> None:
    """|found - wanted| <= tolerance * max(1, |wanted|) everywhere; `factor` widens it for sums of many rounded
    terms."""
    assert found.shape == wanted.shape
    error = np.abs(found - wanted) / np.maximum(1.0, np.abs(wanted))
    assert error.max() <= TOLERANCE[dtype] * factor, (
        f"largest error {error.max():.3g} at {np.unravel_index(error.argmax(), error.shape)}"
    )


@contextlib.contextmanager
def in_mode(mode: int) -> Iterator[None]:
    """Calls here run in graph mode, or eagerly, one after the other."""
    # Else calls behind the one that failed run, too, and on a busy machine a later test is told of their failures.
    ms.set_context(mode=mode, pynative_synchronize=True)
    try:
        yield
    finally:
        ms.set_context(mode=ms.GRAPH_MODE, pynative_synchronize=False)


MODES = {"eager": ms.PYNATIVE_MODE, "graph": ms.GRAPH_MODE}


def assert_refused(call: Callable, tensors: Sequence[Tensor], message: str, mode: str) -> None:
    """With an OperatorError of one line, when it is called eagerly or when its graph is compiled: some fifty times as
    long, so that of an operator's refusals one in a graph is of the default tier."""
    with in_mode(MODES[mode]), pytest.raises(ascend_ops.OperatorError, match=message) as error:
        _Plain(call)(*tensors) if mode == "graph" else call(*tensors)
    assert "\n" not in str(error.value)


def hash_reference(index, seed):
    """lowbias32 with the seed added after the first product, in 64-bit arithmetic."""
    mask = 0xFFFFFFFF
    h = (index ^ int(seed)) & mask
    h = ((h ^ (h >> 16)) * 0x7FEB352D + int(seed)) & mask
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & mask
    return (h ^ (h >> 16)) & 0x7FFFFFFF
