"""Makes the kernels of the table available as MindSpore primitives, which are created at first use and cached. They
work in graphs and eagerly.

A function with the decorator `constexpr` runs while a graph is compiled, and its result is a constant of the graph.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType, constexpr
from mindspore.ops import signature as sig
from mindspore.ops.composite.multitype_ops.zeros_like_impl import zeros_like  # noqa: F401 - works on numbers too

import ascend_ops
from ascend_ops import library
from ascend_ops.layout import Axes, devices, is_laid_out
from ascend_ops.table import KERNELS, Kernel

_DATA_TYPES = {
    "float32": DataType.F32_Default,
    "float16": DataType.F16_Default,
    "bfloat16": DataType.BF16_Default,
    "int32": DataType.I32_Default,
    "uint8": DataType.U8_Default,
}
_LAUNCHERS = "MS_COMPILER_CACHE_PATH"
_gradients: dict[str, Callable] = {}


def gradient_of(name: str) -> Callable[[Callable], Callable]:
    """Decorator: registers the backward pass of kernel `name`.

    Its arguments are the inputs, the attributes, the outputs and their gradients; it returns a gradient for each input
    and attribute.
    """

    def register(function: Callable) -> Callable:
        _gradients[name] = function
        return function

    return register


def registration(kernel: Kernel, target: str) -> dict:
    """MindSpore's description of a kernel for `target` (CPU or Ascend). Each call returns a new one, since MindSpore
    modifies the description."""
    info = CustomRegOp(kernel.name)
    inputs = [port.name for port in kernel.inputs] + (["attributes"] if kernel.attributes and target == "CPU" else [])
    for i, name in enumerate(inputs):
        info = info.input(i, name)
    if target == "Ascend":
        for attribute in kernel.attributes:
            info = info.attr(attribute.name, "required", attribute.type)
    for i, port in enumerate(kernel.outputs):
        info = info.output(i, port.name)
    for row in kernel.dtype_rows():
        dtypes = list(row)
        if len(inputs) > len(kernel.inputs):
            dtypes.insert(len(kernel.inputs), "float32")
        info = info.dtype_format(*(_DATA_TYPES[dtype] for dtype in dtypes))
    return info.target(target).get_op_info()


def output_shapes(kernel: Kernel, shapes: tuple[list[int], ...]) -> tuple[list[int], ...]:
    """Shapes of a kernel's outputs, derived from its inputs' shapes as the table describes."""
    by_name = dict(zip((port.name for port in kernel.inputs), shapes, strict=False))

    def dims(term: str) -> list[int]:
        if term.isdigit():
            return [int(term)]
        name, _, index = term.rstrip("]").partition("[")
        shape = list(by_name[name])
        return shape if not index else shape[:-1] if index == ":-1" else [shape[int(index)]]

    return tuple(sum((dims(term) for term in output.shape.split()), []) for output in kernel.outputs)


def output_dtypes(kernel: Kernel, dtypes: tuple[ms.Type, ...]) -> tuple[ms.Type, ...]:
    """Dtypes of a kernel's outputs, derived from its inputs' dtypes as the table describes."""
    by_letter = {port.dtype: dtype for port, dtype in zip(kernel.inputs, dtypes, strict=False)}
    return tuple(by_letter.get(output.dtype) or getattr(ms, output.dtype) for output in kernel.outputs)


def _one_or_all(values: tuple) -> tuple | object:
    return values[0] if len(values) == 1 else values


@functools.cache
def primitive(name: str, target: str) -> ops.Custom:
    """The primitive of kernel `name` on `target` (CPU or Ascend); builds the CPU library if it does not exist yet."""
    return _made(name, target)


_placed: dict[str, ops.Custom] = {}


def placed_primitive(name: str, target: str, operands: tuple[Axes, ...], results: tuple[Axes, ...]) -> ops.Custom:
    """As `primitive`, with the layouts that the current plan gives to the inputs and outputs; see `kernel`."""
    whole = ((None,),) if KERNELS[name].attributes and target == "CPU" else ()
    inputs, outputs = devices().layouts(operands + whole), devices().layouts(results)
    # The key is a text, because a Layout is not hashable.
    key = f"{name} {target} {[layout.to_dict() for layout in inputs + outputs]}"
    if key not in _placed:
        made = _made(name, target)
        made.add_prim_attr("self_define_shard", True)  # without it MindSpore refuses layouts of custom operators
        _placed[key] = made.shard(in_strategy=inputs, out_strategy=outputs)
    return _placed[key]


def _gradient(name: str) -> Callable | None:
    """The backward pass of a kernel, if it has one. The operators' modules register these, so all of them are imported
    first."""
    for public in ascend_ops.__all__:
        getattr(ascend_ops, public)
    return _gradients.get(name)


def _made(name: str, target: str) -> ops.Custom:
    kernel = KERNELS[name]
    if target == "CPU":
        function, shape, dtype = f"{library.build()}:{name}", None, None
    else:
        function = f"aclnn{name}"
        shape = lambda *shapes: _one_or_all(output_shapes(kernel, shapes))  # noqa: E731
        dtype = lambda *dtypes: _one_or_all(output_dtypes(kernel, dtypes))  # noqa: E731
    with _launcher_directory_set() if target == "Ascend" else contextlib.nullcontext():
        made = ops.Custom(function, shape, dtype, "aot", bprop=_gradient(name), reg_info=registration(kernel, target))
    written = [port.written for port in kernel.inputs] + [False] * bool(kernel.attributes)
    if any(written):
        made.add_prim_attr("side_effect_mem", True)  # keeps the call's position in the order of execution
        modes = (sig.sig_rw.RW_WRITE if w else sig.sig_rw.RW_READ for w in written)
        made.set_signatures(tuple(sig.make_sig(f"input{i}", mode) for i, mode in enumerate(modes)))
    return made


@contextlib.contextmanager
def _launcher_directory_set() -> Iterator[None]:
    """Set the variable that names the directory for launcher libraries: MindSpore compiles one for each Ascend kernel,
    by default into the current directory."""
    before = os.environ.get(_LAUNCHERS)
    os.environ[_LAUNCHERS] = _launcher_directory().name
    try:
        yield
    finally:
        del os.environ[_LAUNCHERS]
        if before is not None:
            os.environ[_LAUNCHERS] = before


@functools.cache
def _launcher_directory() -> tempfile.TemporaryDirectory[str]:
    """A temporary directory that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="ascend-ops-", ignore_cleanup_errors=True)


def device() -> str:
    """The type of device on which MindSpore computes: CPU, GPU or Ascend."""
    return ms.get_context("device_target")


@constexpr
def kernel(name, operands=None, results=None):
    """The primitive of a kernel on this device, as a constant of the graph. In a call the attributes, made by
    `attribute`, follow the inputs.

    Args:
        operands, results: the plan's names of the dimensions of each input and output, without attributes; those of its
        gradient follow from them.
    """
    if operands is None or not is_laid_out():
        return primitive(name, device())
    return placed_primitive(name, device(), operands, results)


@constexpr
def attribute(*values):
    """Attributes of a call in the form that this device's kernels need: one tensor on a CPU. A kernel for Ascend has at
    most one attribute."""
    return Tensor(np.array(values, np.float32)) if device() == "CPU" else values[0]


@constexpr
def filled(value, *shape):
    """A float32 tensor filled with one value, as a constant of the graph."""
    return Tensor(np.full(shape, value, np.float32))
