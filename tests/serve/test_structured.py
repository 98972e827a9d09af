"""Guides of one vocabulary."""

import pytest

from pangu_ms.core.errors import GenerationError
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
    with pytest.raises(ApiError, match="the form of the text cannot be followed"):
        guide_of(Grammars(tokenizer), guided_choice=["\U0001f600"])


def test_json_has_little_white_space(tokenizer):
    guide = guide_of(Grammars(tokenizer), guided_json={"type": "object"})
    guide.accept(tokenizer.id_of("<0x7B>"))
    guide.accept(tokenizer.id_of("<0x20>"))
    assert not any(text.isspace() for text in texts(tokenizer, guide))
