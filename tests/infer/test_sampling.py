"""Sampling: what is kept, with which probability, and what penalties do."""

import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.sampling import (
    Sampler,
    SamplingConfig,
    draw,
    log_softmax,
    top_k_ids,
    top_p_ids,
)

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def top_p(logits, p):
    shifted = logits - logits.max()
    return top_p_ids(shifted, np.exp(shifted), p)


def test_top_k_keeps_the_largest():
    assert top_k_ids(LOGITS, 2).tolist() == [1, 3]
    assert top_k_ids(LOGITS, 0).tolist() == top_k_ids(LOGITS, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [700, 20000, 20100])
def test_top_k_of_a_large_vocabulary_is_what_sorting_keeps(size):
    """Also of equal logits, which are all kept, and of such that a guide bars."""
    random = np.random.default_rng(0)
    for step in (0.0, 0.25):
        logits = random.standard_normal(size).astype(np.float32)
        logits = np.round(logits / step) * step if step else logits
        for barred in (0, size // 2, size - 30):
            logits[random.permutation(size)[:barred]] = -np.inf
            for k in (1, 40, size // 256, size // 256 + 1, size - 1):
                wanted = np.flatnonzero(logits >= np.sort(logits)[-k])
                assert np.array_equal(top_k_ids(logits, k), wanted)


@pytest.mark.parametrize("p, expected", [(0.3, [1]), (0.41, [1, 3]), (0.8, [1, 3, 4]), (0.97, [0, 1, 2, 3, 4])])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, expected):
    assert top_p(LOGITS, p).tolist() == expected


def top_p_by_sorting(logits, p):
    """The definition."""
    order = np.argsort(-logits, kind="stable")
    cumulative = np.cumsum(np.exp(log_softmax(logits))[order])
    return np.sort(order[: np.searchsorted(cumulative, p) + 1])


def only(logits, ids):
    """Logits that are -inf but for some."""
    result = np.full(logits.shape, -np.inf)
    result[ids] = logits[ids]
    return result


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 4.0, 40.0])
def test_top_p_of_a_large_vocabulary_is_what_sorting_keeps(spread):
    """Also of equal logits, of which the first are kept, behind top-k, and where the sum reaches p exactly."""
    random = np.random.default_rng(0)
    for step in (0.0, 0.25, 1.0):
        logits = random.standard_normal(8192) * spread
        logits = np.round(logits / step) * step if step else logits
        for p in (1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12, float(random.uniform())):
            for filtered in (logits, *(only(logits, top_k_ids(logits, k)) for k in (50, 5000))):
                np.testing.assert_array_equal(top_p(filtered, p), top_p_by_sorting(filtered, p))


def test_a_large_vocabulary_is_not_sorted(monkeypatch):
    """A step of 8 rows would wait 30 ms for it."""
    sorted_sizes, real = [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda a, **how: sorted_sizes.append(a.size) or real(a, **how))
    top_p(np.random.default_rng(0).standard_normal(40000), 0.9)
    assert 0 < max(sorted_sizes) < 1000


@pytest.mark.parametrize("top_k", [0, 20, 3000])
@pytest.mark.parametrize("p", [1.0, 0.9])
def test_what_is_drawn_is_what_numpy_chooses(top_k, p):
    config = SamplingConfig(top_k=top_k, top_p=p, temperature=0.8, seed=3)
    sampler, random = Sampler(config, [0], 2), np.random.default_rng([3, 2])
    for logits in np.random.default_rng(1).standard_normal((50, 6000)) * 3:
        kept = only(logits / 0.8, top_k_ids(logits, top_k))
        kept = kept if p == 1 else only(kept, top_p_by_sorting(kept, p))
        assert sampler.choose(logits) == random.choice(6000, p=np.exp(log_softmax(kept)))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_nothing_without_a_weight_is_drawn(size):
    """At the very beginning, at the very end, and between."""
    random = np.random.default_rng(0)
    for _ in range(20):
        weights = random.uniform(size=size) * (random.uniform(size=size) < 0.01)
        weights[random.integers(size)] = 0.3
        for share in (0.0, 0.5, float(np.nextafter(1, 0)), *random.uniform(size=5)):
            index = draw(weights, share)
            assert weights[index] > 0
            assert (
                abs(share * weights.sum() - weights[: index + 1].sum() + weights[index] / 2) <= weights[index] * 0.5001
            )


def test_sampled_frequencies_are_the_renormalised_probabilities():
    sampler = Sampler(SamplingConfig(top_k=3, seed=5), [0])
    drawn = np.bincount([sampler.choose(LOGITS) for _ in range(20000)], minlength=5) / 20000
    np.testing.assert_allclose(drawn, np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85, atol=0.015)


