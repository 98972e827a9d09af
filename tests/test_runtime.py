"""A process's device: chosen at any time, also when MindSpore has computed something already; what is refused says
why."""

import os

import pytest

from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError

AFTER_AN_OPERATION = """
import numpy, mindspore
from pangu_ms.core import runtime
mindspore.ops.ones_like(mindspore.Tensor(numpy.ones(3, numpy.float32))).asnumpy()
mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
for _ in range(2):
    runtime.start("CPU")
    assert mindspore.get_context("mode") == mindspore.GRAPH_MODE
"""


def test_the_cpu_can_be_chosen_after_any_operation(forks, tmp_path):
    done = forks.run(["-c", AFTER_AN_OPERATION], tmp_path, os.environ)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def computed(monkeypatch):
    """MindSpore as it is once it has computed on Ascend device 2."""
    import mindspore as ms

    def set_device(target, number=None):
        raise RuntimeError("The runtime has been initialized, please set it before the kernel is executed")

    monkeypatch.setattr(ms, "set_device", set_device)
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend", "device_id": 2}.get)
    monkeypatch.setattr(ms, "set_context", lambda mode: None)


@pytest.mark.parametrize(
    ("device", "number", "refused"), [("Ascend", "2", ""), ("Ascend", "3", "Ascend (DEVICE_ID=3)"), ("CPU", "2", "CPU")]
)
def test_a_process_keeps_the_device_that_it_computed_on(computed, monkeypatch, device, number, refused):
    monkeypatch.setenv("DEVICE_ID", number)
    if not refused:
        return runtime.start(device)
    with pytest.raises(ConfigError) as error:
        runtime.start(device)
    assert str(error.value).startswith(
        f"runtime.device={refused}: MindSpore has computed on another device of type Ascend; "
    )


def test_a_device_number_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("DEVICE_ID", "npu0")
    with pytest.raises(ConfigError, match="^DEVICE_ID='npu0': .* must be a whole number"):
        runtime.start("Ascend")


def test_no_more_threads_than_processors(monkeypatch):
    """Thousands of threads compute nothing for minutes."""
    import mindspore as ms

    seen = {}
    monkeypatch.setattr(ms, "set_context", lambda **options: seen.update(options))
    monkeypatch.setenv("ASCEND_OPS_NUM_THREADS", "")
    runtime.use_threads(9999)
    number = len(os.sched_getaffinity(0))
    assert seen == {"runtime_num_threads": number, "inter_op_parallel_num": number}
    assert os.environ["ASCEND_OPS_NUM_THREADS"] == str(number)
