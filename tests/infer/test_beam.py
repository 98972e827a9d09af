"""Beam search against brute force over every continuation of a toy vocabulary."""

import itertools

import numpy as np
import pytest

from pangu_ms.infer.beam import beam_search
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.sampling import SamplingConfig, log_softmax

VOCAB, STOP = 4, 0


class MarkovDecoder:
    """Stands for a model: the logits depend on the last two tokens."""

    def __init__(self, batch_size, seed):
        self.shape = GraphShape(batch_size, 4, 16, 16)
        self.table = np.random.default_rng(seed).normal(0, 2, (VOCAB, VOCAB, VOCAB))

    def logits(self, tokens):
        return self.table[tokens[-2], tokens[-1]]

    def prefill(self, prompts, domains=()):
        self.rows = [list(p) for p in prompts] + [[]] * (self.shape.batch_size - len(prompts))
        return np.stack([self.logits(row) for row in self.rows if row])

    def step(self, tokens):
        for row, token in zip(self.rows, tokens):
            row.append(int(token))
        return np.stack([self.logits(row) for row in self.rows[: len(tokens)]])

    def copy(self, sources, targets, length):
        assert all(len(self.rows[source]) == length for source in sources)
        moved = [list(self.rows[source]) for source in sources]
        for target, row in zip(targets, moved):
            self.rows[target] = row


def brute_force(decoder, prompt, length, penalty):
    """Every continuation that ends with the stop token or at `length`, best first."""
    found = []
    for n in range(1, length + 1):
        for tokens in itertools.product(range(VOCAB), repeat=n):
            if STOP in tokens[:-1] or (n < length and tokens[-1] != STOP):
                continue
            text, total = list(prompt), 0.0
            for token in tokens:
                total += log_softmax(decoder.logits(text))[token]
                text.append(token)
            found.append((total / n**penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all(seed, penalty):
    width = VOCAB**3  # wide enough to lose nothing
    decoder = MarkovDecoder(width, seed)
    config = SamplingConfig(max_new_tokens=4, num_beams=width, length_penalty=penalty)
    best = beam_search(decoder, [1, 2], config, frozenset([STOP]))
    expected = brute_force(decoder, [1, 2], 4, penalty)
    assert [h.tokens for h in best[:5]] == [tokens for _, tokens in expected[:5]]
    assert best[0].score(penalty) == pytest.approx(expected[0][0])


def test_two_beams_beat_greedy_where_greedy_is_led_astray():
    decoder = MarkovDecoder(2, 0)
    decoder.table[:] = -9.0
    decoder.table[1, 1, 2], decoder.table[1, 1, 3] = 1.0, 0.8  # greedy takes 2, behind which all is equal
    decoder.table[1, 2] = 0.0
    decoder.table[1, 3, 0] = 5.0
    config = SamplingConfig(max_new_tokens=2, num_beams=2)
    assert beam_search(decoder, [1, 1], config, frozenset([STOP]))[0].tokens == (3, 0)
