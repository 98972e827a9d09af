"""The CPU library is built once, whole or not at all, where its name says; without it operators still compute."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ascend_ops
from ascend_ops import build, custom, library
from ascend_ops.errors import OperatorError
from ascend_ops.table import KERNELS, Input, Kernel, Output

ROOT = Path(ascend_ops.__file__).parents[1]
TIMEOUT = 120
pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")

TOY = """
#include "kernel.h"
static void toy(const ascend_ops::Call &call) { ascend_ops::require(call[0].rank == 7, "rank must be 7"); }
ASCEND_OPS_KERNEL(Toy, toy)
"""

# Builds the toy when a line comes in.
BUILD_TOY = """
import sys
from pathlib import Path
from ascend_ops import library
library.SOURCES, library.KERNELS = Path(sys.argv[2]), {}
print("ready", flush=True)
sys.stdin.readline()
print(library.build("baseline"))
"""


class Toy:
    """A library of one tiny file, in place of ours, and a compiler that keeps a log."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.sources, self.log = folder, folder / "sources", folder / "log"
        self.sources.mkdir()
        (self.sources / "toy.cc").write_text(TOY)
        shutil.copy(library.SOURCES / "kernel.h", self.sources)
        real = library.compiler()
        self._real = real
        monkeypatch.setattr(library, "SOURCES", self.sources)
        monkeypatch.setattr(library, "KERNELS", {})
        monkeypatch.setenv("ASCEND_OPS_CACHE", str(folder / "cache"))
        monkeypatch.setenv("CXX", str(folder / "compiler"))
        self.compiler_does("")

    def compiler_does(self, script: str) -> None:
        """The compiler is g++, which does something else first."""
        path = self.folder / "compiler"
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\n{script}\nexec {self._real} "$@"\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """Arguments of every run of the compiler until now."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def path(self) -> Path:
        """Where the library goes."""
        return library.library_path("baseline")

    def start(self) -> subprocess.Popen:
        """A process that builds it, in a session of its own, once it is given a line."""
        command = [sys.executable, "-c", BUILD_TOY, str(Path(library.__file__).parent), str(self.sources)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    def finish(self, process: subprocess.Popen) -> str:
        """What the process printed."""
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        return out.strip()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A quick library in an empty cache."""
    return Toy(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the toy's library, once one was built."""
    return tmp_path_factory.mktemp("whole")


def build_or_copy(toy, whole):
    """The toy's library, which only the first test that asks compiles."""
    if not any(whole.iterdir()):
        shutil.copytree(library.build("baseline").parent, whole, dirs_exist_ok=True)
    shutil.copytree(whole, toy.path.parent, dirs_exist_ok=True)
    return library.build("baseline")


def assert_works(path):
    """The kernel in it takes a tensor of rank 7 and no other."""
    function, pointer = ctypes.CDLL(str(path)).Toy, (ctypes.c_void_p * 1)()
    assert function(1, pointer, (ctypes.c_int * 1)(7), pointer, pointer, None, None) == 0
    assert function(1, pointer, (ctypes.c_int * 1)(6), pointer, pointer, None, None) == 1


def assert_only_the_library(path):
    assert sorted(p.name for p in path.parent.iterdir()) == [library.LIBRARY, library.LIBRARY + ".sha256", "lock"]


def test_processes_that_start_together_build_once(toy):
    toy.compiler_does("sleep 0.3")
    processes = [toy.start() for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [toy.finish(process) for process in processes] == [str(toy.path)] * 4
    assert_works(toy.path)
    assert_only_the_library(toy.path)
    assert len(list(toy.path.parents[1].iterdir())) == 1
    assert len(toy.calls) == 3  # toy.cc, inference.cc and the linker, of one process


@pytest.mark.parametrize("stage", ["-c", "-shared"])
def test_a_killed_build_leaves_no_library_and_the_next_one_works(toy, stage):
    started = toy.folder / "started"
    toy.compiler_does(
        f'case "$*" in {stage}*) for last; do :; done; echo half > "$last"; touch {started}; sleep {TIMEOUT};; esac'
    )
    process = toy.start()
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        deadline = time.monotonic() + TIMEOUT
        while not started.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)  # its compiler lives on, as it would
        assert process.wait() == -signal.SIGKILL
        assert not toy.path.exists()
        toy.compiler_does("")
        after = toy.start()
        after.stdin.write("\n")
        assert toy.finish(after) == str(toy.path)
        assert_works(toy.path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def test_what_is_built_is_not_built_again_and_needs_no_compiler(toy, whole, monkeypatch):
    first = build_or_copy(toy, whole)
    calls = toy.calls
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert library.build("baseline") == first
    assert toy.calls == calls


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no hash", "cut hash"])
def test_a_damaged_library_is_built_again_with_one_line(toy, whole, damage, caplog):
    """What MindSpore would load is never what was not built here, in a process that finds it so and in one that has
    used it."""
    path = build_or_copy(toy, whole)
    content, digest = path.read_bytes(), path.with_name(path.name + ".sha256")
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    damaged = {
        "flipped": flipped,
        "cut": content[: len(content) // 2],
        "empty": b"",
        "no hash": content,
        "cut hash": content,
    }[damage]
    path.unlink()  # a process may have it mapped
    path.write_bytes(damaged)
    if damage == "no hash":
        digest.unlink()
    elif damage == "cut hash":
        digest.write_text(digest.read_text()[:20])
    caplog.clear()
    assert library.build("baseline") == path
    assert_works(path)
    assert_only_the_library(path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith(f"{path}: ") and "built again" in warnings[0]


def test_a_library_is_on_the_disk_before_it_has_its_name(toy, monkeypatch):
    done = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
    )
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (done.append(f"-> {Path(target).name}"), real(source, target))
    )
    library.build("baseline")
    name, digest = library.LIBRARY, library.LIBRARY + ".sha256"
    assert done == [name, f"-> {name}", digest, f"-> {digest}"]


def test_build_compiles_for_the_level_that_it_is_given(toy, capsys):
    for level, (_, flags) in library.LEVELS.items():
        toy.log.unlink(missing_ok=True)
        assert build.main(["--level", level]) == 0
        path = library.library_path(level)
        assert capsys.readouterr().out == f"{path}\n" and path.exists()
        compiled = [call.split() for call in toy.calls if call.startswith("-c ")]
        assert [{f for f in call if f.startswith("-m")} for call in compiled] == [set(flags)] * 2
        assert all(set(library.COMPILE_FLAGS) <= set(call) for call in compiled)


def test_a_compile_error_names_the_compiler_and_the_first_error(toy):
    (toy.sources / "toy.cc").write_text(
        '#warning "look here"\nint f() { return nowhere; }\nint g() { return elsewhere; }\n'
    )
    with pytest.raises(ascend_ops.OperatorError) as caught:
        library.build("baseline")
    message = str(caught.value)
    assert message.startswith(f"{os.environ['CXX']}: toy.cc:2:")
    assert "nowhere" in message and "elsewhere" not in message and "look here" not in message
    assert "set CXX" in message and "\n" not in message
    assert [p.name for p in toy.path.parent.iterdir()] == ["lock"]
    (toy.sources / "toy.cc").write_text(TOY)
    assert_works(library.build("baseline"))


def test_a_full_disk_is_an_operator_error_and_leaves_nothing(toy):
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" + BUILD_TOY
    command = [sys.executable, "-c", script, str(Path(library.__file__).parent), str(toy.sources)]
    found = subprocess.run(command, cwd=ROOT, input="\n", capture_output=True, text=True, timeout=TIMEOUT)
    last = found.stderr.splitlines()[-1]
    assert (
        last.startswith(f"ascend_ops.errors.OperatorError: {toy.path.parent}: File too large; ")
        and "ASCEND_OPS_CACHE" in last
    )
    assert [p.name for p in toy.path.parent.iterdir()] == ["lock"]


def test_the_path_follows_sources_flags_level_and_table(toy, monkeypatch):
    seen = {library.library_path(level) for level in library.LEVELS}

    def assert_new():
        path = library.library_path("avx2")
        assert path not in seen
        seen.add(path)

    assert len(seen) == len(library.LEVELS)
    (toy.sources / "toy.cc").write_text(TOY + "\n")
    assert_new()
    (toy.sources / "kernel.h").write_text("// changed\n")
    assert_new()
    (toy.sources / "more.cc").write_text("")
    assert_new()
    monkeypatch.setattr(library, "COMPILE_FLAGS", (*library.COMPILE_FLAGS, "-g"))
    assert_new()
    needed, flags = library.LEVELS["avx2"]
    monkeypatch.setitem(library.LEVELS, "avx2", (needed, (*flags, "-mavx")))
    assert_new()
    monkeypatch.setattr(library, "KERNELS", {"Toy": Kernel("Toy", (Input("x"),), (Output("y", "x"),))})
    assert_new()
    assert library.library_path("avx2") in seen  # and stays


def test_the_path_is_the_same_in_every_process(toy):
    script = BUILD_TOY.partition('print("ready"')[0] + 'print(library.library_path("avx512"))'
    for seed in ("0", "1", "4711"):
        command = [sys.executable, "-c", script, str(Path(library.__file__).parent), str(toy.sources)]
        found = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert found.stdout == f"{library.library_path('avx512')}\n"


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("ASCEND_OPS_CACHE", "/chosen")
    assert library.cache_root() == Path("/chosen")
    monkeypatch.setenv("ASCEND_OPS_CACHE", "")
    assert library.cache_root() == Path("/xdg/pangu_ms/ascend_ops")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.cache_root() == Path("/home/someone/.cache/pangu_ms/ascend_ops")


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu sse2 avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni", "avx512_vnni"),
        ("fpu sse2 avx2 fma f16c avx512f avx512bw avx512dq avx512vl", "avx512"),
        ("fpu sse2 avx2 fma f16c avx512f avx512cd", "avx2"),  # Xeon Phi
        ("fpu sse2 avx f16c", "baseline"),
        ("", "baseline"),
    ],
)
def test_the_level_is_the_best_that_the_processor_has(monkeypatch, flags, level):
    monkeypatch.setattr(library, "cpu_flags", lambda: set(flags.split()))
    assert library.cpu_level() == level