def test_temperature_sharpens_and_zero_is_greedy():
    assert {Sampler(SamplingConfig(temperature=0), [0]).choose(LOGITS) for _ in range(5)} == {1}
    sampler = Sampler(SamplingConfig(temperature=0.5, seed=1), [0])
    drawn = np.bincount([sampler.choose(LOGITS) for _ in range(20000)], minlength=5) / 20000
    squared = np.exp(2 * LOGITS)
    np.testing.assert_allclose(drawn, squared / squared.sum(), atol=0.015)


def test_frequency_and_presence_count_generated_tokens_alone():
    sampler = Sampler(SamplingConfig(frequency_penalty=1.5, presence_penalty=0.3), prompt=[0, 1], generated=[3, 3, 4])
    np.testing.assert_allclose(LOGITS - sampler.penalized(LOGITS), [0, 0, 0, 3.3, 1.8])


def test_repetition_penalty_counts_the_prompt_too():
    logits = np.array([2.0, -2.0, 1.0])
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0), prompt=[0], generated=[1])
    np.testing.assert_allclose(sampler.penalized(logits), [1.0, -4.0, 1.0])


def test_a_prompt_is_sampled_by_its_number_not_by_its_neighbours():
    def draw(seed, index):
        sampler = Sampler(SamplingConfig(seed=seed), [0], index)
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draw(1, 2) == draw(1, 2) and draw(1, 2) != draw(1, 3) and draw(1, 2) != draw(2, 2)


def test_log_softmax_of_large_logits():
    np.testing.assert_allclose(np.exp(log_softmax(np.array([1000.0, 1000.0]))), [0.5, 0.5])


@pytest.mark.parametrize(
    "field, value",
    [("top_p", 0.0), ("temperature", -1.0), ("max_new_tokens", 0), ("num_beams", 0), ("repetition_penalty", 0.0)],
)
def test_a_bad_option_is_named(field, value):
    with pytest.raises(GenerationError, match=f"{field}="):
        SamplingConfig(**{field: value})


def chosen(number, guide=None, stop_ids=(), **options):
    """The first tokens of a greedy sequence."""
    sampler = Sampler(SamplingConfig(temperature=0, **options), [], stop_ids=stop_ids, guide=guide)
    return [sampler.choose(LOGITS) for _ in range(number)]


def test_a_bias_is_added_to_logits():
    assert chosen(1) == [1]
    assert chosen(1, logit_bias=((2, 100.0),)) == chosen(1, logit_bias=((1, -100.0), (2, 3.0))) == [2]
    # Half of the distance to the likeliest is not enough.
    assert chosen(1, logit_bias=((3, float(LOGITS[1] - LOGITS[3]) / 2),)) == [1]


def test_stop_tokens_come_behind_the_least_length():
    assert chosen(3, stop_ids=(1, 3)) == [1, 1, 1]
    assert chosen(3, stop_ids=(1, 3), min_new_tokens=2) == [4, 4, 1]
    for wrong in (-1, 65):
        with pytest.raises(GenerationError, match=f"min_new_tokens={wrong}: must be 0 to max_new_tokens"):
            SamplingConfig(min_new_tokens=wrong)


class Alternating:
    """A guide: 0, then 2, then 0, ...; of a vocabulary that is smaller than the model's."""

    def __init__(self):
        self.next, self.seen = 0, []

    def allowed(self):
        mask = np.zeros(3, bool)
        mask[self.next] = True
        return mask

    def accept(self, token):
        self.seen.append(token)
        self.next = 2 - self.next


def test_a_guide_bars_all_other_tokens():
    guide = Alternating()
    assert chosen(4, guide) == guide.seen == [0, 2, 0, 2]
    # Even if it leaves nothing but the end, and the least length is not reached.
    assert chosen(2, Alternating(), stop_ids=(0,), min_new_tokens=2) == [0, 2]
    sampler = Sampler(SamplingConfig(min_new_tokens=2), [], stop_ids=(0,), guide=Alternating())
    assert [sampler.choose(LOGITS) for _ in range(2)] == [0, 2]
    sampler = Sampler(SamplingConfig(temperature=3.0, top_p=0.5), [], guide=Alternating())
    assert [sampler.choose(LOGITS) for _ in range(4)] == [0, 2, 0, 2]


def test_beams_have_no_bias():
    with pytest.raises(GenerationError, match="logit_bias=.*beam search does not sample"):
        SamplingConfig(num_beams=2, logit_bias=((1, 1.0),))
