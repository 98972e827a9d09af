"""Our PanGu-alpha against an independent numpy float64 implementation of the specification."""

import numpy as np
import pytest

from pangu_ms.config.alpha import AlphaConfig
from tests.reference import alpha_numpy

EOD = 3


def small(**fields) -> AlphaConfig:
    return AlphaConfig(**{"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "seq_length": 24, "dropout": 0.0} | fields)


def random_parameters(config, seed=0, deviation=0.3):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0, deviation, shape).astype(np.float32) for name, shape in config.parameter_shapes().items()}


def random_ids(config, rows=2, seed=1):
    ids = np.random.default_rng(seed).integers(4, config.vocab_size, (rows, config.seq_length)).astype(np.int32)
    ids[0, [5, 6, 15]] = EOD  # an empty document too
    ids[1, -1] = EOD
    return ids


def our_logits(config, parameters, ids, eod_reset):
    from mindspore import Tensor

    from pangu_ms.data.loader import batch_from_ids
    from pangu_ms.models.build import build_model, fill

    model = build_model(config)
    fill(model.trainable_params(), parameters)
    model.set_train(False)
    batch = batch_from_ids(np.pad(ids, ((0, 0), (0, 1))), EOD, 0, eod_reset)
    logits = model(Tensor(ids), Tensor(batch.positions), Tensor(batch.segments), Tensor(np.int32(0)))
    return logits.asnumpy().reshape(*ids.shape, -1)


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("final_norm_position", ["before_query", "after_query"])
@pytest.mark.parametrize("eod_reset", [False, True])
def test_logits_equal_the_specification(final_norm_position, eod_reset):
    config = small(final_norm_position=final_norm_position)
    parameters, ids = random_parameters(config), random_ids(config)
    expected = alpha_numpy.forward(config, parameters, ids, EOD if eod_reset else None)
    np.testing.assert_allclose(our_logits(config, parameters, ids, eod_reset), expected, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_erf", "fast_gelu"])
def test_activations_equal_the_specification(hidden_act):
    config = small(hidden_act=hidden_act, num_layers=2)
    parameters, ids = random_parameters(config), random_ids(config)
    expected = alpha_numpy.forward(config, parameters, ids, None)
    np.testing.assert_allclose(our_logits(config, parameters, ids, False), expected, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
def test_half_precision_stays_near_float64():
    config = small(compute_dtype="float16")
    parameters, ids = random_parameters(config, deviation=0.1), random_ids(config)
    expected = alpha_numpy.forward(config, parameters, ids, None)
    # float16 has 11 bits: the error of a product of this size is about 1e-3 of the logits' deviation
    np.testing.assert_allclose(our_logits(config, parameters, ids, False), expected, atol=2e-2 * expected.std())


@pytest.mark.usefixtures("mindspore_cpu")
def test_packed_documents_equal_documents_apart():
    config = small()
    parameters, ids = random_parameters(config), random_ids(config)[:1]
    packed = our_logits(config, parameters, ids, True)
    alone = np.full_like(ids, 4)
    alone[0, : 24 - 16] = ids[0, 16:]  # the last document, moved to the front
    np.testing.assert_allclose(packed[0, 16:], our_logits(config, parameters, alone, True)[0, :8], atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
def test_the_model_has_exactly_the_listed_parameters():
    from pangu_ms.models.build import build_model

    config = small()
    assert {p.name: tuple(p.shape) for p in build_model(config).trainable_params()} == config.parameter_shapes()


@pytest.mark.usefixtures("mindspore_cpu")
def test_initial_values_depend_on_seed_and_name_alone():
    from pangu_ms.models.build import initial_value

    config = small(hidden_size=64)
    first = initial_value(config, "blocks.0.ffn.up.weight", (256, 64), 1)
    assert abs(first.std() - config.init_std) < 1e-3 and abs(first.mean()) < 1e-3
    assert np.array_equal(first, initial_value(config, "blocks.0.ffn.up.weight", (256, 64), 1))
    assert not np.array_equal(first, initial_value(config, "blocks.0.ffn.up.weight", (256, 64), 2))
    assert not np.array_equal(first, initial_value(config, "blocks.1.ffn.up.weight", (256, 64), 1))
    scaled = initial_value(config, "blocks.0.ffn.down.weight", (64, 256), 1)
    assert abs(scaled.std() * np.sqrt(2 * config.num_layers) - config.init_std) < 1e-3
    assert (initial_value(config, "final_norm.weight", (64,), 1) == 1).all()


@pytest.mark.usefixtures("mindspore_cpu")
def test_blocks_compile_once_on_ascend_alone(monkeypatch):
    from pangu_ms.models import alpha, layers

    assert layers.compiled_once(alpha.Block) is alpha.Block
    monkeypatch.setattr(layers.ms, "get_context", lambda name: {"device_target": "Ascend"}[name])
    blocks = alpha.PanguAlpha(small(num_layers=4)).blocks
    assert all(isinstance(block, alpha.Block) for block in blocks)
    assert len({block.cell_init_args for block in blocks}) == 1  # what lazy_inline groups instances by


@pytest.mark.usefixtures("mindspore_cpu")
def test_layers_drop_different_elements():
    from mindspore import Tensor

    from pangu_ms.models.layers import Dropout, LayerKey

    layer, keys = Dropout(0.5, site=1), LayerKey(3)
    layer.set_train()
    ones = Tensor(np.ones((100, 100), np.float32))
    masks = [layer(ones, keys(Tensor(np.int32(5)), i)).asnumpy() > 0 for i in range(3)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (masks[i] & masks[j]).mean() == pytest.approx(0.25, abs=0.02)
