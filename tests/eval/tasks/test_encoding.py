"""Where a text is divided into context and continuation, and what is left out where the window has no room."""

import numpy as np
import pytest

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks.encoding import Encoder, encode_parts, require_spelling
from pangu_ms.eval.tasks.prompts import FEW, make_prompts
from tests.eval.tasks.common import CHOICE, DEV, GENERATION, TRAIN, Characters, task_of, with_fields

WINDOW = 64


def test_parts_of_a_text():
    """The parts always make the whole text; a token across the border belongs to what is scored."""
    tokenizer = Characters(joined=("bc", "cd"))
    assert encode_parts(tokenizer, "xa", "bz") == ([*map(ord, "xa")], [*map(ord, "bz")], False)
    context, continuation, joined = encode_parts(tokenizer, "ab", "cz")
    assert (context, continuation, joined) == ([ord("a")], [60_000, ord("z")], True)
    assert encode_parts(tokenizer, "", "ab") == ([], [ord("a"), ord("b")], False)
    assert encode_parts(Characters(first=[9]), "", "ab") == ([9], [ord("a"), ord("b")], False)
    random = np.random.default_rng(0)
    crossed = 0
    for _ in range(300):
        text = "".join(random.choice(list("abcd"), 12))
        at = int(random.integers(0, 12))
        context, continuation, joined = encode_parts(tokenizer, text[:at], text[at:])
        assert context + continuation == tokenizer.encode_prompt(text) and continuation
        assert tokenizer.decode(context) == text[:at][: len(tokenizer.decode(context))]
        assert joined == (tokenizer.decode(context) != text[:at])
        crossed += joined
    assert crossed > 20


def test_a_continuation_without_a_token_of_its_own():
    """SentencePiece may drop a space at the end: the last token is scored then."""

    class Stripping(Characters):
        def encode_batch(self, texts):
            return super().encode_batch([text.rstrip() for text in texts])

    assert encode_parts(Stripping(), "ab", " ") == ([ord("a")], [ord("b")], True)
    with pytest.raises(DataError, match="the tokenizer makes no token of ' '"):
        encode_parts(Stripping(), "", " ")


def encoded(tmp_path, tree, rows, window=WINDOW, tokenizer=None, **settings):
    task = task_of(tmp_path, tree)
    encoder = Encoder(task, tokenizer or Characters(), window)
    return [encoder.encode(prompt) for prompt in make_prompts(task, rows, **settings)]


def texts(item):
    return ["".join(map(chr, [*context, *continuation])) for context, continuation in item.pairs]


def test_demonstrations_without_room_are_left_out(tmp_path, monkeypatch):
    """The first ones stay, so that prompts still begin alike; a model with a large window reads all."""
    (prompt,) = make_prompts(task_of(tmp_path, CHOICE), DEV[:1], FEW, 0, TRAIN)
    found = {}
    for window in (200, 80, 64, 50, 30):
        (one,) = encoded(tmp_path, CHOICE, DEV[:1], window, shots=FEW, shown=TRAIN)
        longest = max(texts(one.item), key=len)
        assert longest.startswith("".join(prompt.demonstrations[: one.shots]) + "appleapple is")
        assert len(longest) <= window + 1 and one.shots + one.dropped_shots == 3 and not one.cut_tokens
        if one.dropped_shots:
            assert len(longest) + len(prompt.demonstrations[one.shots]) > window + 1
        found[window] = one
    assert found[200].shots == 3 and found[30].shots == 0
    monkeypatch.setattr(Encoder, "_fitting", lambda self, prompt, room: len(prompt.demonstrations))
    for window, one in found.items():
        assert encoded(tmp_path, CHOICE, DEV[:1], window, shots=FEW, shown=TRAIN) == [one], (
            "the estimate saves time only"
        )


def test_the_end_of_what_is_scored_is_cut_alike(tmp_path):
    """Where the context has the choice: all candidates keep the same part of the text."""
    (one,) = encoded(tmp_path, CHOICE, [{"thing": "sky", "text": "0123456789" * 9, "label": 0}])
    assert [len(continuation) for _, continuation in one.item.pairs] == [WINDOW + 1 - len("sky is blue. ")] * 2
    assert texts(one.item)[1].startswith("sky is blue. 0123") and len(texts(one.item)[1]) == WINDOW + 1
    assert one.cut_tokens == len("sky is blue. ") + 90 - WINDOW - 1


