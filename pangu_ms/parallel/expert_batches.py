"""Batches for experts that are sharded over ranks: each sequence goes to a rank that holds experts of its domain, and
the rows that ranks send each other must fit into buckets. No mindspore import.

MindSpore splits a micro-batch over the ranks of a stage along dp and ep; sequences j * b to (j + 1) * b - 1 go to
rank j.
"""

import math
from collections.abc import Mapping

import numpy as np

from pangu_ms.config.parallel import bucket_rows_per_token, owner_blocks
from pangu_ms.core.errors import PlanError
from pangu_ms.models.common.batch import Batch
from pangu_ms.parallel.plan import Plan


def arranged(batch: Batch, plan: Plan) -> Batch:
    """The sequences of a global batch in an order in which each goes to a rank that holds experts of its domain.

    Raises:
        PlanError: the ranks of a group would get too many or too few sequences.
    """
    model, parallel = plan.config.model, plan.config.parallel
    blocks = owner_blocks(parallel, model)
    if len(blocks) == 1:
        return batch
    block_of_rank = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    owners = _owners_of_groups(blocks, model.group_sizes)
    block_of_domain = np.array([owners[group] for group in model.group_of_domain])
    found = block_of_domain[batch.extra["domain"]]
    size = len(found) // plan.num_micro_batches // parallel.data_parallel
    rounds = plan.num_micro_batches * parallel.data_parallel // parallel.expert_parallel
    wanted = np.tile(np.repeat(block_of_rank, size), rounds)
    order = np.empty(len(found), np.int64)
    for i, block in enumerate(blocks):
        rows, places = np.flatnonzero(found == i), np.flatnonzero(wanted == i)
        if len(rows) != len(places):
            names = ", ".join(name for name, at in zip(model.domains, block_of_domain) if at == i)
            ep = parallel.expert_parallel
            raise PlanError(
                f"parallel.expert_parallel={ep}: a batch has {len(rows)} of {len(found)} sequences in domains {names};"
                f" the {len(block)} of {ep} ranks that hold their experts take {len(places)}; set"
                f" data.samples_per_domain so that these domains have {len(block)}/{ep} of train.batch_size"
            )
        order[places] = rows
    return batch.take(order)


def _owners_of_groups(blocks: list[range], group_sizes: tuple[int, ...]) -> list[int]:
    """The number of the block that holds each group."""
    per_rank = sum(group_sizes) // blocks[-1].stop
    starts = np.cumsum((0, *group_sizes[:-1])) // per_rank
    return [next(i for i, block in enumerate(blocks) if start in block) for start in starts.tolist()]


def bucket_rows(plan: Plan, ranks: int) -> int:
    """Rows of the bucket that a rank sends to each of the `ranks` of its group, for one micro-batch."""
    config = plan.config
    tokens = config.train.batch_size // plan.num_micro_batches * config.model.seq_length
    return math.ceil(tokens * bucket_rows_per_token(config.parallel, config.model, ranks))


def tokens_sent(batch: Batch, tables: Mapping[str, np.ndarray], plan: Plan) -> np.ndarray:
    """How many tokens each rank sends to each rank along ep in each sparse layer: int64 [tables, micro-batches, ranks
    along dp and ep, ep].

    Args:
        batch: a global batch, as `arranged` orders it.
        tables: the model's tables of experts, int32 [domains, V] by name.
    """
    parallel, model = plan.config.parallel, plan.config.model
    ep, here = parallel.expert_parallel, model.num_experts // parallel.expert_parallel
    shape = (plan.num_micro_batches, parallel.data_parallel)
    sender = np.arange(math.prod(shape)).reshape(-1, 1)
    sent = []
    for table in tables.values():
        owner = table[batch.extra["domain"][:, None], batch.ids[:, :-1]].reshape(len(sender), -1) // here
        counts = np.bincount((sender * ep + owner).ravel(), minlength=len(sender) * ep)
        sent.append(counts.reshape(*shape, ep))
    return np.array(sent)


def require_room(batch: Batch, tables: Mapping[str, np.ndarray], plan: Plan) -> None:
    """Check that every bucket holds what a batch sends; no token is dropped.

    Args:
        batch, tables: see `tokens_sent`.

    Raises:
        PlanError: a bucket is too small.
    """
    parallel = plan.config.parallel
    ranks = max(map(len, owner_blocks(parallel, plan.config.model)))
    room = bucket_rows(plan, ranks)
    if ranks == 1 or parallel.expert_capacity_factor == 0 or plan.config.model.num_balanced_groups > 1:
        return
    most = int(tokens_sent(batch, tables, plan).max(initial=0))
    if most > room:
        tokens = plan.config.train.batch_size // plan.num_micro_batches * plan.config.model.seq_length
        raise PlanError(
            f"parallel.expert_capacity_factor={parallel.expert_capacity_factor:g}: a rank has {most} tokens for another"
            f" one in a layer, and a bucket holds {room}; no token is dropped; set it to"
            f" {math.ceil(100 * most * ranks / tokens) / 100:g} or more, or to 0, and resume; or use routing_mode="
            "frequency_balanced for a new model"
        )
