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
from pangu_ms.models.common.layers import CacheShape, Linear, Operator, RoutedExperts, StackedLinear
from pangu_ms.models.moge.config import MogeConfig
from pangu_ms.models.pi.model import Block, FeedForward, PanguPi


class GroupedRouter(Linear):
    """The probability of each expert, a softmax over all of them in float32: [B, S, E] -> [B, S, N]. `choose` chooses
    the experts of each token."""

    def __init__(self, config: MogeConfig):
        super().__init__(config.hidden_size, config.num_experts, bias=False)
        groups, size = config.num_expert_groups, config.num_experts // config.num_expert_groups
        self.scale = Parameter(initializer("ones", (1, config.num_experts)), name="scale")
        self.num_experts, self.num_choices = config.num_experts, config.experts_per_token
        self.shape_of_groups, self.choices_in_group = (-1, groups, size), config.experts_per_token // groups
        # In steps of a group's size; vendor code takes steps of C, which are the same only for its 64 experts.
        self.first_expert_G1 = Tensor(np.arange(0, config.num_experts, size, dtype=np.int32).reshape(groups, 1))
        self.softmax, self.top_k = ops.Softmax(-1), ops.TopK()

    def construct(self, x_BSE):
        return self.softmax(ascend_ops.linear(ops.cast(x_BSE, ms.float32), self.weight, None, self.axes))

    def choose(self, probabilities_BSN, scale_1N):
        """Of each group the experts with the largest probabilities, C / G of them: experts int32 [T, C], and their
        weights [T, C], which are the probabilities times the learned scales and do not add up to 1."""
        chosen, index_in_group = self.largest(probabilities_BSN)
        expert_TC = ops.reshape(index_in_group + self.first_expert_G1, (-1, self.num_choices))
        weights_TC = ops.reshape(chosen, (-1, self.num_choices)) * ops.gather(scale_1N[0], expert_TC, 0)
        return expert_TC, weights_TC

    def largest(self, probabilities_BSN):
        """The largest probabilities of each group, and their indices in it: [T, G, C / G]."""
        return self.top_k(ops.reshape(probabilities_BSN, self.shape_of_groups), self.choices_in_group)

    def balance_loss(self, probabilities_BSN):
        """N * sum_e f_e p_e of a batch, a float32 scalar: f_e, which has no gradient, is the part of all choices that
        fell on expert e, and p_e the mean of its probability. Source: arXiv 2505.21411, eq. 8.

        It is 1 if all are equal, and larger if the experts with the most tokens have the largest probabilities.
        """
        probabilities_TGS = ops.stop_gradient(ops.reshape(probabilities_BSN, self.shape_of_groups))
        smallest_TG1 = self.largest(probabilities_TGS)[0][:, :, -1:]
        is_chosen_TGS = ops.cast(probabilities_TGS >= smallest_TG1, ms.float32)
        fraction_N = ops.reshape(is_chosen_TGS.mean(0), (-1,)) / self.num_choices
        return self.num_experts * (fraction_N * ops.reshape(probabilities_BSN, (-1, self.num_experts)).mean(0)).sum()


class Experts(nn.Cell):
    """The weights of the gated networks of all experts."""

    def __init__(self, config: MogeConfig):
        super().__init__()
        sizes = config.hidden_size, config.moe_intermediate_size
        self.gate = StackedLinear(config.num_experts, *sizes, bias=False)
        self.up = StackedLinear(config.num_experts, *sizes, bias=False)
        self.down = StackedLinear(config.num_experts, *sizes[::-1], bias=False)


