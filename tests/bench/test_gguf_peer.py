"""What the GGUF files of llama.cpp's peers hold, read back by the gguf package. What `pangu convert` writes is tested
in tests/checkpoint/test_gguf.py."""

import gguf
import numpy as np
import pytest

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.pi.config import PiConfig
from tests.bench import gguf_peer

SIZES = {"vocab_size": 64, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "ffn_hidden_size": 96, "seq_length": 16}


def draw(model):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in model.parameter_shapes().items()}


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return fields, tensors, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


@pytest.mark.parametrize("dtype, error", [("float32", 0.0), ("q8_0", 0.02)])
def test_a_pi_is_a_llama_without_its_own_parts(tmp_path, dtype, error):
    model = PiConfig(**SIZES, num_kv_heads=2, tie_word_embeddings=False)
    tensors = draw(model)
    gguf_peer.write(tmp_path / "pi.gguf", model, tensors, dtype)
    fields, found, kinds = read(tmp_path / "pi.gguf")
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.vocab_size"] == 64 and fields["llama.rope.freq_base"] == 10000.0
    assert len(found) == 3 + 2 * 9
    assert kinds["blk.1.ffn_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_gate.weight"] == {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    for theirs, ours in (("output.weight", "head.weight"), ("blk.1.attn_v.weight", "blocks.1.attention.value.weight")):
        assert np.abs(found[theirs] - tensors[ours]).max() <= error * np.abs(tensors[ours]).max()


def test_an_alpha_becomes_a_gpt2_whose_last_block_is_the_query_layer(tmp_path):
    model = AlphaConfig(**SIZES)
    tensors = draw(model)
    gguf_peer.write(tmp_path / "alpha.gguf", model, tensors, "q8_0")
    fields, found, kinds = read(tmp_path / "alpha.gguf")
    assert fields["general.architecture"] == "gpt2" and fields["gpt2.block_count"] == 2
    assert len(found) == 4 + 2 * 12 and kinds["position_embd.weight"] == "F32"
    expected = [tensors[f"query_layer.attention.{name}.bias"] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(found["blk.1.attn_qkv.bias"], np.concatenate(expected))
