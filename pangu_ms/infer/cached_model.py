"""One step of generation as one graph over one copy of the weights.

Sequences stand in slots of the KV cache, each at a position of its own. A step appends one token to each slot and, in
another branch of the graph, a chunk of one prompt to one more slot: prompts of any length are read in chunks of one
size while the other slots generate (Sarathi's stall-free batching, arXiv 2403.02310, with static shapes). Two static
graphs would hold the weights twice in a MindIR file, and a graph of dynamic length decodes several times slower.

Shapes: S slots, P chunk, N new tokens (S or S + P), C positions of a slot; see models/common/layers.py.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pangu_ms.models.build import build_model, caches
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.layers import CacheShape


class CachedModel(nn.Cell):
    """Appends tokens to the KV cache and returns, for each slot, the logits behind one of them."""

    def __init__(self, config: ModelConfig, cache: CacheShape):
        super().__init__(auto_prefix=False)  # parameters keep the names that they have in checkpoints
        self.model = build_model(config, cache)
        self.num_slots = cache.num_slots
        self.slots_S = Tensor(np.arange(cache.num_slots, dtype=np.int32))
        self.concat, self.pick, self.maximum = ops.Concat(), ops.Gather(), ops.Maximum()
        self.set_train(False)

    def construct(self, ids_N, positions_N, last_S, chunk_slot_1, with_chunk, *extra):
        """Append one token to each slot, and a chunk to one of them.

        A row of the N = S + P that is for nobody has position -1. It changes nothing that a later call reads.

        Args:
            ids_N: int32, the next token of each slot, then the tokens of the chunk.
            positions_N: int32, the position of each of them in its sequence, below C, or -1.
            last_S: int32, which of the N rows to return the logits of, for each slot.
            chunk_slot_1: int32 [1], the slot that the chunk is appended to.
            with_chunk: bool scalar; False computes the first S rows alone.
            extra: the family's further inputs, one value for each slot (`ModelConfig.extra_inputs`): PanGu-Sigma's
                domain, int32 [S].

        Returns:
            Logits float32 [S, V].
        """
        if with_chunk:
            return self.append(ids_N, positions_N, last_S, chunk_slot_1, extra)
        S = self.num_slots
        return self.append(ids_N[:S], positions_N[:S], last_S, chunk_slot_1, extra)

    def append(self, ids_N, positions_N, last_S, chunk_slot_1, extra):
        """`construct`, for S or S + P rows."""
        slots_N, num_chunk = self.slots_S, ids_N.shape[0] - self.num_slots
        if num_chunk:
            slots_N = self.concat((slots_N, chunk_slot_1.broadcast_to((num_chunk,))))
        own_slots_N = ops.select(positions_N < 0, -1, slots_N)
        places = (self.maximum(positions_N, 0).reshape(-1, 1), own_slots_N.reshape(-1, 1))
        extra_N = ()
        for value_S in extra:
            extra_N += (self.pick(value_S, slots_N, 0),)
        return self.model.extend(ids_N.reshape(-1, 1), places, last_S, *extra_N)

    def caches(self) -> list[Parameter]:
        """The cached keys and values of every attention."""
        return caches(self.model)
