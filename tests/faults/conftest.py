"""No process outlives the tests of a file, whatever fails in them."""

import os
import signal

import pytest

from tests.faults.common import STARTED


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """Kills what belongs to launches that no test has waited for."""
    yield
    for launch in STARTED:
        for pid in launch.alive() if launch.code is None else ():
            os.kill(pid, signal.SIGKILL)
    STARTED.clear()
