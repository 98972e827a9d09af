"""The CPU library: it is compiled from cpu/*.cc at first use and kept in the user's cache, under the hash of everything
that it depends on.

`python -m ascend_ops.build` builds it ahead of time. A library is built for one instruction set level (AVX-512, AVX2 or
the platform's baseline), which is part of its name, so that different machines can share a home directory. No mindspore
here.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ascend_ops.cache import user_cache
from ascend_ops.errors import OperatorError
from ascend_ops.table import KERNELS, Kernel

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "cpu"
LIBRARY = "libascend_ops.so"
COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-pthread",
)

LEVELS = {
    "avx512_vnni": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma"},
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
    ),
    "avx512": (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"},
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    ),
    "avx2": ({"avx2", "fma", "f16c"}, ("-mavx2", "-mfma", "-mf16c")),
    "baseline": (set(), ()),
}
"""Instruction set level -> (processor flags that it needs, compiler flags that enable it), best first; `baseline` is
SSE2 or NEON."""


def cpu_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; empty if there is no such line (aarch64 has `Features`
    instead, which no level needs)."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return set(found.group(1).split())
    return set()


def cpu_level() -> str:
    """The best instruction set level of this processor."""
    flags = cpu_flags()
    return next(level for level, (needed, _) in LEVELS.items() if needed <= flags)


def compiler() -> str:
    """The C++ compiler: $CXX or g++.

    Raises:
        OperatorError: there is no compiler.
    """
    name = os.environ.get("CXX") or "g++"
    if found := shutil.which(name):
        return found
    raise OperatorError(
        f"{name}: no such C++ compiler; the CPU kernels are compiled where they run; install g++ or set CXX"
    )


def cache_root() -> Path:
    """Directory of the built libraries; ASCEND_OPS_CACHE overrides it."""
    if named := os.environ.get("ASCEND_OPS_CACHE"):
        return Path(named)
    return user_cache() / "ascend_ops"


def inference_source() -> str:
    """C++ that tells MindSpore the shapes and dtypes of every kernel's outputs, generated from the table."""
    lines = [
        "#include <cstdint>",
        "#include <vector>",
        "enum TypeId : int {};",
        "using Shape = std::vector<int64_t>;",
        'extern "C" {',
    ]
    for kernel in KERNELS.values():
        shapes = [_shape_expression(kernel, output.shape) for output in kernel.outputs]
        dtypes = [_dtype_expression(kernel, output.dtype) for output in kernel.outputs]
        several = len(shapes) > 1
        body, types = (f"{{{', '.join(v)}}}" if several else v[0] for v in (shapes, dtypes))
        shape_type, dtype_type = ("std::vector<Shape>", "std::vector<TypeId>") if several else ("Shape", "TypeId")
        visible = '__attribute__((visibility("default"))) '
        lines.append(
            f"{visible}{shape_type} {kernel.name}InferShape(int *ranks, int64_t **shapes, void *) {{ return {body}; }}"
        )
        lines.append(
            f"{visible}{dtype_type} {kernel.name}InferType(std::vector<TypeId> types, void *) {{ return {types}; }}"
        )
    helper = (
        "static Shape join(std::vector<Shape> parts) { Shape s; for (auto &p : parts) s.insert(s.end(), p.begin(),"
        " p.end()); return s; }"
    )
    return "\n".join([*lines[:4], helper, *lines[4:], "}", ""])


def _shape_expression(kernel: Kernel, shape: str) -> str:
    """C++ expression for a shape of the table."""
    index = {port.name: i for i, port in enumerate(kernel.inputs)}
    parts = []
    for term in shape.split():
        match = re.fullmatch(r"(\w+)(?:\[(.+)\])?", term)
        assert match, f"{kernel.name}: {term}: no term of a shape"
        name, dims = match.groups()
        if name.isdigit():
            parts.append(f"Shape{{{name}}}")
            continue
        i = index[name]
        if dims is None or dims == ":-1":
            parts.append(f"Shape(shapes[{i}], shapes[{i}] + ranks[{i}]{'' if dims is None else ' - 1'})")
        else:
            parts.append(f"Shape{{shapes[{i}][{dims}]}}")
    return parts[0] if len(parts) == 1 else f"join({{{', '.join(parts)}}})"


def _dtype_expression(kernel: Kernel, dtype: str) -> str:
    """C++ expression for a dtype of the table: the dtype of an input, or MindSpore's number of a fixed dtype."""
    for i, port in enumerate(kernel.inputs):
        if port.dtype == dtype:
            return f"types[{i}]"
    return (  # kNumberTypeFloat32, kNumberTypeInt32 of mindapi/base/type_id.h
        f"static_cast<TypeId>({ {'float32': 43, 'int32': 34}[dtype] })"
    )