class MixtureOfGroupedExperts(RoutedExperts):
    """shared(x) + sum of weight * expert(x) over the experts that a token goes to: [B, S, E] -> ([B, S, E], balance
    loss)."""

    axes = (
        ("batch", None, None),
        ("batch", None, None),
        (None, None),
        ("expert", "expert_ffn", None),
        ("expert", "expert_ffn", None),
        ("expert", None, "expert_ffn"),
    )

    def __init__(self, config: MogeConfig):
        super().__init__(config.num_experts)
        self.router = GroupedRouter(config)
        self.experts = Experts(config)
        self.shared = FeedForward(config)
        self.activation, self.glu = config.hidden_act, Operator(ascend_ops.swiglu)
        self.fork_input = ascend_ops.fork(3)

    def construct(self, x_BSE):
        for_router, for_experts, for_shared = self.fork_input(x_BSE)
        probabilities_BSN, experts = self.router(for_router), self.experts
        compute = self.compute if self.on_devices is None else self.on_devices
        y_BSE = compute(
            for_experts,
            probabilities_BSN,
            self.router.scale,
            experts.gate.weight,
            experts.up.weight,
            experts.down.weight,
        )
        y_BSE = ascend_ops.add_to_stream(self.shared(for_shared), y_BSE)
        return y_BSE, self.router.balance_loss(probabilities_BSN)

    def compute(self, x_BSE, probabilities_BSN, scale_1N, gate_NFE, up_NFE, down_NEF):
        """The sum over experts, as a function of the parameters, of which a device may have slices."""
        expert_TC, weights_TC = self.router.choose(probabilities_BSN, scale_1N)
        rows, counts_N, way = self.dispatcher.dispatch(x_BSE.reshape(-1, x_BSE.shape[-1]), expert_TC)
        gate, up = (
            ascend_ops.grouped_matmul(rows, gate_NFE, counts_N),
            ascend_ops.grouped_matmul(rows, up_NFE, counts_N),
        )
        rows = ascend_ops.grouped_matmul(
            self.glu(gate, up, None, None, None, None, self.activation), down_NEF, counts_N
        )
        return self.dispatcher.combine(rows, way, weights_TC).reshape(x_BSE.shape)


class MogeBlock(Block):
    """A block of pi with a Mixture of Grouped Experts: [B, S, E] -> ([B, S, E], balance loss)."""

    def network(self, config: Any) -> nn.Cell:
        """See Block."""
        return MixtureOfGroupedExperts(config)

    def construct(self, x_BSE, segments_BS, places, cos_sin_BSD):
        normed_BSE, x_BSE = self.attend(x_BSE, segments_BS, places, cos_sin_BSD)
        y_BSE, balance_loss = self.ffn(normed_BSE)
        return ascend_ops.add_to_stream(x_BSE, y_BSE), balance_loss

    def with_choices(self, x_BSE, segments_BS, cos_sin_BSD):
        """([B, S, E], the experts of each token, int32 [T, C])."""
        normed_BSE, x_BSE = self.attend(x_BSE, segments_BS, None, cos_sin_BSD)
        expert_TC, _ = self.ffn.router.choose(self.ffn.router(normed_BSE), self.ffn.router.scale)
        return ascend_ops.add_to_stream(x_BSE, self.ffn(normed_BSE)[0]), expert_TC


class PanguMoge(PanguPi):
    """The language model; see PanguPi for its methods."""

    def __init__(self, config: MogeConfig, cache: CacheShape | None = None):
        super().__init__(config, cache)
        self.balance_loss_coef = config.balance_loss_coef

    def block_class(self) -> type[Block]:
        """See PanguPi."""
        return MogeBlock

    def stream_and_balance_loss(self, ids_BS, positions_BS, segments_BS, places):
        """(`stream`, sum of the layers' balance losses)."""
        x_BSE, cos_sin_BSD = self.embed(ids_BS), self.rotation(positions_BS)
        total = 0.0
        for block in self.blocks:
            x_BSE, balance_loss = block(x_BSE, segments_BS, places, cos_sin_BSD)
            total += balance_loss
        return x_BSE, total

    def with_balance_loss(self, ids_BS, positions_BS, segments_BS, key):
        """(`construct`, balance_loss_coef times the sum of the layers' balance losses)."""
        x_BSE, balance_loss = self.stream_and_balance_loss(ids_BS, positions_BS, segments_BS, None)
        return self.logits(x_BSE, self.head_table()), self.balance_loss_coef * balance_loss

    def stream(self, ids_BS, positions_BS, segments_BS, places):
        """See PanguPi."""
        return self.stream_and_balance_loss(ids_BS, positions_BS, segments_BS, places)[0]

    def chosen_experts(self, ids_BS, positions_BS, segments_BS):
        """The experts that each token goes to: for each layer int32 [T, C]."""
        x_BSE, cos_sin_BSD = self.embed(ids_BS), self.rotation(positions_BS)
        chosen = ()
        for block in self.blocks:
            x_BSE, expert_TC = block.with_choices(x_BSE, segments_BS, cos_sin_BSD)
            chosen += (expert_TC,)
        return chosen

    def hidden_states(self, ids_BS, positions_BS, segments_BS):
        """See PanguPi."""
        cos_sin_BSD = self.rotation(positions_BS)
        states = (self.embed(ids_BS),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None, cos_sin_BSD)[0],)
        return states


MODEL = PanguMoge
