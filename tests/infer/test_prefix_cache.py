"""Which beginnings are found in other slots: whole chunks, of the same domain, never the whole prompt."""

import pytest

from pangu_ms.infer.prefix_cache import PrefixCache


@pytest.fixture
def cache():
    """Chunks of 4; slot 1 holds ten tokens of domain 0, slot 2 five of domain 1."""
    cache = PrefixCache(3, 4)
    cache.start(1, 0)
    cache.append(1, range(10))
    cache.start(2, 1)
    cache.append(2, range(5))
    return cache


@pytest.mark.parametrize(
    ("prompt", "domain", "found"),
    [
        (range(20), 0, (1, 8)),
        (range(9), 0, (1, 8)),
        (range(8), 0, (1, 4)),  # the logits behind token 7 are wanted
        ([0, 1, 2, 3, 4, 5, 6, 9, 8], 0, (1, 4)),
        ([0, 1, 2, 9, 4, 5], 0, (0, 0)),
        (range(4), 0, (0, 0)),
        (range(20), 1, (2, 4)),
        (range(20), 2, (0, 0)),
        ((), 0, (0, 0)),
    ],
)
def test_find(cache, prompt, domain, found):
    assert cache.find(tuple(prompt), domain) == found


def test_a_slot_s_next_sequence_ends_what_it_held(cache):
    cache.start(1, 0)
    cache.append(1, [0, 1, 2])
    assert cache.find(tuple(range(20)), 0) == (0, 0)


def test_a_slot_s_next_sequence_may_go_on_with_what_it_held(cache):
    """Until it has tokens of its own; and only where the domain is the same, which is a part of what was computed."""
    cache.start(1, 0)
    assert cache.find(tuple(range(20)), 0) == (0, 0)  # of other slots
    assert cache.find(tuple(range(20)), 0, own=1) == (1, 8)
    cache.start(1, 0)
    assert cache.find(tuple(range(20)), 0, own=1) == (1, 8)
    cache.copied(1, 1, 8)
    assert cache.find(tuple(range(20)), 0) == (1, 8)
    cache.start(1, 1)
    assert cache.find(tuple(range(20)), 1, own=1) == (2, 4)
    cache.start(2, 1)
    cache.append(2, [0])
    assert cache.find(tuple(range(20)), 1, own=2)[1] == 0


def test_what_is_forgotten(cache):
    cache.start(2, 1)
    cache.forget(2)
    assert cache.find(tuple(range(20)), 1, own=2)[1] == 0
    cache.forget(1)
    assert cache.find(tuple(range(20)), 0) == (0, 0)
    cache.start(1, 0)
    assert cache.find(tuple(range(20)), 0, own=1)[1] == 0


def test_what_was_copied_is_found_without_its_source(cache):
    cache.start(0, 0)
    cache.copied(1, 0, 8)
    cache.start(1, 0)
    assert cache.find(tuple(range(20)), 0) == (0, 8)
