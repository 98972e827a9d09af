"""Gathering against loops over single values, and what is kept or added whole."""

import dataclasses

import numpy as np
import pytest

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.init import initial_values
from pangu_ms.research.inherit import fit
from pangu_ms.research.inherit.gather import gather
from pangu_ms.research.inherit.selection import Selection, check_layers, select, spaced_layers
from tests.research.inherit.common import PLAIN, logits, make_batch, random_tensors, small_alpha, small_pi

EVERYTHING = {
    "siaf_mode": "matrices",
    "siaf_terms": 3,
    "aug_shortcut_branches": 2,
    "attention_bias": True,
    "aug_shortcut_bias": True,
    "num_kv_heads": 2,
}


def all_of(teacher, student):
    return select(teacher, student, range(student.num_layers), {})


@pytest.mark.parametrize(
    "config",
    [small_alpha(), small_pi(), small_pi(**EVERYTHING), small_pi(tie_word_embeddings=True, siaf_mode="scalar")],
)
def test_a_student_of_full_size_is_the_teacher_bit_for_bit(config):
    tensors = random_tensors(config)
    fit.require_fit(config, config)
    student = gather(config, tensors, config, all_of(config, config))
    assert list(student) == list(config.parameter_shapes())
    assert all(student[name].tobytes() == array.tobytes() for name, array in tensors.items())


def test_every_value_of_an_awkward_shape_is_the_right_one_of_the_teacher():
    """Groups of two query heads, three layers of five, an E that the bottleneck follows, and a vocabulary in
    between."""
    teacher = small_pi(
        num_layers=5, num_kv_heads=3, aug_shortcut_branches=2, attention_bias=True, aug_shortcut_bias=True
    )
    student = dataclasses.replace(
        teacher, num_layers=3, hidden_size=16, num_heads=4, num_kv_heads=2, ffn_hidden_size=7, vocab_size=9
    )
    fit.require_fit(teacher, student)
    random, old = np.random.default_rng(3), random_tensors(teacher)
    pick = lambda size, count: np.sort(random.permutation(size)[:count])  # noqa: E731
    layers, channels, vocab = (0, 2, 3), pick(24, 16), pick(40, 9)
    groups, neurons = [pick(3, 2) for _ in layers], [pick(10, 7) for _ in layers]
    selection = Selection(layers, channels[None], np.stack(groups), np.stack(neurons), vocab)
    new = gather(teacher, old, student, selection)
    assert {name: array.shape for name, array in new.items()} == student.parameter_shapes()
    for name, array in new.items():
        block = int(name.split(".")[1]) if name.startswith("blocks") else None
        of_teacher = name if block is None else name.replace(f"blocks.{block}", f"blocks.{layers[block]}")
        kv_rows = [] if block is None else [4 * g + d for g in groups[block] for d in range(4)]
        query_rows = (
            [] if block is None else [4 * (2 * g + h) + d for g in groups[block] for h in range(2) for d in range(4)]
        )
        ffn = [] if block is None else list(neurons[block])
        first = list(range(4))  # of the bottleneck's six
        kept = {
            "query.weight": (query_rows, channels), "query.bias": (query_rows,),
            "output.weight": (channels, query_rows), "output.bias": (channels,),
            "key.weight": (kv_rows, channels), "key.bias": (kv_rows,),
            "value.weight": (kv_rows, channels), "value.bias": (kv_rows,),
            "gate.weight": (ffn, channels), "ffn.up.weight": (ffn, channels), "ffn.down.weight": (channels, ffn),
            "siaf.scale": (range(2), ffn), "siaf.shift": (range(2), ffn), "norm.weight": (channels,),
            "0.down.weight": (first, channels), "1.down.weight": (first, channels), "down.bias": (first,),
            "0.up.weight": (channels, first), "1.up.weight": (channels, first), "up.bias": (channels,),
            "word_embedding.weight": (vocab, channels), "head.weight": (vocab, channels),
        }  # fmt: skip
        (places,) = [value for end, value in kept.items() if name.endswith(end)]
        for index in np.ndindex(array.shape):
            assert array[index] == old[of_teacher][tuple(kept[i] for kept, i in zip(places, index))], (name, index)


def test_a_student_with_fewer_key_value_heads_has_their_means():
    teacher, tensors = small_pi(), random_tensors(small_pi())
    student = dataclasses.replace(teacher, num_heads=4, num_kv_heads=2)
    fit.require_fit(teacher, student)
    heads = np.array([[0, 2, 3, 5], [0, 1, 4, 5], [1, 2, 3, 4]])
    whole = all_of(teacher, teacher)
    new = gather(teacher, tensors, student, dataclasses.replace(whole, heads=heads))
    for layer, (a, b, c, d) in enumerate(heads):
        old = tensors[f"blocks.{layer}.attention.key.weight"].reshape(6, 4, 24)
        expected = np.concatenate([(old[a] + old[b]) / 2, (old[c] + old[d]) / 2])
        np.testing.assert_allclose(new[f"blocks.{layer}.attention.key.weight"], expected, atol=1e-7)
        query = tensors[f"blocks.{layer}.attention.query.weight"].reshape(6, 4, 24)[[a, b, c, d]]
        np.testing.assert_array_equal(new[f"blocks.{layer}.attention.query.weight"], query.reshape(16, 24))


