"""The jitted step against float64 references: gradients, clipping, AdamW, accumulation, and steps that must not
happen."""

import functools

import numpy as np
import pytest

from pangu_ms.core.errors import TrainingDiverged
from pangu_ms.data.loader import batch_from_ids
from pangu_ms.train.guard import Guard
from tests.models.alpha import EOD, random_parameters, small
from tests.reference import alpha_numpy
from tests.train.steps import arrays, make_batch, make_config, make_step, summed_gradients

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


@pytest.fixture(scope="module")
def step_in_parts(mindspore_cpu):
    """A function from a number of micro-batches, and weights if not the random ones, to model and step of a batch of
    four rows, compiled once; moments are zero."""
    parameters = random_parameters(config_in_parts(1).model)
    made = functools.cache(lambda parts: make_step(config_in_parts(parts), parameters))

    def fresh(parts, weights=parameters):
        model, step = made(parts)
        for parameter in [*model.trainable_params(), *step.parameters()]:
            # set_data would not reach a graph that has run, where only a branch of it has the parameter.
            parameter.asnumpy()[...] = weights.get(parameter.name, 0)
        return model, step

    return fresh


@pytest.fixture(scope="module")
def read_gradients(step_in_parts):
    """A function from weights and a batch to a result, and to the gradients of the mean loss: what a step in four parts
    adds up before it unscales and clips."""

    def read(parameters, batch):
        _, step = step_in_parts(4, parameters)
        result = step(batch, 0, lr=0.0)
        return result, summed_gradients(step, result)

    return read


def config_in_parts(parts):
    """All gradients of the tests are clipped."""
    train = {"batch_size": 4, "accumulation_steps": parts}
    return make_config(train=train, optimizer={"clip_norm": 0.1, "weight_decay": 0.3})


@pytest.mark.fast
def test_loss_and_gradients_equal_the_specification(read_gradients):
    config = config_in_parts(1)
    parameters, batch = random_parameters(config.model), make_batch(config, rows=4)
    inputs, labels = batch.ids[:, :-1], batch.ids[:, 1:]
    result, gradients = read_gradients(parameters, batch)
    logits = alpha_numpy.forward(config.model, parameters, inputs, EOD)
    assert result.loss == pytest.approx(alpha_numpy.loss(logits, labels, batch.loss_mask), abs=1e-5)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    for name in (
        "word_embedding.weight",
        "query_embedding.weight",
        "blocks.0.attention.query.weight",
        "query_layer.ffn.up.bias",
        "final_norm.weight",
    ):
        index = tuple(0 if name.startswith("query_e") else n // 3 for n in parameters[name].shape)
        expected = alpha_numpy.finite_difference_gradient(
            config.model, parameters, inputs, labels, batch.loss_mask, EOD, name, index
        )
        assert gradients[name][index] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.fast
def test_clipping_and_adamw_equal_the_formula(read_gradients, step_in_parts):
    config = config_in_parts(1)
    parameters, batches = random_parameters(config.model), [make_batch(config, rows=4, seed=s) for s in range(3)]
    model, step = step_in_parts(1)
    seen, rates = [], [1e-2, 5e-3, 1e-3]
    for number, (batch, lr) in enumerate(zip(batches, rates)):
        before = arrays(model.trainable_params())
        result, gradients = read_gradients(before, batch)
        assert result.grad_norm > 0.1
        seen.append({name: g * (0.1 / result.grad_norm) for name, g in gradients.items()})
        step(batch, number, lr)
    expected = alpha_numpy.adamw_reference(parameters, seen, rates, weight_decay=0.3)
    for name, value in arrays(model.trainable_params()).items():
        if name.endswith("key.bias"):
            continue  # its true gradient is zero; Adam would compare rounding noise
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulated_micro_batches_equal_the_large_batch(step_in_parts, parts):
    batch = make_batch(config_in_parts(1), rows=4)
    batch.loss_mask[0] = 0  # uneven numbers of tokens that count
    (_, large), (_, small_step) = step_in_parts(1), step_in_parts(parts)
    for number in range(2):
        expected, found = large(batch, number, 1e-2), small_step(batch, number, 1e-2)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6) and found.grad_norm == pytest.approx(
            expected.grad_norm, rel=1e-5
        )
    expected_moments = arrays(large.parameters())
    for name, value in arrays(small_step.parameters()).items():
        np.testing.assert_allclose(value, expected_moments[name], atol=1e-7, err_msg=name)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_spike_or_a_nan_leaves_weights_and_moments_untouched(step_in_parts, parts):
    batch = make_batch(config_in_parts(1), rows=4)
    model, step = step_in_parts(parts)
    assert step(batch, 0, 1e-3).applied
    weights, moments = arrays(model.trainable_params()), arrays(step.parameters())
    spike = step(batch, 1, 1e-3, loss_limit=0.5)
    assert not spike.applied and spike.loss > 0.5
    infinite = step(batch, 2, 1e-3, scale=float("inf"))
    assert not infinite.applied
    for name, value in (arrays(model.trainable_params()) | arrays(step.parameters())).items():
        assert np.array_equal(value, (weights | moments)[name]), name
    assert step(batch, 3, 1e-3).applied  # what overflowed did not stay in the sums


