"""Prefill and cached decoding in one graph over one copy of the weights.

Two static graphs would hold the weights twice, in memory and in a MindIR file; a graph of dynamic length decodes
several times slower. So the graph has both branches, and a prompt of any length is fed in chunks of one size.

Shapes: B batch, P chunk, C cache positions per sequence; see models/layers.py.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_ms.models.build import build_model, caches
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.layers import CacheShape


class CachedModel(nn.Cell):
    """Appends tokens to the cache and returns the logits of one of them for each sequence."""

    def __init__(self, config: ModelConfig, cache: CacheShape):
        super().__init__(auto_prefix=False)
        self.model = build_model(config, cache)
        self.last_position = Tensor(config.seq_length - 1, ms.int32)
        self.slots_C = Tensor(np.arange(cache.capacity, dtype=np.int32))
        self.batch_B1 = Tensor(np.arange(cache.batch_size, dtype=np.int32).reshape(-1, 1))
        self.minimum, self.concat = ops.Minimum(), ops.Concat(1)
        self.set_train(False)

    def construct(self, ids_BP, start_B, last_B, prefill):
        """Logits float32 [B, V] of the token at index `last` of each sequence's new tokens.

        ids int32 [B, P]; start int32 [B], position of each sequence's first new token; last int32 [B]; prefill bool
        scalar: False takes the first token of each row alone.
        """
        if prefill:
            return self.extend(ids_BP, start_B, last_B)
        return self.extend(ids_BP[:, :1], start_B, last_B * 0)

    def extend(self, ids_BQ, start_B, last_B):
        slots_BQ = start_B.reshape(-1, 1) + self.slots_C[: ids_BQ.shape[1]].reshape(1, -1)
        positions_BQ = self.minimum(
            slots_BQ, self.last_position
        )  # the filling behind a prompt may pass the position table's end
        last_B2 = self.concat((self.batch_B1, last_B.reshape(-1, 1)))
        return self.model.extend(ids_BQ, positions_BQ, last_B2, slots_BQ)

    def caches(self) -> list[Parameter]:
        """The state: keys and values of every attention."""
        return caches(self.model)


class ReorderCaches(nn.Cell):
    """Gives each sequence of the batch the cache of another one, for beam search."""

    def __init__(self, model: CachedModel, batch_size: int):
        super().__init__(auto_prefix=False)
        self.caches, self.batch_size = ms.ParameterTuple(model.caches()), batch_size
        self.gather, self.assign = ops.Gather(), ops.Assign()

    def construct(self, rows_B):
        """rows int32 [B]: sequence b continues what sequence rows[b] was."""
        for cache in self.caches:
            self.assign(cache, self.gather(cache.reshape(self.batch_size, -1), rows_B, 0).reshape(cache.shape))
        return rows_B
