"""One build of all kernels for all tests."""

import pytest

from tests.ascend_ops.ascendc import ascendc_host


@pytest.fixture(scope="session")
def gxx():
    """Skips where there is no compiler."""
    if ascendc_host.compiler() is None:
        pytest.skip("g++ is not installed; the kernels are executed on the CPU by compiling them")


@pytest.fixture(scope="session")
def host(gxx, built_files):
    """The kernels and op_host, compiled for the CPU, now or in an earlier run of the tests."""
    return ascendc_host.HostBuild(built_files)
