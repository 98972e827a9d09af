"""PanGu-pi writes the text that its specification implies: greedy and beam search against numpy float64."""

import numpy as np
import pytest

from pangu_ms.infer.sampling import SamplingConfig, log_softmax
from tests.infer.pi_checkpoint import reference_logits, save_pi_checkpoint

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
PROMPTS = ["def alpha_1(beta):\n", "p", "return gamma + 7"]  # of different lengths, the longest over several chunks
LENGTH = 8


@pytest.fixture(scope="module")
def saved(records, tmp_path_factory):
    return save_pi_checkpoint(tmp_path_factory.mktemp("pi"), records / "tokenizer")


@pytest.fixture(scope="module")
def generator(saved):
    from pangu_ms.infer.generate import Prompt
    from pangu_ms.infer.load import load_generator

    generator = load_generator(saved[0], Prompt.each_of(PROMPTS, SamplingConfig(max_new_tokens=LENGTH)), chunk=4)
    generator.tokenizer.stop_ids = ()
    return generator


def continued(weights, ids, choose):
    ids = list(ids)
    for _ in range(LENGTH):
        ids.append(choose(reference_logits(weights, ids)))
    return tuple(ids[-LENGTH:])


def test_a_ragged_batch_is_continued_as_the_specification_says(generator, saved):
    results = generator.generate(PROMPTS, SamplingConfig(max_new_tokens=LENGTH, temperature=0.0))
    expected = [continued(saved[1], generator.tokenizer.encode(prompt), np.argmax) for prompt in PROMPTS]
    assert [r.token_ids for r in results] == expected and len({t for ids in expected for t in ids}) > LENGTH


def test_a_sampled_batch_equals_its_prompts_one_by_one(generator):
    config, pieces = SamplingConfig(max_new_tokens=LENGTH, temperature=1.5, seed=3, top_k=50), {}
    together = generator.generate(PROMPTS, config, lambda i, text: pieces.setdefault(i, []).append(text))
    assert generator.generate(PROMPTS[:1], config) == together[:1]
    assert ["".join(pieces[i]) for i in range(len(PROMPTS))] == [r.text for r in together]


def test_beams_move_the_cache_with_them(generator, saved):
    """The log-probability of each hypothesis, summed over steps whose rows were reordered, is that of its tokens."""
    from pangu_ms.infer.beam import beam_search

    ids = generator.tokenizer.encode(PROMPTS[0])
    found = beam_search(
        generator.decoder, ids, SamplingConfig(max_new_tokens=LENGTH, num_beams=3, length_penalty=0.0), frozenset()
    )
    assert len({h.tokens for h in found}) == 3
    for hypothesis in found:
        text, total = list(ids), 0.0
        for token in hypothesis.tokens:
            total += log_softmax(reference_logits(saved[1], text))[token]
            text.append(token)
        assert hypothesis.log_probability == pytest.approx(total, abs=1e-4)
