"""Tensors of a PanGu-alpha by our names and by foreign ones."""

import numpy as np

from pangu_ms.models.alpha.weights import FORMATS
from tests.checkpoint.common import small_config


def our_tensors(num_layers: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(num_layers)
    return {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in small_config(num_layers).model.parameter_shapes().items()
    }


def foreign_tensors(format: str, num_layers: int = 3) -> dict[str, np.ndarray]:
    return FORMATS[format].to_foreign("here", our_tensors(num_layers), small_config(num_layers).model)
