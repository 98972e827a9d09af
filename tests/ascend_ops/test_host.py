"""AdamW of arrays in host memory: the operator's bits, in place, and nothing else is touched."""

import subprocess
import sys
import threading

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import ascend_ops
from ascend_ops import host
from ascend_ops.errors import OperatorError
from ascend_ops.host import host_adamw

HYPER = (0.25, 0.5, 0.8, 0.95, 1e-20, 0.1)
"""lr, factor, beta1, beta2, eps, weight_decay."""


def draw(*shape, seed=0):
    return np.array(np.random.RandomState(seed).randn(*shape), np.float32)


def state(*shape):
    """parameter, m, v, gradient; some of m and v are so small that a graph on a CPU takes them for 0."""
    p, m, v, gradient = draw(*shape), draw(*shape, seed=1), np.abs(draw(*shape, seed=2)), draw(*shape, seed=3)
    m.reshape(-1)[::3], v.reshape(-1)[::2] = 1e-40, 1e-42
    gradient.reshape(-1)[::4] = 1e-21
    return p, m, v, gradient


@pytest.fixture
def kernel():
    """The kernels can be built here."""
    if host._kernel() is None:
        pytest.skip("no C++ compiler")


class Operator(nn.Cell):
    """The graph's update."""

    def __init__(self, p, m, v):
        super().__init__()
        self.p, self.m, self.v = (Parameter(Tensor(a), name=n) for a, n in ((p, "p"), (m, "m"), (v, "v")))

    def construct(self, gradient, norms):
        lr, factor, *rest = HYPER
        controls = Tensor(lr, ms.float32), Tensor(factor, ms.float32)
        return ascend_ops.adamw(self.p, self.m, self.v, gradient, *controls, *rest, norms)


def assert_same_bits(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


def test_bits_of_the_operator_in_slices_of_a_file(kernel, mindspore_cpu, tmp_path):
    """In lines 2 to 4 of memory-mapped files, on another thread while a graph runs; 40,000 elements are cut for two
    threads where the pool is free."""
    p, m, v, gradient = state(3, 40000)
    norms = np.float32([1, 0, 2])
    with ascend_ops.use("cpu"):
        cell = Operator(p, m, v)
        cell(Tensor(gradient), Tensor(norms))
    wanted = [x.asnumpy().copy() for x in (cell.p, cell.m, cell.v)]
    files = [np.memmap(tmp_path / name, np.float32, "w+", shape=(6, 40000)) for name in "pmv"]
    errors = []

    def update():
        try:
            host_adamw(*(file[2:5] for file in files), gradient, *HYPER, norms)
        except BaseException as error:
            errors.append(error)

    for _ in range(5):
        for file, before in zip(files, (p, m, v), strict=True):
            file[:], file[2:5] = 7, before
        thread = threading.Thread(target=update)
        thread.start()
        for _ in range(3):
            cell(Tensor(gradient), Tensor(norms))
        thread.join()
        assert not errors
        assert_same_bits([file[2:5] for file in files], wanted)
        for file in files:
            assert (file[[0, 1, 5]] == 7).all()


# The lines of p, m, v and the gradient whose norm is 0 lie in pages that must not be read; mindspore is not imported.
UNREADABLE = """
import ctypes, mmap, sys
import numpy as np
import ascend_ops
page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
arrays = []
for i in range(4):
    memory = mmap.mmap(-1, 3 * page)
    array = np.frombuffer(memory, np.float32).reshape(3, -1)
    array[:] = 1 + i
    assert libc.mprotect(ctypes.c_void_p(array.ctypes.data + page), page, 0) == 0
    arrays.append(array)
ascend_ops.host_adamw(*arrays, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0, np.float32([1, 0, 1]))
assert "mindspore" not in sys.modules
print(*arrays[1][[0, 2], 5])
"""


def test_lines_without_a_gradient_are_not_read(kernel):
    # (2 + 4) / 2, of m = 2 and gradient = 4
    done = subprocess.run([sys.executable, "-c", UNREADABLE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "3.0 3.0\n"), done.stderr


def test_numpy_where_nothing_can_be_built(monkeypatch, caplog, tmp_path):
    """The same formula, and one warning that names the compiler."""
    p, m, v, gradient = draw(4, 50), draw(4, 50, seed=1), np.abs(draw(4, 50, seed=2)), draw(4, 50, seed=3)
    norms = np.float32([1, 0, 1, 1])
    found, wanted = [p.copy(), m.copy(), v.copy()], [a.astype(np.float64) for a in (p, m, v)]
    lr, factor, beta1, beta2, eps, decay = HYPER
    g, (p64, m64, v64) = gradient.astype(np.float64) * factor, wanted
    m64 += (1 - beta1) * (g - m64)
    v64 += (1 - beta2) * (g * g - v64)
    p64 -= lr * (m64 / (np.sqrt(v64) + eps) + decay * p64)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("ASCEND_OPS_CACHE", str(tmp_path))
    host._kernel.cache_clear()
    try:
        host_adamw(*found, gradient, *HYPER, norms)
        host_adamw(*(np.zeros((), np.float32) for _ in range(4)), *HYPER)
    finally:
        host._kernel.cache_clear()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no-such-compiler"]
    for a, exact, before in zip(found, wanted, (p, m, v), strict=True):
        np.testing.assert_allclose(a[norms > 0], exact[norms > 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a[1], before[1])


def read_only(array):
    array.flags.writeable = False
    return array


BASE = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("which", "wrong", "message"),
    [
        (0, [1.0], "parameter is a list; it must be a numpy array"),
        (1, BASE.astype(np.float64), "m is float64; it must be float32; cast it"),
        (1, BASE.astype(">f4"), "m is >f4; it must be float32"),
        (2, BASE[:3].copy(), r"v has shape \(3, 6\); it must be \(4, 6\): the shape of parameter"),
        (3, BASE.astype(np.float16), "gradient is float16; it must be float32"),
        (3, np.ones((6, 4), np.float32).T, "gradient is not C-contiguous; .* slice only the first dimension"),
        (0, np.ones((4, 12), np.float32)[:, ::2], "parameter is not C-contiguous"),
        (2, read_only(BASE.copy()), "v is read-only; it is updated in place; open the file with mode r+"),
        (4, np.ones(3, np.float32), r"norms has shape \(3,\); it must be \(4,\): parameter has shape \(4, 6\)"),
        (4, np.ones(4), "norms is not a contiguous float32 array"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(which, wrong, message):
    arrays = [BASE.copy() for _ in range(4)] + [np.ones(4, np.float32)]
    arrays[which] = wrong
    before = [np.array(a) for a in arrays]
    with pytest.raises(OperatorError, match="ascend_ops.host_adamw: " + message) as error:
        host_adamw(*arrays[:4], *HYPER, arrays[4])
    assert "\n" not in str(error.value)
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_no_elements_are_refused():
    with pytest.raises(OperatorError, match="no dimension may be 0"):
        host_adamw(*[np.zeros((0, 3), np.float32)] * 4, *HYPER)


def test_a_read_only_gradient_is_enough(kernel):
    arrays = [BASE.copy() for _ in range(3)]
    host_adamw(*arrays, read_only(BASE.copy()), *HYPER)
    assert (arrays[0] != 1).all()
