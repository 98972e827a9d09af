"""The kernels' functions in numpy float64, written from the table's comments and not from the kernels."""

import math

import numpy as np

from ascend_ops.table import ACTIVATION_CODES


def act(name: str, v: np.ndarray) -> np.ndarray:
    """The activation itself."""
    if name == "gelu":
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    if name == "gelu_erf":
        return 0.5 * v * (1 + np.vectorize(math.erf, otypes=[float])(v / math.sqrt(2)))
    return v / (1 + np.exp(-(1.702 if name == "fast_gelu" else 1.0) * v))


def slope(name: str, v: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Its derivative by a central difference (error about 1e-10)."""
    return (act(name, v + h) - act(name, v - h)) / (2 * h)


def series(name, x, bias, scale, shift):
    """sum_i act(scale_i * (x + bias) + shift_i)"""
    return sum(act(name, s * (x + bias) + t) for s, t in zip(scale, shift))


def series_grad(name, dy, x, bias, scale, shift):
    """dx, dbias, dscale, dshift, and with each sum the sum of the absolute values of its terms, which bounds the
    rounding."""
    u = x + bias
    g = [dy * slope(name, s * u + t) for s, t in zip(scale, shift)]
    dx = sum(s * gi for s, gi in zip(scale, g))
    sums = [
        reduce_like(dx, bias),
        [reduce_like(gi * u, s) for gi, s in zip(g, scale)],
        [reduce_like(gi, t) for gi, t in zip(g, shift)],
    ]
    bounds = [
        reduce_like(np.abs(dx), bias),
        [reduce_like(np.abs(gi * u), s) for gi, s in zip(g, scale)],
        [reduce_like(np.abs(gi), t) for gi, t in zip(g, shift)],
    ]
    return dx, [np.array(s) for s in sums], [np.array(b) for b in bounds]


def reduce_like(values, parameter):
    """Sum over rows, and over channels too where the parameter has one value."""
    rows = values.reshape(-1, values.shape[-1]).sum(0)
    return rows if parameter.size == rows.size else rows.sum(keepdims=True)


def dispatch(x, expert, num_experts):
    """rows, order, counts of a stable sort by expert; expert is [tokens * top_k]."""
    order = np.argsort(expert, kind="stable")
    return x[order // (len(expert) // len(x))], order, np.bincount(expert, minlength=num_experts)


def combine(rows, order, weights):
    """y[t] = sum_c weights[t, c] * rows[position of slot t * top_k + c]"""
    position = np.empty(len(order), int)
    position[order] = np.arange(len(order))
    return np.einsum("tc,tch->th", weights, rows[position.reshape(weights.shape)])


CODES = ACTIVATION_CODES
