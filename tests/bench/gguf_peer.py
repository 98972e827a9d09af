"""GGUF files of llama.cpp's peers of the benchmarks: the part of a PanGu-pi that is a LLaMA, and a GPT-2 in the shape
of a PanGu-alpha.

llama.cpp has neither PanGu-pi's series activation and augmented shortcuts nor PanGu-alpha's query layer, so the files
of such models are of the same sizes, not of the same function. Of a PanGu-pi without both it is the same function, the
one that `pangu convert --to gguf` writes. The files hold no tokenizer.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import gguf_export, gguf_file
from pangu_ms.checkpoint.lazy import InMemory, Stored
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.pi.config import PiConfig
from pangu_ms.models.pi.gguf import describe


def write(path: Path, model: PiConfig | AlphaConfig, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write a model.

    Args:
        path: the file.
        model: shapes.
        tensors: float32 values by the names of `model.parameter_shapes()`.
        dtype: one of gguf_file.DTYPES, for matrices; vectors, and a table of positions, stay float32.
    """
    stored: Stored
    if isinstance(model, PiConfig):
        described = describe(dataclasses.replace(model, siaf_terms=1, aug_shortcut_branches=0))
        architecture, fields = described.architecture, described.fields
        stored = gguf_export.tensors_of(described, _stored(tensors))
    else:
        architecture, fields, stored = "gpt2", gpt2_fields(model), _stored(dict(gpt2_tensors(model, tensors)))
    keys = {"tokenizer.ggml.model": "none"} | {f"{architecture}.{name}": value for name, value in fields.items()}
    gguf_file.write(path, architecture, keys, stored, dtype, exact=("position_embd.weight",))


def _stored(tensors: Mapping[str, np.ndarray]) -> Stored:
    return {name: InMemory.of(name, array) for name, array in tensors.items()}


def gpt2_fields(model: AlphaConfig) -> dict[str, int | float]:
    """Sizes and constants of a GPT-2."""
    return {
        "vocab_size": model.vocab_size,
        "context_length": model.seq_length,
        "embedding_length": model.hidden_size,
        "block_count": model.num_layers,
        "feed_forward_length": model.ffn_hidden_size,
        "attention.head_count": model.num_heads,
        "attention.layer_norm_epsilon": model.layer_norm_eps,
    }


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
