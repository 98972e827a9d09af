"""Floating-point dtypes of stored weights, including bfloat16, which numpy does not have. No mindspore import."""

from collections.abc import Collection

import numpy as np

from pangu_ms.core.errors import CheckpointError

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""The 16 bits of a bfloat16. A structured dtype, because numpy refuses to compute with it."""
NAMES = ("float32", "float16", "bfloat16")
"""The dtypes that weights can be written in."""
_EXACT = {
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float64"),
    ("bfloat16", "float64"),
    ("float32", "float64"),
}


def name_of(dtype: np.dtype) -> str:
    """The usual name of a dtype, such as "bfloat16"."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.newbyteorder("=").name


def widened(array: np.ndarray) -> np.ndarray:
    """The same numbers in a dtype that numpy can compute with: bfloat16 becomes float32, any other dtype stays."""
    return (array.view("<u2").astype(np.uint32) << 16).view(np.float32) if array.dtype == BFLOAT16 else array


def bits(array: np.ndarray) -> np.ndarray:
    """The array as it is stored: a bfloat16 as uint16."""
    return array.view("<u2") if array.dtype == BFLOAT16 else array


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties to even. Values that are too large become infinite."""
    whole = np.ascontiguousarray(array, np.float32).view(np.uint32)
    upper = whole >> 16
    upper &= 1  # a tie is rounded up only from an odd number
    upper += 0x7FFF  # this and the lower half carry into the upper half exactly where the value is rounded up
    upper += whole
    upper >>= 16
    rounded = upper.astype("<u2")
    rounded[np.isnan(array)] = 0x7FC0  # NaN is set again, since rounding may have carried its bits into the sign
    return rounded.view(BFLOAT16)


def cast(
    where: str, tensors: dict[str, np.ndarray], dtype: str, integers: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Cast floating-point tensors to `dtype`, one of NAMES; tensors that already have this dtype, and those with names
    in `integers`, are returned unchanged.

    Raises:
        CheckpointError: a tensor of another kind, or a value that is not finite or not representable.
    """
    return {
        name: array if name in integers and array.dtype.kind == "i" else cast_one(where, name, array, dtype)
        for name, array in tensors.items()
    }


def require_floating(where: str, name: str, dtype: np.dtype) -> None:
    """Raise CheckpointError unless a tensor's dtype is floating-point."""
    if dtype.kind != "f" and dtype != BFLOAT16:
        raise CheckpointError(f"{where}: {name} has dtype {dtype}; weights are floating-point; convert it first")


def cast_one(where: str, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Cast one tensor, or a part of it; see `cast`."""
    require_floating(where, name, array.dtype)
    if name_of(array.dtype) == dtype:
        made = array
    else:
        with np.errstate(over="ignore"):  # reported below
            made = to_bfloat16(widened(array)) if dtype == "bfloat16" else widened(array).astype(dtype)
    if not np.isfinite(widened(made)).all():
        raise CheckpointError(
            f"{where}: {name} has values that are not finite in {dtype}; use float32, or another file if it holds NaN"
            " or Inf itself"
        )
    return made


def change(before: set[str], dtype: str) -> str:
    """Describe in a few words what `cast` does to tensors of the dtypes `before`."""
    parts = []
    for was in sorted(before):
        if was == dtype:
            parts.append(f"{was}, kept")
        elif (was, dtype) in _EXACT:
            parts.append(f"{was} widened to {dtype}, which holds them exactly")
        else:
            parts.append(f"{was} narrowed to {dtype}, each rounded to the nearest")
    return "; ".join(parts)
