"""Guides of one vocabulary."""

import numpy as np
import pytest
from pydantic import ValidationError

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.sampling import GuideError
from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.protocol import CompletionRequest
from pangu_ms.serve.structured import Grammars


def guide_of(grammars, **fields):
    return grammars.of(CompletionRequest(model="m", prompt="p", **fields))()


def texts(tokenizer, guide):
    """What may come next."""
    return {tokenizer.text_bytes(i) for i in guide.allowed().nonzero()[0]}


def test_what_may_come_next(tokenizer):
    grammars = Grammars(tokenizer)
    guide = guide_of(grammars, guided_choice=["alpha", "alpine", "b"])
    for byte in b"alp":
        guide.accept(tokenizer.id_of(chr(byte)))
    assert {text[:1] for text in texts(tokenizer, guide)} == {b"h", b"i"}
    # Every request has a guide of its own.
    assert {text[:1] for text in texts(tokenizer, guide_of(grammars, guided_choice=["alpha", "alpine", "b"]))} == {
        b"a",
        b"b",
    }
    guide = guide_of(grammars, guided_choice=["b"])
    guide.accept(tokenizer.id_of("b"))
    assert {*guide.allowed().nonzero()[0]} == {*tokenizer.stop_ids}
    assert grammars.of(CompletionRequest(model="m", prompt="p")) is None


def test_bytes_of_a_character_come_one_by_one(tokenizer):
    guide = guide_of(Grammars(tokenizer), guided_choice=["\u4e2d"])
    for byte in "\u4e2d".encode():
        assert texts(tokenizer, guide) == {bytes([byte])}
        guide.accept(tokenizer.id_of(f"<0x{byte:02X}>"))


def test_special_pieces_never_come(tokenizer):
    allowed = guide_of(Grammars(tokenizer), guided_regex="(.|\n)+").allowed()
    assert not allowed[tokenizer.special_ids].any() and allowed.sum() > 200


def test_a_token_that_may_not_come_is_an_error(tokenizer):
    guide = guide_of(Grammars(tokenizer), guided_choice=["b"])
    guide.accept(tokenizer.id_of("a"))
    with pytest.raises(GenerationError, match="the form of the text cannot be followed"):
        guide.allowed()


@pytest.mark.parametrize("fields", [{"guided_regex": r"[^\s\S]"}, {"guided_json": {"$ref": "#"}}], ids=str)
def test_a_form_that_no_text_has_is_refused(tokenizer, fields):
    with pytest.raises(ApiError, match="the form of the text cannot be followed") as caught:
        guide_of(Grammars(tokenizer), **fields)
    assert caught.value.status == 400 and "state" not in caught.value.message


def test_a_form_that_the_vocabulary_cannot_spell(tokenizer, monkeypatch):
    """Without the pieces of bytes."""
    spell = tokenizer.text_bytes
    monkeypatch.setattr(
        tokenizer, "text_bytes", lambda i: b"" if len(spell(i)) == 1 and spell(i)[0] > 127 else spell(i)
    )
    grammars = Grammars(tokenizer)
    with pytest.raises(ApiError, match="guided_choice: '\U0001f600': no tokens of the vocabulary spell it"):
        guide_of(grammars, guided_choice=["a", "\U0001f600"])
    guide_of(grammars, guided_choice=["a", "alpha"])
    # As far as there is one way to go; behind a choice it is found when the text gets there.
    with pytest.raises(ApiError, match="guided_regex: the form of the text cannot be followed"):
        guide_of(grammars, guided_regex="<\U0001f600")
    guide = guide_of(grammars, guided_regex="[<>]\U0001f600")
    guide.accept(tokenizer.id_of("<0x3C>"))
    with pytest.raises(GuideError):
        guide.allowed()


def test_thousands_of_choices(tokenizer):
    """They need no grammar. Whatever the model prefers, the text is one of them."""
    choices = [f"{i:04} is one of a great many texts that are long and differ" for i in range(3000)]
    guide, rng, text = guide_of(Grammars(tokenizer), guided_choice=choices), np.random.default_rng(0), b""
    while (token := int(rng.choice(guide.allowed().nonzero()[0]))) not in tokenizer.stop_ids:
        text += tokenizer.text_bytes(token)
        guide.accept(token)
    assert text.decode() in choices and guide.allowed()[list(tokenizer.stop_ids)].all()
    for many in (choices * 2, [f"{choice:<100}" for choice in choices]):
        with pytest.raises(ValidationError, match="guided_choice"):
            CompletionRequest(model="m", prompt="p", guided_choice=many)


def test_a_choice_that_another_one_begins_with(tokenizer):
    guide, (stop, *_) = guide_of(Grammars(tokenizer), guided_choice=["ab", "a"]), tokenizer.stop_ids
    assert not guide.allowed()[stop]
    guide.accept(tokenizer.id_of("a"))
    assert guide.allowed()[stop] and guide.allowed()[tokenizer.id_of("b")]
    guide.accept(stop)
    with pytest.raises(GuideError):
        guide.allowed()


def test_json_has_little_white_space(tokenizer):
    guide = guide_of(Grammars(tokenizer), guided_json={"type": "object"})
    guide.accept(tokenizer.id_of("<0x7B>"))
    guide.accept(tokenizer.id_of("<0x20>"))
    assert not any(text.isspace() for text in texts(tokenizer, guide))