def test_nothing_is_compiled_for_this_very_processor():
    files = [
        path
        for path in Path(ascend_ops.__file__).parent.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    ]
    assert len(files) > 20
    for path in files:
        assert b"-march=native" not in path.read_bytes() and b"-mtune=native" not in path.read_bytes(), path


WITHOUT_LIBRARY = """
import json

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import ascend_ops


class Block(nn.Cell):
    def construct(self, x, weight):
        return ascend_ops.add(ascend_ops.silu(x), ascend_ops.linear(x, weight))


ms.set_device("CPU")
ms.set_context(mode=ms.GRAPH_MODE)
x, weight = (Tensor(np.random.RandomState(seed).randn(5, 5).astype(np.float32)) for seed in (0, 1))
graph = Block()(x, weight)
gradient = ms.grad(Block())(x, weight)
ms.set_context(mode=ms.PYNATIVE_MODE)
eager = ascend_ops.silu(x)
choices = ascend_ops.explain()
print(json.dumps({
    "graph": graph.asnumpy().tolist(),
    "gradient": gradient.asnumpy().tolist(),
    "eager": eager.asnumpy().tolist(),
    "backends": sorted({choice.backend for choice in choices.values()}),
    "reasons": sorted({choice.reason for choice in choices.values()}),
}))
"""


