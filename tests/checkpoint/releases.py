"""Synthetic releases: parts, strategy file and embeddings as PanGu-alpha was published, made without MindSpore."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pangu_ms.config import RunConfig, load_config
from pangu_ms.core.protobuf import message_field, number_field
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.stored_layout import layout_item
from pangu_ms.parallel.strategy_wire import Content, StrategyItem, write_content
from tests.checkpoint.official_names import BLOCK, IN_OUT

WORDS = ["vocab_size=40", "hidden_size=16", "num_heads=2", "seq_length=8", "ffn_hidden_size=48", "num_layers=3"]
OVERRIDES = [f"model.{word}" for word in WORDS]
TYPES = {"float32": b"Float32", "float16": b"Float16", "int32": b"Int32"}
TABLES = {
    "word_embedding": "backbone.embedding.word_embedding.embedding_table",
    "position_embedding": "backbone.embedding.position_embedding.embedding_table",
    "top_query_embedding": "backbone.top_query_embedding.embedding_table",
}


LATER = {name: official for name, official, *_ in BLOCK}


def official_name(ours: str) -> str:
    """The official name of one of our parameters, by the table of the specification."""
    if ours.endswith("embedding.weight"):
        return TABLES[ours.removesuffix(".weight").replace("query", "top_query")]
    if ours.startswith("final_norm"):
        return "backbone.layernorm." + ("gamma" if ours.endswith("weight") else "beta")
    layer, leaf = ours.split(".", 1)
    if layer == "blocks":
        number, leaf = leaf.split(".", 1)
        return f"backbone.blocks.{number}.{LATER[leaf]}"
    return f"backbone.top_query_layer.{LATER[leaf]}"


def to_official(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our tensors by official names, transposed where the official code has x @ W."""
    named = {official_name(name): array for name, array in ours.items()}
    return {name: np.ascontiguousarray(array.T) if name.endswith(IN_OUT) else array for name, array in named.items()}


def small(*words: str) -> RunConfig:
    """The model of the releases."""
    return load_config("alpha/tiny", [*OVERRIDES, *words])


def layout_of(name: str, shape: tuple[int, ...], dp: int = 2, mp: int = 4) -> Layout:
    """How the released strategy cuts a tensor: rows over all devices, the up-projection over both of its dimensions,
    embeddings, norms and the biases of rows not at all."""
    axes = (("dp", dp), ("mp", mp))
    rows = any(part in name for part in ("dense", "projection.weight", "projection.mapping_weight"))
    if "output.mapping" in name and len(shape) == 2:
        return Layout(shape, axes, ((), ("mp",)), ("dp",))
    if rows or "output.mapping" in name:
        return Layout(shape, axes, (("mp",), *[()] * (len(shape) - 1)), ("dp",))
    return Layout(shape, axes, ((),) * len(shape))


def ckpt(tensors: Iterable[tuple[str, np.ndarray]]) -> bytes:
    """A MindSpore checkpoint file."""
    content = []
    for name, array in tensors:
        tensor = b"".join(number_field(1, size) for size in array.shape or (0,))
        tensor += message_field(2, TYPES[array.dtype.name]) + message_field(3, array.tobytes())
        content.append(message_field(1, message_field(1, name.encode()) + message_field(2, tensor)))
    return b"".join(content)


def old_name(name: str) -> str:
    """The name of 2021, which the released strategy files have."""
    return name.replace("backbone.embedding.", "backbone.")


def write_strategy(path: Path, layouts: dict[str, Layout], stage: int = 0) -> None:
    """A strategy file of one stage."""
    items = {name: layout_item(layout, False) for name, layout in layouts.items()}
    write_content(Content(parallel_layout_item=items, parallel_strategy_item={"Op": StrategyItem([[1]], stage)}), path)


def write_release(
    root: Path,
    tensors: dict[str, np.ndarray],
    layouts: dict[str, Layout] | None = None,
    left_out: tuple[str, ...] = (TABLES["top_query_embedding"],),
) -> Path:
    """Parts, strategy file and embeddings of official tensors; returns the directory of the parts. With `layouts`, no
    strategy file is written.

    The parts are written in another order than that of their numbers. They hold word and position table, the former
    with other values than the .npy file, and not the tables `left_out`. The strategy's names are those of 2021, with
    its optimizer states; the names of the class Mapping are those of 2021 in the strategy and later ones in the parts.
    """
    parts = root / "parts"
    parts.mkdir(parents=True)
    if layouts is None:
        layouts = {name: layout_of(name, array.shape) for name, array in tensors.items()}
        named = {}
        for name, layout in layouts.items():
            old = old_name(name)
            if "projection" in name or "mapping" in name:
                head, _, leaf = old.rpartition(".")
                old = f"{head}.mapping_{leaf}"
            named |= {old: layout, f"adam_m.{old}": layout}
        write_strategy(root / "pangu_ckpt_strategy.ckpt", named)
    ranks = list(range(next(iter(layouts.values())).num_devices))
    random.Random(1).shuffle(ranks)
    for rank in ranks:
        held = []
        for name, array in tensors.items():
            if name in left_out:
                continue
            values = array + 1 if name == TABLES["word_embedding"] else array
            held.append((old_name(name), np.ascontiguousarray(values[layouts[name].slices(rank)])))
        held.append(("step_num", np.array(70, np.int32)))
        (parts / f"filerted_{rank}.ckpt").write_bytes(ckpt(held))
    (root / "npy").mkdir()
    for kind, name in TABLES.items():
        np.save(root / "npy" / f"pangu_alpha_2.6B_{kind}.npy", tensors[name])
    return parts
