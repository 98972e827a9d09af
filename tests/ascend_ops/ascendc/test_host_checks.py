"""The host execution itself: seeded mistakes in small kernels are found, each with its message, and correct ones
pass."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from tests.ascend_ops.ascendc.ascendc_host import CHIPS, FLAGS, PARTS, ROOT, compile_shared
from tests.compiled import compiled_once, digest_of

HERE = Path(__file__).resolve().parent
CORES, COUNT = 2, 20

# kernel -> part of the message; None: no error
MISTAKES = {
    "correct": None,
    "vector_barrier": None,
    "sync": None,
    "missing_free": "AllocTensor: all 2 buffers of the queue are taken (FreeTensor is missing)",
    "missing_free_once": "FreeTensor: a tensor of a queue is never freed",
    "double_free": "FreeTensor: the tensor is free already",
    "use_after_free": "LocalTensor::SetValue: LocalTensor is used after FreeTensor",
    "stale_tensor": "LocalTensor::SetValue: LocalTensor is used after FreeTensor",
    "missing_enque": "DeQue: the queue is empty (EnQue is missing)",
    "foreign_queue": "EnQue: the tensor does not belong to this queue",
    "beyond_depth": "EnQue: more tensors wait than the depth of the queue",
    "ub_exhausted": "bytes of the unified buffer",
    "nine_queue_buffers": "InitBuffer: queues between the same two pipes have 9 buffers; the chip has",
    "local_overflow": "Duplicate: needs 132 of the 128 bytes of its LocalTensor",
    "tail_overrun": "DataCopy: bytes 80 to 176 lie beyond the end of x in global memory (160 bytes)",
    "store_overrun": "DataCopy: bytes 80 to 176 lie beyond the end of y in global memory (160 bytes)",
    "odd_length": "DataCopy: the length of 76 bytes is not a multiple of 32",
    "misaligned": "Duplicate: LocalTensor does not start at a multiple of 32 bytes",
    "overlap": "Adds: source and destination overlap in part",
    "write_to_input": "DataCopy: writes to the input x",
    "no_vector_barrier": "Adds: reads the result of a vector instruction without PipeBarrier<PIPE_V> in between",
    "no_barrier_after_copy": "Adds: pipe vector reads what pipe MTE2 (copy in) wrote",
    "scalar_reads_too_early": "LocalTensor::GetValue: pipe scalar reads what pipe MTE2 (copy in) wrote",
    "copy_over_a_read": "DataCopy: pipe MTE2 (copy in) overwrites what pipe vector may still read",
    "copy_over_a_scalar_read": "DataCopy: pipe MTE2 (copy in) overwrites what pipe scalar may still read",
    "no_sync": "DataCopy: reads workspace that another core wrote, without SyncAll in between",
    "unwritten_workspace": "DataCopy: reads workspace that no core has written",
    "one_core_skips_sync": "SyncAll: another core stopped before it arrived",
    "flags_not_zero": "SyncAll: gmWorkspace was not set to zero",
    "shared_cache_line": "GlobalTensor::SetValue: two cores write into the same 64 bytes of y",
    "copy_into_a_cached_line": "DataCopy: copies into a cache line of y that holds scalar stores",
    "scalar_store_beside_a_copy": None,
    "wrong_round_mode": "takes CAST_",
}
ONLY = {
    ("ascend910", "shared_block"): "DataCopy: two cores write into the same 32 bytes of y",
    ("ascend910b", "shared_block"): None,
    (
        "ascend910",
        "five_queue_buffers",
    ): "InitBuffer: queues between the same two pipes have 5 buffers; the chip has 4 events",
    ("ascend910b", "five_queue_buffers"): None,
    ("ascend910", "long_axpy"): "Axpy: so many elements are computed wrongly by CANN's ascend910 header",
    ("ascend910b", "long_axpy"): None,
    ("ascend910b", "pad_copies_any_length"): None,
    ("ascend910b", "pad_overrun"): "DataCopyPad: bytes 124 to 164 lie beyond the end of x in global memory (160 bytes)",
}
RUNS = {**{(chip, name): message for chip in CHIPS for name, message in MISTAKES.items()}, **ONLY}


@pytest.fixture(scope="module")
def libraries(gxx, tmp_path_factory, built_files):
    """The kernels of mistakes.cpp for each chip, compiled now or in an earlier run of the tests."""
    source, found = tmp_path_factory.mktemp("mistakes") / "all.cpp", {}
    source.write_text(f'#include "kernel_library.h"\n#include "{HERE / "mistakes.cpp"}"\n')
    headers = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.h*"))]
    digest = digest_of(*FLAGS, files=[source, HERE / "mistakes.cpp", *headers])
    for chip, number in CHIPS.items():

        def compile_to(output: Path, number: int = number) -> None:
            assert compile_shared([source], output, f"-DHOST_CHIP={number}") == ""

        found[chip] = ctypes.CDLL(str(compiled_once(built_files / f"mistakes_{chip}-{digest}.so", compile_to)))
        found[chip].RunKernel.restype = ctypes.c_char_p
    return found


def run(library, kernel: str) -> tuple[str, np.ndarray]:
    """The error of a kernel, and y."""
    x, y = np.arange(CORES * COUNT, dtype=np.float32), np.zeros(CORES * COUNT, np.float32)
    tensors = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data)
    sizes = (ctypes.c_uint64 * 2)(x.nbytes, y.nbytes)
    names = (ctypes.c_char_p * 2)(b"x", b"y")
    error = library.RunKernel(
        kernel.encode(),
        CORES,
        1,
        2,
        names,
        tensors,
        sizes,
        b"",
        ctypes.c_uint64(0),
        ctypes.c_uint64(8192),
        (ctypes.c_uint64 * 1)(),
    )
    return error.decode(), y


@pytest.mark.parametrize("chip, kernel", RUNS)
def test_mistake_is_found(libraries, chip, kernel):
    error, _ = run(libraries[chip], kernel)
    message = RUNS[chip, kernel]
    assert (error == "") if message is None else (message in error), error


@pytest.mark.parametrize("chip", CHIPS)
def test_correct_kernel_computes(libraries, chip):
    _, y = run(libraries[chip], "correct")
    assert (y[:16] == 2 * np.arange(16)).all() and (y[16:] == 0).all()


ABSENT = " does not exist in this type on this chip"
TENSORS = (
    "using namespace AscendC; LocalTensor<float> f; LocalTensor<half> h; LocalTensor<int32_t> i;"
    " GlobalTensor<float> g; "
)

# call -> chips on which it compiles; the header's table says what exists, these lines what the vendor's documentation
# says of the same
CALLS = {
    "Maxs(f, f, 1.0f, 16);": {220},
    "Max(f, f, f, 16);": {100, 220},
    "ReduceSum(f, f, f, 16);": {220},
    "ReduceSum(h, h, h, 16);": {100, 220},
    "SyncAll();": {220},
    "SyncAll(GlobalTensor<int32_t>(), i);": {100, 220},
    "KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);": {220},
    "DataCopyPad(g, f, DataCopyExtParams{});": {220},
    "DataCopy(g, f, 16);": {100, 220},
    "Cast(h, f, RoundMode::CAST_NONE, 16);": {100, 220},
    "LocalTensor<bfloat16_t> b;": {220},
    "GlobalTensor<bfloat16_t> b;": {220},
    "LocalTensor<bfloat16_t> b; Cast(f, b, RoundMode::CAST_NONE, 16);": {220},
    "LocalTensor<bfloat16_t> b; Add(b, b, b, 16);": set(),  # the vector unit does not compute in bfloat16
    "Div(i, i, i, 16);": set(),
    "Adds(h, h, half(1), 16);": set(),  # exists, but no kernel uses it and nobody has looked it up
    "Cast(f, f, RoundMode::CAST_NONE, 16);": set(),
}


@pytest.fixture(scope="module")
def refused(gxx, tmp_path_factory):
    """For each chip the numbers of the calls that do not compile, from one compilation in which every call stands in a
    file of its own name."""
    directory, found = tmp_path_factory.mktemp("calls"), {}
    for chip in CHIPS.values():
        source = directory / f"calls{chip}.cpp"
        calls = [f'#line 1 "call{n}"\nvoid kernel{n}() {{ {TENSORS}{call} }}\n' for n, call in enumerate(CALLS)]
        source.write_text('#include "kernel_operator.h"\n' + "".join(calls))
        said = compile_shared([source], directory / "calls.so", f"-DHOST_CHIP={chip}", "-fsyntax-only", "-w")
        found[chip] = {int(n) for n in re.findall(r"\bcall(\d+):1:", said)}
    return found


@pytest.mark.parametrize("chip", CHIPS.values())
@pytest.mark.parametrize("number, call", enumerate(CALLS))
def test_a_call_compiles_only_where_it_exists(refused, chip, number, call):
    assert (number not in refused[chip]) == (chip in CALLS[call])


MISSING = {
    "AscendC::Maxs(a, a, 1.0f, 16);": "Maxs" + ABSENT,
    "AscendC::Sqrt(a, a, 16);": "\u2018Sqrt\u2019 is not a member of \u2018AscendC\u2019",
    "AscendC::Adds(a, a, 1, 16);": "conflicting types",
}


def test_the_compiler_names_what_is_missing(gxx, tmp_path):
    source = tmp_path / "refused.cpp"
    kernels = [f"void kernel{n}() {{ AscendC::LocalTensor<float> a; {call} }}\n" for n, call in enumerate(MISSING)]
    source.write_text('#include "kernel_operator.h"\n' + "".join(kernels))
    said = compile_shared([source], tmp_path / "refused.so", "-DHOST_CHIP=100", "-fsyntax-only")
    for call, message in MISSING.items():
        assert message in said, call


def test_every_function_of_the_header_asks_the_table():
    """A function that is added without HOST_CALL would exist on every chip and for every type."""
    header = (ROOT / "host" / "kernel_operator.h").read_text().split("namespace AscendC {", 1)[1]
    functions = re.findall(r"^(?:inline )?\w+ (\w+)\([^;{]*\) \{\n(.*)$", header, re.MULTILINE)
    assert len(functions) > 20
    assert [name for name, first in functions if not first.startswith(f"    HOST_CALL({name}")] == [
        "CheckPad",
        "RoundTo",
    ]
