"""Unigram and bigram models against counting by hand."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pangu_ms.data.loader import batch_from_ids
from pangu_ms.eval.ngram import NgramModels
from pangu_ms.models.common.batch import Batch

V, EOD, PAD = 12, 10, 11


def random_batch(seed: int, rows: int = 6, length: int = 15) -> Batch:
    """Skewed ids with eod and pad among them; 7, 8 and 9 never occur."""
    ids = np.random.default_rng(seed).choice(
        [0, 1, 2, 3, 4, 5, 6, EOD, PAD], (rows, length), p=[0.4, 0.2, 0.1, 0.08, 0.06, 0.03, 0.03, 0.05, 0.05]
    )
    return batch_from_ids(ids.astype(np.int32), EOD, PAD, eod_reset=False)


def counted(batches: list[Batch]) -> list[tuple[int, int]]:
    """(input, label) at every position that counts: the input is neither eod nor pad."""
    rows = [row for batch in batches for row in batch.ids.tolist()]
    return [(a, b) for row in rows for a, b in itertools.pairwise(row) if a not in (EOD, PAD)]


def by_hand(pairs: list[tuple[int, int]], history: int, label: int) -> tuple[float, float]:
    """Add-one unigram and absolutely discounted bigram probability."""
    labels, bigrams = Counter(b for _, b in pairs), Counter(pairs)
    unigram = (labels[label] + 1) / (len(pairs) + V)
    frequency = Counter(bigrams.values())
    discount = frequency[1] / (frequency[1] + 2 * frequency[2])
    followers = {b: n for (a, b), n in bigrams.items() if a == history}
    if not followers:
        return unigram, unigram
    total = sum(followers.values())
    return unigram, max(followers.get(label, 0) - discount, 0) / total + discount * len(followers) / total * unigram


@pytest.fixture(scope="module")
def batches():
    return [random_batch(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def models(batches):
    return NgramModels.count(batches, V)


def test_every_probability_equals_counting_by_hand(batches, models):
    expected = np.array([by_hand(counted(batches), a, b) for a in range(V) for b in range(V)])
    np.testing.assert_allclose(np.tile(models.unigram_V, V), expected[:, 0], rtol=1e-12)
    np.testing.assert_allclose(models.bigram_probability(np.arange(V * V)), expected[:, 1], rtol=1e-12)


def test_probabilities_after_every_history_sum_to_one(models):
    np.testing.assert_allclose(models.bigram_probability(np.arange(V * V)).reshape(V, V).sum(1), 1, rtol=1e-12)


def test_an_unseen_history_leaves_the_unigram(models):
    for history in (7, PAD, EOD):
        np.testing.assert_array_equal(models.bigram_probability(history * V + np.arange(V)), models.unigram_V)


def test_a_score_is_the_sum_over_the_positions_that_count(batches, models):
    other = random_batch(9)
    pairs = counted([other])
    probabilities = np.array([by_hand(counted(batches), a, b) for a, b in pairs])
    np.testing.assert_allclose(models.score([other]), [*-np.log(probabilities).sum(0), len(pairs)], rtol=1e-12)


def test_counting_in_several_batches_equals_one(batches, models):
    whole = NgramModels.count([batch_from_ids(np.concatenate([b.ids for b in batches]), EOD, PAD, eod_reset=False)], V)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(models, name), value)


def test_pairs_that_all_occur_often_are_discounted_by_a_half():
    often = batch_from_ids(np.tile(np.int32([0, 1, 2]), (4, 1)), EOD, PAD, eod_reset=False)
    models = NgramModels.count([often], V)
    assert models.discount == 0.5
    assert models.bigram_probability(np.array([1]))[0] == pytest.approx(3.5 / 4 + 0.5 / 4 * 5 / 20)
