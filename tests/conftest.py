"""What all tests share: a quiet MindSpore on the CPU, a private cache directory, small configurations."""

import os

import pytest

from pangu_ms import runtime

runtime.quiet()


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Keep compiled graphs of the tests out of the user's cache, and share them between the tests' processes."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def mindspore_cpu():
    """MindSpore on the CPU in graph mode."""
    runtime.start("CPU")
