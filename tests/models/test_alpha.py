"""Our PanGu-alpha against an independent numpy float64 implementation of the specification."""

import numpy as np
import pytest

from tests.models.alpha import EOD, our_logits, random_ids, random_parameters, small
from tests.reference import alpha_numpy

pytestmark = pytest.mark.fast


@pytest.mark.thinned(1)
@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("final_norm_position", ["before_query", "after_query"])
@pytest.mark.parametrize("eod_reset", [False, True])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_erf", "fast_gelu"])
def test_logits_equal_the_specification(final_norm_position, eod_reset, hidden_act):
    layers = 3 if hidden_act == "gelu" else 2
    config = small(final_norm_position=final_norm_position, hidden_act=hidden_act, num_layers=layers)
    parameters, ids = random_parameters(config), random_ids(config)
    expected = alpha_numpy.forward(config, parameters, ids, EOD if eod_reset else None)
    np.testing.assert_allclose(our_logits(config, parameters, ids, eod_reset), expected, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
def test_half_precision_stays_near_float64():
    config = small(compute_dtype="float16", num_layers=2)
    parameters, ids = random_parameters(config, deviation=0.1), random_ids(config)
    expected = alpha_numpy.forward(config, parameters, ids, None)
    # float16 has 11 bits: the error of a product of this size is about 1e-3 of the logits' deviation
    np.testing.assert_allclose(our_logits(config, parameters, ids, False), expected, atol=2e-2 * expected.std())


@pytest.mark.usefixtures("mindspore_cpu")
def test_packed_documents_equal_documents_apart():
    config = small(hidden_act="gelu")
    ids = random_ids(config)
    ids[1] = 4
    ids[1, : 24 - 16] = ids[0, 16:]  # the last document of row 0, at the front of row 1
    logits = our_logits(config, random_parameters(config), ids, True)
    np.testing.assert_allclose(logits[0, 16:], logits[1, :8], atol=1e-4)
    assert np.abs(logits[0, 16:] - logits[0, 6:14]).max() > 0.1  # the documents differ


@pytest.mark.usefixtures("mindspore_cpu")
def test_the_model_has_exactly_the_listed_parameters():
    from pangu_ms.models.build import build_model

    config = small()
    assert {p.name: tuple(p.shape) for p in build_model(config).trainable_params()} == config.parameter_shapes()


@pytest.mark.usefixtures("mindspore_cpu")
def test_initial_values_depend_on_seed_and_name_alone():
    from pangu_ms.models.build import initial_values

    config = small(hidden_size=64)
    first, again, other = (dict(initial_values(config, seed)) for seed in (1, 1, 2))
    up = "blocks.0.ffn.up.weight"
    assert abs(first[up].std() - config.init_std) < 1e-3 and abs(first[up].mean()) < 1e-3
    assert all(np.array_equal(first[name], again[name]) for name in config.parameter_shapes())
    deeper = dict(initial_values(small(hidden_size=64, num_layers=config.num_layers + 1, init_rule="constant"), 1))
    assert np.array_equal(first[up], deeper[up])
    assert not np.array_equal(first[up], other[up]) and not np.array_equal(first[up], first["blocks.1.ffn.up.weight"])
    assert (first["final_norm.weight"] == 1).all() and (first["final_norm.bias"] == 0).all()


def test_the_projections_to_the_residual_stream_follow_the_rule():
    layers = [f"blocks.{i}" for i in range(3)] + ["query_layer"]
    for rule, divisors in {
        "constant": (1, 1, 1, 1),
        "depth_scaled": (8, 8, 8, 8),
        "layer_scaled": (2, 4, 6, 8),
    }.items():
        config = small(num_layers=4, init_rule=rule)
        for name, divisor in zip(layers, divisors):
            for leaf in ("attention.output", "ffn.down"):
                assert config.parameters()[f"{name}.{leaf}.weight"].std == pytest.approx(config.init_std / divisor**0.5)
            assert config.parameters()[f"{name}.ffn.up.weight"].std == config.init_std
