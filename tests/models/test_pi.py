"""Our PanGu-pi against an independent numpy float64 implementation of the specification, and that against Hugging
Face's LLaMA."""

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.models.pi.config import PiConfig
from tests.infer.common import make_decoder
from tests.models.alpha import EOD, our_logits, random_ids
from tests.models.pi import random_parameters, small
from tests.reference import pi_numpy
from tests.reference.alpha_numpy import loss
from tests.reference.make_llama_golden import CONFIG, GOLDEN
from tests.train.steps import gradients_by_step, make_batch, make_config

# Every value of every option, several at once. No two of the sizes are equal, so that a transposition shows.
CASES = {
    "llama": {},
    "openpangu": {"num_kv_heads": 2, "head_dim": 6, "attention_bias": True, "rope_theta": 100.0, "rms_norm_eps": 0.1},
    "pi": {"siaf_terms": 2, "aug_shortcut_branches": 1, "tie_word_embeddings": True},
    "stream": {
        "siaf_terms": 3,
        "siaf_mode": "scalar",
        "aug_shortcut_branches": 2,
        "aug_shortcut_input": "stream",
        "aug_shortcut_bias": True,
    },
    "product": {
        "siaf_terms": 2,
        "siaf_position": "product",
        "hidden_act": "gelu",
        "aug_shortcut_branches": 1,
        "aug_shortcut_act": "silu",
    },
    "scalar product": {
        "siaf_terms": 2,
        "siaf_mode": "scalar",
        "siaf_position": "product",
        "hidden_act": "gelu_erf",
        "num_kv_heads": 1,
        "tie_word_embeddings": True,
    }
    | {"aug_shortcut_branches": 1, "aug_shortcut_act": "gelu_erf"},
    "matrices": {
        "siaf_terms": 3,
        "siaf_mode": "matrices",
        "hidden_act": "fast_gelu",
        "aug_shortcut_branches": 1,
        "aug_shortcut_act": "fast_gelu",
    },
}
IN_EVERYTHING = ("openpangu", "pi", "stream", "product")
"""Cases whose options EVERYTHING or other cases have, too."""
EVERYTHING = CASES["openpangu"] | CASES["stream"] | {"siaf_mode": "channel", "rms_norm_eps": 1e-5}


