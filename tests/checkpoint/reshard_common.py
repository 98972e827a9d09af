"""Models, plans and expected slices of the tests of resharding."""

import json
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import safetensors_file, store
from pangu_ms.cli import main as cli
from pangu_ms.config import RunConfig, load_config
from tests.checkpoint.common import assert_same

SIZES = ["hidden_size=64", "num_heads=4", "ffn_hidden_size=512", "num_layers=4", "vocab_size=512", "seq_length=16"]
ALPHA = ["alpha/tiny", *(f"model.{size}" for size in SIZES)]
PI = ["pi/tiny", *(f"model.{size}" for size in SIZES), "model.num_kv_heads=2", "model.aug_shortcut_reduction=4"]
# dp, mp, pp, optimizer_shard, row, layers of each stage
ALPHA_PLANS = [
    (2, 1, 1, 0, 0, 4),
    (1, 2, 1, 0, 1, 4),
    (1, 1, 2, 0, 0, 3, 1),
    (2, 2, 2, 1, 1, 1, 3),
    (4, 1, 1, 1, 0, 4),
    (2, 4, 1, 1, 0, 4),
]
ALPHA_PLANS += [(1, 4, 4, 0, 1, 1, 1, 1, 1), (2, 2, 3, 0, 0, 1, 2, 1), (8, 2, 1, 1, 1, 4)]
PI_PLANS = [(1, 2, 2, 0, 1, 2, 2), (2, 2, 1, 1, 0, 4), (2, 1, 4, 1, 0, 1, 1, 1, 1)]
# The dimension cut over mp, by a part of the name.
CUT_DIM = {
    ".query.": 0,
    ".key.": 0,
    ".value.": 0,
    ".up.": 0,
    ".gate.": 0,
    ".output.weight": 1,
    ".down.weight": 1,
    ".siaf.": 1,
}


def overrides(plan: tuple[int, ...]) -> list[str]:
    """Of a configuration that lies as the plan."""
    dp, mp, pp, shard, row, *layers = plan
    values = {
        "data_parallel": dp,
        "model_parallel": mp,
        "pipeline_stage": pp,
        "micro_batch_num": pp,
        "optimizer_shard": bool(shard),
        "stage_layers": layers,
    }
    values["vocab_embedding"] = "row" if row else "replicated"
    return [f"parallel.{key}={json.dumps(value)}" for key, value in values.items()] + ["train.batch_size=12"]


def whole_arrays(config: RunConfig) -> dict[str, dict[str, np.ndarray]]:
    """Model, moments, and something that belongs to no parameter."""
    random = np.random.default_rng(3)
    model = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in config.model.parameter_shapes().items()
    }
    model["final_norm.weight"] = model["final_norm.weight"].astype(np.float16)
    optimizer = {
        prefix + name: random.normal(size=array.shape).astype(np.float32)
        for prefix in ("adam_m.", "adam_v.")
        for name, array in model.items()
    }
    return {"model": model, "optimizer": optimizer | {"count": np.array(7), "seen": np.arange(5) > 2}}


def planned(base: list[str], plan: tuple[int, ...]) -> RunConfig:
    """A model with a plan."""
    return load_config(base[0], [*base[1:], *overrides(plan)])


def save(root: Path, config: RunConfig, groups=None, **options) -> Path:
    """A whole checkpoint of step 5."""
    return store.save(root, 5, groups or whole_arrays(config), {"step": 5, "words": "whole \u9e4f"}, config, **options)


def rank_slice(plan, name: str, array: np.ndarray, rank: int, tied: bool = True) -> tuple[np.ndarray, bool] | None:
    """What a rank holds by the rules as words say them, and whether it is the first to hold it; None if its stage has
    it not.

    `tied`: the word table is read by the first and the last stage, so that the optimizer leaves it whole where these
    are two.
    """
    dp, mp, pp, shard, row, *layers = plan
    stage, (i, j) = rank // (dp * mp), divmod(rank % (dp * mp), mp)
    base = name.removeprefix("adam_m.").removeprefix("adam_v.")
    layer = (
        sum(layers) - 1
        if base.startswith("query_layer")
        else int(base.split(".")[1])
        if base.startswith("blocks")
        else None
    )
    if layer is not None:
        stages = [int(np.searchsorted(np.cumsum(layers), layer, "right"))]
    else:
        stages = [pp - 1] if base.startswith(("query_embedding", "final_norm", "head")) else [0]
    if tied and base == "word_embedding.weight":
        stages = sorted({0, pp - 1})
    if stage not in stages:
        return None
    dim = next(
        (
            d
            for part, d in CUT_DIM.items()
            if layer is not None and part in base and "shortcut" not in base and "norm" not in base
        ),
        None,
    )
    dim = 0 if row and base in ("word_embedding.weight", "head.weight") else dim
    part = array if dim is None else np.split(array, mp, dim)[j]
    free, at = (dp * mp, i * mp + j) if dim is None else (dp, i)
    if shard and len(stages) == 1 and array.ndim and 4 * array.size >= 65536 and part.shape[0] % free == 0:
        return np.split(part, free)[at], stage == stages[0]
    return part, at == 0 and stage == stages[0]


def assert_lies_as(checkpoint: store.Checkpoint, plan, groups: dict[str, dict[str, np.ndarray]]) -> None:
    """Every rank's file has exactly the slices that the rank is the first to hold, and no other file is there."""
    dp, mp, pp = plan[:3]
    wanted, tied = {}, "head.weight" not in groups["model"]
    for group, tensors in groups.items():
        for rank in range(dp * mp * pp):
            held = {name: rank_slice(plan, name, array, rank, tied) for name, array in tensors.items()}
            own = {name: found[0] for name, found in held.items() if found and found[1]}
            wanted |= {f"{group}-rank-{rank:05d}.safetensors": own} if own else {}
    assert {path.name for path in checkpoint.path.glob("*.safetensors")} == wanted.keys()
    for file, own in wanted.items():
        assert_same(safetensors_file.read(checkpoint.path / file), own)


def fails(capsys, *arguments) -> str:
    """The one line that `pangu ckpt reshard` says to a user's mistake."""
    assert cli.main(["ckpt", "reshard", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pangu ckpt: ")]
    return line