def test_a_missing_compiler_is_named(toy, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(ascend_ops.OperatorError, match=r"/nonexistent/g\+\+: no such C\+\+ compiler; .* or set CXX"):
        library.build("baseline")


@pytest.mark.parametrize("missing", ["cache", pytest.param("compiler", marks=pytest.mark.slow)])
def test_without_the_library_operators_are_composed_and_say_so_once(tmp_path, missing):
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = (
        blocked / "cache" if missing == "cache" else tmp_path / "cache"
    )  # root may write anywhere, but not below a file
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASCEND_OPS_CACHE": str(cache)}
    environment.pop("ASCEND_OPS_BACKEND", None)
    if missing == "compiler":
        environment["CXX"] = "/nonexistent/g++"
    found = "Not a directory" if missing == "cache" else "/nonexistent/g++: no such C++ compiler"
    advice = "set ASCEND_OPS_CACHE" if missing == "cache" else "set CXX"

    script = tmp_path / "block.py"
    script.write_text(WITHOUT_LIBRARY)
    commands = ([sys.executable, str(script)], [sys.executable, "-m", "ascend_ops.build"])
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)
        for command in commands
    ]
    (out, err), (build_out, build_err) = (process.communicate(timeout=TIMEOUT) for process in processes)

    assert processes[0].returncode == 0, err
    assert len(err.splitlines()) == 1, err
    assert found in err and advice in err and "composed" in err
    result = json.loads(out)
    assert result["backends"] == ["composed"]
    assert all(found in reason for reason in result["reasons"])
    x, weight = (np.random.RandomState(seed).randn(5, 5).astype(np.float32).astype(np.float64) for seed in (0, 1))
    sigmoid = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(result["eager"], x * sigmoid, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result["graph"], x * sigmoid + x @ weight.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        result["gradient"], sigmoid * (1 + x * (1 - sigmoid)) + weight.sum(0), rtol=1e-5, atol=1e-5
    )

    assert processes[1].returncode == 2
    assert build_out == "" and len(build_err.splitlines()) == 1, build_err
    assert build_err.startswith("ascend_ops.build: ") and found in build_err and advice in build_err


