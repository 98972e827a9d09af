"""Writes GGUF files for llama.cpp: the part of a PanGu-pi that is a LLaMA, and a GPT-2 in the shape of a PanGu-alpha.

llama.cpp has neither PanGu-pi's series activation and augmented shortcuts nor PanGu-alpha's query layer, so the files
of such models are of the same sizes, not of the same function. Of a PanGu-pi without both it is the same function. The
files hold no tokenizer.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.pi.config import PiConfig

MATRICES = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16, "q8_0": Type.Q8_0}
"""Types of matrices; vectors, and a table of positions, stay float32."""


def write(path: Path, model: PiConfig | AlphaConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write a model.

    Args:
        path: the file.
        model: shapes.
        tensors: float32 values by the names of `model.parameter_shapes()`.
        dtype: a key of MATRICES.
    """
    llama = isinstance(model, PiConfig)
    writer = gguf.GGUFWriter(path, "llama" if llama else "gpt2")
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(model.seq_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.ffn_hidden_size)
    writer.add_head_count(model.num_heads)
    if isinstance(model, PiConfig):
        writer.add_head_count_kv(model.num_kv_heads)
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
        writer.add_layer_norm_rms_eps(model.rms_norm_eps)
        writer.add_rope_dimension_count(model.head_dim)
        writer.add_rope_freq_base(model.rope_theta)
    else:
        writer.add_layer_norm_eps(model.layer_norm_eps)
    for name, array in llama_tensors(model, tensors) if isinstance(model, PiConfig) else gpt2_tensors(model, tensors):
        kind = MATRICES[dtype] if array.ndim == 2 and name != "position_embd.weight" else Type.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_tensors(model: PiConfig, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF's names and values of a PanGu-pi's tensors, without those that a LLaMA lacks."""
    yield "token_embd.weight", tensors["word_embedding.weight"]
    yield "output_norm.weight", tensors["final_norm.weight"]
    if "head.weight" in tensors:
        yield "output.weight", tensors["head.weight"]
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        yield f"{theirs}.attn_norm.weight", tensors[f"{ours}.attention_norm.weight"]
        for name, num_heads in (("query", model.num_heads), ("key", model.num_kv_heads)):
            weight = with_neighbours_rotated(tensors[f"{ours}.attention.{name}.weight"], num_heads)
            yield f"{theirs}.attn_{name[0]}.weight", weight
        yield f"{theirs}.attn_v.weight", tensors[f"{ours}.attention.value.weight"]
        yield f"{theirs}.attn_output.weight", tensors[f"{ours}.attention.output.weight"]
        yield f"{theirs}.ffn_norm.weight", tensors[f"{ours}.ffn_norm.weight"]
        for name in ("gate", "up", "down"):
            yield f"{theirs}.ffn_{name}.weight", tensors[f"{ours}.ffn.{name}.weight"]


def with_neighbours_rotated(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head: we rotate channel i with channel i + D / 2, llama.cpp rotates 2 i with 2 i + 1."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def gpt2_tensors(model: AlphaConfig, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF's names and the values of a PanGu-alpha's tensors; the query layer becomes an ordinary last block."""
    yield "token_embd.weight", tensors["word_embedding.weight"]
    yield "position_embd.weight", tensors["position_embedding.weight"]
    names = {"attn_norm": "attention_norm", "attn_output": "attention.output", "ffn_norm": "ffn_norm"}
    names |= {"ffn_up": "ffn.up", "ffn_down": "ffn.down"}
    for part in ("weight", "bias"):
        yield f"output_norm.{part}", tensors[f"final_norm.{part}"]
        for layer, ours in enumerate(model.layer_names()):
            for theirs, name in names.items():
                yield f"blk.{layer}.{theirs}.{part}", tensors[f"{ours}.{name}.{part}"]
            qkv = [tensors[f"{ours}.attention.{name}.{part}"] for name in ("query", "key", "value")]
            yield f"blk.{layer}.attn_qkv.{part}", np.concatenate(qkv)
