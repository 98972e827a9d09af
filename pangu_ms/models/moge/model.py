"""Pangu Pro MoE: openPangu-Embedded's decoder with a Mixture of Grouped Experts in each layer. Source: specification
F2; arXiv 2505.21411.

Shapes: see models/common/layers.py; N experts of a layer in G groups, T = B * S tokens, each of which goes to C
experts.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

import ascend_ops
from pangu_ms.models.common.layers import CacheShape, Linear, Operator, StackedLinear
from pangu_ms.models.moge.config import MogeConfig
from pangu_ms.models.pi.model import Block, FeedForward, PanguPi


class GroupedRouter(Linear):
    """Chooses the experts of each token: [T, E] -> (experts int32 [T, C], weights [T, C], probabilities [T, N]).

    A softmax over all experts, in float32; of each group the experts with the largest probabilities, C / G of them. A
    weight is the probability times the learned scale of the expert. The weights of a token do not add up to 1.
    """

    def __init__(self, config: MogeConfig):
        super().__init__(config.hidden_size, config.num_experts, bias=False)
        groups, size = config.num_expert_groups, config.num_experts // config.num_expert_groups
        self.scale = Parameter(initializer("ones", (1, config.num_experts)), name="scale")
        self.shape_of_groups, self.num_choices = (-1, groups, size), config.experts_per_token
        self.choices_in_group = config.experts_per_token // groups
        # In steps of a group's size; vendor code takes steps of C, which are the same only for its 64 experts.
        self.first_expert_G1 = Tensor(np.arange(0, config.num_experts, size, dtype=np.int32).reshape(groups, 1))
        self.softmax, self.top_k = ops.Softmax(-1), ops.TopK()

    def construct(self, x_TE):
        probabilities_TN = self.softmax(ascend_ops.linear(ops.cast(x_TE, ms.float32), self.weight, None, self.axes))
        chosen, index_in_group = self.top_k(ops.reshape(probabilities_TN, self.shape_of_groups), self.choices_in_group)
        expert_TC = ops.reshape(index_in_group + self.first_expert_G1, (-1, self.num_choices))
        weights_TC = ops.reshape(chosen, (-1, self.num_choices)) * ops.gather(self.scale[0], expert_TC, 0)
        return expert_TC, weights_TC, probabilities_TN


class Experts(nn.Cell):
    """The gated networks of all experts: rows sorted by expert [T * C, E] -> [T * C, E]."""

    def __init__(self, config: MogeConfig):
        super().__init__()
        sizes = config.hidden_size, config.moe_intermediate_size
        self.gate = StackedLinear(config.num_experts, *sizes, bias=False)
        self.up = StackedLinear(config.num_experts, *sizes, bias=False)
        self.down = StackedLinear(config.num_experts, *sizes[::-1], bias=False)
        self.activation, self.glu = config.hidden_act, Operator(ascend_ops.swiglu)

    def construct(self, rows, counts_N):
        gate, up = self.gate(rows, counts_N), self.up(rows, counts_N)
        return self.down(self.glu(gate, up, None, None, None, None, self.activation), counts_N)


class MixtureOfGroupedExperts(nn.Cell):
    """shared(x) + sum of weight * expert(x) over the experts that a token goes to: [B, S, E] -> ([B, S, E], balance
    loss).

    The balance loss is that of a batch: N * sum_e f_e p_e, where f_e is the part of all choices that fell on expert e,
    and p_e the mean of its probability, over all tokens. It is 1 if all are equal, and larger if the experts with the
    most tokens have the largest probabilities. f_e has no gradient.
    """

    def __init__(self, config: MogeConfig):
        super().__init__()
        self.num_experts, self.num_choices = config.num_experts, config.experts_per_token
        self.router = GroupedRouter(config)
        self.experts = Experts(config)
        self.shared = FeedForward(config)
        self.fork_input = ascend_ops.fork(3)

    def construct(self, x_BSE):
        for_router, for_experts, for_shared = self.fork_input(x_BSE)
        width = x_BSE.shape[-1]
        expert_TC, weights_TC, probabilities_TN = self.router(ops.reshape(for_router, (-1, width)))
        rows, order, counts_N = ascend_ops.moe_dispatch(
            ops.reshape(for_experts, (-1, width)), expert_TC, self.num_experts
        )
        y_TE = ascend_ops.moe_combine(self.experts(rows, counts_N), order, weights_TC)
        y_BSE = ascend_ops.add_to_stream(self.shared(for_shared), ops.reshape(y_TE, x_BSE.shape))
        return y_BSE, self.balance_loss(counts_N, probabilities_TN)

    def balance_loss(self, counts_N, probabilities_TN):
        """See the class; a float32 scalar."""
        fraction_N = ops.stop_gradient(ops.cast(counts_N, ms.float32)) / (probabilities_TN.shape[0] * self.num_choices)
        return self.num_experts * (fraction_N * probabilities_TN.mean(0)).sum()


class MogeBlock(Block):
    """A block of pi with a Mixture of Grouped Experts: [B, S, E] -> ([B, S, E], balance loss)."""

    def network(self, config: Any) -> nn.Cell:
        """See Block."""
        return MixtureOfGroupedExperts(config)

    def construct(self, x_BSE, segments_BS, slots_BS, cos_sin_BSD):
        normed_BSE, x_BSE = self.attend(x_BSE, segments_BS, slots_BS, cos_sin_BSD)
        y_BSE, balance_loss = self.ffn(normed_BSE)
        return ascend_ops.add_to_stream(x_BSE, y_BSE), balance_loss


class PanguMoge(PanguPi):
    """The language model; see PanguPi for its methods."""

    def __init__(self, config: MogeConfig, cache: CacheShape | None = None):
        super().__init__(config, cache)
        self.balance_loss_coef = config.balance_loss_coef

    def block_class(self) -> type[Block]:
        """See PanguPi."""
        return MogeBlock

    def stream_and_balance_loss(self, ids_BS, positions_BS, segments_BS, slots_BS):
        """(`stream`, sum of the layers' balance losses)."""
        x_BSE, cos_sin_BSD = self.embed(ids_BS), self.rotation(positions_BS)
        total = 0.0
        for block in self.blocks:
            x_BSE, balance_loss = block(x_BSE, segments_BS, slots_BS, cos_sin_BSD)
            total += balance_loss
        return x_BSE, total

    def with_balance_loss(self, ids_BS, positions_BS, segments_BS, key):
        """(`construct`, balance_loss_coef times the sum of the layers' balance losses)."""
        x_BSE, balance_loss = self.stream_and_balance_loss(ids_BS, positions_BS, segments_BS, None)
        return self.logits(x_BSE, self.head_table()), self.balance_loss_coef * balance_loss

    def stream(self, ids_BS, positions_BS, segments_BS, slots_BS):
        """See PanguPi."""
        return self.stream_and_balance_loss(ids_BS, positions_BS, segments_BS, slots_BS)[0]

    def hidden_states(self, ids_BS, positions_BS, segments_BS):
        """See PanguPi."""
        cos_sin_BSD = self.rotation(positions_BS)
        states = (self.embed(ids_BS),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None, cos_sin_BSD)[0],)
        return states


MODEL = PanguMoge
