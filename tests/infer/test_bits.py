"""With packed weights the logits of a sequence have the same bits however its prompt is cut into chunks, whatever the
number of slots and of the chunk's rows, and whatever other slots hold."""

import functools

import numpy as np
import pytest

from pangu_ms.config.load import load_config
from tests.infer.common import make_decoder
from tests.models import alpha, pi

pytestmark = pytest.mark.usefixtures("mindspore_cpu")

LENGTH, STEPS = 70, 3
PARAMETERS = {"alpha": alpha.random_parameters, "pi": pi.random_parameters}


@functools.cache
def model(family, num_layers):
    """A configuration and its parameters."""
    config = load_config(f"{family}/tiny", [f"model.num_layers={num_layers}"]).model
    return config, PARAMETERS[family](config, deviation=0.08)


@functools.cache
def decoder(family, num_layers, slots, chunk):
    return make_decoder(*model(family, num_layers), slots, chunk, max_length=96, weights="float32")


def logits(decoder, slot, pieces):
    """Behind the prompt, which is appended in pieces of these sizes (the last again and again), and behind each further
    token; between rows of other slots, if there are some."""
    rng = np.random.default_rng(1)
    prompt, further = rng.integers(4, 1024, LENGTH).tolist(), rng.integers(4, 1024, STEPS).tolist()
    others = {other: 5 + other for other in range(decoder.shape.batch_size) if other != slot}
    for one in (slot, *others):
        decoder.start(one)
    found, begin, pieces = [], 0, list(pieces)
    while begin < LENGTH:
        size = pieces.pop(0) if len(pieces) > 1 else pieces[0]
        out = decoder.append(others, (slot, prompt[begin : begin + size]))
        begin += size
        if begin % 3 == 0:  # sequences of several lengths
            others.pop(max(others, default=None), None)
    found.append(out[slot])
    found += [decoder.append({slot: token} | others)[slot] for token in further]
    return np.stack(found)


LAYERS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num_layers", LAYERS)
@pytest.mark.parametrize("family", ["alpha", pytest.param("pi", marks=pytest.mark.slow)])
def test_logits_have_the_same_bits_in_all_chunks_and_slots(family, num_layers):
    expected = logits(decoder(family, num_layers, 1, 1), 0, [1])
    assert np.isfinite(expected).all() and len(set(expected.argmax(-1))) > 1
    large = decoder(family, num_layers, 8, 64)
    for slot, pieces in ((0, [64]), (7, [1]), (3, [3]), (5, [8]), (2, [16]), (4, [7, 1, 20, 9, 33])):
        found = logits(large, slot, pieces)
        assert np.array_equal(found.view(np.int32), expected.view(np.int32)), (slot, pieces)


@pytest.mark.slow
@pytest.mark.parametrize("family", PARAMETERS)
@pytest.mark.parametrize("shape", [(2, 3), (3, 8), (4, 16), (5, 33)], ids=str)
def test_other_shapes_of_the_graph(family, shape):
    expected = logits(decoder(family, 2, 1, 1), 0, [1])
    found = logits(decoder(family, 2, *shape), shape[0] - 1, [shape[1]])
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))