@pytest.fixture(scope="module")
def half_precision_step(mindspore_cpu):
    """Configuration and step of a model of float16 with dropout; and losses before anything else was computed: of an
    evaluation, of the first step, at rate 0, of an evaluation and a step again."""
    from pangu_ms.eval.perplexity import Evaluator

    model = small(num_layers=2, hidden_size=16, compute_dtype="float16", dropout=0.5)
    config = make_config(model, loss_scale={"initial": 2.0**40, "window": 3}, guard={"max_skipped": 60})
    model, step = make_step(config, random_parameters(config.model, deviation=0.1))
    evaluator, batch = Evaluator(model), make_batch(config)
    return (
        config,
        step,
        [computed() for computed in [lambda: evaluator.score([batch]).loss, lambda: step(batch, 0, 0.0).loss] * 2],
    )


@pytest.mark.fast
def test_float16_overflow_halves_the_scale_and_training_goes_on(half_precision_step):
    config, step, _ = half_precision_step
    guard, batch, applied = Guard.create(config), make_batch(config), []
    for number in range(40):
        result = step(batch, number, 1e-3, guard.scale)
        guard.record(config, number, result.loss, result.grad_norm, result.applied)
        applied.append(result.applied)
    assert not applied[0] and applied.count(True) > 10
    assert guard.skipped == applied.count(False) and 1 < guard.scale < 2.0**40


@pytest.mark.fast
def test_the_guard_stops_a_run_that_only_skips():
    config = make_config(guard={"max_skipped": 3})
    guard = Guard.create(config)
    for number in range(2):
        guard.record(config, number, float("nan"), float("nan"), False)
    guard.record(config, 2, 2.0, 1.0, True)
    for number in range(3, 5):
        guard.record(config, number, float("nan"), float("nan"), False)
    with pytest.raises(TrainingDiverged, match="step 5: 3 steps in a row were skipped"):
        guard.record(config, 5, float("nan"), float("nan"), False)


@pytest.mark.fast
def test_a_spike_is_measured_against_the_running_mean():
    config = make_config(guard={"spike_factor": 2.0, "spike_window": 4})
    guard = Guard.create(config)
    for number, loss in enumerate([8.0, 6.0, 4.0, 2.0]):
        assert guard.loss_limit(config) == float("inf")
        guard.record(config, number, loss, 1.0, True)
    assert guard.loss_limit(config) == pytest.approx(2 * 5.0)


def test_dropout_repeats_for_a_key_and_keeps_the_mean():
    from mindspore import Tensor

    from pangu_ms.models.common.layers import Dropout

    layer = Dropout(0.25, site=3)
    layer.set_train()
    ones = Tensor(np.ones((64, 512), np.float32))
    first, again, other = (layer(ones, Tensor(np.int32(key))).asnumpy() for key in (7, 7, 8))
    assert np.array_equal(first, again) and (first != other).mean() > 0.3
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.01)
    zeros = first == 0  # neighbours in a row and in a column are independent: both dropped with probability 1/16
    assert (zeros[:, 1:] & zeros[:, :-1]).mean() == pytest.approx(1 / 16, abs=0.01)
    assert (zeros[1:] & zeros[:-1]).mean() == pytest.approx(1 / 16, abs=0.01)
    other_site = Dropout(0.25, site=4)
    other_site.set_train()
    both = (other_site(ones, Tensor(np.int32(7))).asnumpy() == 0) & zeros
    assert both.mean() == pytest.approx(1 / 16, abs=0.01)


@pytest.mark.fast
def test_every_micro_batch_of_a_run_has_its_own_dropout_key():
    from pangu_ms.train.steps.protocol import dropout_key

    places = [(seed, step, part) for seed in (1, 2) for step in range(50) for part in range(3)]
    keys = [int(dropout_key(*place)) for place in places]
    assert len(set(keys)) == len(places) and keys == [int(dropout_key(*place)) for place in places]


def test_an_evaluation_before_the_first_step_leaves_dropout_on(half_precision_step):
    _, _, (score, first, score_again, again) = half_precision_step
    assert abs(first - score) > 1e-3
    assert score_again == pytest.approx(score)
    assert again == first


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_a_deep_model_compiles(parts):
    """Loops over parameters are nested calls in a graph: 16 layers were once deeper than MindSpore allows."""
    model = small(num_layers=20, hidden_size=8, vocab_size=16, num_heads=2)
    config = make_config(model, train={"batch_size": 2, "accumulation_steps": parts})
    _, step = make_step(config, random_parameters(model, deviation=0.02))
    ids = np.random.default_rng(0).integers(4, 16, (2, model.seq_length + 1)).astype(np.int32)
    losses = [step(batch_from_ids(ids, EOD, 0, True), number, 1e-2).loss for number in range(8)]
    assert losses[-1] < losses[0]