TYPE_IDS = {"int32": 34, "uint8": 37, "float16": 42, "float32": 43, "bfloat16": 45}  # mindapi/base/type_id.h

# Prints what the generated functions return: dimensions or a type, each output ended by a semicolon.
SHOW = """
#include <cstdio>
#include "inference.cc"
void show(const Shape &shape) { for (auto n : shape) std::printf("%d ", static_cast<int>(n)); std::printf(";"); }
void show(const std::vector<Shape> &shapes) { for (auto &shape : shapes) show(shape); }
void show(TypeId type) { std::printf("%d;", static_cast<int>(type)); }
void show(const std::vector<TypeId> &types) { for (auto type : types) show(type); }
int main() {
"""


def call_of(kernel: Kernel, row: tuple[str, ...], shapes: list[list[int]]) -> str:
    """C++ that shows the outputs of one call."""
    arrays = "".join(f"int64_t s{i}[] = {{{', '.join(map(str, shape))}}}; " for i, shape in enumerate(shapes))
    ranks = ", ".join(str(len(shape)) for shape in shapes)
    pointers = ", ".join(f"s{i}" for i in range(len(shapes)))
    types = ", ".join(f"static_cast<TypeId>({TYPE_IDS[dtype]})" for dtype in row[: len(shapes)])
    infer = (
        f"show({kernel.name}InferShape(ranks, shapes, nullptr)); show({kernel.name}InferType({{{types}}}, nullptr));"
    )
    return f'{{ {arrays}int ranks[] = {{{ranks}}}; int64_t *shapes[] = {{{pointers}}}; {infer} std::puts(""); }}\n'


