"""The exchange of tokens between the ranks that hold the experts of a group.

A graph has static shapes. So a rank sends each rank of the group, itself included, a bucket with a fixed number of
rows, of which the last ones are zeros; expert_batches.py checks beforehand that all tokens have room. How many rows
each expert gets is sent first.

Legend: N tokens of a rank, E hidden, n ranks of the group, k experts of a rank, C rows of a bucket.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import create_group

import ascend_ops
from pangu_ms.config.parallel import owner_blocks
from pangu_ms.models.common.layers import TokenDispatcher
from pangu_ms.parallel.expert_batches import bucket_rows
from pangu_ms.parallel.plan import Plan

RANKS_ATTRIBUTE = "ranks_of_group"
"""Attribute of collectives with the ranks of their group, for the rehearsal."""


class TokenExchange(TokenDispatcher):
    """The dispatcher of one rank of a plan."""

    def __init__(self, plan: Plan, rank: int):
        parallel, model, mesh = plan.config.parallel, plan.config.model, plan.mesh
        place = dict(zip(mesh.names, mesh.coordinate(rank).axes)).get("ep", 0)
        owners = next(block for block in owner_blocks(parallel, model) if place in block)
        num_ranks, here = len(owners), model.num_experts // parallel.expert_parallel
        super().__init__(num_ranks * here)
        self.num_ranks, self.experts_here = num_ranks, here
        self.is_last_k = Tensor(np.arange(here) == here - 1, ms.int32)
        self.first_expert, self.bucket = owners.start * self.experts_here, bucket_rows(plan, self.num_ranks)
        self.swap = self.sum = None
        if self.num_ranks > 1:
            ranks = mesh.group(rank, "ep")[owners.start : owners.stop]
            self.swap = _of_group(ranks, "experts", lambda group: ops.AlltoAll(self.num_ranks, 0, 0, group))
        if parallel.model_parallel > 1:
            self.share = 1.0 / parallel.model_parallel
            self.sum = _of_group(mesh.group(rank, "mp"), "channels", lambda group: ops.AllReduce("sum", group))

    def dispatch(self, x_NE, expert_N):
        """See TokenDispatcher. The last expert also gets the rows of zeros, whose results nobody reads."""
        rows_NE, order_N, counts = ascend_ops.moe_dispatch(x_NE, expert_N - self.first_expert, self.num_experts)
        if self.swap is None:
            return rows_NE, counts, (order_N,)
        counts_nk = counts.reshape(self.num_ranks, self.experts_here)
        sent_n1 = ops.cast(counts_nk.sum(1), ms.int32).reshape(-1, 1)
        start_n1 = ops.cumsum(sent_n1, 0) - sent_n1
        place_1C = ops.arange(self.bucket).reshape(1, -1)
        source_nC = ops.minimum(start_n1 + place_1C, rows_NE.shape[0] - 1)
        filled_nC = ops.cast(place_1C < sent_n1, x_NE.dtype)
        buckets = ops.gather(rows_NE, source_nC.reshape(-1), 0) * filled_nC.reshape(-1, 1)
        received = self.swap(buckets)
        # as float32, exact up to 2^24: the all-to-all of a rehearsed graph on CPUs is a sum of floats
        ends_n1k = ops.cumsum(self.swap(ops.cast(counts_nk, ms.float32)), 1).reshape(self.num_ranks, 1, -1)
        expert_nC = ops.cast((place_1C.reshape(1, -1, 1) >= ends_n1k).sum(2), ms.int32)
        rows, order, counts = ascend_ops.moe_dispatch(received, expert_nC.reshape(-1), self.experts_here + 1)
        counts_k = counts[:-1] + self.is_last_k * counts[-1:]
        return rows, counts_k, (order_N, order, self._place_in_buckets(sent_n1, start_n1, rows_NE.shape[0]))

    def combine(self, rows, way, weights=None):
        """See TokenDispatcher."""
        if self.swap is not None:
            rows = ops.gather(self.swap(ascend_ops.moe_combine(rows, way[1])), way[2], 0)
        y_NE = ascend_ops.moe_combine(rows, way[0], weights)
        return y_NE if self.sum is None else self.sum(y_NE)

    def _place_in_buckets(self, sent_n1, start_n1, num_rows):
        """[N] int32: where in the buckets each row, sorted by expert, is."""
        row_N = ops.arange(num_rows)
        rank_N = ops.cast((row_N.reshape(1, -1) >= start_n1 + sent_n1).sum(0), ms.int32)
        return rank_N * self.bucket + row_N - ops.gather(start_n1.reshape(-1), rank_N, 0)


def _of_group(ranks: list[int], kind: str, make: Any) -> Any:
    """A collective over ranks, for which a group is created. MindSpore's own names of groups begin with their size."""
    group = f"{len(ranks)}-{kind}-of-{ranks[0]}"
    create_group(group, ranks)
    return make(group).add_prim_attr(RANKS_ATTRIBUTE, tuple(ranks))
