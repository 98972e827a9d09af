"""A small run whose tensors are a function of the step, so that a mix-up of steps shows."""

from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config import RunConfig, load_config

SIZES = [
    "model.vocab_size=12",
    "model.hidden_size=8",
    "model.num_heads=2",
    "model.seq_length=6",
    "model.ffn_hidden_size=20",
]


def small_config(num_layers: int = 3) -> RunConfig:
    """V 12, E 8, F 20, S 6: no two of them equal, so that every transposition shows."""
    return load_config("alpha/tiny", [*SIZES, f"model.num_layers={num_layers}"])


def groups_of(step: int, generation: int = 0, rows: int = 40) -> dict[str, dict[str, np.ndarray]]:
    """Model and optimizer tensors of several dtypes; `generation` tells two saves of one step apart."""
    random = np.random.default_rng([step, generation])
    model = {
        "a.weight": random.normal(size=(rows, 30)).astype(np.float32),
        "a.bias": random.normal(size=30).astype(np.float16),
    }
    return {"model": model, "optimizer": {"moment": random.normal(size=(rows, 30)), "count": np.array(step)}}


def save(root: Path, step: int, generation: int = 0, rows: int = 40, **options) -> Path:
    """Save the tensors of a step."""
    return store.save(
        root,
        step,
        groups_of(step, generation, rows),
        {"step": step, "generation": generation},
        small_config(),
        **options,
    )


def assert_is_step(checkpoint: store.Checkpoint | None, step: int, rows: int = 40) -> None:
    """The checkpoint holds exactly what was saved at `step`."""
    assert checkpoint is not None and checkpoint.step == step and checkpoint.state()["step"] == step
    expected = groups_of(step, checkpoint.state()["generation"], rows)
    assert checkpoint.groups == list(expected)
    for group, tensors in expected.items():
        assert_same(checkpoint.tensors(group), tensors)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same names, dtypes, shapes and values."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
