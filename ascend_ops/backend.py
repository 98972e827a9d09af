"""The choice of the backend that computes an operator, by device, chip and dtype. `explain` gives the reasons.

    builtin   MindSpore's own operator for Ascend
    ascendc   this package's Ascend C kernel
    cpu       this package's CPU kernel
    composed  elementary MindSpore operators; runs everywhere, can be exported as MindIR, and is the reference
              that the others are tested against

The first one in this order that is available here is used, unless `use` or ASCEND_OPS_BACKEND names one. In a graph the
choice is made when the graph is compiled and does not change afterwards.
"""

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspore.ops import constexpr

from ascend_ops import library
from ascend_ops.checks import RULES, operand
from ascend_ops.custom import device
from ascend_ops.errors import OperatorError
from ascend_ops.table import FLOATS, KERNELS, OPERATORS

log = logging.getLogger(__name__)
BACKENDS = ("builtin", "ascendc", "cpu", "composed")
PORTABLE = "portable"
"""A value for `use`: the first available backend that consists of MindSpore's own operators. A graph refers to our
kernels by the path of a library, which other machines do not have."""
OURS = ("ascendc", "cpu")
VARIABLE = "ASCEND_OPS_BACKEND"
_forced: list[str] = []
"""Stack of the backends that `use` named. It belongs to the process, not to a thread, since MindSpore compiles the
branches of a graph in its own threads."""


@dataclass(frozen=True)
class Choice:
    """The backend that an operator uses here, and why."""

    backend: str
    reason: str


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Within this block all operators use `backend`, or with PORTABLE one of MindSpore's own, in every graph that is
    compiled and every eager call.

    Raises:
        OperatorError: there is no such backend. An operator that is called in the block raises it if the backend is not
            available here.
    """
    _forced.append(_known(backend, "ascend_ops.use"))
    try:
        yield
    finally:
        _forced.pop()


def _known(backend: str, where: str) -> str:
    if backend in (*BACKENDS, PORTABLE):
        return backend
    raise OperatorError(f"{where}: {backend!r}: no such backend; use one of {', '.join(BACKENDS)}")


def forced() -> str | None:
    """The backend that `use` or the environment names, if any."""
    if _forced:
        return _forced[-1]
    from_environment = os.environ.get(VARIABLE)
    return _known(from_environment, VARIABLE) if from_environment else None


def identity() -> str:
    """A text that identifies everything in this module and the kernels on which a compiled graph depends, for the keys
    of compile caches."""
    choices = [unavailable(name, backend, dtype) for name in OPERATORS for backend in BACKENDS for dtype in FLOATS]
    return f"{forced()} {choices} {library.library_path(library.cpu_level())}"


def choose(name: str, dtype: str = "float32") -> Choice:
    """The backend of operator `name` for inputs of `dtype`, and why.

    Raises:
        OperatorError: the forced backend cannot compute it here.
    """
    named = forced()
    if named and named != PORTABLE:
        if why_not := unavailable(name, named, dtype):
            raise OperatorError(
                f"ascend_ops.{name}: backend {named}, which was asked for, cannot be taken: {why_not}; use another or"
                " none"
            )
        return Choice(named, "asked for")
    refusals: list[str] = []
    for backend in BACKENDS:
        ours = named == PORTABLE and backend in OURS
        if not (why_not := "the graph is to be portable" if ours else unavailable(name, backend, dtype)):
            return Choice(backend, "; ".join(refusals) or "first choice")
        refusals.append(f"{backend}: {why_not}")
    raise AssertionError("composed is always available")


def has_graphs_of_one_process() -> bool:
    """Whether graphs that are compiled here may refer to libraries that MindSpore makes for each process, as graphs
    with Ascend C kernels do."""
    return any(not unavailable(name, "ascendc", dtype) for name in OPERATORS for dtype in FLOATS)


def unavailable(name: str, backend: str, dtype: str) -> str:
    """Why `backend` cannot compute operator `name` here; empty if it can."""
    if backend == "composed":
        return ""
    if backend == "cpu":
        if _device() != "CPU":
            return f"the device is {_device()}"
        return _cpu_unavailable() or (_onednn_unavailable() if OPERATORS[name].onednn else "")
    if _device() != "Ascend":
        return f"the device is {_device()}"
    if backend == "builtin":
        return _builtin_unavailable(name, dtype)
    return _ascendc_unavailable(name, dtype)


def _builtin_unavailable(name: str, dtype: str) -> str:
    operator = OPERATORS[name]
    if not operator.builtin:
        return "MindSpore has no operator for it"
    if soc() == "ascend910" and dtype == "bfloat16":
        return "ascend910 has no bfloat16"
    return "" if soc() in operator.builtin_socs else f"{operator.builtin} is not documented for {soc()}"


def _ascendc_unavailable(name: str, dtype: str) -> str:
    if missing := [k for k in OPERATORS[name].kernels if not KERNELS[k].ascendc]:
        return f"no Ascend C kernel {missing[0]}"
    if soc() == "ascend910" and dtype == "bfloat16":
        return "ascend910 has no bfloat16"
    installed = os.environ.get("ASCEND_CUSTOM_OPP_PATH", "")
    if not any((Path(path) / "op_api").is_dir() for path in installed.split(":") if path):
        return "its kernels are not installed (ascend_ops/ascendc/build.sh, then ASCEND_CUSTOM_OPP_PATH)"
    return ""


@functools.cache
def _cpu_unavailable() -> str:
    """Why the CPU library cannot be used here; empty if it can. This builds the library, and logs a failure once."""
    try:
        ctypes.CDLL(str(library.build()))
    except OSError as error:  # the library is truncated, or was built for another machine
        why_not = f"{error}; delete it and start again"
    except OperatorError as error:
        why_not = str(error)
    else:
        return ""
    log.warning("%s. Until then operators are composed of MindSpore's, which is slower.", why_not)
    return why_not


@functools.cache
def _onednn_unavailable() -> str:
    """Why matrix products cannot use the oneDNN that MindSpore loads, which the CPU library looks up; empty if they
    can."""
    found = ctypes.CDLL(str(library.build())).ascend_ops_onednn_version()
    return "" if found else "MindSpore has loaded no oneDNN 3 (2.9 brings it, 2.7 has oneDNN 2)"


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether this CPU has bfloat16 multiplication and our products use it; otherwise bfloat16 gains nothing over
    float32."""
    return not unavailable("linear", "cpu", "bfloat16") and bool({"avx512_bf16", "amx_bf16"} & library.cpu_flags())


