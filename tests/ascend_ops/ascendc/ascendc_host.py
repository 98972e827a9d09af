"""Compile the Ascend C sources for the CPU and run them: tiling by op_host, then the kernel on simulated cores.

The headers in ascend_ops/ascendc/host stand for CANN's. One shared object per kernel and chip holds all dtypes; one
more holds op_host.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ascend_ops.table import FLOATS, KERNELS
from tests.compiled import compiled_once, digest_of

ROOT = Path(__file__).resolve().parents[3] / "ascend_ops" / "ascendc"
ASCENDC_KERNELS = {name: kernel for name, kernel in KERNELS.items() if kernel.ascendc}
CHIPS = {"ascend910": 100, "ascend910b": 220}
CPP_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t", "int32": "int32_t"}
GE_TYPES = {"float32": 0, "float16": 1, "int32": 3, "bfloat16": 27}
GUARD = 256
PARTS = ("host", "op_kernel", "op_host")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=default",
    "-fno-gnu-unique",
    "-Wall",
    "-Wno-unknown-pragmas",
]


def compiler() -> str | None:
    """Path of g++, or None."""
    return shutil.which("g++")


def snake_case(name: str) -> str:
    """SeriesGluGrad -> series_glu_grad, as CANN derives the kernel's entry from the operator's name."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def chip_dtypes(name: str, chip: str) -> list[str]:
    """The types T of a kernel on a chip; a kernel without T has the one name int32."""
    if not any(p.dtype == "T" for p in ASCENDC_KERNELS[name].inputs):
        return ["int32"]
    return [t for t in FLOATS if chip != "ascend910" or t != "bfloat16"]


