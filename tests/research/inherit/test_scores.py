"""Criteria: they find what contributes nothing, and equal numeric derivatives and closed forms."""

import dataclasses

import numpy as np
import pytest

from pangu_ms.research.inherit.gather import gather
from pangu_ms.research.inherit.masks import MaskOptions, learn_masks
from pangu_ms.research.inherit.scores import norm_scores, random_scores, taylor_scores
from pangu_ms.research.inherit.selection import select, wanted_units
from pangu_ms.research.inherit.units import GROUPS, masked, unit_shapes
from tests.research.inherit.common import (
    PLAIN,
    logits,
    make_batch,
    random_tensors,
    small_alpha,
    small_pi,
    weight_gradients,
)

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
USEFUL = {
    "heads": np.array([[0, 2], [1, 2]]),
    "neurons": np.array([[0, 3, 4, 7, 8, 9], [1, 2, 3, 5, 6, 7]]),
}


def unit_masks(config, useful):
    masks = {group: np.zeros(unit_shapes(config)[group]) for group in useful}
    for group, units in useful.items():
        np.put_along_axis(masks[group], units, 1.0, axis=1)
    return masks


@pytest.fixture(scope="module")
def derivatives(mindspore_cpu):
    """Of the teacher. The graph of its derivatives also trains it: Adam in numpy."""
    from pangu_ms.research.inherit.gradients import MaskDerivatives

    config = small_pi(num_layers=2, num_kv_heads=3)
    tensors, batch = masked(config, random_tensors(config), unit_masks(config, USEFUL)), make_batch(config)
    derivatives, losses, moments = MaskDerivatives(config, tensors), [], {}
    for _ in range(80):
        loss, gradients = weight_gradients(derivatives, tensors, batch)
        losses.append(loss)
        for name, g in gradients.items():
            m, v = moments.get(name, (0.0, 0.0))
            moments[name] = m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            tensors[name] = tensors[name] - np.float32(3e-3) * m / (np.sqrt(v) + 1e-8)
    assert losses[-1] < 0.6 * losses[0]
    return derivatives


@pytest.fixture(scope="module")
def teacher(derivatives):
    """(config, tensors, batch): trained on one batch, with heads (in groups of two) and neurons whose weights are all
    0."""
    return derivatives.config, derivatives.tensors, make_batch(derivatives.config)


@pytest.fixture(scope="module")
def small(teacher):
    return dataclasses.replace(teacher[0], num_heads=4, num_kv_heads=2, ffn_hidden_size=6)


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "learned"])
def test_units_that_contribute_nothing_are_found_and_dropped_without_a_change(teacher, small, derivatives, criterion):
    config, tensors, batch = teacher
    if criterion == "learned":
        shapes = {group: unit_shapes(config)[group] for group in USEFUL}
        *_, scores = learn_masks(derivatives, [batch], shapes, wanted_units(config, small), MaskOptions())
    else:
        scores = (
            taylor_scores(derivatives, [batch]) if criterion == "taylor" else norm_scores(config, tensors, criterion)
        )
    selection = select(config, small, range(2), {group: scores[group] for group in USEFUL})
    for group, units in USEFUL.items():
        np.testing.assert_array_equal(getattr(selection, group), units)
    if criterion == "l1":
        np.testing.assert_allclose(
            logits(small, gather(config, tensors, small, selection), batch), logits(config, tensors, batch), atol=1e-5
        )


def test_random_scores_find_nothing_and_repeat(teacher):
    first, again, other = (random_scores(teacher[0], seed) for seed in (1, 1, 2))
    assert all(
        np.array_equal(first[group], again[group]) and not np.array_equal(first[group], other[group])
        for group in GROUPS
    )


