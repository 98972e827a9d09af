"""The host execution itself: seeded mistakes in small kernels are found, each with its message, and correct ones pass."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.ascend_ops.ascendc.ascendc_host import CHIPS, compile_shared

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
    ("ascend910b", "pad_copies_any_length"): None,
    ("ascend910b", "pad_overrun"): "DataCopyPad: bytes 124 to 164 lie beyond the end of x in global memory (160 bytes)",
}
RUNS = {**{(chip, name): message for chip in CHIPS for name, message in MISTAKES.items()}, **ONLY}


@pytest.fixture(scope="module")
def libraries(gxx, tmp_path_factory):
    """The kernels of mistakes.cpp for each chip."""
    directory, found = tmp_path_factory.mktemp("mistakes"), {}
    for chip, number in CHIPS.items():
        source, output = directory / f"{chip}.cpp", directory / f"{chip}.so"
        source.write_text(f'#include "kernel_library.h"\n#include "{HERE / "mistakes.cpp"}"\n')
        assert compile_shared([source], output, f"-DHOST_CHIP={number}") == ""
        found[chip] = ctypes.CDLL(str(output))
        found[chip].RunKernel.restype = ctypes.c_char_p
    return found


def run(library, kernel: str) -> tuple[str, np.ndarray]:
    """The error of a kernel, and y."""
    x, y = np.arange(CORES * COUNT, dtype=np.float32), np.zeros(CORES * COUNT, np.float32)
    tensors = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data)
    sizes = (ctypes.c_uint64 * 2)(x.nbytes, y.nbytes)
    names = (ctypes.c_char_p * 2)(b"x", b"y")
    error = library.RunKernel(kernel.encode(), CORES, 1, 2, names, tensors, sizes, b"", ctypes.c_uint64(0), ctypes.c_uint64(8192), (ctypes.c_uint64 * 1)())
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


@pytest.mark.parametrize(
    "chip, statement, message",
    [
        (100, "AscendC::LocalTensor<float> a; AscendC::LocalTensor<bfloat16_t> b; AscendC::Cast(a, b, AscendC::RoundMode::CAST_NONE, 16);",
         "Cast from or to bfloat16_t does not exist on ascend910"),
        (100, "AscendC::DataCopyExtParams p{}; AscendC::DataCopyPad(AscendC::GlobalTensor<float>(), AscendC::LocalTensor<float>(), p);",
         "DataCopyPad"),
        (100, "AscendC::SyncAll();", "SyncAll"),
        (220, "AscendC::LocalTensor<bfloat16_t> a; AscendC::Add(a, a, a, 16);", "the vector unit does not compute in this type: Cast first"),
        (220, "AscendC::LocalTensor<float> a; AscendC::Adds(a, a, 1, 16);", "conflicting types"),
    ],
)  # fmt: skip
def test_what_a_chip_lacks_does_not_compile(gxx, tmp_path, chip, statement, message):
    source = tmp_path / "refused.cpp"
    source.write_text(f'#include "kernel_operator.h"\nvoid kernel() {{ {statement} }}\n')
    assert message in compile_shared([source], tmp_path / "refused.so", f"-DHOST_CHIP={chip}", "-fsyntax-only")


def test_the_statements_compile_on_the_chip_that_has_them(gxx, tmp_path):
    source = tmp_path / "accepted.cpp"
    source.write_text(
        '#include "kernel_operator.h"\nvoid kernel() { AscendC::LocalTensor<float> a; AscendC::LocalTensor<bfloat16_t> b;'
        " AscendC::Cast(a, b, AscendC::RoundMode::CAST_NONE, 16); AscendC::DataCopyExtParams p{};"
        " AscendC::DataCopyPad(AscendC::GlobalTensor<float>(), a, p); AscendC::SyncAll(); }\n"
    )
    assert compile_shared([source], tmp_path / "accepted.so", "-DHOST_CHIP=220", "-fsyntax-only") == ""
