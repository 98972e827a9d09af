"""PanGu-Sigma: PanGu-alpha with sparse upper layers, whose tokens go to experts by a fixed table. Source: specification
C3.

Shapes: see models/common/layers.py; K experts of a layer, D domains, N = B * Q tokens, and slots of the word embedding.
"""

from mindspore import Parameter, nn
from mindspore import dtype as mstype
from mindspore.common.initializer import initializer

import ascend_ops
from pangu_ms.models.alpha.model import Block, PanguAlpha
from pangu_ms.models.common.layers import CacheShape, Logits, OnOwnSlices, Operator, RoutedExperts, StackedLinear, zeros
from pangu_ms.models.sigma.config import SigmaConfig


def zero_table(name: str, *shape: int) -> Parameter:
    """An int32 table, filled later from a seed or from a checkpoint."""
    return Parameter(initializer("zeros", shape, mstype.int32), name=name, requires_grad=False)


class Experts(nn.Cell):
    """The feed-forward networks of all experts: rows sorted by expert [N, E] -> [N, E]."""

    def __init__(self, config: SigmaConfig):
        super().__init__()
        self.up = StackedLinear(config.num_experts, config.hidden_size, config.ffn_hidden_size)
        self.down = StackedLinear(config.num_experts, config.ffn_hidden_size, config.hidden_size)


class RandomRoutedExperts(RoutedExperts):
    """A feed-forward network for each token, chosen by its domain and its id: [B, Q, E] -> [B, Q, E].

    Without a gate: no probability multiplies a result, and no token is dropped.
    """

    axes = (
        ("batch", None, None),
        ("batch", None),
        ("batch",),
        (None, None),
        ("expert", "ffn", None),
        ("expert", "ffn"),
        ("expert", None, "ffn"),
        ("expert", None),
    )

    def __init__(self, config: SigmaConfig):
        super().__init__(config.num_experts)
        self.routing = zero_table("routing", len(config.domains), config.vocab_size)
        self.experts = Experts(config)
        self.activation = Operator(getattr(ascend_ops, config.hidden_act))

    def construct(self, x_BQE, ids_BQ, domain_B):
        compute = self.compute if self.on_devices is None else self.on_devices
        up, down = self.experts.up, self.experts.down
        return compute(x_BQE, ids_BQ, domain_B, self.routing, up.weight, up.bias, down.weight, down.bias)

    def compute(self, x_BQE, ids_BQ, domain_B, routing_DV, up_KFE, up_bias_KF, down_KEF, down_bias_KE):
        """`construct` as a function of the parameters, of which a device may have slices."""
        expert_N = ascend_ops.rre_route(domain_B, ids_BQ, routing_DV).reshape(-1)
        rows_NE, counts_K, way = self.dispatcher.dispatch(x_BQE.reshape(-1, x_BQE.shape[-1]), expert_N)
        inner_NF = self.activation(ascend_ops.grouped_matmul(rows_NE, up_KFE, counts_K, up_bias_KF))
        bias_KE = down_bias_KE * self.dispatcher.share
        rows_NE = ascend_ops.grouped_matmul(inner_NF, down_KEF, counts_K, bias_KE)
        return self.dispatcher.combine(rows_NE, way).reshape(x_BQE.shape)


class SparseBlock(Block):
    """A block of alpha with RandomRoutedExperts."""

    def network(self, config: SigmaConfig) -> nn.Cell:
        """See Block."""
        return RandomRoutedExperts(config)

    def feed_forward(self, x_BQE, ids_BQ, domain_B):
        """See Block."""
        return self.ffn(x_BQE, ids_BQ, domain_B)


class Slots(nn.Cell):
    """Word tables of the same size, stacked."""

    def __init__(self, num_slots: int, vocab_size: int, hidden_size: int):
        super().__init__()
        self.weight = zeros("weight", num_slots, vocab_size, hidden_size)


class SlottedEmbedding(nn.Cell):
    """A word table for each slot; the domain of a sequence says which one: ids [B, S], domain [B] -> [B, S, E]."""

    def __init__(self, config: SigmaConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.slot_of_domain = zero_table("slot_of_domain", len(config.domains))
        self.slots = Slots(config.num_slots, config.vocab_size, config.hidden_size)

    def construct(self, ids_BS, domain_B):
        first_B1 = (self.slot_of_domain[domain_B] * self.vocab_size).reshape(-1, 1)
        rows = self.slots.weight.reshape(-1, self.slots.weight.shape[-1])
        return ascend_ops.placed("Gather", (None, ("batch", None)))(rows, first_B1 + ids_BS, 0)


class SlottedLogits(Logits, OnOwnSlices):
    """The products of sequences with the word tables of their slots: [B, Q, E], tables [L, V, E] -> [B, Q, V]."""

    axes = (("batch", None, None), (None, "vocab", None), ("batch",))
    result_axes = ("batch", None, "vocab")

    def of_slots(self, x_BQE, tables_LVE, slot_B):
        """`slot` int32 [B] is the slot of each sequence."""
        compute = self.compute if self.on_devices is None else self.on_devices
        return compute(x_BQE, tables_LVE, slot_B)

    def compute(self, x_BQE, tables_LVE, slot_B):
        """See OnOwnSlices."""
        batch, length, width = x_BQE.shape
        rows, order_B, counts_L = ascend_ops.moe_dispatch(x_BQE.reshape(batch, -1), slot_B, tables_LVE.shape[0])
        y_NV = ascend_ops.grouped_matmul(rows.reshape(-1, width), tables_LVE, counts_L * length)
        return ascend_ops.moe_combine(y_NV.reshape(batch, -1), order_B).reshape(batch, length, -1)

    @staticmethod
    def result_shape(x, tables, slot):
        """See OnOwnSlices."""
        return [x[0], x[1], tables[1]]


class PanguSigma(PanguAlpha):
    """The language model; see PanguAlpha for its methods, whose `domain` int32 [B] is the domain of each sequence."""

    def __init__(self, config: SigmaConfig, cache: CacheShape | None = None):
        super().__init__(config, cache)
        self.slotted = config.num_slots > 1
        if self.slotted:
            self.word_embedding = SlottedEmbedding(config)
            self.product_with_table = SlottedLogits()

    def layer_class(self, config: SigmaConfig, layer: int) -> type[Block]:
        """See PanguAlpha."""
        return SparseBlock if layer in config.sparse_layers else Block

    def word_table(self):
        """See PanguAlpha: with several slots all tables [L, V, E]."""
        if self.slotted:
            return self.word_embedding.slots.weight
        return self.word_embedding.weight

    def look_up(self, ids_BS, domain_B):
        """See PanguAlpha."""
        if self.slotted:
            return self.word_embedding(ids_BS, domain_B)
        return self.word_embedding(ids_BS)

    def logits(self, x_BQE, table_VE, domain_B):
        """See PanguAlpha."""
        x_BQE = x_BQE if self.norm_before_query else self.final_norm(x_BQE)
        if self.slotted:
            return self.product_with_table.of_slots(x_BQE, table_VE, self.word_embedding.slot_of_domain[domain_B])
        return self.product_with_table(x_BQE, table_VE)


MODEL = PanguSigma
