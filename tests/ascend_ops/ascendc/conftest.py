"""One build of all kernels for the session."""

import pytest

from tests.ascend_ops.ascendc import ascendc_host


@pytest.fixture(scope="session")
def gxx():
    """Skips where there is no compiler."""
    if ascendc_host.compiler() is None:
        pytest.skip("g++ is not installed; the kernels are executed on the CPU by compiling them")


@pytest.fixture(scope="session")
def host(gxx, tmp_path_factory):
    """The kernels and op_host, compiled for the CPU."""
    return ascendc_host.build(str(tmp_path_factory.mktemp("ascendc")))
