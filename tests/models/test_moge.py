"""Pangu Pro MoE against an independent numpy float64 implementation of the paper."""

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from tests.infer.common import make_decoder
from tests.models.alpha import EOD, our_logits, random_ids
from tests.models.moge import random_parameters, small
from tests.reference import moge_numpy
from tests.reference.alpha_numpy import loss
from tests.train.steps import gradients_by_step, make_batch, make_config

CASES = {"one of each group": {}, "two of each group": {"experts_per_token": 6}, "all": {"experts_per_token": 12}}
MARGIN = 1e-5
"""The choice of an expert is a matter of rounding if its probability is nearer than this to another's."""


def reference_logits(config, parameters, ids, eod_id=EOD):
    logits, _, margins = moge_numpy.forward(config, parameters, ids, eod_id)
    assert margins.min() > MARGIN, "another seed is needed"
    return logits


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.fast
@pytest.mark.parametrize(
    "case",
    [*(pytest.param(case, marks=pytest.mark.slow) for case in ("one of each group", "two of each group")), "all"],
)
def test_logits_equal_the_paper(case):
    """By default without what the test of gradients has, one of each group, and that of decoding, two."""
    config = small(num_layers=1, **CASES[case])
    parameters, ids = random_parameters(config), random_ids(config)
    expected = reference_logits(config, parameters, ids)
    np.testing.assert_allclose(our_logits(config, parameters, ids, True), expected, atol=1e-4)


def reference_loss(config, parameters, batch):
    """Cross-entropy, and what training adds to it."""
    logits, balance, margins = moge_numpy.forward(config, parameters, batch.ids[:, :-1], EOD)
    assert margins.min() > MARGIN, "another seed is needed"
    return loss(logits, batch.ids[:, 1:], batch.loss_mask), config.balance_loss_coef * balance


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_gradients_are_those_of_cross_entropy_and_balance_loss(parts):
    """Of every parameter, along a random direction, by central differences of the reference. Two micro-batches of one
    step count by their tokens that count. The loss that a step reports is the cross-entropy alone."""
    config = make_config(small(balance_loss_coef=0.1), train={"accumulation_steps": parts})
    parameters, batch = random_parameters(config.model), make_batch(config)
    micro_batches = list(batch.split(parts))
    counts = [part.loss_mask.sum() for part in micro_batches]
    assert counts[-1] < micro_batches[-1].loss_mask.size and len({*counts}) == parts

    def losses(changed):
        of_parts = [reference_loss(config.model, parameters | changed, part) for part in micro_batches]
        return np.average(of_parts, axis=0, weights=counts)

    def whole(changed):
        return losses(changed).sum()

    result, gradients = gradients_by_step(config, parameters, batch, scale=256.0)
    assert gradients.keys() == parameters.keys()
    assert result.loss == pytest.approx(losses({})[0], abs=1e-5)
    expected = reference_loss(config.model, parameters, micro_batches[-1])[1]
    assert result.metrics == {"balance_loss": pytest.approx(expected, rel=1e-5)}
    rng = np.random.default_rng(5)
    for name, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        direction *= 1e-6 / np.linalg.norm(direction)
        slope = (whole({name: parameters[name] + direction}) - whole({name: parameters[name] - direction})) / 2e-6
        norm = np.linalg.norm(gradient)
        assert norm > 1e-4, name
        assert slope == pytest.approx((gradient * direction).sum() / 1e-6, abs=1e-4 * norm), name


@pytest.mark.usefixtures("mindspore_cpu")
def test_cached_decoding_of_ragged_prompts_equals_the_full_forward():
    config = small(num_layers=1, experts_per_token=6)
    parameters, ids = random_parameters(config), np.random.default_rng(4).integers(0, 61, (3, 24)).astype(np.int32)
    full = reference_logits(config, parameters, ids, None)
    decoder, lengths = make_decoder(config, parameters, batch_size=4), (1, 13, 6)
    found = decoder.prefill([row[:length].tolist() for row, length in zip(ids, lengths)])
    position = np.array(lengths)
    np.testing.assert_allclose(found, full[range(3), position - 1], atol=1e-4)
    while position.max() < config.seq_length:
        np.testing.assert_allclose(decoder.step(ids[range(3), position]), full[range(3), position], atol=1e-4)
        position += 1


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.fast
def test_the_model_has_exactly_the_listed_parameters():
    from pangu_ms.models.build import build_model

    config = small()
    found = {p.name: p.shape for p in build_model(config).get_parameters()}
    assert found == config.parameter_shapes() and list(found) == list(config.parameter_shapes())


@pytest.mark.fast
def test_published_sizes():
    """72 B of which 16 B are active, counted by hand from the fields that Pangu Pro MoE's config.json has."""
    vocab, width, layers, query, key, experts, inner, shared = 153376, 5120, 48, 40 * 128, 8 * 128, 64, 1344, 5376
    attention = 2 * width * query + 2 * width * key + query + 2 * key + width
    router, one, two_norms = width * experts + experts, 3 * width * inner, 2 * width
    outside = 2 * vocab * width + width
    total = outside + layers * (attention + two_norms + router + experts * one + 3 * width * shared)
    active = outside + layers * (attention + two_norms + router + 8 * one + 3 * width * shared)
    config = load_config("moge/72b").model
    assert (config.num_parameters(), config.num_active_parameters()) == (total, active)
    assert (round(total / 1e9, 1), round(active / 1e9, 1)) == (72.0, 16.5)
    assert (config.seq_length, config.rope_theta, config.rms_norm_eps, config.balance_loss_coef) == (
        131072,
        16e6,
        1e-5,
        0.001,
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 10}, "num_experts=10: must divide into num_expert_groups=3 equal groups"),
        ({"experts_per_token": 4}, "experts_per_token=4: a token goes to as many experts of each"),
        ({"experts_per_token": 15}, "experts_per_token=15: must be at most num_experts=12"),
        ({"siaf_terms": 2}, "siaf_terms=2: must be 1"),
        ({"num_expert_groups": 0}, "num_expert_groups=0: must be positive"),
        ({"balance_loss_coef": -0.1}, "balance_loss_coef=-0.1: must not be negative"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_refused(fields, message):
    with pytest.raises((ConfigError, ValueError)) as error:
        small(**fields)
    assert message in str(error.value)


@pytest.mark.fast
def test_devices_hold_whole_groups_and_send_as_many_rows_each():
    from pangu_ms.parallel.expert_batches import bucket_rows
    from pangu_ms.parallel.plan import Plan

    def plan(ep):
        return Plan.of(load_config("moge/tiny", ["parallel.data_parallel=8", f"parallel.expert_parallel={ep}"]))

    with pytest.raises(ConfigError, match=r"has 4 groups of 4; groups must end where ranks end; use one of 1, 2, 4$"):
        plan(8)
    rows = 8 * 128 * 4  # sequences of a device, tokens of each, experts of a token
    assert [bucket_rows(plan(ep), ep) for ep in (2, 4)] == [rows // 2, rows // 4]