def sources() -> dict[str, str]:
    """File name -> text of all sources, the generated file included."""
    texts = {path.name: path.read_text() for path in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")])}
    return texts | {"inference.cc": inference_source()}


def library_path(level: str, texts: Mapping[str, str] | None = None) -> Path:
    """Path of the library for these sources (default: `sources`), compiler flags, instruction set level and machine,
    whether it is built or not."""
    identity = [
        repr(sorted((sources() if texts is None else texts).items())),
        repr(COMPILE_FLAGS),
        repr(LEVELS[level][1]),
        platform.machine(),
        platform.libc_ver()[1],
    ]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return cache_root() / f"{level}-{digest[:20]}" / LIBRARY


def build(level: str | None = None, texts: Mapping[str, str] | None = None) -> Path:
    """Path of the library for this machine's level (or the given one), which is compiled unless it exists.

    Several processes may call this at once: one compiles, the others wait for it.

    Args:
        level: one of LEVELS.
        texts: file name -> text of the sources, by default `sources`; equal ones have one library.

    Raises:
        OperatorError: there is no compiler, or it fails; the message contains the first error line.
    """
    texts = sources() if texts is None else texts
    path = library_path(level or cpu_level(), texts)
    if ":" in str(path):
        raise OperatorError(
            f"{path.parent}: MindSpore ends the path of a library at its first ':'; set ASCEND_OPS_CACHE to a directory"
            " without one"
        )
    _warn_of_others(path.parent)
    if _is_sound(path):
        return path
    compiler()
    try:
        with _locked(path.parent) as alone:
            if not _is_sound(path):
                if path.exists():
                    log.warning(
                        "%s: has not the hash that stands beside it (damaged, or of an older version); built again",
                        path,
                    )
                for abandoned in path.parent.glob("build.*") if alone else ():  # left by a process that was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
                _compile(path, LEVELS[level or cpu_level()][1], texts)
    except OSError as error:
        advice = "the CPU kernels are built there; set ASCEND_OPS_CACHE to a directory with room that can be written"
        raise OperatorError(f"{path.parent}: {error.strerror}; {advice}") from error
    return path


@functools.lru_cache(maxsize=16)
def _warn_of_others(directory: Path) -> None:
    """Warn if every user can put a library into this directory, or exchange the directory."""
    for place in (directory, cache_root()):
        with contextlib.suppress(OSError):
            mode = place.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                log.warning(
                    "%s: every user of this machine can write there, and so run code as you; `chmod o-w` it, or set"
                    " ASCEND_OPS_CACHE to a directory of your own",
                    place,
                )
                return


def _is_sound(path: Path) -> bool:
    """Whether the library exists and has the hash in the file beside it; computed once for each state of the file."""
    try:
        status = path.stat()
        return _has_hash(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:  # the library or the hash file does not exist
        return False


@functools.lru_cache(maxsize=16)
def _has_hash(path: Path, *state: int) -> bool:
    return _hash_file(path).read_text("ascii", "replace").strip() == hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Let one process at a time into this block; yields whether that is guaranteed. On a file system without locks all
    processes compile, which is slower but correct, since each publishes whole files."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _compile(path: Path, level_flags: tuple[str, ...], texts: Mapping[str, str]) -> None:
    started = time.monotonic()
    log.info("building the CPU operators, once: %s", path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build.") as folder:
        work = Path(folder)
        for name, text in texts.items():
            (work / name).write_text(text)
        units = sorted(work.glob("*.cc"), key=lambda unit: -unit.stat().st_size)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(
                    lambda unit: _run(work, "-c", *COMPILE_FLAGS, *level_flags, unit.name, "-o", unit.stem + ".o"),
                    units,
                )
            )
        _run(work, "-shared", "-pthread", *(Path(o).name for o in objects), "-ldl", "-o", LIBRARY)
        _publish(work / LIBRARY, path)
    log.info("built in %.0f s", time.monotonic() - started)


def _publish(built: Path, path: Path) -> None:
    """Rename a library to its final name, and then its hash. Both are flushed to disk before, so that a power cut
    leaves either a valid pair or none."""
    digest = built.with_name(_hash_file(path).name)
    digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest() + "\n")
    for source, target in ((built, path), (digest, _hash_file(path))):
        with open(source, "rb") as file:
            os.fsync(file.fileno())
        os.replace(source, target)


def _run(folder: Path, *arguments: str) -> str:
    """Run the compiler; returns the path of its output."""
    try:
        command = [compiler(), *arguments]
        environment = os.environ | {"LC_ALL": "C"}  # English messages, since they are searched for "error"
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise OperatorError(
            f"{compiler()}: {error.strerror}; the CPU kernels need a C++17 compiler such as g++ 9; set CXX to"
            " another one"
        ) from error
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise OperatorError(
            f"{compiler()}: {first.strip()}; the CPU kernels need a C++17 compiler such as g++ 9; set CXX to"
            " another one"
        )
    return arguments[-1]
