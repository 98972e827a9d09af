"""AdamW on arrays in host memory, where no graph takes part. No mindspore here."""

import ctypes
import functools
import logging
from collections.abc import Callable

import numpy as np

from ascend_ops import library
from ascend_ops.errors import OperatorError

log = logging.getLogger(__name__)


def host_adamw(
    parameter: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    gradient: np.ndarray,
    lr: float,
    factor: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    norms: np.ndarray | None = None,
) -> None:
    """`adamw` in place on numpy arrays, with the kernel of the CPU backend: the bits are those of the operator.

    Any thread may call it, also while a graph runs; it holds no lock of Python's while it computes. A kernel that runs
    at the same time has the pool of threads, and this one then computes on the calling thread alone. Where the kernels
    cannot be built, numpy computes the same formula, equal to rounding, and a warning says so once.

    Args:
        parameter, m, v: float32, C-contiguous and writable, of the same shape; np.memmap too, and slices along the
            first dimension of larger arrays. They are updated in place.
        gradient: float32, C-contiguous, of that shape.
        lr, factor, beta1, beta2, eps, weight_decay: as in `adamw`; rounded to float32.
        norms: float32 [K] for a parameter [K, ...], as in `adamw`: lines whose norm is 0 are neither read nor written.

    Raises:
        OperatorError: an array is not as described.
    """
    arrays = {"parameter": parameter, "m": m, "v": v, "gradient": gradient}
    for name, array in arrays.items():
        _check(name, array, parameter, writes=name != "gradient")
    if norms is None:
        norms = np.ones(1, np.float32)
    else:
        _check_norms(norms, parameter)
    controls = np.array([lr, factor], np.float32)
    attributes = np.array([beta1, beta2, eps, weight_decay], np.float32)
    (_kernel() or _compute)(*arrays.values(), controls, norms, attributes)


def _check(name: str, array: np.ndarray, parameter: np.ndarray, writes: bool) -> None:
    if not isinstance(array, np.ndarray):
        raise _refusal(name, f"is a {type(array).__name__}", "it must be a numpy array")
    if array.dtype != np.float32:
        raise _refusal(name, f"is {array.dtype}", "it must be float32; cast it")
    if array.shape != parameter.shape:
        raise _refusal(name, f"has shape {array.shape}", f"it must be {parameter.shape}: the shape of parameter")
    if array.size == 0:
        raise _refusal(name, f"has shape {array.shape}", "no dimension may be 0; leave the call out")
    if not array.flags.c_contiguous:
        raise _refusal(
            name,
            "is not C-contiguous",
            "an update in place needs its elements in order; slice only the first dimension",
        )
    if writes and not array.flags.writeable:
        raise _refusal(name, "is read-only", "it is updated in place; open the file with mode r+ or copy the array")


def _check_norms(norms: np.ndarray, parameter: np.ndarray) -> None:
    if not isinstance(norms, np.ndarray) or norms.dtype != np.float32 or not norms.flags.c_contiguous:
        raise _refusal("norms", "is not a contiguous float32 array", "give one norm for each line of parameter")
    if parameter.ndim == 0 or norms.shape != parameter.shape[:1]:
        wanted = f"it must be {parameter.shape[:1]}: parameter has shape {parameter.shape}"
        raise _refusal("norms", f"has shape {norms.shape}", wanted)


def _refusal(name: str, found: str, rule: str) -> OperatorError:
    return OperatorError(f"ascend_ops.host_adamw: {name} {found}; {rule}")


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """The AdamW of the CPU library, which is built if it does not exist yet; None where it cannot be."""
    try:
        function = ctypes.CDLL(str(library.build())).AdamW
    except (OSError, OperatorError) as error:
        log.warning("%s. Until then host_adamw computes in numpy, which is slower.", error)
        return None

    def call(*arrays: np.ndarray) -> None:
        tensors = (*arrays, np.empty(1, np.float32))
        count = len(tensors)
        data = (ctypes.c_void_p * count)(*(array.ctypes.data for array in tensors))
        ranks = (ctypes.c_int * count)(*(array.ndim for array in tensors))
        shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in tensors]
        pointers = (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes))
        dtypes = (ctypes.c_char_p * count)(*[b"float32"] * count)
        if function(count, data, ranks, pointers, dtypes, None, None):
            raise OperatorError("ascend_ops.host_adamw: the kernel failed; the line above tells why")

    return call


def _compute(*arrays: np.ndarray) -> None:
    """The kernel's formula, line by line."""
    *state, controls, norms, attributes = arrays
    lr, factor = controls
    beta1, beta2, eps, weight_decay = attributes
    for k in np.flatnonzero(norms):
        p, m, v, gradient = (array.reshape(norms.size, -1)[k] for array in state)
        g = gradient * factor
        m += (g - m) * (np.float32(1) - beta1)
        v += (g * g - v) * (np.float32(1) - beta2)
        p -= lr * (m / (np.sqrt(v) + eps) + weight_decay * p)
