"""Loads the model of a checkpoint. Device and dtype may differ from those that it was trained with. mindspore is
imported when a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pangu_ms.checkpoint import store
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig

if TYPE_CHECKING:
    from mindspore import nn

FREE_OVERRIDES = ("runtime.", "model.compute_dtype")
"""Settings that may differ from those that the checkpoint was trained with."""


def checkpoint_config(checkpoint: store.Checkpoint, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a checkpoint, with overrides of the device or the dtype.

    Raises:
        ConfigError: an override changes anything else, which would make another model.
    """
    for override in overrides:
        if not override.startswith(FREE_OVERRIDES):
            raise ConfigError(
                f"{override}: a checkpoint's model is fixed; only runtime.* and model.compute_dtype can be overridden"
            )
    return load_config(str(checkpoint.path / "config.yaml"), list(overrides))


def load_model(checkpoint: store.Checkpoint, config: RunConfig) -> nn.Cell:
    """The checkpoint's model with its weights, without a cache, on the device and in the dtype that `config` says.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of the checkpoint's configuration.
    """
    from pangu_ms.models.build import build_model

    runtime.start(config.runtime.device)
    model = build_model(config.model)
    fill_from(checkpoint, model, config.model)
    return model


def fill_from(checkpoint: store.Checkpoint, model: nn.Cell, config: ModelConfig) -> None:
    """Load the checkpoint's weights into a model that was built from `config`.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of `config`.
    """
    from pangu_ms.models.build import fill, weights

    tensors = checkpoint.tensors("model")
    store.check_names_and_shapes(str(checkpoint.path), tensors, config.parameter_shapes())
    fill(weights(model), tensors)