def test_a_long_context_leaves_half_of_the_window_to_what_is_scored(tmp_path):
    (one,) = encoded(tmp_path, CHOICE, [{"thing": "y" * 100, "text": "0123456789" * 9, "label": 0}])
    assert {len(continuation) for _, continuation in one.item.pairs} == {(WINDOW + 1) // 2}


def test_the_beginning_of_a_text_is_cut_alike(tmp_path):
    """Where the continuation has the choice."""
    tree = with_fields(CHOICE, context="", continuation="{text}, {choice}")
    (one,) = encoded(tmp_path, tree, [{"text": "0123456789" * 9, "label": 0}])
    red, blue = texts(one.item)
    assert red.endswith("789, red") and blue.endswith("789, blue") and len(blue) == WINDOW + 1
    assert red.partition(",")[0] == blue.partition(",")[0] and [len(context) for context, _ in one.item.pairs] == [1, 1]
    tree = with_fields(CHOICE, context="{text}", continuation="{choice}")
    (one,) = encoded(tmp_path, tree, [{"text": "0123456789" * 9, "label": 0}])
    assert [len(continuation) for _, continuation in one.item.pairs] == [3, 4]
    assert len({tuple(context) for context, _ in one.item.pairs}) == 1 and one.cut_tokens == 94 - WINDOW - 1
    assert max(map(len, texts(one.item))) == WINDOW + 1, "no more is cut than must be"


def test_prompts_of_generation_tasks(tmp_path):
    row = {"question": "why", "answers": ["because"]}
    (one,) = encoded(tmp_path, with_fields(GENERATION, decoding={"top_k": 5, "stop": ["\n", "Q"]}), [row])
    assert "".join(map(chr, one.request.prompt)) == "Q: why\nA: " and one.item is None
    sampling = one.request.sampling
    assert (sampling.max_new_tokens, sampling.top_k, sampling.stop, sampling.temperature) == (32, 5, ("\n", "Q"), 0)
    (one,) = encoded(tmp_path, with_fields(GENERATION, decoding={"max_new_tokens": "answer"}), [row])
    assert one.request.sampling.max_new_tokens == len("because")
    (one,) = encoded(tmp_path, GENERATION, [row | {"question": "y" * 100}])
    assert len(one.request.prompt) == WINDOW - 32 and one.cut_tokens == len("Q: \nA: ") + 100 - 32
    (one,) = encoded(tmp_path, with_fields(GENERATION, decoding={"keep_tokens": 20}), [row | {"question": "y" * 100}])
    assert "".join(map(chr, one.request.prompt)) == "y" * 16 + "\nA: "
    shown = [{"question": f"{i}" * 10, "answers": "yes"} for i in range(9)]
    (one,) = encoded(tmp_path, GENERATION, [row], shots=2, shown=shown)
    assert one.shots == 1 and one.dropped_shots == 1 and len(one.request.prompt) == WINDOW - 32, "it fits to the token"
    (one,) = encoded(tmp_path, GENERATION, [row], 96, shots=2, shown=shown)
    assert one.shots == 2 and one.cut_tokens == 0


def test_dynamic_demonstrations_fill_the_window(tmp_path):
    shown = [{"question": f"{i}", "answers": "y"} for i in range(20)]
    tree = with_fields(GENERATION, shots={"few": "dynamic"})
    (one,) = encoded(tmp_path, tree, [{"question": "why", "answers": ["so"]}], 128, shots=FEW, shown=shown)
    room = 128 - 32 - len("Q: why\nA: ")
    assert one.shots == room // len("Q: 1\nA: y\n\n")


def test_a_tokenizer_that_cannot_spell_the_template(tmp_path):
    task = task_of(tmp_path, CHOICE)
    require_spelling(task, Characters(unknown="z"))
    for unknown in ".u":
        with pytest.raises(DataError, match=f"colour: the tokenizer cannot spell '[{unknown}]' of the template"):
            require_spelling(task, Characters(unknown=unknown))
