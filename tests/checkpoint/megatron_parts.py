"""Weights as Megatron-LM saves them, cut into parts by hand: names and cuts are those of the published programs, not
of the table under test."""

from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.config import RunConfig, load_config
from tests.checkpoint.torch_writer import notes, save

HEADS, E, F, V, S = 8, 16, 24, 20, 8


def config(num_layers: int = 3, num_heads: int = HEADS) -> RunConfig:
    """A model that eight parts divide."""
    return load_config("alpha/tiny", overrides(num_layers, num_heads))


def overrides(num_layers: int = 3, num_heads: int = HEADS) -> list[str]:
    """That model's difference from alpha/tiny, as on the command line."""
    sizes = {"vocab_size": V, "hidden_size": E, "num_heads": num_heads, "seq_length": S, "ffn_hidden_size": F}
    return [f"model.{name}={size}" for name, size in (sizes | {"num_layers": num_layers}).items()]


def tensors(num_layers: int = 3, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random weights by our names."""
    rng = np.random.default_rng(5)
    shapes = config(num_layers).model.parameter_shapes()
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


# Of a layer: our name, Megatron's, the dimension that parts cut.
LAYER = [
    ("attention_norm.weight", "input_layernorm.weight", None),
    ("attention_norm.bias", "input_layernorm.bias", None),
    ("attention.query.weight", "attention.query.weight", 0),
    ("attention.query.bias", "attention.query.bias", 0),
    ("attention.key.weight", "attention.key.weight", 0),
    ("attention.key.bias", "attention.key.bias", 0),
    ("attention.value.weight", "attention.value.weight", 0),
    ("attention.value.bias", "attention.value.bias", 0),
    ("attention.output.weight", "attention.dense.weight", 1),
    ("attention.output.bias", "attention.dense.bias", None),
    ("ffn_norm.weight", "post_attention_layernorm.weight", None),
    ("ffn_norm.bias", "post_attention_layernorm.bias", None),
    ("ffn.up.weight", "mlp.dense_h_to_4h.weight", 0),
    ("ffn.up.bias", "mlp.dense_h_to_4h.bias", 0),
    ("ffn.down.weight", "mlp.dense_4h_to_h.weight", 1),
    ("ffn.down.bias", "mlp.dense_4h_to_h.bias", None),
]


def parts(
    ours: dict[str, np.ndarray],
    count: int,
    padded: int = V,
    sliced_query_table: bool = False,
    fused: float | None = None,
    heads: int = HEADS,
) -> list[dict[str, Any]]:
    """The `language_model` of each part.

    Args:
        ours: the weights.
        count: number of parts.
        padded: rows of the word table, with random ones behind the vocabulary.
        sliced_query_table: cut the query table into parts, as CodeGeeX does.
        fused: None for separate query, key and value, else the checkpoint_version that says how they are fused.
        heads: number of heads of the model.
    """
    padding = np.random.default_rng(9).normal(size=(padded - V, E)).astype(ours["word_embedding.weight"].dtype)
    words = np.split(np.concatenate([ours["word_embedding.weight"], padding]), count)
    queries = ours["query_embedding.weight"]
    num_layers = sum(name.endswith("ffn.up.bias") for name in ours)
    made = []
    for rank in range(count):
        transformer = {}
        for i in range(num_layers):
            last = i == num_layers - 1
            here, there = ("query_layer", "topQueryLayer") if last else (f"blocks.{i}", f"layers.{i}")
            for our_name, name, dim in LAYER:
                array = ours[f"{here}.{our_name}"]
                transformer[f"{there}.{name}"] = array if dim is None else np.split(array, count, dim)[rank]
            if fused is not None:
                fuse(transformer, there, fused, heads // count, key_value=last)
        for leaf in ("weight", "bias"):
            transformer[f"final_layernorm.{leaf}"] = ours[f"final_norm.{leaf}"]
        table = np.split(queries, count)[rank] if sliced_query_table else queries
        made.append(
            {
                "embedding": {
                    "word_embeddings": {"weight": words[rank]},
                    "position_embeddings": {"weight": ours["position_embedding.weight"]},
                },
                "topQueryEmbedding": {"top_query_embeddings": {"weight": table}},
                "transformer": transformer,
            }
        )
    return made


def fuse(transformer: dict[str, np.ndarray], layer: str, version: float, heads: int, key_value: bool) -> None:
    """Fuse projections as Megatron-LM orders them in that version; the query layer's query stays apart, as its input is
    another."""
    kinds = ("key", "value") if key_value else ("query", "key", "value")
    for leaf in ("weight", "bias"):
        one = [transformer.pop(f"{layer}.attention.{kind}.{leaf}") for kind in kinds]
        rest = one[0].shape[1:]
        stacked = np.stack([array.reshape(heads, -1, *rest) for array in one])  # [kind, head, row of the head]
        order = {0: (0, 1, 2), 1: (1, 2, 0), 2: (1, 0, 2), 3: (1, 0, 2)}[int(version)]
        turned = stacked.transpose(*order, *range(3, stacked.ndim))
        transformer[f"{layer}.attention.{'_'.join(kinds)}.{leaf}"] = turned.reshape(-1, *rest)


def write(directory: Path, made: list[dict[str, Any]], version: float | None = 3.0, **args: Any) -> Path:
    """DIRECTORY/iter_0001000/mp_rank_NN/model_optim_rng.pt of each part, and the file that names the iteration."""
    for rank, part in enumerate(made):
        saved = {"model": {"language_model": part}, **notes(1000, version, num_attention_heads=HEADS, **args)}
        save(directory / "iter_0001000" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", saved)
    (directory / "latest_checkpointed_iteration.txt").write_text("1000")
    return directory