SOCS = ("ascend910", "ascend910b", "ascend910_93")
_assumed_soc: list[str] = []
_explained_soc: list[str] = []
"""The chip for which `explain` answers, whatever device this process has."""


def assume_soc(name: str) -> None:
    """From now on choose backends as on this chip, for graphs that are compiled for a device that this machine lacks.

    Raises:
        OperatorError: the chip is unknown.
    """
    _require_soc(name, "assume_soc")
    _assumed_soc[:] = [name]


def _require_soc(name: str, function: str) -> None:
    if name not in SOCS:
        raise OperatorError(f"ascend_ops.{function}: {name!r}: no such chip; use one of {', '.join(SOCS)}")


def _device() -> str:
    return "Ascend" if _explained_soc else device()


def soc() -> str:
    """The name of the Ascend chip in CANN's configurations (see SOCS); empty without one. Untested on hardware."""
    if _device() != "Ascend":
        return "none"
    if _explained_soc:
        return _explained_soc[-1]
    return _assumed_soc[-1] if _assumed_soc else _soc_here()


@functools.cache
def _soc_here() -> str:
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version().lower()


def explain(dtype: str = "float32", chip: str = "") -> dict[str, Choice]:
    """For every operator the backend that it uses for `dtype`, and why.

    Args:
        dtype: dtype of the inputs.
        chip: one of SOCS: answer for this installation on that chip. Empty: for the device that this process has.

    Raises:
        OperatorError: the dtype or the chip is unknown.
    """
    if dtype not in FLOATS:
        raise OperatorError(
            f"ascend_ops.explain: {dtype!r}: operators compute in {', '.join(FLOATS)}; name one of them"
        )
    if not chip:
        return {name: choose(name, dtype) for name in OPERATORS}
    _require_soc(chip, "explain")
    _explained_soc.append(chip)
    try:
        return {name: choose(name, dtype) for name in OPERATORS}
    finally:
        _explained_soc.pop()


@constexpr
def select(name, *inputs):
    """Inside a graph: check the inputs of operator `name` (as descriptions by `describe`), and return its backend as a
    constant.

    Raises:
        OperatorError: an input breaks the operator's rule, or the forced backend cannot be used.
    """
    operands = [
        operand(name, label, described) for label, described in zip(OPERATORS[name].inputs, inputs, strict=True)
    ]
    RULES[name](*operands)
    return choose(name, operands[0].dtype).backend