@pytest.mark.usefixtures("mindspore_cpu")
def test_heads_that_share_equal_keys_and_values_are_pooled_without_a_change():
    teacher = small_pi(num_layers=1)
    student, tensors = dataclasses.replace(teacher, num_kv_heads=2), random_tensors(teacher)
    for name in tensors:
        if ".key." in name or ".value." in name:
            tensors[name] = np.repeat(tensors[name].reshape(2, 3, 4, 24)[:, :1], 3, axis=1).reshape(24, 24)
    batch = make_batch(teacher)
    pooled = gather(teacher, tensors, student, all_of(teacher, student))
    np.testing.assert_allclose(logits(student, pooled, batch), logits(teacher, tensors, batch), atol=1e-5)


def test_what_the_teacher_lacks_begins_as_the_student_says():
    teacher = small_pi(tie_word_embeddings=True, siaf_terms=2, aug_shortcut_branches=1)
    wider = {
        "siaf_terms": 3,
        "siaf_init": "identity",
        "aug_shortcut_branches": 2,
        "aug_shortcut_reduction": 3,
        "aug_shortcut_bias": True,
    }
    student, tensors = (
        dataclasses.replace(teacher, tie_word_embeddings=False, aug_shortcut_init="zero", **wider),
        random_tensors(teacher),
    )
    fit.require_fit(teacher, student)
    new, initial = gather(teacher, tensors, student, all_of(teacher, student), seed=5), dict(initial_values(student, 5))
    np.testing.assert_array_equal(new["head.weight"], tensors["word_embedding.weight"])
    np.testing.assert_array_equal(
        new["blocks.1.ffn.siaf.scale"], np.concatenate([tensors["blocks.1.ffn.siaf.scale"], np.zeros((1, 10))])
    )
    grown, old = new["blocks.2.aug_shortcut.0.down.weight"], tensors["blocks.2.aug_shortcut.0.down.weight"]
    np.testing.assert_array_equal(grown, np.concatenate([old, initial["blocks.2.aug_shortcut.0.down.weight"][6:]]))
    assert (
        initial["blocks.2.aug_shortcut.0.down.weight"][6:].std() > 0.01
        and not new["blocks.2.aug_shortcut.0.up.weight"][:, 6:].any()
    )
    added = [name for name in new if "aug_shortcut.1" in name or "aug_shortcut.0" in name and "bias" in name]
    assert len(added) == 3 * 6 and all(np.array_equal(new[name], initial[name]) for name in added)


def test_layers_are_the_first_the_last_and_evenly_spaced_ones():
    layers = lambda old, new, *ends: spaced_layers(small_pi(num_layers=old), small_pi(num_layers=new), *ends)  # noqa: E731
    chosen = layers(29, 20)
    assert chosen[:3] == (0, 1, 2) and chosen[-3:] == (26, 27, 28) and set(np.diff(chosen)) == {1, 2}
    assert layers(4, 4) == (0, 1, 2, 3) and layers(9, 4, 1, 1) == (0, 2, 6, 8) and layers(12, 6) == (0, 1, 2, 9, 10, 11)
    assert all(len(set(layers(24, new))) == new for new in range(6, 24))
    with pytest.raises(
        ConfigError, match=r"model.num_layers=5: the first 3 and the last 3 layers must find room in it; lower"
    ):
        layers(9, 5)


@pytest.mark.parametrize("layers", [(0, 1), (0, 2, 1), (1, 1, 2), (0, 1, 5), (-1, 0, 1)])
def test_a_list_of_layers_must_fit(layers):
    with pytest.raises(ConfigError, match="must be model.num_layers=3 different ones in order, from 0 to 4"):
        check_layers(small_pi(num_layers=5), small_pi(), layers)


def test_the_query_layer_is_inherited_by_the_query_layer():
    check_layers(small_alpha(num_layers=5), small_alpha(), (0, 2, 4))
    with pytest.raises(
        ConfigError,
        match=r"the student's query_layer from blocks.3: the last is the query_layer .* end the list with 4",
    ):
        check_layers(small_alpha(num_layers=5), small_alpha(), (0, 2, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 28, "num_heads": 6}, "model.hidden_size=28: must not exceed the teacher's 24"),
        ({"num_layers": 4}, "model.num_layers=4: must not exceed the teacher's 3"),
        (
            {"num_heads": 3, "num_kv_heads": 3, "head_dim": 8},
            "heads of 8 channels, the teacher's have 4: must be equal",
        ),
        ({"rope_theta": 5e5}, "model.rope_theta=500000.0: must be the teacher's"),
        ({"siaf_position": "product"}, "model.siaf_position=product: must be the teacher's"),
        ({"num_heads": 3, "num_kv_heads": 3}, "1 query heads would share one, a multiple of the teacher's 2 must"),
        ({"siaf_terms": 2}, "model.siaf_terms=2: the teacher has 3, and no term can be dropped"),
        ({"aug_shortcut_branches": 0}, "has no aug_shortcut.0.down.weight, .* set model.aug_shortcut_branches"),
        ({"tie_word_embeddings": True}, "has no head.weight: .* set model.tie_word_embeddings"),
        ({"attention_bias": False}, "has no attention.query.bias, .* set model.attention_bias"),
    ],
)
def test_students_that_the_teacher_cannot_have(fields, message):
    teacher = small_pi(num_kv_heads=3, siaf_terms=3, attention_bias=True)
    with pytest.raises(ConfigError, match=message):
        fit.require_fit(teacher, dataclasses.replace(teacher, **fields))


def test_families_do_not_mix_and_position_tables_do_not_grow():
    with pytest.raises(ConfigError, match="the teacher is alpha: must be the same"):
        fit.require_fit(small_alpha(), small_pi(**PLAIN))
    with pytest.raises(ConfigError, match="model.seq_length=17: must not exceed the teacher's 16"):
        fit.require_fit(small_alpha(), small_alpha(seq_length=17))
    fit.require_fit(small_pi(), small_pi(seq_length=17))  # rotary positions have no table
