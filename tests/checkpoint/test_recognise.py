"""Which model a file of weights is, from its names and shapes alone."""

import dataclasses

import pytest

from pangu_ms.checkpoint.recognise import fitting, recognise
from pangu_ms.config import load_config
from pangu_ms.models.registry import FAMILIES

pytestmark = pytest.mark.fast


def foreign_shapes(name, format, overrides=()):
    """Shapes by foreign name, without any values."""
    model = load_config(name, overrides).model
    naming = FAMILIES[model.family].formats[format]
    return naming.foreign_shapes(model)


@pytest.mark.parametrize(
    "name, format",
    [
        ("alpha/2_6b", "official"),
        ("pi/7b", "huggingface"),
        ("pi/openpangu_7b", "huggingface"),
        ("moge/72b", "huggingface"),
        ("sigma/3b", "mindformers"),
    ],
)
def test_a_shipped_size_is_recognised(name, format):
    model, found = load_config(name).model, recognise(format, foreign_shapes(name, format))
    assert found is not None and (found.config, found.format, found.family) == (name, format, model.family)
    assert found.sizes == {field: getattr(model, field) for field in found.sizes}
    assert {"hidden_size", "num_layers", "vocab_size"} <= found.sizes.keys()
    assert str(found).startswith(f"{name} (hidden_size={model.hidden_size}, num_layers={model.num_layers}, ")


def test_a_size_that_is_not_shipped_is_described():
    shapes = foreign_shapes("alpha/tiny", "official", ["model.num_layers=7", "model.hidden_size=48"])
    said = fitting("official", shapes)
    assert said == (
        "family alpha with hidden_size=48, num_layers=7, vocab_size=1024, ffn_hidden_size=192, seq_length=128"
    )


def test_names_of_another_format_are_said_to_be_so():
    assert fitting("official", foreign_shapes("alpha/2_6b", "huggingface")).startswith(
        "--from huggingface, and alpha/2_6b ("
    )
    assert fitting("official", foreign_shapes("moge/tiny", "huggingface")).startswith(
        "--from huggingface, and moge/tiny ("
    )


def test_names_that_a_format_had_earlier_are_its_own():
    assert fitting("mindformers", foreign_shapes("alpha/2_6b", "official")).startswith("alpha/2_6b (")


def test_a_few_missing_and_further_names_change_nothing():
    shapes = dict(foreign_shapes("pi/1b", "huggingface"))
    removed = dict(list(shapes.items())[3:]) | {"model.layers.0.extra": (3,)}
    found = recognise("huggingface", removed)
    assert found is not None and found.family == "pi" and found.config is None
    whole = load_config("pi/1b").model
    assert found.sizes["num_layers"] == whole.num_layers and found.sizes["hidden_size"] == whole.hidden_size


def test_other_weights_are_not_recognised():
    assert recognise("official", {}) is None
    assert recognise("official", {"h.0.attn.c_attn.weight": (8, 24), "wte.weight": (5, 8)}) is None
    doubled = foreign_shapes("alpha/tiny", "official") | {"word_embedding_table": (1024, 192)}
    assert recognise("official", doubled) is None
    assert fitting("official", {"x": (1,)}) == ""


@pytest.mark.parametrize("number", ["4095", "99999", "9" * 5000, "\u0663"])
def test_absurd_numbers_of_layers_are_no_traceback(number):
    shapes = foreign_shapes("alpha/tiny", "official") | {f"backbone.blocks.{number}.layernorm1.gamma": (192,)}
    found = recognise("official", shapes)
    assert found is not None and found.sizes["num_layers"] in (4, 5)
    fitting("official", dict.fromkeys(shapes, ()))


def test_every_family_is_recognised_in_each_of_its_formats():
    for family, parts in FAMILIES.items():
        for format in parts.formats:
            found = recognise(format, foreign_shapes(f"{family}/tiny", format))
            assert found is not None and (found.config, found.family) == (f"{family}/tiny", family), (family, format)
            assert dataclasses.asdict(found)["format"] == format