def compile_shared(sources: list[Path], output: Path, *flags: str) -> str:
    """Compile to a shared object; returns what the compiler says when it refuses, else nothing."""
    includes = [f"-I{ROOT / part}" for part in PARTS]
    command = [compiler(), *FLAGS, *flags, *includes, *map(str, sources), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr


def tiling_header(name: str) -> Path:
    """The header of op_host that defines a kernel's tiling data."""
    source = (ROOT / "op_host" / f"{snake_case(name)}.cpp").read_text()
    return ROOT / "op_host" / re.search(r'#include "(\w+_tiling\.h)"', source)[1]


def driver_source(name: str, dtypes: list[str]) -> str:
    """The translation unit that holds one kernel in several dtypes (host/kernel_library.h says how)."""
    entry = snake_case(name)
    header = tiling_header(name)
    tiling = re.search(r"BEGIN_TILING_DATA_DEF\((\w+)\)", header.read_text())[1]
    lines = [
        '#include "kernel_library.h"',
        f'#include "{header.name}"',
        f"using optiling::{tiling};",
        f"#define HOST_TILING {tiling}",
    ]
    lines += [
        f'#include "{h.name}"'
        for h in sorted((ROOT / "op_kernel").glob("*.h"))
        if h.name != "series.h" or "Series" in name
    ]
    t_inputs = [p.name.upper() for p in ASCENDC_KERNELS[name].inputs if p.dtype == "T"]
    for dtype in dtypes:
        renamed = {
            name: f"{name}_{dtype}",
            entry: f"{entry}_{dtype}",
            **{f"DTYPE_{p}": CPP_TYPES[dtype] for p in t_inputs},
        }
        lines += [f"#define {old} {new}" for old, new in renamed.items()]
        lines += [f'#include "{entry}.cpp"'] + [f"#undef {old}" for old in renamed]
        lines += [f"HOST_KERNEL({dtype}, {entry}_{dtype})"]
    return "\n".join(lines) + "\n"


@dataclass
class Tiling:
    """What op_host decided for a call."""

    block_dim: int
    workspace: int
    data: bytes
    schedule_mode: int
    fields: tuple[str, ...]

    def field(self, name: str) -> int:
        """A field of the tiling data (all are uint32)."""
        return int(np.frombuffer(self.data, np.uint32)[self.fields.index(name)])


class HostBuild:
    """All libraries, in `directory` or built there, two at a time."""

    def __init__(self, directory: Path):
        self.directory = directory
        jobs = [(name, chip) for name in ASCENDC_KERNELS for chip in CHIPS]
        with ThreadPoolExecutor(2) as pool:
            op_host = pool.submit(self._build_op_host)
            libraries = list(pool.map(lambda job: self._build_kernel(*job), jobs))
        self.op_host = op_host.result()
        self.kernels = dict(zip(jobs, libraries))

    def _compile(self, name: str, sources: list[Path], *flags: str) -> ctypes.CDLL:
        """Load the library of these sources; compile it unless one of the same content is there."""
        headers = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.h*"))]
        kernels = sorted((ROOT / "op_kernel").glob("*.cpp"))  # which the driver includes
        digest = digest_of(*FLAGS, *flags, files=[*sources, *headers, *kernels])

        def compile_to(output: Path) -> None:
            if errors := compile_shared(sources, output, *flags):
                raise RuntimeError(f"{name} does not compile:\n{errors}")

        return ctypes.CDLL(str(compiled_once(self.directory / f"{name}-{digest}.so", compile_to)))

    def _build_op_host(self) -> ctypes.CDLL:
        return self._compile(
            "op_host", [*sorted((ROOT / "op_host").glob("*.cpp")), ROOT / "host" / "op_host_library.cpp"]
        )

    def _build_kernel(self, name: str, chip: str) -> ctypes.CDLL:
        stem = f"{snake_case(name)}_{chip}"
        with tempfile.TemporaryDirectory(prefix="ascendc-host-") as directory:
            source = Path(directory) / f"{stem}.cpp"
            source.write_text(driver_source(name, chip_dtypes(name, chip)))
            library = self._compile(stem, [source], f"-DHOST_CHIP={CHIPS[chip]}")
        library.RunKernel.restype = ctypes.c_char_p
        return library

    def describe(self) -> str:
        """What op_host registers, as lines of text."""
        buffer = ctypes.create_string_buffer(1 << 20)
        self.op_host.describe_ops(buffer, ctypes.c_size_t(len(buffer)))
        return buffer.value.decode()

    def tile(self, name: str, chip: str, cores: int, shapes, dtypes, attr: int = 0) -> Tiling | None:
        """Run the tiling function; None when it refuses (the reason is on stderr)."""
        data, result = (ctypes.c_uint8 * 4096)(), (ctypes.c_uint64 * 4)()
        ok = self.op_host.tile_op(
            name.encode(),
            CHIPS[chip],
            cores,
            len(shapes),
            _flat(shapes),
            _types(dtypes),
            ctypes.c_int64(attr),
            data,
            result,
        )
        fields = tuple(re.findall(r"TILING_DATA_FIELD_DEF\(uint32_t, (\w+)\)", tiling_header(name).read_text()))
        return Tiling(result[0], result[1], bytes(data[: result[2]]), result[3], fields) if ok else None

    def infer(self, name: str, shapes, dtypes) -> list[tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of the outputs by the inference functions."""
        outputs = len(ASCENDC_KERNELS[name].outputs)
        out_shapes, out_types = (ctypes.c_int64 * 64)(), (ctypes.c_int * 8)()
        assert self.op_host.infer_op(name.encode(), len(shapes), _flat(shapes), _types(dtypes), out_shapes, out_types)
        flat, found = list(out_shapes), []
        for i in range(outputs):
            rank = flat.pop(0)
            found.append((tuple(flat[:rank]), next(t for t, code in GE_TYPES.items() if code == out_types[i])))
            del flat[:rank]
        return found

    def run(self, name: str, chip: str, cores: int, inputs: list, attr: int = 0) -> list[np.ndarray]:
        """Infer, tile and run one call. Inputs and outputs are Typed arrays or numpy arrays; raises RuntimeError with
        the first violation."""
        kernel = ASCENDC_KERNELS[name]
        inputs = [i if isinstance(i, Typed) else Typed.of(i) for i in inputs]
        shapes, dtypes = [i.array.shape for i in inputs], [i.dtype for i in inputs]
        tiling = self.tile(name, chip, cores, shapes, dtypes, attr)
        if tiling is None:
            raise ValueError(f"tiling of {name} refuses")
        outputs = [Typed.empty(shape, dtype) for shape, dtype in self.infer(name, shapes, dtypes)]
        buffers = [Guarded(t) for t in (*inputs, *outputs)]
        t = next((d for p, d in zip(kernel.inputs, dtypes) if p.dtype == "T"), "int32")
        error, self.ub_peak = self._call(self.kernels[name, chip], kernel, t, tiling, buffers)
        if error:
            raise RuntimeError(error)
        for port, buffer in zip((*kernel.inputs, *kernel.outputs), buffers):
            assert buffer.guards_intact(), f"{name} writes outside {port.name}"
        return [b.typed().numpy() for b in buffers[len(inputs) :]]

    @staticmethod
    def _call(library, kernel, dtype: str, tiling: Tiling, buffers) -> tuple[str, int]:
        names = [p.name.encode() for p in (*kernel.inputs, *kernel.outputs)]
        count, peak = len(buffers), (ctypes.c_uint64 * 1)()
        error = library.RunKernel(
            dtype.encode(),
            tiling.block_dim,
            len(kernel.inputs),
            count,
            (ctypes.c_char_p * count)(*names),
            (ctypes.c_void_p * count)(*(b.address for b in buffers)),
            (ctypes.c_uint64 * count)(*(b.bytes for b in buffers)),
            tiling.data,
            ctypes.c_uint64(len(tiling.data)),
            ctypes.c_uint64(tiling.workspace),
            peak,
        )
        return error.decode(), peak[0]


def _flat(shapes):
    values = [v for shape in shapes for v in (len(shape), *shape)]
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def _types(dtypes):
    return (ctypes.c_int * len(dtypes))(*(GE_TYPES[d] for d in dtypes))


@dataclass
class Typed:
    """An array with its device dtype; bfloat16 is kept as uint16 bits."""

    array: np.ndarray
    dtype: str

    @staticmethod
    def of(array, dtype: str | None = None) -> "Typed":
        """Convert to a dtype (rounding to nearest even), or keep that of the array."""
        if dtype != "bfloat16":
            array = np.ascontiguousarray(array, dtype)
            return Typed(array, array.dtype.name)
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return Typed(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), dtype)

    @staticmethod
    def empty(shape, dtype: str) -> "Typed":
        """Filled with 0xFF: NaN, or -1 as an integer."""
        storage = np.uint16 if dtype == "bfloat16" else dtype
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(storage).itemsize
        return Typed(np.full(count, 0xFF, np.uint8).view(storage).reshape(shape), dtype)

    def numpy(self) -> np.ndarray:
        """As a numpy array; float16 and bfloat16 become float32."""
        if self.dtype == "bfloat16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        return self.array.astype(np.float32) if self.dtype == "float16" else self.array


class Guarded:
    """A copy of a tensor between two guards, aligned as on the device."""

    def __init__(self, typed: Typed):
        self.shape, self.dtype, self.storage = typed.array.shape, typed.dtype, typed.array.dtype
        self.bytes = typed.array.nbytes
        self.memory = np.full(self.bytes + 2 * GUARD + 64, 0x5A, np.uint8)
        self.start = GUARD + (-(self.memory.ctypes.data + GUARD)) % 64
        self.memory[self.start : self.start + self.bytes] = typed.array.reshape(-1).view(np.uint8)
        self.address = self.memory.ctypes.data + self.start

    def guards_intact(self) -> bool:
        """Whether nothing was written beside the tensor."""
        return bool(
            (self.memory[: self.start] == 0x5A).all() and (self.memory[self.start + self.bytes :] == 0x5A).all()
        )

    def typed(self) -> Typed:
        """The tensor as it is now."""
        return Typed(
            self.memory[self.start : self.start + self.bytes].copy().view(self.storage).reshape(self.shape), self.dtype
        )
