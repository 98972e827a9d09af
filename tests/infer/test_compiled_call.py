"""The graph of a decoder is called directly where MindSpore has what that takes, and as a cell elsewhere."""

import importlib.util

import numpy as np
import pytest

from tests.infer.common import make_decoder
from tests.models.alpha import random_parameters, small

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
CONFIG = small(num_layers=2)
MODULES = ("mindspore.graph.api", "mindspore.common.api")


class Executor:
    """Of a version whose executor takes other arguments."""

    def has_compiled(self, phase):
        return True

    def __call__(self, inputs):
        raise AssertionError("it is called with two arguments")


class Other:
    _graph_executor = Executor()


def logits(decoder):
    rows = [decoder.prefill([[5, 6, 7], [8]])]
    return np.stack(rows + [decoder.step(np.array([9, token])) for token in (10, 11)])


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(CONFIG, random_parameters(CONFIG), 2, 4, weights="float32")


@pytest.mark.parametrize("version", ["this", "no module", "no executor", "other arguments"])
def test_another_version_computes_the_same_by_the_public_call(decoder, version, monkeypatch):
    expected = logits(decoder)
    called = []
    call = type(decoder.graph).__call__
    monkeypatch.setattr(type(decoder.graph), "__call__", lambda self, *inputs: called.append(1) or call(self, *inputs))
    for module in map(importlib.import_module, filter(importlib.util.find_spec, MODULES)):
        if version == "no module":
            monkeypatch.delattr(module, "_cell_graph_executor")
        elif version != "this":
            monkeypatch.setattr(module, "_cell_graph_executor", Other() if version == "other arguments" else object())
    decoder._repeat.clear()
    assert np.array_equal(logits(decoder), expected)
    assert len(called) == (1 if version == "this" else 4)