def test_generated_inference_says_what_the_table_says_for_every_kernel(tmp_path):
    calls = []
    for i, kernel in enumerate(KERNELS.values()):
        shapes = [[100 * j + k for k in range(1, 4 + (i + j) % 2)] for j in range(len(kernel.inputs))]
        calls += [(kernel, row, shapes) for row in kernel.dtype_rows()]
    (tmp_path / "inference.cc").write_text(library.inference_source())
    (tmp_path / "show.cc").write_text(SHOW + "".join(call_of(*call) for call in calls) + "}\n")
    subprocess.run([library.compiler(), "-std=c++17", "show.cc", "-o", "show"], cwd=tmp_path, check=True)
    lines = subprocess.run([str(tmp_path / "show")], capture_output=True, text=True, check=True).stdout.splitlines()
    for (kernel, row, shapes), line in zip(calls, lines, strict=True):
        found = [[int(word) for word in part.split()] for part in line.removesuffix(";").split(";")]
        wanted = [
            *custom.output_shapes(kernel, tuple(shapes)),
            *([TYPE_IDS[dtype]] for dtype in row[len(kernel.inputs) :]),
        ]
        assert found == wanted, kernel.name


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("AddLayerNorm", [[2, 3, 5], [2, 3, 5], [5], [5]], ([2, 3, 5], [2, 3, 5], [2, 3], [2, 3])),
        ("Linear", [[2, 3, 5], [7, 5], [1]], ([2, 3, 7],)),
        ("GroupedMatmul", [[9, 5], [4, 7, 5], [4], [4, 7]], ([9, 7],)),
        ("MoeDispatch", [[6, 5], [6, 2], [4]], ([6, 2, 5], [6, 2], [4])),
        (
            "CausalAttention",
            [[2, 3, 32], [2, 8, 16], [2, 8, 16], [3], [8], [2, 3], [2, 8], [4], [1]],
            ([2, 3, 32], [2, 4, 3]),
        ),
        ("SquaredNorm", [[3, 4]], ([1],)),
        ("SquaredNorms", [[3, 4]], ([3],)),
    ],
)
def test_output_shapes_of_the_table(name, inputs, outputs):
    assert custom.output_shapes(KERNELS[name], tuple(inputs)) == outputs


class NormAndDispatch(nn.Cell):
    def __init__(self):
        super().__init__()
        self.norm, self.dispatch = custom.primitive("RmsNorm", "CPU"), custom.primitive("MoeDispatch", "CPU")
        self.eps = Tensor(np.array([1e-6], np.float32))

    def construct(self, x, weight, expert, experts):
        return self.norm(x, weight, self.eps) + self.dispatch(x, expert, experts)


def test_mindspore_takes_shapes_and_dtypes_from_the_library(mindspore_cpu):
    if why_not := ascend_ops.backend.unavailable("rms_norm", "cpu", "float32"):
        pytest.skip(why_not)
    x, weight = Tensor(np.ones((6, 5)), ms.bfloat16), Tensor(np.ones(5), ms.float32)
    expert, experts = Tensor(np.arange(12).reshape(6, 2) % 4, ms.int32), Tensor(np.zeros(4), ms.int32)
    outputs = NormAndDispatch()(x, weight, expert, experts)
    names = ["RmsNorm", "MoeDispatch"]
    inputs = [(x, weight), (x, expert, experts)]
    shapes = sum(
        (custom.output_shapes(KERNELS[n], tuple(list(t.shape) for t in i)) for n, i in zip(names, inputs, strict=True)),
        (),
    )
    dtypes = sum(
        (custom.output_dtypes(KERNELS[n], tuple(t.dtype for t in i)) for n, i in zip(names, inputs, strict=True)), ()
    )
    assert [list(y.shape) for y in outputs] == list(shapes)
    assert [y.dtype for y in outputs] == list(dtypes) == [ms.bfloat16, ms.float32, ms.bfloat16, ms.int32, ms.int32]


def test_a_cache_that_mindspore_cannot_name_is_refused(monkeypatch):
    """It ends the path of a library at the first colon."""
    monkeypatch.setenv("ASCEND_OPS_CACHE", "/nowhere/a:b")
    with pytest.raises(OperatorError, match="^/nowhere/a:b/.*first ':'; set ASCEND_OPS_CACHE to a directory without"):
        library.build("baseline")


@pytest.mark.parametrize(("mode", "warns"), [(0o777, True), (0o1777, False), (0o775, False)])
def test_a_cache_that_every_user_can_write_is_named(tmp_path, monkeypatch, caplog, mode, warns):
    monkeypatch.setenv("ASCEND_OPS_CACHE", str(tmp_path))
    tmp_path.chmod(mode)
    library._warn_of_others(library.library_path("baseline").parent)
    assert [message.startswith(f"{tmp_path}: every user") for message in caplog.messages] == [True] * warns
