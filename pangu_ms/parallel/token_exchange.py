"""Exchange of tokens between the ranks that hold the experts of a group.

A rank has as many experts as every other one. Each rank of a group sends every other one, and itself, a bucket of the
same number of rows, since a graph has static shapes; the rows behind the last token of a bucket are zeros.
"""

import mindspore as ms
from mindspore import ops
from mindspore.communication import create_group

import ascend_ops
from pangu_ms.config.parallel import group_owners
from pangu_ms.models.common.layers import TokenDispatcher
from pangu_ms.parallel.plan import Plan


class TokenExchange(TokenDispatcher):
    """A dispatcher of one rank among the `size` ranks that hold a group of experts."""

    def __init__(
        self, experts_here: int, first_expert: int, size: int, bucket: int, group: str, of_sum: str, parts: int
    ):
        super().__init__(experts_here * size)
        self.experts_here, self.first_expert, self.size, self.bucket = experts_here, first_expert, size, bucket
        self.share = 1.0 / parts
        self.swap = ops.AlltoAll(size, 0, 0, group) if size > 1 else None
        self.sum = ops.AllReduce("sum", of_sum) if parts > 1 else None

    @classmethod
    def of(cls, plan: Plan, rank: int):
        mesh, model = plan.mesh, plan.config.model
        ep = plan.config.parallel.expert_parallel
        index = dict(zip(mesh.names, mesh.coordinate(rank).axes)).get("ep", 0)
        here = model.num_experts // ep
        owners = next(r for r in group_owners(model.group_sizes, ep) if index in r)
        along = mesh.group(rank, "ep") if ep > 1 else [rank]
        ranks, mp = [along[i] for i in owners], mesh.group(rank, "mp")
        names = []
        for kind, members in (("owners", ranks), ("mp", mp)):
            names.append(f"{len(members)}-{kind}-of-{members[0]}")
            if len(members) > 1:
                create_group(names[-1], members)
        made = cls(here, owners.start * here, len(ranks), 0, names[0], names[1], len(mp))
        for primitive, members in ((made.swap, ranks), (made.sum, mp)):
            if primitive is not None:
                primitive.add_prim_attr("group_rank_ids", members)
        return made

    def dispatch(self, x_NE, expert_N):
        rows, order, counts = ascend_ops.moe_dispatch(x_NE, expert_N - self.first_expert, self.num_experts)
        if self.swap is None:
            return rows, counts, (order,)
        n, k, C = self.size, self.experts_here, self.bucket or rows.shape[0]
        counts_nk = counts.reshape(n, k)
        sent_n = counts_nk.sum(1)
        start_n = ops.cumsum(sent_n, 0) - sent_n
        place_C = ops.arange(C)
        own_nC = place_C.reshape(1, C) < sent_n.reshape(n, 1)
        from_nC = ops.minimum(start_n.reshape(n, 1) + place_C.reshape(1, C), rows.shape[0] - 1)
        buckets = ops.gather(rows, from_nC.reshape(-1), 0) * ops.cast(own_nC.reshape(-1, 1), rows.dtype)
        received = self.swap(buckets)
        got_nk = ops.cast(self.swap(ops.cast(counts_nk, ms.float32)), ms.int32)
        ends_nk = ops.cumsum(got_nk, 1)
        expert_nC = ops.cast(place_C.reshape(1, C, 1) >= ends_nk.reshape(n, 1, k), ms.int32).sum(2)
        rows_here, order_here, counts_here = ascend_ops.moe_dispatch(received, expert_nC.reshape(-1), k + 1)
        counts_k = ops.concat((counts_here[: k - 1], counts_here[k - 1 :].sum().reshape(1)), 0)
        # of row i of the sorted rows: its place in the buckets
        i_N = ops.arange(rows.shape[0])
        C = self.bucket or rows.shape[0]
        dest_N = ops.cast(i_N.reshape(-1, 1) >= (start_n + sent_n).reshape(1, n), ms.int32).sum(1)
        slot_N = dest_N * C + i_N - ops.gather(start_n, dest_N, 0)
        return rows_here, counts_k, (order, order_here, slot_N)

    def combine(self, rows, way, weights=None):
        if self.swap is not None:
            rows = ops.gather(self.swap(ascend_ops.moe_combine(rows, way[1])), way[2], 0)
        y = ascend_ops.moe_combine(rows, way[0], weights)
        return y if self.sum is None else self.sum(y)