def test_layers_that_write_nothing_are_dropped_without_a_change(teacher):
    config, tensors, batch = teacher
    deep = dataclasses.replace(config, num_layers=3)
    silent = {name.replace("blocks.1", "blocks.2"): array for name, array in tensors.items()}
    for name in deep.layer_parameters(0):
        writes = name in ("attention.output.weight", "ffn.down.weight", "aug_shortcut.0.up.weight")
        silent[f"blocks.1.{name}"] = tensors[f"blocks.0.{name}"] * (0 if writes else 1)
    student = gather(deep, silent, config, select(deep, config, (0, 2), {}))
    np.testing.assert_allclose(logits(config, student, batch), logits(deep, silent, batch), atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("mask", [1.0, 0.4])
def test_derivatives_in_masks_equal_differences_of_the_loss(teacher, derivatives, group, mask):
    config, _, batch = teacher
    shape, place, h = unit_shapes(config)[group], (0, int(USEFUL.get(group, [[5]])[0][0])), 2e-3
    masks = {group: np.full(shape, mask)}
    found = derivatives(batch, masks)[1][group][place]
    if mask == 1.0:
        assert derivatives(batch, {})[1][group][place] == pytest.approx(found, rel=1e-5)
        assert taylor_scores(derivatives, [batch, batch])[group][place] == pytest.approx(2 * abs(found), rel=1e-5)
    shifted = []
    for sign in (1, -1):
        masks[group][place] = mask + sign * h
        shifted.append(derivatives(batch, masks)[0])
    assert found == pytest.approx((shifted[0] - shifted[1]) / (2 * h), rel=0.01, abs=2e-4)


def test_norms_are_over_all_slices_of_a_unit():
    config = small_pi(num_kv_heads=3)
    tensors = random_tensors(config)
    layer = {
        name.removeprefix("blocks.1."): array.astype(np.float64)
        for name, array in tensors.items()
        if name.startswith("blocks.1.")
    }
    columns = layer["ffn.down.weight"][:, 4], layer["ffn.siaf.scale"][:, 4], layer["ffn.siaf.shift"][:, 4]
    neuron = np.concatenate([layer["ffn.gate.weight"][4], layer["ffn.up.weight"][4], *columns])
    queries, keys = slice(16, 24), slice(8, 12)  # third of three groups of two heads of four channels
    matrices = (
        layer["attention.query.weight"][queries],
        layer["attention.key.weight"][keys],
        layer["attention.value.weight"][keys],
    )
    head = np.concatenate([*(m.ravel() for m in matrices), layer["attention.output.weight"][:, queries].ravel()])
    channel = []
    for name, array in tensors.items():
        axes = config.parameters()[name].axes
        channel += [np.take(array, 7, axis=axes.index("embed")).astype(np.float64).ravel()] if "embed" in axes else []
    for criterion, power in (("l1", 1), ("l2", 2)):
        scores = norm_scores(config, tensors, criterion)
        for found, unit in (
            (scores["neurons"][1, 4], neuron),
            (scores["heads"][1, 2], head),
            (scores["channels"][0, 7], np.concatenate(channel)),
        ):
            assert found == pytest.approx(np.linalg.norm(unit, power), rel=1e-6)


def test_channels_of_a_model_inside_a_wider_one_are_found_and_its_logits_come_back():
    """RMSNorm divides by the mean over all channels: with E - E' zero ones its output is sqrt(E / E') larger, which the
    wider one's gains undo."""
    inner = small_pi(hidden_size=16, num_heads=4, num_layers=1, rms_norm_eps=1e-12, **PLAIN)
    outer = dataclasses.replace(inner, hidden_size=24)
    tensors, channels = random_tensors(inner), np.array([0, 1, 3, 4, 6, 7, 9, 10, 11, 12, 15, 17, 18, 20, 21, 23])
    wide = {}
    for name, spec in outer.parameters().items():
        wide[name] = np.zeros(outer.parameter_shapes()[name], np.float32)
        gain = np.sqrt(16 / 24) if "norm" in name else 1
        wide[name][
            np.ix_(*(channels if axis == "embed" else range(n) for axis, n in zip(spec.axes, tensors[name].shape)))
        ] = tensors[name] * gain
    batch = make_batch(inner)
    expected = logits(inner, tensors, batch)
    np.testing.assert_allclose(logits(outer, wide, batch), expected, atol=1e-4)
    selection = select(outer, inner, range(1), norm_scores(outer, wide, "l2"))
    np.testing.assert_array_equal(selection.channels[0], channels)
    student = gather(outer, wide, inner, selection)
    for name in student:
        if "norm" in name:
            student[name] = student[name] * np.float32(np.sqrt(24 / 16))
    np.testing.assert_allclose(logits(inner, student, batch), expected, atol=1e-5)


def test_alpha_drops_units_without_a_change():
    config = small_alpha(num_layers=2)
    small, kept = dataclasses.replace(config, ffn_hidden_size=6), {"neurons": USEFUL["neurons"]}
    tensors, batch = masked(config, random_tensors(config), unit_masks(config, kept)), make_batch(config)
    selection = select(config, small, range(2), norm_scores(config, tensors, "l2"))
    np.testing.assert_array_equal(selection.neurons, kept["neurons"])
    np.testing.assert_allclose(
        logits(small, gather(config, tensors, small, selection), batch), logits(config, tensors, batch), atol=1e-4
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_learned_masks_keep_what_a_quadratic_loss_needs_at_any_scale(scale):
    """Loss (1 - m)^T C (1 - m) / 2 with costs C on the diagonal: units of highest cost are kept, and about as many
    masks as wanted stay open."""
    costs = np.exp(np.random.default_rng(0).normal(0, 1.5, (2, 64)))
    slopes = lambda batch, masks: (0.0, {"neurons": -scale * costs * (1 - masks["neurons"])})  # noqa: E731
    *_, scores = learn_masks(slopes, [None], {"neurons": costs.shape}, {"neurons": 24}, MaskOptions())
    highest = [np.sort(np.argsort(of, axis=1)[:, -24:], axis=1) for of in (scores["neurons"], costs)]
    np.testing.assert_array_equal(*highest)
    assert (abs((scores["neurons"] > 0).sum(axis=1) - 24) <= 8).all()
