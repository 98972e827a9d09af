"""Cached decoding against the full forward pass."""

import numpy as np
import pytest

from tests.eager import eager
from tests.infer.common import make_decoder
from tests.models.alpha import our_logits, random_parameters
from tests.models.alpha import small as of_three_layers

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


def small(**fields):
    """With a block and the query layer."""
    return of_three_layers(num_layers=2, **fields)


@pytest.fixture(scope="module")
def decoder():
    """Four rows of the small model with the first random weights."""
    return make_decoder(small(), random_parameters(small()), batch_size=4)


@pytest.mark.parametrize("final_norm_position", ["before_query", pytest.param("after_query", marks=pytest.mark.slow)])
def test_cached_logits_equal_the_full_forward_at_every_position(request, final_norm_position):
    config = small(final_norm_position=final_norm_position)
    parameters = random_parameters(config)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (2, config.seq_length)).astype(np.int32)
    with eager():
        full = our_logits(config, parameters, ids, eod_reset=False)
    if config == small():
        decoder = request.getfixturevalue("decoder")
    else:
        decoder = make_decoder(config, parameters, batch_size=2)
    for prompt_length in (1, 4, 5, 6, 10, 23):  # around the chunk's length of 5, and the longest
        np.testing.assert_allclose(
            decoder.prefill(ids[:, :prompt_length].tolist()), full[:, prompt_length - 1], atol=1e-4
        )
        for position in range(prompt_length, min(prompt_length + 8, config.seq_length)):
            np.testing.assert_allclose(decoder.step(ids[:, position]), full[:, position], atol=1e-4)


def test_a_ragged_batch_equals_its_prompts_one_by_one(decoder):
    config = small()
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (1, 13, 6)]
    continuation = rng.integers(0, config.vocab_size, (6, 3)).astype(np.int32)
    batch = [decoder.prefill(prompts)] + [decoder.step(tokens) for tokens in continuation]
    for row, prompt in enumerate(prompts):
        single = [decoder.prefill([prompt])] + [decoder.step(tokens[row : row + 1]) for tokens in continuation]
        np.testing.assert_allclose(np.stack(batch)[:, row], np.stack(single)[:, 0], atol=1e-5)


def test_copying_moves_whole_sequences(decoder):
    prompts = [[7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25]]
    decoder.prefill(prompts)
    decoder.copy([1, 0], [0, 1], 6)
    swapped = decoder.step(np.array([30, 31]))
    decoder.prefill(prompts[::-1])
    np.testing.assert_allclose(swapped, decoder.step(np.array([30, 31])), atol=1e-5)
