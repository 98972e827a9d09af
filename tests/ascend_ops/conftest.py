"""Each test runs on every backend."""

import pytest

import ascend_ops

BACKENDS = ("cpu", "composed")


@pytest.fixture(params=BACKENDS)
def backend(request, mindspore_cpu):
    """Everything in the test is computed by this backend."""
    if why_not := ascend_ops.backend.unavailable("gelu", request.param, "float32"):
        pytest.skip(why_not)
    with ascend_ops.use(request.param):
        yield request.param
