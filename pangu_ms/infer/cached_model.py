"""Prefill and cached decoding in one graph over one copy of the weights.

Two static graphs would hold the weights twice, in memory and in a MindIR file, and a graph of dynamic length decodes
several times slower. So one graph holds the prefill branch and the decode branch, and a prompt of any length is fed in
chunks of one fixed size.

Shapes: B batch, P chunk, C cache positions per sequence, Q new tokens (P or 1); see models/common/layers.py.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_ms.models.build import build_model, caches
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.layers import CacheShape


class CachedModel(nn.Cell):
    """Appends tokens to the KV cache and returns, for each sequence, the logits at one of these tokens."""

    def __init__(self, config: ModelConfig, cache: CacheShape):
        super().__init__(auto_prefix=False)  # parameters keep the names that they have in checkpoints
        self.model = build_model(config, cache)
        self.last_position = Tensor(config.seq_length - 1, ms.int32)
        self.slots_C = Tensor(np.arange(cache.capacity, dtype=np.int32))
        self.batch_B1 = Tensor(np.arange(cache.batch_size, dtype=np.int32).reshape(-1, 1))
        self.minimum, self.concat = ops.Minimum(), ops.Concat(1)
        self.set_train(False)

    def construct(self, ids_BP, start_B, last_B, prefill, *extra):
        """Append the new tokens of each sequence.

        Args:
            ids_BP: int32, new tokens.
            start_B: int32, position of the first new token of each sequence.
            last_B: int32, which of the new tokens of each sequence to return the logits of, counted from 0.
            prefill: bool scalar; False appends only the first token of each row.
            extra: the family's further inputs, one value for each sequence (`ModelConfig.extra_inputs`): PanGu-Sigma's
                domain, int32 [B].

        Returns:
            Logits float32 [B, V].
        """
        if prefill:
            return self.extend(ids_BP, start_B, last_B, *extra)
        return self.extend(ids_BP[:, :1], start_B, last_B * 0, *extra)  # index 0: each row has one token

    def extend(self, ids_BQ, start_B, last_B, *extra):
        slots_BQ = start_B.reshape(-1, 1) + self.slots_C[: ids_BQ.shape[1]].reshape(1, -1)
        # The padding after a prompt may reach beyond the end of the position table.
        positions_BQ = self.minimum(slots_BQ, self.last_position)
        last_B2 = self.concat((self.batch_B1, last_B.reshape(-1, 1)))
        return self.model.extend(ids_BQ, positions_BQ, last_B2, slots_BQ, *extra)

    def caches(self) -> list[Parameter]:
        """The cached keys and values of every attention."""
        return caches(self.model)


class ReorderCaches(nn.Cell):
    """Copies the KV cache between the sequences of a batch, as beam search needs it."""

    def __init__(self, model: CachedModel, batch_size: int):
        super().__init__(auto_prefix=False)
        self.caches, self.batch_size = ms.ParameterTuple(model.caches()), batch_size
        self.gather, self.assign = ops.Gather(), ops.Assign()

    def construct(self, rows_B):
        """Give sequence b the cache of sequence rows_B[b]; rows_B is int32 [B]."""
        for cache in self.caches:
            self.assign(cache, self.gather(cache.reshape(self.batch_size, -1), rows_B, 0).reshape(cache.shape))
        return rows_B
