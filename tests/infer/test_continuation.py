"""Pieces of a continuation: texts and their tokens."""

import dataclasses

import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Continuation, Request, token_logprobs
from pangu_ms.infer.continuation import _overlap as overlap
from pangu_ms.infer.sampling import SamplingConfig, log_softmax


class Letters:
    """Some pieces: id 3 to 5 are the bytes of one character, id 9 ends a text."""

    stop_ids, vocab_size = (9,), 10
    _bytes_of = [b"a", b"bc", b"", b"\xe4", b"\xb8", b"\xad", b"XY", b"Z", b"end", b""]

    def _require_ids(self, ids):
        pass

    def _restored(self, text):
        return text


def pieces_of(ids, room=100, **options):
    """The pieces that come, token by token, and the continuation."""
    one = Continuation(Request((0,), SamplingConfig(**options)), Letters())
    pieces = []
    for index in ids:
        one.add(index, room)
        pieces.append(one.take())
        if one.finish_reason:
            break
    return pieces, one


def joined(pieces):
    return "".join(piece.text for piece in pieces), [i for piece in pieces for i in piece.ids]


def test_tokens_come_with_their_text():
    pieces, one = pieces_of([0, 1, 3, 4, 5, 8, 9])
    assert [piece.text for piece in pieces] == ["a", "bc", "", "", "\u4e2d", "end", ""]
    assert joined(pieces) == ("abc\u4e2dend", [0, 1, 3, 4, 5, 8])  # the stop token is none of them
    assert [at for piece in pieces for at in piece.begins] == [0, 1, 3, 3, 3, 4]
    assert one.finish_reason == "stop"


def test_what_may_be_a_stop_string_is_held_back_with_its_tokens():
    pieces, one = pieces_of([0, 6, 7, 1], stop=("YZQ",))
    assert [(piece.text, piece.ids) for piece in pieces] == [("a", (0,)), ("X", ()), ("", ()), ("YZbc", (6, 7, 1))]


def test_tokens_of_a_stop_string_do_not_come():
    pieces, one = pieces_of([0, 1, 6, 7, 1], stop=("nothing", "XYZ"))
    assert joined(pieces) == ("abc", [0, 1]) and one.ids == [0, 1, 6, 7] and one.finish_reason == "stop"
    pieces, one = pieces_of([0, 6, 7], stop=("YZ",))  # a part of XY is text
    assert joined(pieces) == ("aX", [0, 6])


def test_the_end_at_the_limit():
    pieces, one = pieces_of([0, 3, 4], room=3)
    assert joined(pieces) == ("a\ufffd", [0, 3, 4]) and one.finish_reason == "length"


def test_stop_tokens_of_a_request():
    pieces, one = pieces_of([0, 8, 1], stop_token_ids=(8,))
    assert joined(pieces) == ("a", [0]) and one.finish_reason == "stop" and one.ids == [0, 8]


def test_a_request_that_begins_anew_repeats_nothing():
    one = Continuation(Request((0,), SamplingConfig()), Letters())
    one.add(0, 9), one.add(1, 9)
    assert joined([one.take()]) == ("abc", [0, 1])
    one.begin()
    pieces = []
    for index in (0, 1, 8):
        one.add(index, 9)
        pieces.append(one.take())
    assert joined(pieces) == ("end", [8])


def test_a_bias_of_no_token():
    request = Request((0,), SamplingConfig(logit_bias=((10, 1.0),)))
    with pytest.raises(GenerationError, match="logit_bias: token 10: is not in the vocabulary; must be 0 to 9"):
        Continuation(request, Letters())
    assert Continuation(dataclasses.replace(request, sampling=SamplingConfig()), Letters()).text == ""


def test_the_likeliest_tokens_are_sorted_and_equal_ones_by_id():
    rng = np.random.default_rng(0)
    for levels in (3, 50, 10**6):
        logits = rng.integers(0, levels, 500).astype(np.float32) / levels
        values = log_softmax(logits)
        order = np.lexsort((np.arange(500), -values))
        for number in (0, 1, 7, 500, 600):
            found = token_logprobs(logits, 3, number)
            assert found.chosen == values[3] and [i for i, _ in found.top] == order[:number].tolist()


def test_what_may_become_a_stop_string():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text, stop = ("".join(rng.choice(["a", "b"], rng.integers(low, 7))) for low in (0, 1))
        longest = max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        assert overlap(text, stop) == longest