@pytest.mark.fast
def test_the_reference_equals_hugging_face_llama():
    arrays = dict(np.load(GOLDEN))
    ids, logits = arrays.pop("ids"), arrays.pop("logits")
    config = small(
        vocab_size=CONFIG["vocab_size"],
        hidden_size=CONFIG["hidden_size"],
        ffn_hidden_size=CONFIG["intermediate_size"],
        num_layers=CONFIG["num_hidden_layers"],
        num_heads=CONFIG["num_attention_heads"],
        num_kv_heads=CONFIG["num_key_value_heads"],
        head_dim=CONFIG["head_dim"],
        seq_length=CONFIG["max_position_embeddings"],
        rms_norm_eps=CONFIG["rms_norm_eps"],
        rope_theta=CONFIG["rope_theta"],
        attention_bias=CONFIG["attention_bias"],
        tie_word_embeddings=CONFIG["tie_word_embeddings"],
        hidden_act="silu",
    )
    parameters = {
        "word_embedding.weight": arrays.pop("model.embed_tokens.weight"),
        "final_norm.weight": arrays.pop("model.norm.weight"),
        "head.weight": arrays.pop("lm_head.weight"),
    }
    parts = {
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
    }
    for i in range(config.num_layers):
        for ours, theirs in parts.items():
            kinds = ["weight", "bias"] if "attention." in ours else ["weight"]
            parameters |= {
                f"blocks.{i}.{ours}.{kind}": arrays.pop(f"model.layers.{i}.{theirs}.{kind}") for kind in kinds
            }
    assert not arrays
    # the file's logits are float32 at heart: norms and softmax round to 1e-7 of numbers about 10
    np.testing.assert_allclose(pi_numpy.forward(config, parameters, ids, None), logits, atol=2e-5)


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.fast
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in IN_EVERYTHING else case for case in CASES]
)
def test_logits_equal_the_specification(case):
    config = small(num_layers=1, **CASES[case])  # of two layers: the test of hidden states
    parameters, ids = random_parameters(config), random_ids(config)
    eod_reset = case != "llama"
    expected = pi_numpy.forward(config, parameters, ids, EOD if eod_reset else None)
    np.testing.assert_allclose(our_logits(config, parameters, ids, eod_reset), expected, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
def test_hidden_states_equal_the_specification():
    from mindspore import Tensor, nn

    from pangu_ms.data.loader import batch_from_ids
    from pangu_ms.models.build import build_model, fill

    class States(nn.Cell):
        def __init__(self, model):
            super().__init__(auto_prefix=False)
            self.model = model

        def construct(self, ids, positions, segments):
            return self.model.hidden_states(ids, positions, segments)

    config = small(num_kv_heads=2)  # what is inside of a layer, the other tests compare
    parameters, ids = random_parameters(config), random_ids(config)
    states = States(build_model(config))
    fill(states.trainable_params(), parameters)
    batch = batch_from_ids(np.pad(ids, ((0, 0), (0, 1))), EOD, 0, True)
    found = states(Tensor(ids), Tensor(batch.positions), Tensor(batch.segments))
    expected = pi_numpy.hidden_states(config, parameters, ids, EOD)
    assert len(found) == len(expected) == config.num_layers + 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.asnumpy(), theirs, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
def test_half_precision_stays_near_float64():
    config = small(compute_dtype="float16", num_layers=1, **EVERYTHING)
    parameters, ids = random_parameters(config, deviation=0.1), random_ids(config)
    expected = pi_numpy.forward(config, parameters, ids, None)
    # float16 has 11 bits: the error of a product of this size is about 1e-3 of the logits' deviation
    np.testing.assert_allclose(our_logits(config, parameters, ids, False), expected, atol=2e-2 * expected.std())


@pytest.mark.usefixtures("mindspore_cpu")
def test_packed_documents_equal_documents_apart():
    config = small(num_layers=1, **CASES["scalar product"])  # as above, so that it is compiled once
    packed = random_ids(config)
    packed[1] = 4
    packed[1, :8] = packed[0, 16:]  # the last document of row 0, alone
    logits = our_logits(config, random_parameters(config), packed, True)
    np.testing.assert_allclose(logits[0, 16:], logits[1, :8], atol=1e-5)
    assert np.abs(logits[0, 16:] - logits[0, 6:14]).max() > 0.1  # the documents differ


@pytest.mark.slow
@pytest.mark.usefixtures("mindspore_cpu")
def test_modules_that_are_off_keep_the_function_of_llama():
    """What lets a trained LLaMA be upgraded: second matrix of a branch 0, scale 1 for the first term and 0 for the
    others."""
    config = small(num_layers=1, num_kv_heads=2, **CASES["pi"])
    llama = small(num_layers=1, num_kv_heads=2, tie_word_embeddings=True)
    parameters, ids = random_parameters(config), random_ids(config)
    for name, value in parameters.items():
        if ".aug_shortcut.0.up." in name or ".siaf." in name:
            value[:] = 0
        if name.endswith(".siaf.scale"):
            value[0] = 1
    plain = {name: parameters[name] for name in llama.parameter_shapes()}
    expected = pi_numpy.forward(llama, plain, ids, None)
    np.testing.assert_allclose(our_logits(config, parameters, ids, False), expected, atol=1e-4)


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.fast
@pytest.mark.parametrize("case", CASES)
def test_the_model_has_exactly_the_listed_parameters(case):
    from pangu_ms.models.build import build_model

    config = small(**CASES[case])
    shapes = pi_numpy.parameter_shapes(config)
    assert (
        {p.name: tuple(p.shape) for p in build_model(config).trainable_params()} == config.parameter_shapes() == shapes
    )


@pytest.mark.fast
def test_defaults_that_follow_from_other_fields():
    config = PiConfig(vocab_size=61, hidden_size=96, num_layers=1, num_heads=4)
    assert (config.num_kv_heads, config.head_dim, config.ffn_hidden_size) == (4, 24, 256)
    assert PiConfig(vocab_size=61, hidden_size=2048, num_layers=1, num_heads=16).ffn_hidden_size == 5632


@pytest.mark.parametrize(
    ("name", "hidden_size", "num_layers", "ffn_hidden_size", "billions"),
    [("pi/1b", 2048, 12, 5632, 1.033), ("pi/7b", 4096, 29, 11008, 6.727)],
)
def test_published_sizes(name, hidden_size, num_layers, ffn_hidden_size, billions):
    """Specification D3 and D4: vocabulary 100,883, untied, one branch of r 32, two terms per channel."""
    E, F, V = hidden_size, ffn_hidden_size, 100_883
    llama = 2 * V * E + E + num_layers * (4 * E**2 + 3 * E * F + 2 * E)
    modules = num_layers * (2 * E**2 // 32 + 2 * 2 * F)
    model = load_config(name).model
    assert model.num_parameters() == llama + modules == pytest.approx(billions * 1e9, abs=1e6)


@pytest.mark.fast
@pytest.mark.parametrize("size", ["10m", "350m"])
def test_it_has_the_shape_and_the_size_of_the_alpha_of_its_name(size):
    alpha, pi = (load_config(f"{family}/{size}").model for family in ("alpha", "pi"))
    for field in ("num_layers", "hidden_size", "num_heads", "vocab_size", "seq_length"):
        assert getattr(pi, field) == getattr(alpha, field)
    assert pi.num_parameters() == pytest.approx(alpha.num_parameters(), rel=0.02)


@pytest.mark.fast
@pytest.mark.usefixtures("mindspore_cpu")
def test_cached_decoding_of_ragged_prompts_equals_the_full_forward():
    config = small(**EVERYTHING)
    parameters = random_parameters(config)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (3, config.seq_length)).astype(np.int32)
    full = pi_numpy.forward(config, parameters, ids, None)
    decoder = make_decoder(config, parameters, batch_size=4)  # one row stays unused
    for lengths in ((1, 13, 6), (4, 5, 10), (5, 5, 5), (23, 1, 2)):  # around the chunk's length of 5, and the longest
        found = decoder.prefill([row[:length].tolist() for row, length in zip(ids, lengths)])
        position = np.array(lengths)
        np.testing.assert_allclose(found, full[range(3), position - 1], atol=1e-4)
        while position.max() < min(max(lengths) + 9, config.seq_length):
            np.testing.assert_allclose(decoder.step(ids[range(3), position]), full[range(3), position], atol=1e-4)
            position += 1


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(EVERYTHING, marks=pytest.mark.fast),
        pytest.param(CASES["scalar product"] | {"num_layers": 1}, marks=pytest.mark.slow),
        pytest.param(CASES["matrices"] | {"tie_word_embeddings": True, "num_layers": 1}, marks=pytest.mark.slow),
    ],
    ids=["all", "scalar", "matrices"],
)
def test_gradients_equal_the_specification(fields):
    """Of every parameter, along a random direction, by central differences of the reference's loss."""
    config = make_config(small(**fields), train={"accumulation_steps": 2})
    parameters, batch = random_parameters(config.model), make_batch(config)
    result, gradients = gradients_by_step(config, parameters, batch)
    assert gradients.keys() == parameters.keys()

    def reference_loss(changed):
        return loss(
            pi_numpy.forward(config.model, parameters | changed, batch.ids[:, :-1], EOD),
            batch.ids[:, 1:],
            batch.loss_mask,
        )

    assert result.loss == pytest.approx(reference_loss({}), abs=1e-5)
    rng = np.random.default_rng(5)
    for name, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        direction *= 1e-5 / np.linalg.norm(direction)
        there, back = (reference_loss({name: parameters[name] + sign * direction}) for sign in (1.0, -1.0))
        norm = np.linalg.norm(gradient)
        assert norm > 1e-4, name
        assert (there - back) / 2e-5 == pytest.approx((gradient * direction).sum() / 1e-5, abs=1e-4 * norm), name
