"""Models that run operator by operator."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from pangu_ms.core import runtime


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Inside, cells run in PyNative mode: nothing is compiled, which takes 1 to 3 CPU seconds for each configuration.

    The operators are those of the graph: logits of tests/models are the same bit for bit. For tests that run a model
    once or twice and are not about its graph.
    """
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        with mock.patch.object(runtime, "start"):  # would begin graph mode anew
            yield
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
