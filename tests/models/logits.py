"""Logits of models with given weights."""

import numpy as np
from mindspore import Tensor, nn

from ascend_ops import backend
from pangu_ms.models.build import build_model, fill, weights
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES

_models: dict[str, nn.Cell] = {}


def model_with(config: ModelConfig, tensors: dict[str, np.ndarray]) -> nn.Cell:
    """The model, without dropout. Models of equal configurations are one, whose graph is compiled once: it has the
    weights of the last call."""
    key = repr((FAMILIES[config.family].model, config, backend.identity()))
    if key not in _models:
        _models[key] = build_model(config).set_train(False)
    fill(weights(_models[key]), tensors)
    return _models[key]


def logits_of(config: ModelConfig, tensors: dict[str, np.ndarray], *inputs: np.ndarray) -> np.ndarray:
    """Logits [B, S, V]; the inputs are ids, positions and segments [B, S], and what else the model reads."""
    batch, extra = inputs[:3], inputs[3:]
    model = model_with(config, tensors)
    found = model(*map(Tensor, batch), Tensor(np.int32(0)), *map(Tensor, extra)).asnumpy()
    return found.reshape(*batch[0].shape, -1)
